"""Runs in the host's process: how a supervisor comes and goes with what the host is made of.

``aiohttp`` and ``asgi`` start one with the application and end it with the application;
``once`` has one among several server processes of an application, which ``election`` chooses;
``serving`` finds out when the application serves; ``pytest_plugin`` has fixtures for tests, and
the check that nothing is left behind.

Invariants.  An integration only uses what is public of the supervisor, and never touches the
host's signals.  It makes no task that a host would wait for.  Each module imports its
framework and nothing of another one's; none is imported by ``import aiobgw``.
"""
