"""qualification.json keeps to its schema, and the schema in docs/ is the one of this code."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import msgspec
import pytest

from selftests.project import ROOT
from selftests.qualifications import telling
from xentests.errors import UsageError
from xentests.report.qualification import model

SCHEMA = ROOT / "docs" / "qualification.schema.json"


def test_the_schema_is_that_of_the_code() -> None:
    """After a change of the model: write ``model.json_schema()`` to the file, and think of SCHEMA."""
    assert json.loads(SCHEMA.read_text()) == model.json_schema()


def test_what_is_written_keeps_to_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "qualification.json"
    model.write(telling(), path)
    data = json.loads(path.read_text())
    jsonschema.validate(data, json.loads(SCHEMA.read_text()))
    data["answer"] = "perhaps"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, json.loads(SCHEMA.read_text()))
    assert model.read(path) == telling()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 2}', "\x00"])
def test_what_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "qualification.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"qualification\.json"):
        model.read(path)


def test_builtins_lose_nothing() -> None:
    made = telling()
    assert msgspec.convert(msgspec.to_builtins(made), model.Qualification) == made
