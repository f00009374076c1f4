"""Much memory: hosts and guests below, at and far above 512 GiB are built, boot, use it, and agree on how much it is.

Most of that memory is never touched, so a small machine will do. How quick it is, is not asked.
"""
