"""The zygote's own program: import what workers need, then do nothing but fork.

It is small on purpose: a fork costs 18 us for each touched megabyte and 3.5 us for each
page fault, so nothing here imports asyncio, logging or threading.  It forks with ``os.fork``
only: a raw clone skips the pthread_atfork handlers, and a child that inherited a preloaded
numpy would hang in its first BLAS call.

Signals are blocked from its first instruction on: what a terminal or a service manager
sends to everybody must not end it, and a child opens them when its handlers stand.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
from importlib import import_module

from .. import __version__
from .._inject import _inject
from .._inject import arm as arm_injections
from .._ipc import launch
from .._ipc.channel import Channel
from .._ipc.environment import leave_to_the_host
from . import cgroup, exits, held, lifeline, spare, wire
from .spare import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

WARM_UPS = 24
"""More than the 8 to 16 runs after which CPython specialises code."""

END_TIMEOUT_MS = 2_000
CGROUP_TIMEOUT = 2.0

BLOCKED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


def main(boot: dict[str, Any]) -> NoReturn:
    """Run the zygote; ends by ``os._exit`` when the supervisor goes."""
    kept = [wire.CONTROL_FD, wire.LIFELINE_FD, wire.SUPERVISOR_FD]
    kept += [wire.LOCK_FD] * boot["lock"]
    os.closerange(kept[-1] + 1, 2**31 - 1)
    os.close(wire.BOOT_FD)
    for fd in kept:
        os.set_inheritable(fd, False)

    control = Channel.adopt(wire.CONTROL_FD)
    watch = lifeline.reopen(wire.LIFELINE_FD)
    lifeline.arm(watch)  # while modules are imported, nobody looks: SIGKILL
    versions = f"{__version__} {sys.version_info[:2]}".encode()
    _say(control, wire.GREETING.pack(wire.UP, launch.WIRE, os.getpid()) + versions)
    try:
        _settle(boot)
    except BaseException as error:
        _refuse(control, error)

    # From here on it looks itself, and has work to do then; SIGCONT wakes it for that.
    lifeline.arm(watch, signal.SIGCONT)
    zygote = _Zygote(control, watch, boot)
    _say(control, wire.REPORT.pack(wire.READY, 0, _threads()))
    zygote.run()


def _settle(boot: dict[str, Any]) -> None:
    """Become what workers shall inherit: path, limits, titles, modules."""
    sys.argv[:] = boot["argv"]
    arm_injections(boot["inject"])
    _restore_environment(boot["bind_now"])
    leave_to_the_host()
    _restore_limit(boot["nofile"])
    held.hold()
    spare.load(boot)
    for name in boot["preload"]:
        import_module(name)
    held.begin(threads=_threads())

    _warm_up(resolve(boot["rehearse"]), boot)
    if _threads() > 1:
        import warnings

        # The host was told once (READY has the number); not again at each fork.
        warnings.filterwarnings("ignore", ".*multi-threaded.*", DeprecationWarning)
    if boot["reaper"] == "kernel":
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # after preload, which may fork itself
    else:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sys.stdout.flush()  # what a preload printed must not be printed again by each child
    sys.stderr.flush()
    gc.collect()
    gc.freeze()


def _warm_up(rehearse: Callable[[str], object], boot: dict[str, Any]) -> None:
    """Have the interpreter specialise what every child will run.

    It does so in place: a child that runs new code writes to the pages that hold it, and pays
    a page fault for each.  Code that is settled here is only read there.
    """
    for _ in range(WARM_UPS):
        spare.rehearse()
        rehearse(wire.KINDS[0])
    resolve(boot["titled"])(f"aiobgw: {boot['name']} zygote")


def _restore_environment(bind_now: str | None) -> None:
    os.environ.pop("LD_BIND_NOW", None)
    if bind_now is not None:
        os.environ["LD_BIND_NOW"] = bind_now


def _restore_limit(soft: int | None) -> None:
    """Give workers the descriptor limit the host had before we raised it."""
    if soft is not None:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _refuse(control: Channel, error: BaseException) -> NoReturn:
    import traceback

    text = "".join(traceback.format_exception(error))
    _say(control, wire.REFUSED + text.encode("utf-8", "backslashreplace")[-launch.TEXT_BYTES :])
    os._exit(1)


def _say(control: Channel, data: bytes) -> None:
    """Tell the supervisor, while there are no children: if it is gone, so are we."""
    try:
        control.send(data, block=True)
    except OSError:
        os._exit(0)


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


class _Zygote:
    """The loop, and what it keeps: armed ends of commands, children it must reap."""

    def __init__(self, control: Channel, watch: int, boot: dict[str, Any]) -> None:
        self._control = control
        self._armed = watch
        self._lock = (wire.LOCK_FD,) * boot["lock"]  # only held, so that nobody else has it
        self._reaps = boot["reaper"] == "zygote"
        self._cgroup: str = boot["cgroup"]
        self._kept: dict[int, int] = {}
        self._children: dict[int, tuple[int, int]] = {}  # pidfd -> (number, pid)
        self._zombies: dict[int, int] = {}  # number -> pidfd
        self._epoll = select.epoll()
        self._epoll.register(control.fd, select.EPOLLIN)
        self._epoll.register(wire.SUPERVISOR_FD, select.EPOLLIN)

    def run(self) -> NoReturn:
        """Serve until the supervisor goes.  The only place that waits."""
        try:
            while True:
                self._turn()
        finally:  # whatever went wrong: without a supervisor we are the second line
            if select.select([wire.SUPERVISOR_FD], [], [], 0)[0]:
                self._end()

    def _turn(self) -> None:
        for fd, _ in self._epoll.poll():
            if fd == self._control.fd:
                self._serve()
            elif fd == wire.SUPERVISOR_FD:
                self._end()
            else:
                self._report(fd)

    def _serve(self) -> None:
        try:
            data, fds = self._control.receive(1, block=True)
        except ConnectionResetError:
            data, fds = b"", []  # Race: it died with a report unread
        if not data:
            self._end()

        verb, number, flags = wire.REQUEST.unpack(data)
        if verb == wire.FORK:
            self._fork(number, flags, fds[0])
        elif verb == wire.DROP:
            self._drop(number)
        elif verb == wire.ACK:
            self._let_go(number)

    def _fork(self, number: int, flags: int, channel: int) -> None:
        armed = -1
        try:
            armed = lifeline.reopen(wire.LIFELINE_FD)
            _inject("fork")
            pid = os.fork()
        except OSError as error:
            _explain(channel, error)
            if armed >= 0:
                os.close(armed)
            os.close(channel)
            return

        if pid == 0:
            self._become_spare(flags, channel, armed)

        os.close(channel)
        if flags & wire.KEEP:
            self._kept[number] = armed
        else:
            os.close(armed)
        if self._reaps:
            self._watch(number, pid)

    def _become_spare(self, flags: int, channel: int, armed: int) -> NoReturn:
        """Leave everything of the zygote behind; nothing may unwind into its loop."""
        try:
            self._epoll.close()
            owned = (wire.CONTROL_FD, wire.LIFELINE_FD, wire.SUPERVISOR_FD, self._armed)
            for fd in (*owned, *self._lock, *self._kept.values(), *self._children):
                os.close(fd)
            self._control.detach()
            spare.run(channel, armed, flags)
        except ConnectionError:
            os._exit(0)  # the supervisor has dropped this launch
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(70)

    # Where the kernel does not keep the status: watch, report, reap.

    def _watch(self, number: int, pid: int) -> None:
        pidfd = os.pidfd_open(pid)  # ours until we reap it, so this cannot be another
        self._children[pidfd] = (number, pid)
        self._epoll.register(pidfd, select.EPOLLIN | select.EPOLLONESHOT)

    def _report(self, pidfd: int) -> None:
        """Tell how a child ended; its zombie holds the pid until that is recorded."""
        number, pid = self._children[pidfd]
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
        if result is None:
            return
        _kill_own_group(pid)
        self._zombies[number] = pidfd
        report = wire.REPORT.pack(wire.EXITED, number, exits.wait_status(result))
        try:
            self._control.send(report, block=True)
        except OSError:
            self._end()  # the supervisor is gone, and its pidfd says so later in this very turn

    def _let_go(self, number: int) -> None:
        pidfd = self._zombies.pop(number, None)
        if pidfd is not None:
            exits.reap(pidfd)
            del self._children[pidfd]
            os.close(pidfd)

    def _drop(self, number: int) -> None:
        armed = self._kept.pop(number, None)
        if armed is not None:
            os.close(armed)

    def _end(self) -> NoReturn:
        """The second line: end whatever of ours the lifeline did not reach, and ourselves.

        Race: the kernel's list of children leaves out some while others exit, as most do in
        this moment.  So it is read again until nobody new is on it.
        """
        seen: set[int] = set()
        while new := _own_children() - seen:
            seen |= new
            ending = [pidfd for pid in new if (pidfd := _kill_child(pid)) >= 0]
            for pidfd in ending:
                _wait_for_end(pidfd)
        if self._cgroup:
            cgroup.end_and_remove(self._cgroup, CGROUP_TIMEOUT)
        os._exit(0)


def _kill_child(pid: int) -> int:
    """Kill a child of ours, and its group; return its pidfd, -1 if it is none any more."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return -1
    # Race: between listing and opening the pid may have become another's.
    if exits.stat_of(pid)[1:2] == [b"%d" % os.getpid()]:  # its parent
        exits.send(pidfd, signal.SIGKILL)
        exits.kill_group(pidfd)
        return pidfd
    os.close(pidfd)
    return -1


def _wait_for_end(pidfd: int) -> None:
    """Hold the instance lock until a child is gone; one that cannot end is not waited for."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll(END_TIMEOUT_MS)
    try:
        exits.reap(pidfd)  # off the list
    except OSError:
        pass
    os.close(pidfd)


def _explain(channel: int, error: OSError) -> None:
    """Tell the supervisor, on the channel of the launch, why there will be no child.

    Ordering: the order is taken out first.  A channel that is closed with something unread
    makes its peer see ECONNRESET, before anything that was sent.
    """
    end = Channel.adopt(channel)
    try:
        if spare.order_waits(end):
            for fd in end.receive(spare.ORDER_FDS)[1]:
                os.close(fd)
        end.send(launch.failed(error.errno or 0, str(error)))
    except OSError:
        pass  # it has closed its end: nobody waits for this launch
    finally:
        end.detach()


def _kill_own_group(pid: int) -> None:
    """End the group of an unreaped child of ours: the zombie keeps the number its own."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _own_children() -> set[int]:
    pid = os.getpid()
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            return {int(child) for child in file.read().split()}
    except OSError:
        return set()  # a kernel without CONFIG_PROC_CHILDREN: the lifeline is all there is
