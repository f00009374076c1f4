"""Devices come and go while a guest runs, and are used for real in between: disks, interfaces, vCPUs and memory.

The guest's own view, xenstore and Xen have to agree each time, and what is detached leaves nothing. Not about devices
that pass through to a guest (USB, PCI), nor about network storage.
"""
