"""Where a memory cgroup is made: read from the kernel's tables, of both versions."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from aiobgw.testing import memory
from aiobgw.testing.memory import Place, place_of

V1 = "35 31 0:32 / /m rw,relatime - cgroup cgroup rw,memory\n"
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


CONTAINER = V2.replace(" / /sys", " /docker/1 /sys")
CGROUP = Path("/sys/fs/cgroup")


@pytest.mark.parametrize(
    ("cgroups", "mounts", "found"),
    [
        ("4:memory:/a/b\n1:cpu:/c\n0::/\n", V1, Place(Path("/m"), Path("/m/a/b"), 1)),
        ("4:hugetlb,memory:/\n", V1, Place(Path("/m"), Path("/m"), 1)),
        ("0::/user.slice/x", V2, Place(CGROUP, CGROUP / "user.slice/x", 2)),
        # Both are there: the controller is in one of them only.
        ("4:memory:/a\n0::/b\n", V2 + V1, Place(Path("/m"), Path("/m/a"), 1)),
        # A container sees a part of the hierarchy, as the root of its mount.
        ("0::/docker/1/x", CONTAINER, Place(CGROUP, CGROUP / "x", 2)),
        ("0::/docker/12", CONTAINER, None),
        ("0::/", V2.replace("/sys/fs/c", r"/a\040b/c"), Place(*[Path("/a b/cgroup")] * 2, 2)),
        ("1:cpu:/\n", V1 + V2, None),
        ("0::/", V1, None),
    ],
)
def test_the_place_of_a_process_is_found(cgroups: str, mounts: str, found: Place | None) -> None:
    assert place_of(cgroups, mounts) == found


def test_a_cgroup_of_version_2_is_made_where_the_controller_is_handed_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With directories in the place of the kernel's, which fill themselves when they are made."""
    own = tmp_path / "slice" / "service"
    own.mkdir(parents=True)
    for path, handed_down in ((tmp_path, "cpu memory"), (own.parent, "memory"), (own, "cpu")):
        (path / "cgroup.subtree_control").write_text(handed_down)
        (path / "cgroup.procs").touch()
    mkdir = Path.mkdir

    def make(path: Path) -> None:
        mkdir(path)
        for name in ("memory.max", "memory.swap.max", "cgroup.procs"):
            (path / name).touch()

    monkeypatch.setattr(Path, "mkdir", make)
    monkeypatch.setattr(Path, "rmdir", shutil.rmtree)
    monkeypatch.setattr(memory, "place_of", lambda *_: Place(tmp_path, own, 2))
    with memory.MemoryCgroup(os.getpid(), 12345) as cgroup:
        assert cgroup.path is not None
        path = cgroup.path
        assert path.parent == own.parent, "the own one hands nothing down, the one above does"
        assert (path / "memory.max").read_text() == "12345"
        assert (path / "memory.swap.max").read_text() == "0"
        cgroup.enter(os.getpid())
        assert (path / "cgroup.procs").read_text() == str(os.getpid())
    assert (own / "cgroup.procs").read_text() == str(os.getpid()), "moved back"
    assert not path.exists()
