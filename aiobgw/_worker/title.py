"""The process title, by setproctitle's C module alone.

Its package imports logging and threading, whose at-fork hooks would cost every worker 1 ms;
the C module needs neither.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def _load() -> Callable[[str], None]:
    from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
    from importlib.util import find_spec, module_from_spec, spec_from_file_location

    package = find_spec("setproctitle")
    for folder in (package and package.submodule_search_locations) or ():
        for suffix in EXTENSION_SUFFIXES:
            path = f"{folder}/_setproctitle{suffix}"
            try:
                loader = ExtensionFileLoader("setproctitle._setproctitle", path)
                spec = spec_from_file_location(loader.name, path, loader=loader)
                if spec is not None:
                    module = module_from_spec(spec)
                    loader.exec_module(module)
                    setter: Callable[[str], None] = module.setproctitle
                    return setter
            except ImportError:
                continue
    return _not_supported


def _not_supported(title: str) -> None:
    """Titles are a courtesy: no process fails for want of one."""


set_title = _load()
