"""The page, as HTML.  Everything that comes from outside goes through ``escape``."""

from __future__ import annotations

from html import escape
from itertools import groupby

import aiobgw

from .find import Hit, Result
from .store import Progress

WIDEST = 160
BEFORE_MATCH = 60

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="stylesheet" href="/page.css">
<link rel="icon" href="data:,">
<script src="/page.js" defer></script>
</head>
<body>
<header>
<h1><a href="/">Code search</a></h1>
<form action="/" role="search">
<input type="search" name="q" value="{query}" placeholder="async def, tempfile., yield from ..."
 aria-label="Words of a line" autocomplete="off" spellcheck="false" maxlength="200" autofocus>
<button>Search</button>
</form>
</header>
<main>
<section class="results" aria-label="Results">{results}</section>
<aside id="state">{state}</aside>
</main>
</body>
</html>
"""

_INCOMPLETE = '<p class="note working">The index is not complete yet; search again later.</p>'


def page(query: str, result: Result, state_html: str, *, complete: bool) -> str:
    """Return the whole page."""
    return _PAGE.format(
        title=escape(f"{query} - Code search" if query.strip() else "Code search"),
        query=escape(query),
        results=("" if complete else _INCOMPLETE) + _results(query, result),
        state=state_html,
    )


def _results(query: str, result: Result) -> str:
    if not query.strip():
        return (
            '<p class="note">Finds the lines that have all words, in any order and case; the'
            " beginning of a word is enough.</p>"
        )
    if not result.hits:
        return f'<p class="note">No line has <b>{escape(query)}</b>.</p>'
    lines = "1 line" if len(result.hits) == 1 else f"{len(result.hits)} lines"
    more = ", and there are more" if result.more else ""
    groups = groupby(result.hits, key=lambda hit: hit.path)
    files = "".join(_file(path, list(hits)) for path, hits in groups)
    return f'<p class="note">{lines}{more} ({result.seconds * 1000:.1f} ms)</p>{files}'


def _file(path: str, hits: list[Hit]) -> str:
    lines = "".join(_hit(hit) for hit in hits)
    return f"<article><h2>{escape(path)}</h2>{lines}</article>"


def _hit(hit: Hit) -> str:
    code = highlighted(hit.text, hit.spans)
    return f'<div class="hit"><span>{hit.line}</span><code>{code}</code></div>'


def highlighted(text: str, spans: list[tuple[int, int]]) -> str:
    """Return a line with its matches marked, cut to what fits around the first of them."""
    start = len(text) - len(text.lstrip())
    if spans[0][0] - start > WIDEST - BEFORE_MATCH:
        start = spans[0][0] - BEFORE_MATCH
    end = min(len(text.rstrip()), max(start + WIDEST, spans[0][1]))
    parts, position = ["…" if text[:start].strip() else ""], start
    for begin, stop in spans:
        if stop <= end:
            parts += [escape(text[position:begin]), f"<mark>{escape(text[begin:stop])}</mark>"]
            position = stop
    parts += [escape(text[position:end]), "…" if text[end:].strip() else ""]
    return "".join(parts)


def state(
    complete: bool, seconds: float, progress: Progress, workers: list[aiobgw.WorkerStatus]
) -> str:
    """Return the part that shows how the index and the workers are."""
    rows = "".join(_worker(worker) for worker in workers)
    return (
        f"{_index(complete, seconds, progress)}"
        "<h2>Workers</h2><table><thead><tr><th>Name<th>State<th>Pid<th>Life<th>Restarts"
        f"<th>Last exit</tr></thead><tbody>{rows}</tbody></table>"
    )


def _index(complete: bool, seconds: float, progress: Progress) -> str:
    share = progress.shards_done / progress.shards if progress.shards else float(complete)
    if complete:
        headline, took = "Index complete", f", {seconds:.1f} s"
    else:
        headline, took = "Indexing: results are incomplete", ""
    return (
        f'<h2 class="{"complete" if complete else "working"}">{headline}</h2>'
        f'<progress value="{share:.3f}"></progress>'
        f"<p>{progress.files_done:,} of {progress.files:,} files, {progress.lines:,} lines,"
        f" {progress.shards_done} of {progress.shards} shards{took}</p>"
    )


def _worker(status: aiobgw.WorkerStatus) -> str:
    ended = status.state is aiobgw.WorkerState.STOPPED
    exit = "" if status.exit is None else str(status.exit)
    # Of one that is over, the reason only says again how it ended.
    notes = exit if ended and exit else "; ".join(text for text in (exit, status.reason) if text)
    state = status.state.value
    return (
        f'<tr class="{escape(state.replace(" ", "-"))}"><th>{escape(status.name)}'
        f'<td><span class="dot"></span>{escape(state)}<td>{status.pid or ""}'
        f"<td>{status.incarnation}<td>{status.restarts}<td>{escape(notes)}</tr>"
    )
