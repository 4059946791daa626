from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from outlier_moe.config.yaml_files import load_validated, read_yaml, validate
from outlier_moe.errors import StudyError

ROOT = Path(__file__).parents[3]

SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "share": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 0.5},
        "n": {"type": "integer", "minimum": 1, "default": 3},
        "chunk": {"default": "auto", "anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1}]},
        "seeds": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "default": [0]},
        "layers": {"type": "array", "items": {"type": "integer"}, "minItems": 2},
        "mode": {"type": "string", "enum": ["slow", "fast"], "default": "fast"},
        "inner": {
            "type": "object",
            "additionalProperties": False,
            "default": {},
            "properties": {"depth": {"type": "integer", "default": 7}, "tags": {"type": "array", "default": []}},
        },
        "many": {
            "type": "object",
            "default": {},
            "propertyNames": {"type": "string", "pattern": "^[a-z0-9.-]+$"},
            "additionalProperties": {
                "oneOf": [
                    {
                        "additionalProperties": False,
                        "required": ["kind", "repo"],
                        "properties": {
                            "kind": {"const": "hub"},
                            "repo": {"type": "string"},
                            "revision": {"type": "string", "default": "main"},
                        },
                    },
                    {
                        "additionalProperties": False,
                        "required": ["kind", "path"],
                        "properties": {"kind": {"const": "folder"}, "path": {"type": "string"}},
                    },
                ]
            },
        },
    },
}
DEFAULTS = {
    "share": 0.5,
    "n": 3,
    "chunk": "auto",
    "seeds": [0],
    "mode": "fast",
    "inner": {"depth": 7, "tags": []},
    "many": {},
}


def mistake(document: object) -> StudyError:
    with pytest.raises(StudyError) as caught:
        validate(document, SCHEMA, file="study.yaml")
    assert caught.value.file == "study.yaml"
    return caught.value


@pytest.mark.parametrize(
    ("keys", "key", "expected", "remedy"),
    [
        ({"shar": 1}, "shar", None, "Did you mean 'share'?"),
        ({"inner": {"dept": 1}}, "inner.dept", None, "Did you mean 'depth'?"),
        ({"inner": {"zzz": 1}}, "inner.zzz", None, "Known are: depth, tags"),
        ({"inner": 3}, "inner", "a mapping", None),
        ({"inner": None}, "inner", "a mapping", None),
        ({"n": 0}, "n", "an integer of at least 1", None),
        ({"n": 1.0}, "n", "an integer of at least 1", None),
        ({"n": True}, "n", "an integer of at least 1", None),
        ({"n": "3"}, "n", "an integer of at least 1", "Write the number without quotes"),
        ({"share": "1e-3"}, "share", "a finite number above 0, of at most 1", "YAML reads 1e-3 as text"),
        ({"share": float("nan")}, "share", "a finite number above 0, of at most 1", None),
        ({"share": float("inf")}, "share", "a finite number above 0, of at most 1", None),
        ({"chunk": 0}, "chunk", "the text 'auto', or an integer of at least 1", None),
        ({"seeds": []}, "seeds", "a list of at least one item", "List at least one item, or leave the key out."),
        ({"layers": [1]}, "layers", "a list of at least 2 items", "List at least 2 items."),
        ({"mode": "fsat"}, "mode", "one of slow, fast", "Did you mean 'fast'?"),
        ({"many": {"a": {"kind": "hub", "reop": "x"}}}, "many.a.reop", None, "Did you mean 'repo'?"),
        ({"many": {"a.b": {"kind": "hub"}}}, "many.a.b.repo", "text", None),
        ({"many": {"a": {"kind": "hbu"}}}, "many.a.kind", "one of hub, folder", "Did you mean 'hub'?"),
        ({"many": {"A b": {"kind": "folder", "path": ""}}}, "many.A b", "text matching", None),
    ],
)
def test_a_mistake_is_named(keys: dict[str, Any], key: str, expected: str | None, remedy: str | None) -> None:
    error = mistake({"name": "x", **keys})
    assert error.key == key
    assert (error.expected or "").__str__().startswith(expected or "")
    assert (remedy or "") in (error.remedy or "")


def test_a_missing_key_is_named() -> None:
    error = mistake({})
    assert (error.problem, error.key, error.expected) == ("A key is missing.", "name", "text")


def test_a_misspelt_key_comes_before_what_it_leaves_missing() -> None:
    error = mistake({"nmae": "x", "n": 0})
    assert error.key == "nmae" and error.remedy == "Did you mean 'name'?"
    assert error.problem == "A key is not known."
    assert [line.partition(":")[0] for line in error.also] == ["n"], "nothing of the name that is missing by it"


