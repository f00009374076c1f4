"""Guests move between two hosts, live, while they are at work; and when they cannot, they stay where they are.

Levels of CPUs, releases, and failures on the way. Not about devices that are plugged in on the way, nor about storage
that is copied with the guest: what a guest has on disk is reached from both hosts.
"""
