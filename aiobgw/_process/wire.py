"""What the supervisor and its zygote say to each other, over the control channel.

supervisor -> zygote   FORK (number, flags) with the child's end of a channel
                       DROP (number): close the armed end kept for this command
                       ACK (number): this exit is recorded, the zombie may go
zygote -> supervisor   UP (wire version, pid) with the versions, then READY (threads) after the
                       preload, or REFUSED with the reason
                       EXITED (number, wait status), where the zygote reaps

EOF ends the other side.  Numbers are the supervisor's and name a launch for ever.
"""

from __future__ import annotations

from struct import Struct

FORK, DROP, ACK = b"F", b"D", b"A"
UP, READY, REFUSED, EXITED = b"U", b"R", b"X", b"E"

KEEP, SPARE = 0x1, 0x2
KIND_SHIFT = 4
KINDS = ("plain", "asyncio", "uvloop")

REQUEST = Struct("=cQB")
REPORT = Struct("=cQi")
GREETING = Struct("=cHi")

INHERITED = CONTROL_FD, BOOT_FD, LIFELINE_FD, SUPERVISOR_FD, LOCK_FD = 3, 4, 5, 6, 7
"""Where the zygote finds what it inherits; every descriptor above them is closed at once.

The lock is there only if the supervisor has a runtime directory.
"""
