"""Runs in each worker, from its order to its exit.

Counted in milliseconds and page faults: nothing here imports asyncio, logging, threading,
dataclasses or typing unless the target needs it.  May use ``_ipc`` and ``errors``; what a
worker is comes as plain fields, and becomes a WorkerSpec when somebody asks for it.

Order of steps: title; privileges; then a command is executed, or the handlers stand and
signals are opened (before the target's module is imported: an import may take long, and may
start subprocesses, which inherit the mask); the script, the target, its arguments;
STARTED; the target; threads, atexit, flush; FAREWELL; ``os._exit``, since finalising an
interpreter costs 10 ms.

Invariant: no target is called after its channel is gone, so a launch that the supervisor
has dropped never runs.
"""
