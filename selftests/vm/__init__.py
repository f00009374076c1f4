"""Selftests with real machines: a real Xen is booted, frozen, cloned, killed and damaged."""
