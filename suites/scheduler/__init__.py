"""Schedulers by figures: what each promises of shares, caps, budgets and latencies, and that it keeps it under load.

Measured inside, on hosts that count instructions: the same release gives the same figures every time. What needs
more than one CPU (``test_placement``, ``test_runqueues``, ``test_pools``, ``test_null``, ``test_threads``) is asked in
terms of which, not of how much.
"""
