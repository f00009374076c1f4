"""Where a Xen comes from: naming a release, fetching its packages, verifying them. Knows nothing of images or labs."""
