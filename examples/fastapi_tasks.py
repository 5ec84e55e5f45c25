"""What the workers of examples/fastapi_app.py run.  They import this, and no web framework."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from pathlib import Path

MOST = 10


def write_report(directory: str, number: str, text: str) -> None:
    """Count the words of a text.  A report is there whole, or not at all."""
    words = Counter(re.findall(r"\w+", text.lower()))
    report = {"words": words.total(), "most": words.most_common(MOST), "worker": os.getpid()}
    unfinished = Path(directory, f"{number}.{os.getpid()}")
    unfinished.write_text(json.dumps(report))
    unfinished.replace(Path(directory, f"{number}.json"))


def keep_house(directory: str, keep_seconds: float) -> None:
    """Remove old reports, again and again; two of these would only get in each other's way."""
    while True:
        for report in Path(directory).glob("*.json"):
            if report.stat().st_mtime < time.time() - keep_seconds:
                report.unlink()
        time.sleep(1)
