"""Which commit of a tree of Xen made a test fail: a noisy binary search that builds, boots and asks again."""