def test_all_mistakes_are_told_at_once() -> None:
    error = mistake({"mode": "fsat", "inner": {"depht": 1, "colour": 2}, "share": 2, "many": {"a": {"kind": "folder"}}})
    told = [error.in_a_line(), *error.also]
    keys = {"name", "mode", "inner.depht", "inner.colour", "share", "many.a.path"}
    assert {line.partition(":")[0] for line in told} == keys
    assert any("'fast'" in line for line in told) and any("'depth'" in line for line in told)
    assert str(error).count("\n  also: ") == len(error.also) == 5


def test_of_very_many_mistakes_the_rest_is_counted() -> None:
    error = mistake({"name": "x", **{f"k{i}": i for i in range(20)}})
    assert len(error.also) == 9 and error.also[-1].startswith("11 ")


def test_a_document_that_is_no_mapping() -> None:
    assert mistake(["x"]).expected == "a mapping"


def test_defaults_fill_what_is_left_out_at_every_level() -> None:
    assert validate({"name": "x"}, SCHEMA, file="f") == {"name": "x", **DEFAULTS}
    filled = validate({"name": "x", "inner": {"depth": 1}, "chunk": 4}, SCHEMA, file="f")
    assert filled["inner"] == {"depth": 1, "tags": []} and filled["chunk"] == 4
    many = {"a": {"kind": "hub", "repo": "r"}, "b": {"kind": "folder", "path": "p"}}
    filled = validate({"name": "x", "many": many}, SCHEMA, file="f")
    assert filled["many"] == {"a": {"kind": "hub", "repo": "r", "revision": "main"}, "b": many["b"]}


def test_defaults_are_copies() -> None:
    validate({"name": "x"}, SCHEMA, file="f")["inner"]["tags"].append(1)
    assert validate({"name": "x"}, SCHEMA, file="f") == {"name": "x", **DEFAULTS}


@given(
    st.fixed_dictionaries(
        {"name": st.text()},
        optional={
            "share": st.floats(0, 1, exclude_min=True),
            "n": st.integers(1, 10**6),
            "chunk": st.one_of(st.just("auto"), st.integers(1, 99)),
            "inner": st.dictionaries(st.just("depth"), st.integers()),
        },
    )
)
def test_what_is_given_stays_and_filling_again_changes_nothing(document: dict[str, Any]) -> None:
    filled = validate(document, SCHEMA, file="f")
    inner = {**DEFAULTS["inner"], **document.get("inner", {})}
    assert filled == {**DEFAULTS, **document, "inner": inner}
    assert validate(filled, SCHEMA, file="f") == filled


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (None, ""),
        (b"a: [1,\n", "line 2"),
        ("a: \xe9".encode("latin-1"), "utf-8"),
        (b"models:\n  a: 1\n  b: 2\n  a: 3\n", "'a' stands twice in one mapping in \"<unicode string>\", line 4"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, got: str) -> None:
    path = tmp_path / "study.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StudyError) as caught:
        read_yaml(path)
    assert caught.value.file == path and got in str(caught.value.got or "")


def test_a_file_is_held_against_its_schema(tmp_path: Path) -> None:
    (tmp_path / "schema.yaml").write_text(yaml.safe_dump(SCHEMA))
    (tmp_path / "study.yaml").write_text("name: x\nshare: 1.0\n")
    loaded = load_validated(tmp_path / "study.yaml", tmp_path / "schema.yaml")
    assert loaded == {"name": "x", **DEFAULTS, "share": 1.0}


def levels(schema: dict[str, Any], path: str) -> list[tuple[str, dict[str, Any]]]:
    """Every schema inside a schema, with where it stands."""
    inside = [(f"{path}.{key}", known) for key, known in schema.get("properties", {}).items()]
    inside += [(f"{path}[{i}]", branch) for i, branch in enumerate(schema.get("oneOf", []))]
    inside += [(f"{path}.*", schema["additionalProperties"])] if schema.get("additionalProperties") else []
    return [(path, schema)] + [level for name, known in inside for level in levels(known, name)]


@pytest.mark.parametrize("name", ["config.schema.yaml", "models.schema.yaml"])
def test_every_key_of_the_shipped_schemas_is_described_and_every_level_closed(name: str) -> None:
    for path, schema in levels(read_yaml(ROOT / "workflow/schemas" / name), name):
        assert schema.get("description"), path
        assert {"type", "anyOf", "oneOf", "required"} & set(schema), path
        if "properties" in schema:
            assert schema.get("additionalProperties") is False, path
