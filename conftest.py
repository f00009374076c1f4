"""Fixtures of the suites: each is in ``fixtures``, in the module of its noun."""

pytest_plugins = [
    "pytester",
    "fixtures.releases",
    "fixtures.hosts",
    "fixtures.guests",
    "fixtures.giants",
    "fixtures.hotplug",
    "fixtures.pairs",
    "fixtures.migration",
    "fixtures.pci",
    "fixtures.payloads",
    "fixtures.pcpus",
    "fixtures.scheduling",
]
