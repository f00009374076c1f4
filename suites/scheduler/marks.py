"""Has tests be run for each scheduler that is there, those of one scheduler by one worker."""

from __future__ import annotations

import pytest


def schedulers(*names: str) -> pytest.MarkDecorator:
    """Parametrises ``scheduler``. On arm64 a host with four load guests does not come to rest yet (decision 25)."""
    marks = {name: [pytest.mark.needs("amd64", name, "tracebuffer"), pytest.mark.xdist_group(name)] for name in names}
    return pytest.mark.parametrize("scheduler", [pytest.param(name, id=name, marks=marks[name]) for name in names])
