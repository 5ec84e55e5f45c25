"""sd_notify's protocol: what a datagram says, whatever its bytes are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiobgw._ipc.notify import EXTEND_MOST, SAYS_BYTES, Notice, parse, printable


@pytest.mark.parametrize(
    ("data", "notice"),
    [
        (b"", Notice()),
        (b"\n\n=\n=1\nREADY", Notice()),
        (b"READY=1", Notice(ready=True)),
        (b"READY=1\n", Notice(ready=True)),
        (b"READY=0", Notice()),
        (b"READY=11", Notice()),
        (b"READY=1 ", Notice()),
        (b" READY=1", Notice()),
        (b"ready=1", Notice()),
        (b"READY=1\0", Notice()),
        (b"READY=0\nREADY=1", Notice()),
        (b"RELOADING=1", Notice(reloading=True)),
        (b"STOPPING=1", Notice(stopping=True)),
        (b"RELOADING=1\nREADY=1", Notice(ready=True)),
        (b"READY=1\nRELOADING=1\nSTOPPING=1", Notice(stopping=True)),
        (b"WATCHDOG=1", Notice(beat=True)),
        (b"WATCHDOG=trigger", Notice()),
        (b"EXTEND_TIMEOUT_USEC=1500000", Notice(extend=1.5)),
        (b"EXTEND_TIMEOUT_USEC=0", Notice()),
        (b"EXTEND_TIMEOUT_USEC=-1", Notice()),
        (b"EXTEND_TIMEOUT_USEC=1e6", Notice()),
        (b"EXTEND_TIMEOUT_USEC=\xb2", Notice()),
        (b"EXTEND_TIMEOUT_USEC=1_000", Notice()),
        (b"EXTEND_TIMEOUT_USEC=99999999999999999999", Notice(extend=EXTEND_MOST)),
        (b"EXTEND_TIMEOUT_USEC=" + b"9" * 3000, Notice()),
        (b"STATUS=", Notice(says="")),
        (b"STATUS=a=b", Notice(says="a=b")),
        (b"STATUS=\x1b[31mred\r\xff\xe2\x80\xae", Notice(says="\\x1b[31mred\\r\\xff\\u202e")),
        ("STATUS=größer ✓".encode(), Notice(says="größer ✓")),
        (b"MAINPID=1", Notice(renames=True)),
        (b"MAINPIDFD=1", Notice(renames=True)),
        (b"FDSTORE=1\nERRNO=2\nX_OTHER=3", Notice()),
        (b"READY=1\nSTATUS=up\nWATCHDOG=1", Notice(ready=True, says="up", beat=True)),
    ],
)
def test_a_datagram_says_what_its_known_lines_say(data: bytes, notice: Notice) -> None:
    assert parse(data) == notice


LINES = st.lists(
    st.binary(max_size=30)
    | st.builds(
        lambda name, value: name + b"=" + value,
        st.sampled_from([b"READY", b"STATUS", b"EXTEND_TIMEOUT_USEC", b"MAINPID", b"WATCHDOG"]),
        st.binary(max_size=300) | st.from_regex(rb"\A[0-9]{1,40}\Z"),
    )
)


@given(LINES.map(b"\n".join))
def test_any_bytes_are_a_datagram_and_none_of_them_is_believed_too_much(data: bytes) -> None:
    notice = parse(data)
    assert notice.ready <= (b"READY=1" in data.split(b"\n"))
    assert notice.extend is None or 0 < notice.extend <= EXTEND_MOST
    says = notice.says or ""
    assert len(says.encode()) <= SAYS_BYTES
    assert says.isprintable()


@given(st.text(st.characters(categories=["L", "N", "P"])))
def test_a_text_that_prints_is_kept_as_far_as_there_is_room(text: str) -> None:
    kept = printable(text.encode())
    assert text.startswith(kept)
    assert kept == text or len(kept.encode()) > SAYS_BYTES - 16
