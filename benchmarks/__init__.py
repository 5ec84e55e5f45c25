"""Benchmarks: each one measures aiobgw beside its peers, in one run, on the same machine.

Absolute figures say little on a shared machine; a ratio to a peer of the same round does.
Run them from the root of the repository, as ``python -m benchmarks.NAME``.
"""
