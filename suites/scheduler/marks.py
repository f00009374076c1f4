"""Has tests be run for each scheduler that is there, those of one scheduler by one worker."""

from __future__ import annotations

import pytest


def schedulers(*names: str) -> pytest.MarkDecorator:
    """Parametrises ``scheduler``."""
    marks = {name: [pytest.mark.needs(name, "tracebuffer"), pytest.mark.xdist_group(name)] for name in names}
    return pytest.mark.parametrize("scheduler", [pytest.param(name, id=name, marks=marks[name]) for name in names])
