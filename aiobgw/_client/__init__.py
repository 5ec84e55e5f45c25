"""Runs in whoever asks: handles, groups of workers, guards, and streams of events.

A handle knows a Port, which says how its worker is, passes requests on, and tells when to
look again.  Every wait is the same loop: look, and if it is not so yet, wait for a change.
So a cancelled wait loses nothing (the state is not in the waiter), and a change between
looking and waiting is not lost (both happen in one turn of the event loop).

``waits`` says what each wait looks for; ``handle`` awaits it, ``blocking`` polls for it.
Beside the supervisor the port is its own; in another process it leads through
``connection``, a client's end of a channel (``attach``, ``client``; ``inside``: a worker's).
There status is read from the board, without asking anybody; messages say when to look, and
bring the last status of a worker.  ``group`` is built on handles alone, of either kind.

If the supervisor dies: EOF, or its pidfd, ends every wait with SupervisorDied, unless the last
state is known.  If a client dies: its subscriptions go, its workers stay.

Imports no supervisor: the port is given.
"""
