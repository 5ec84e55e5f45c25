"""The pytest plugin: fixtures for supervisors and workers."""
