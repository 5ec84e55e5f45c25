"""Decides, and touches nothing: no clock, no process, no log line, no asyncio.

Everything here is a function of its arguments, over one worker's ``Life``, the supervisor's
``Situation`` and the time that the caller read.  ``plan`` returns the next Life and the
actions that lead there; the supervisor carries them out (``_supervisor.effects``), and what
was begun comes back as an event.  So the rules are tested as truth tables, and as seeded
histories that never start a process.  ``clock`` is the seam at which tests replace the time.

Invariants, which those histories check: a slot is freed once; no launch follows a terminate,
or the beginning of a stop; the incarnation only grows; every history ends in STOPPED when
it is stopped, whatever the worker does.

Sources: bgworker.c and postmaster.c for gates, order and the meaning of terminate; OTP's
supervisor for the shape (clauses over a child's spec and the reason of its end); systemd
for Restart=.
"""
