"""Runs in whoever asks: handles, groups of workers, guards, and streams of events.

A handle knows a Port, which says how its worker is, passes requests on, and tells when to
look again.  Every wait is the same loop: look, and if it is not so yet, wait for a change.
So a cancelled wait loses nothing (the state is not in the waiter), and a change between
looking and waiting is not lost (both happen in one turn of the event loop).

Imports no supervisor: the port is given.
"""
