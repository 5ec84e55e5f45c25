"""Launches processes and tells how they ended; does not know what a worker is.

Supervisor side: ``launcher`` (the queue, forks, spares), ``children`` (what they say, how they
end), ``child`` (one of them: channel, pidfd, status), ``keeper`` (has a zygote, always),
``zygote`` (the process that forks), ``watcher`` (one epoll for everything), ``events`` (what is
told), ``probe`` (what this machine can do), ``seam`` (what a supervisor wants of a launcher, and
tests replace).  Zygote side: ``zygote_main``, ``held``.
Child side: ``spare``.  ``exits`` and ``lifeline`` are the two kernel mechanisms that
everything rests on.

Who owns what.  The supervisor owns its end of each channel, a pidfd per child, the write end
of the lifeline, the zygote's control channel, and the epoll that watches them: all of them
close-on-exec, and closed in every fork of the host (``_ipc.forks``).  The zygote owns the
read end of the lifeline, its control channel, and the armed ends of commands.  A child
owns its end of its channel and its own armed end of the lifeline.

What happens if any of them dies.  *Supervisor*: the kernel sends SIGKILL to the group of every
child, through the lifeline; the zygote, which SIGCONT wakes even when stopped, ends what is
left and itself.  *Zygote*: children live on; launches on their way come back as EOF before
hello; the status of later exits comes from the pidfd, or from /proc.  *Child before hello*: EOF.
*Child with its order unread*: ECONNRESET, the order goes to the next one.  *Child later*: its
pidfd.

A kernel-reaped child (SIGCHLD ignored in the zygote) leaves its status in its pidfd, one
hop away; elsewhere the zygote reaps, reports, and waits for an acknowledgement, during
which the zombie keeps its pid from being used again.  Which way it is was found out at start,
by a rehearsal child.
"""
