"""The inner side: a running nested Xen, its dom0 and its guests."""
