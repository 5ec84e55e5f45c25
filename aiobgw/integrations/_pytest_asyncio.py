"""The event loops of pytest-asyncio, one fixture for each scope that a loop can have.

Imported only where that plugin is active.  Each fixture has its loop made before whoever asks
for it, and kept open until that one is torn down.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest_asyncio

Scope = Literal["function", "class", "module", "package", "session"]


def _loop_of(scope: Scope) -> Any:
    @pytest_asyncio.fixture(scope=scope, loop_scope=scope, name=f"_aiobgw_asyncio_{scope}")
    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    return loop


loop_of_function = _loop_of("function")
loop_of_class = _loop_of("class")
loop_of_module = _loop_of("module")
loop_of_package = _loop_of("package")
loop_of_session = _loop_of("session")
