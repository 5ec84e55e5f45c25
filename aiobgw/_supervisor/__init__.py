"""Runs in the supervisor, inside the event loop of its host.

``loop`` gathers what happened, has the rules (``_policy``) decide, and ``effects`` perform what
they decided; ``registry`` is the private truth, from which the board is written; ``entry`` is
the way into it; ``supervisor`` is the public face; ``booting``, ``starting`` and ``closing`` are
how it comes and goes; ``cycle`` takes members through a crash, ``groups`` tells the rules of a
worker's group and dependencies; ``census`` knows what open supervisors hold, for tests that look
for leaks.

Who watches workers: ``signs`` (``notify`` for sd_notify, ``notification`` for s6, ``probes`` with
``connecting`` and ``program``) hears and looks whether they are ready, ``memory`` looks at what
they use, ``stacks`` keeps what a stuck one wrote down, ``cgroups`` holds the cgroups of those that
have one.  All of that belongs to a launch, and ends with it.

What others reach is ``outside``: the board; ``instance`` (the runtime directory and its lock);
``control`` (who connects), ``access`` (who may what), ``peers`` (what each may ask), ``outbox``
(what each is told), ``admission`` (a message becomes a worker), ``foreign`` (descriptors that
came along).  A worker with SHMEM_ACCESS is a peer on a channel
that comes with its order, not on its launch channel (as the design had it): whatever it sends
there, what the launch needs to hear is not behind it, and all clients are one mechanism.

Invariants.  It never forks, never blocks, takes no lock that anyone holds while he waits, and
reads no memory that anyone else can write.  Order of a turn: stop requests, exits, requests
(those of peers, too: their channels are in an epoll of their own, inside the other), deadlines;
so that a worker that ended and whose end was asked for in the same instant is not restarted.
No user code runs
within a turn: waiters are resumed by the host's loop afterwards.  What fails in a turn fails for
one worker: the turn goes on.  Order at the end of a worker (PostgreSQL's, and normative): its
slot is free and its quota returned before anybody is told.

``turn`` is called by the host's loop, for the one epoll that watches everything, or for the
earliest deadline; and directly by requests, so that nothing waits for another turn of the
host.  There is no task that waits: nothing can cancel it, and an idle supervisor does not
wake up.
"""
