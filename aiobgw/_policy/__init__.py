"""Decides, and touches nothing: no clock, no process, no log line, no asyncio.

Everything here is a function of its arguments, over one worker's ``Life``, the supervisor's
``Situation`` and the time that the caller read.  ``plan`` returns the next Life and the
actions that lead there; the supervisor carries them out (``_supervisor.effects``), and what
was begun comes back as an event.  So the rules are tested as truth tables, and as seeded
histories that never start a process.  ``clock`` is the seam at which tests replace the time.

``life`` is the state, ``happenings`` and ``actions`` are what goes in and comes out; ``plan``
dispatches.  ``starting`` and ``ending`` are the two halves of a life; ``restart`` says
what an exit means and what follows it, ``backoff`` and ``intensity`` how soon and how often;
``readiness`` and ``liveness`` watch who is up; ``cycle`` is the crash cycle, ``phases`` the start
gates.  What a worker has to do with others is in ``groups`` and ``order``: functions over
several Lives, whose answer is put into the Situation; so that each decision is still about one.
Random numbers ("luck") are facts that the caller brings, like the time.

Invariants, which those histories check: a slot is freed once; no launch follows a terminate,
or the beginning of a stop; the incarnation only grows; every history ends in STOPPED when
it is stopped, whatever the worker does.

Invariant of time: one deadline for each purpose, and never one for two.  A start, silence
and an end have their own (a slow import is no hang), and only an end that was begun is forced.

Sources: bgworker.c and postmaster.c for gates, order and the meaning of terminate; OTP's
supervisor for the shape (clauses over a child's spec and the reason of its end), intensity,
strategies and their order; systemd for Restart=, sd_notify and the watchdog; Kubernetes and
Nomad for the back-off, its reset and its jitter.
"""
