"""Runs in the zygotes of a test's supervisors, before they fork: what workers print is seen at
once.

pytest's capture is a file, which makes ``print`` wait for a buffer to fill; a worker that is
killed would take what it printed last with it.  ``faulthandler`` is what pytest has switched
on in its own process, too.
"""

from __future__ import annotations

import faulthandler
import io
import sys

for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(line_buffering=True)
faulthandler.enable(file=2)
