"""Hypervisors that were compiled with less: each boots, runs a guest, and what was left out is really gone.

Built from the source of the release under test (``source:...``, or a Debian release's source package), from the
fragments in ``configs/``: everything that goes together, and that without one thing after the other. Not asked here:
what the features do, which other suites ask.
"""
