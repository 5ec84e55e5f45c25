"""The code search example, as its users run it: real processes, killed while they work."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import Application, Request
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import aiobgw
from examples.codesearch import __main__ as command_line
from examples.codesearch import crew as crew_module
from examples.codesearch import find, page, plan, service, store, tree
from examples.codesearch.crew import Crew
from examples.codesearch.options import Options

from . import procs

pytestmark = pytest.mark.anyio

BOUND = 20.0
ODD = ['"', "*", "NEAR(", "", " ", "\0", "a\0b", "🐍", "λ", '") OR ("', "a AND", "-", "^x", "{a}:b"]
ODD += ["%", "'; DROP TABLE files; --", "x" * 500, "a " * 50, "\ud800", "<b>&", "+=", "é", "_", "0"]

Client = TestClient[Request, None]


def make_tree(root: Path, files: int = 12, lines: int = 30) -> Path:
    """Write files of several sizes, and beside them what must not be indexed."""
    for number in range(files):
        path = root / f"package{number % 3}" / f"module{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        body = (
            f"def function_{number}_{i}(): return {i}  # común\n" for i in range(lines + number)
        )
        path.write_text("".join(body))
    (root / "empty.py").write_text("")
    (root / "unfinished.py").write_text("first = 1\nsecond = 2")
    (root / "bytes.py").write_bytes(b"# \xff\xfe not UTF-8\nafter = '\0'\r\n")
    (root / os.fsdecode(b"name\xff.py")).write_text("named = 'oddly'\n")
    (root / "notes.txt").write_text("not Python\n")
    for skipped in ("__pycache__", "site-packages", ".git"):
        (root / skipped).mkdir()
        (root / skipped / "no.py").write_text("skipped = True\n")
    return root


def expected(root: Path) -> dict[bytes, str]:
    """Return what the index should be, found out in another way than the example's."""
    skipped = {"__pycache__", "site-packages", ".git"}
    return {
        os.fsencode(path.relative_to(root)): path.read_text("utf-8", "replace")
        for path in root.rglob("*.py")
        if not skipped & set(path.relative_to(root).parts)
    }


def count_lines(root: Path) -> int:
    return sum(
        len(text.split("\n")) - text.endswith("\n") for text in expected(root).values() if text
    )


def indexed(db: str) -> list[tuple[bytes, str]]:
    """Return what the index is; duplicates would show."""
    with closing(sqlite3.connect(db)) as connection:
        return connection.execute(
            "SELECT path, text FROM texts LEFT JOIN files ON files.id = texts.rowid ORDER BY path"
        ).fetchall()


def is_current(options: Options) -> bool:
    return indexed(options.db) == sorted(expected(Path(options.root)).items())


def check_complete(options: Options) -> None:
    """Check that everything is there once, and that the database is sound."""
    root = Path(options.root)
    assert indexed(options.db) == sorted(expected(root).items())
    progress = store.progress(options.db)
    assert progress.files == progress.files_done == len(expected(root))
    assert progress.lines == count_lines(root)
    assert progress.shards == progress.shards_done
    with closing(store.connect(options.db)) as db:
        db.execute("INSERT INTO texts (texts) VALUES ('integrity-check')")  # raises if it is not
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def until(condition: Callable[[], bool]) -> None:
    """Poll for what nobody tells: a change in the database or in /proc."""
    give_up = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < give_up, f"not within {BOUND} s"
        await asyncio.sleep(0.01)


