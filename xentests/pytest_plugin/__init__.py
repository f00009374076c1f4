"""The pytest plugin's entry: its options, the marker ``needs``, and the switch. The hooks proper are in ``active``.

Installed as an entry point, this is loaded in every pytest run of its environment; unless one of its options or its ini
key is given it does nothing, and imports next to nothing.
"""

from __future__ import annotations

import pytest

from xentests.pytest_plugin import settings
from xentests.pytest_plugin.needs import MARKER


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    settings.add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Check the options and, if there are any, switch the plugin on."""
    config.addinivalue_line("markers", MARKER)
    found = settings.read_settings(config)
    if found is not None:
        from xentests.pytest_plugin.active import switch_on  # noqa: PLC0415 - foreign runs need not pay for it

        switch_on(config, found)
