"""Tests of the harness itself: here those without a machine, in ``vm`` those with one."""