@contextmanager
def write_lock(db: str) -> Iterator[sqlite3.Connection]:
    """Keep every worker from writing, and so from finishing, until the end of the block."""
    with closing(sqlite3.connect(db, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        connection.execute("ROLLBACK")


@pytest.fixture
def options(tmp_path: Path) -> Options:
    root = make_tree(tmp_path / "tree")
    db = str(tmp_path / "index.db")
    return Options(root=str(root), db=db, workers=3, watch_every=0.05)


async def kill(handle: aiobgw.WorkerHandle) -> aiobgw.ExitStatus:
    """Kill a worker as an operator would, whatever its rule makes of it; wait for its exit."""
    pid = (await handle.wait_for_startup()).pid
    assert pid is not None
    exiting = asyncio.ensure_future(handle.wait_for_exit())
    await asyncio.sleep(0)  # so that it is this incarnation's exit which is waited for
    os.kill(pid, signal.SIGKILL)
    return await exiting


# Workers that are killed.


async def test_a_killed_planner_plans_again(options: Options) -> None:
    store.create(options.db)
    with write_lock(options.db):
        crew = Crew(options)
        await crew.__aenter__()
        exit = await kill(crew.handles[0])
    try:
        assert exit.signal == signal.SIGKILL
        await crew.index()
        assert crew.handles[0].status().restarts == 1
    finally:
        await crew.__aexit__(None, None, None)
    check_complete(options)


async def test_workers_killed_before_they_write_do_it_again(options: Options) -> None:
    async with Crew(options) as crew:
        await crew.handles[0].wait_for_shutdown()
        with write_lock(options.db):
            shards = store.shards_to_do(options.db)
            handles = [await crew.start_index(shard) for shard in shards]
            exits = [await kill(handle) for handle in handles]
            assert [exit.kind for exit in exits] == [aiobgw.ExitKind.CRASHED] * len(handles)
            assert indexed(options.db) == []
        ends = [await handle for handle in handles]
        assert all(end is not None and end.ok for end in ends)
        assert len(shards) == 3
        assert [handle.status().restarts for handle in handles] == [1, 1, 1]
        await crew.index()  # finds nothing left to do
        assert len(crew.handles) == 4
    check_complete(options)


SLOW = """
CREATE TABLE digits AS WITH RECURSIVE d (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM d LIMIT 100)
    SELECT n FROM d;
CREATE TRIGGER slow AFTER UPDATE ON files
    WHEN NEW.path = CAST('zz_slow.py' AS BLOB) AND NEW.lines = 1
BEGIN
    SELECT count(*) FROM digits a, digits b, digits c, digits d, digits e, digits f WHERE a.n < b.n;
END;
"""


def is_locked(db: str) -> bool:
    with closing(sqlite3.connect(db, isolation_level=None, timeout=0)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        connection.execute("ROLLBACK")
        return False


async def test_a_worker_killed_while_it_writes_leaves_nothing(options: Options) -> None:
    """A trigger takes hours over a file of one line, the last of its shard, and of one only."""
    slow = Path(options.root) / "zz_slow.py"
    slow.write_text("slow = 1\n")
    async with Crew(options) as crew:
        await crew.handles[0].wait_for_shutdown()
        with closing(sqlite3.connect(options.db)) as connection:
            connection.executescript(SLOW)
            query = "SELECT shard FROM files WHERE path = CAST('zz_slow.py' AS BLOB)"
            ((shard,),) = connection.execute(query).fetchall()
        handle = await crew.start_index(shard)
        await until(lambda: is_locked(options.db))
        slow.write_text("slow = 1\nnow = 'quick'\n")
        assert (await kill(handle)).signal == signal.SIGKILL
        (await handle).check()  # type: ignore[union-attr]
        await crew.index()
        assert handle.status().restarts == 1
    check_complete(options)


async def test_workers_killed_at_random_leave_a_complete_index(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree", files=40, lines=1000)
    options = Options(root=str(root), db=str(tmp_path / "index.db"), workers=4)
    chance = random.Random(os.environ.get("SEED", "codesearch"))
    async with Crew(options) as crew:
        killing = asyncio.ensure_future(kill_at_random(crew, chance))
        await crew.index()
        killing.cancel()
        await asyncio.wait([killing])
        restarts = sum(handle.status().restarts for handle in crew.handles)
    check_complete(options)
    assert restarts >= 1


async def kill_at_random(crew: Crew, chance: random.Random) -> None:
    """Kill the first lives of each worker, each after some time that it might need."""
    async with asyncio.TaskGroup() as group:
        async for event in crew.supervisor.events():
            if isinstance(event, aiobgw.Started) and event.status.incarnation <= 5:
                delay = chance.uniform(0, 0.05)
                group.create_task(kill_later(crew, event.status, delay))


async def kill_later(crew: Crew, status: aiobgw.WorkerStatus, delay: float) -> None:
    await asyncio.sleep(delay)
    handle = crew.supervisor.get(status.name)
    if handle is not None and handle.status().incarnation == status.incarnation:
        handle.signal(signal.SIGKILL)


async def test_a_worker_that_cannot_succeed_is_given_up(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew_module, "ATTEMPTS", 2)
    refuse = "CREATE TRIGGER no BEFORE UPDATE ON shards BEGIN SELECT RAISE(ABORT, 'never'); END"
    async with Crew(options) as crew:
        await crew.handles[0].wait_for_shutdown()
        with closing(sqlite3.connect(options.db)) as connection:
            connection.execute(refuse)
        with pytest.raises(aiobgw.WorkerFailed, match=r"index-\d"):
            await crew.index()
        assert not crew.complete


# The watcher.


async def test_the_watcher_follows_the_tree_and_survives(options: Options) -> None:
    root = Path(options.root)
    async with Crew(options) as crew:
        await crew.index()
        watch = await crew.start_watch()
        (root / "package0" / "module0.py").write_text("changed = True\n")
        (root / "package1" / "module1.py").unlink()
        (root / "new").mkdir()
        (root / "new" / "new.py").write_text("fresh = 1\n")
        await until(lambda: is_current(options))

        assert (await kill(watch)).signal == signal.SIGKILL
        (root / "new" / "new.py").write_text("fresh = 'again'\n")
        (root / "package0" / "module0.py").unlink()
        (root / "package2" / "later.py").write_text("later = 2\n")
        await until(lambda: is_current(options))
        assert watch.status().incarnation == 2
    check_complete(options)
    ended = watch.status().exit
    assert ended is not None and ended.kind is aiobgw.ExitKind.TERMINATED


async def test_a_root_that_is_gone_empties_nothing(options: Options) -> None:
    root, elsewhere = Path(options.root), Path(options.root).with_name("elsewhere")
    async with Crew(options) as crew:
        await crew.index()
        before = indexed(options.db)
        os.rename(root, elsewhere)
        watch = await crew.start_watch()
        await until(lambda: watch.status().restarts >= 1)
        assert indexed(options.db) == before
        os.rename(elsewhere, root)
        (root / "back.py").write_text("back = True\n")
        await until(lambda: is_current(options))
    check_complete(options)


async def test_a_kept_database_is_brought_up_to_date(options: Options) -> None:
    root = Path(options.root)
    for shards in (3, 0, 1):
        async with Crew(options) as crew:
            await crew.index()
        check_complete(options)
        assert store.progress(options.db).shards == shards
        if shards == 0:
            (root / "package0" / "module0.py").write_text("changed = True\n")
            (root / "unfinished.py").unlink()


# The service.


@asynccontextmanager
async def serving(app: Application) -> AsyncIterator[Client]:
    async with TestServer(app) as server:
        client: Client = TestClient(server)
        async with client:
            yield client


async def get_json(client: Client, path: str) -> dict[str, object]:
    async with client.get(path) as answer:
        assert answer.status == 200, await answer.text()
        answered: dict[str, object] = await answer.json()
        return answered


async def complete(client: Client) -> dict[str, object]:
    """Return the status of the service when everything is indexed and watched."""
    give_up = time.monotonic() + BOUND
    while True:
        status = await get_json(client, "/api/status")
        workers: list[dict[str, object]] = status["workers"]  # type: ignore[assignment]
        if {"name": "watch", "state": "running"}.items() <= workers[0].items():
            return status
        assert time.monotonic() < give_up, status
        await asyncio.sleep(0.01)


async def test_the_service_finds_and_shows(options: Options) -> None:
    hostile = "x = '<script>alert(1)</script> & \"' # <img src=x>\n"
    (Path(options.root) / "hostile<b>.py").write_text("\n" + hostile)
    async with serving(service.make_app(options)) as client:
        status = await complete(client)
        assert status["complete"] is True
        found = await get_json(client, "/api/search?q=" + quote("DEF function_7_3("))
        assert found["hits"] == [
            {
                "path": "package1/module7.py",
                "line": 4,
                "text": "def function_7_3(): return 3  # común",
                "spans": [[0, 3], [4, 17]],
            }
        ]
        async with client.get("/", params={"q": "<script>alert"}) as answer:
            html = await answer.text()
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "<h2>hostile&lt;b&gt;.py</h2>" in html
    assert 'value="&lt;script&gt;alert"' in html
    assert "<mark>&lt;script&gt;alert</mark>(1)&lt;/script&gt; &amp; &quot;" in html
    assert "<span>2</span>" in html
    assert "<script>alert" not in html and "<img" not in html
    for text in ("Index complete", "<th>plan", "<th>index-1", "<th>watch", "running", "clean"):
        assert text in html


async def test_odd_queries_are_answered(options: Options) -> None:
    async with serving(service.make_app(options)) as client:
        await complete(client)
        for query in ODD:
            raw = quote(query, errors="surrogatepass")
            for path in (f"/?q={raw}", f"/api/search?q={raw}"):
                async with client.get(path) as answer:
                    assert answer.status == 200, (query, await answer.text())
                    await answer.read()
        for limit in ("0", "-1", "x", "", "9" * 50, "²"):
            async with client.get("/api/search", params={"q": "def", "limit": limit}) as answer:
                assert answer.status == 400
        everything = await get_json(client, "/api/search?q=function_5&limit=1000")
        assert len(everything["hits"]) == 35  # type: ignore[arg-type]
        assert everything["more"] is False
        for asset in ("/page.css", "/page.js", "/state"):
            async with client.get(asset) as answer:
                assert answer.status == 200


async def test_the_service_answers_before_the_index_is_complete(options: Options) -> None:
    store.create(options.db)
    with write_lock(options.db):
        async with serving(service.make_app(options)) as client:
            found = await get_json(client, "/api/search?q=def")
            assert (found["complete"], found["hits"]) == (False, [])
            async with client.get("/?q=def") as answer:
                html = await answer.text()
            assert "not complete" in html and "<th>plan" in html


async def test_the_status_shows_a_killed_worker(options: Options) -> None:
    app = service.make_app(options)
    async with serving(app) as client:
        await complete(client)
        watch = app[service.CREW].supervisor.get("watch")
        assert watch is not None
        await kill(watch)
        await until(
            lambda: watch.status().started_at is not None and watch.status().pid is not None
        )
        workers: list[dict[str, object]] = (await complete(client))["workers"]  # type: ignore
        assert workers[0]["incarnation"] == 2 and workers[0]["restarts"] == 1
        assert workers[0]["exit"] == "crashed by SIGKILL"


# The command line.


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Run the example with a place of its own for temporary files, where it leaves none."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    started: list[subprocess.Popen[str]] = []

    def start(*args: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "examples.codesearch", *args],
            cwd=procs.ROOT,
            env={**os.environ, "TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:  # the test failed before its end
            process.kill()
            print(*process.communicate(), sep="\n")
    assert list(temporary.iterdir()) == []


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for its end; return how it ended, and what it printed."""
    out, err = process.communicate(timeout=BOUND)
    return process.returncode, out, err


def test_once(tmp_path: Path, start: Start) -> None:
    root = make_tree(tmp_path / "tree")
    args = ("--once", "--root", str(root), "--workers", "2", "--query", "function_3_1(")
    code, out, err = finish(start(*args))
    assert (code, err) == (0, "")
    assert f"{len(expected(root))} files, {count_lines(root)} lines, " in out
    assert "2 shards, 3 workers used, 2 indexing at once, 0 restarts" in out
    assert "  package0/module3.py:2: def function_3_1(): return 1" in out


def test_once_says_what_failed(tmp_path: Path, start: Start) -> None:
    root = make_tree(tmp_path / "tree", files=1)
    (tmp_path / "no.db").write_text("this is not a database, and long enough to be sure" * 100)
    args = ("--once", "--root", str(root), "--db", str(tmp_path / "no.db"))
    code, out, err = finish(start(*args))
    assert (code, out) == (1, "")
    assert err == "codesearch: failed: file is not a database\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_once_ends_in_order_when_signalled(
    options: Options, start: Start, number: signal.Signals
) -> None:
    store.create(options.db)
    with write_lock(options.db):
        process = start("--once", "--root", options.root, "--db", options.db)

        def plans() -> bool:
            assert process.poll() is None
            return any("worker plan" in procs.title(pid) for pid in procs.descendants(process.pid))

        await until(plans)
        process.send_signal(number)
        code, out, err = await asyncio.to_thread(finish, process)
    assert (code, out, err) == (128 + number, "", "")


def test_serving_until_interrupted(tmp_path: Path, start: Start) -> None:
    root = make_tree(tmp_path / "tree")
    process = start("--port", "0", "--root", str(root))
    assert process.stdout is not None
    assert process.stdout.readline() == f"indexing {root}\n"
    address = process.stdout.readline().split()[1]
    with urllib.request.urlopen(address + "api/status", timeout=BOUND) as answer:
        assert json.load(answer)["supervisor"]["pid"] == process.pid

    second = start("--port", address.rpartition(":")[2].strip("/"), "--root", str(root))
    code, _, err = finish(second)
    assert code == 1 and "address already in use" in err and err.count("\n") == 1

    process.send_signal(signal.SIGINT)
    assert finish(process) == (0, "", "")


@pytest.mark.parametrize(
    "args",
    [("--root", "/nowhere"), ("--port", "65536"), ("--workers", "0"), ("--workers", "²")],
    ids=" ".join,
)
def test_nonsense_is_refused(args: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        command_line.main(args)
    assert refused.value.code == 2
    assert args[0] in capsys.readouterr().err


# The parts that are plain functions.


def test_shards_are_balanced_and_none_is_empty() -> None:
    chance = random.Random(7)
    files = {b"%d" % i: tree.Stamp(chance.randrange(100_000), 0) for i in range(500)}
    shards = plan.divide(files, 4)
    sizes = [sum(stamp.size for stamp in shard.values()) for shard in shards]
    assert {path for shard in shards for path in shard} == files.keys()
    assert max(sizes) < min(sizes) * 1.1
    assert len(plan.divide({b"a": tree.Stamp(0, 0)}, 4)) == 1
    empty = {b"%d" % i: tree.Stamp(0, 0) for i in range(8)}
    assert [len(shard) for shard in plan.divide(empty, 4)] == [2, 2, 2, 2]
    assert plan.divide({}, 4) == []


@pytest.fixture(scope="module")
def small_db(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("find") / "index.db")
    store.create(path)
    text = "import os.path\nclass Émile(__Base):\n    x += get_event_loop()  # 🐍 straße\n\n)\n"
    with closing(store.connect(path)) as db, store.writing(db):
        store.put(db, {b"a.py": tree.Source(b"a.py", tree.Stamp(1, 1), text)})
    return path


@pytest.mark.parametrize(
    ("query", "lines"),
    [
        ("IMPORT os", [1]),
        ("os.pa", [1]),
        ("s.path", []),  # not the beginning of a word
        ("path import", [1]),
        ("event", [3]),
        ("get_event_loop()", [3]),
        ("__base", [2]),
        ("base", [2]),
        ("émile", [2]),
        ("mile", []),
        ("🐍", [3]),
        ("+= stra", [3]),
        (")", [2, 3, 5]),
        ("import event", []),  # never on one line
    ],
)
def test_what_a_query_finds(small_db: str, query: str, lines: list[int]) -> None:
    assert [hit.line for hit in find.search(small_db, query).hits] == lines


def test_the_limits_say_that_there_is_more(small_db: str) -> None:
    assert find.search(small_db, ")", per_file=3).more is False
    assert find.search(small_db, ")", per_file=2).more is True
    limited = find.search(small_db, ")", limit=1)
    assert len(limited.hits) == 1 and limited.more


@hypothesis_settings(max_examples=100, deadline=None)
@given(query=st.text(max_size=30), line=st.text(max_size=60))
def test_any_query_and_any_line(small_db: str, query: str, line: str) -> None:
    find.search(small_db, query)
    for hit in find.hits_in("f.py", line, query.split() or ["a"]):
        html = page.highlighted(hit.text, hit.spans)
        assert "<mark>" in html
        assert not {"<", ">"} & set(html.replace("<mark>", "").replace("</mark>", ""))


def test_a_long_line_is_cut_around_its_match() -> None:
    (hit,) = find.hits_in("f.py", "    a" + "-" * 1000 + " needle " + "-" * 1000, ["needle"])
    html = page.highlighted(hit.text, hit.spans)
    assert html.startswith("…") and html.endswith("…") and "<mark>needle</mark>" in html
    assert len(html) < 200
