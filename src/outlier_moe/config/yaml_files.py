"""YAML held against a JSON schema: defaults filled in, mistakes named by file, key and the nearest right one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from outlier_moe.errors import StudyError, nearest

_MISSING = "A key is missing."
# Mistakes of one file that are told beside the gravest.
MOST_TOLD = 8
_TYPE_NAMES = {
    "null": "null",
    "boolean": "true or false",
    "integer": "an integer",
    "number": "a finite number",
    "string": "text",
    "array": "a list",
    "object": "a mapping",
}


def _is_integer(_: object, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite_number(_: object, value: object) -> bool:
    # NaN would pass every minimum and maximum.
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_Validator = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many({"integer": _is_integer, "number": _is_finite_number}),
)


# libyaml's, of which PyYAML's wheels are built, reads the schema of the study in a tenth of the time.
_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _UniqueKeyLoader(_Loader):
    """A loader that refuses equal keys: PyYAML keeps the last one silently, so that a model could vanish."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key_node.value}' stands twice in one mapping", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        StudyError: If the file is missing, is not UTF-8, is not YAML, or has a key twice.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise StudyError(
            "A configuration file does not exist.",
            file=path,
            expected="a YAML file",
            got="a folder" if path.is_dir() else None,
            remedy="Run in the folder that has Snakefile and config/, or check the path.",
        ) from error
    except OSError as error:
        raise StudyError(
            "A configuration file cannot be read.",
            file=path,
            got=error.strerror,
            remedy="Check its owner and its permissions (ls -l).",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(
            "A configuration file is not valid YAML.",
            file=path,
            expected="YAML in UTF-8, each key once in its mapping",
            got=" ".join(str(error).split()),
            remedy="Mend the line that is named.",
        ) from error


def load_validated(path: Path, schema_path: Path) -> dict[str, Any]:
    """The document of a YAML file, held against the schema of another, with the defaults filled in.

    Raises:
        StudyError: If the file cannot be read or breaks the schema.
    """
    return validate(read_yaml(path), read_yaml(schema_path), file=path)


def validate(document: object, schema: Mapping[str, Any], *, file: str | Path) -> dict[str, Any]:
    """The document with the schema's defaults filled in, as a copy.

    Args:
        document: What was read, from a file or from `--config`.
        schema: A JSON schema (draft 2020-12) whose top level is an object.
        file: Where the document came from, for the message.

    Raises:
        StudyError: If the document breaks the schema: the gravest mistake, and the others in a line each.
    """
    mistakes = [
        single
        for error in _Validator(schema, format_checker=_Validator.FORMAT_CHECKER).iter_errors(document)
        for single in _singled_out(error)
    ]
    if mistakes:
        raise _told_together(mistakes, file=file)
    return _with_defaults(document, schema)


def _singled_out(error: ValidationError) -> Iterator[ValidationError]:
    """The mistakes behind a failed `oneOf` whose branches differ in a constant such as `kind: hub`."""
    if error.validator not in ("oneOf", "anyOf"):
        yield error
        return
    branches: dict[Any, list[ValidationError]] = {}
    for cause in error.context or ():
        branches.setdefault(cause.schema_path[0], []).append(cause)
    meant = [causes for causes in branches.values() if not any(_is_other_kind(cause, error) for cause in causes)]
    if len(meant) == 1 and len(branches) > 1:
        for cause in meant[0]:
            yield from _singled_out(cause)
    else:
        yield error


def _is_other_kind(cause: ValidationError, choice: ValidationError) -> bool:
    return cause.validator == "const" and len(cause.absolute_path) == len(choice.absolute_path) + 1


def _gravity(error: ValidationError) -> int:
    # A misspelt key often is also a missing one, and the first of the two says more.
    ranks = {"additionalProperties": 0, "oneOf": 3, "anyOf": 3}
    return ranks.get(str(error.validator), 1)


def _told_together(mistakes: Sequence[ValidationError], *, file: str | Path) -> StudyError:
    """One error for all mistakes: the gravest in full, the others in a line each."""
    told: dict[tuple[str | None, str], StudyError] = {}
    for mistake in sorted(mistakes, key=_gravity):
        for error in _explained(mistake, file=file):
            told.setdefault((error.key, error.problem), error)
    # A misspelt key often is also a missing one.
    meant = {(_parent(error), error.remedy) for error in told.values()}
    first, *others = (
        error
        for error in told.values()
        if error.problem != _MISSING or (_parent(error), _suggestion(error)) not in meant
    )
    first.also = tuple(error.in_a_line() for error in others[:MOST_TOLD])
    if len(others) > MOST_TOLD:
        first.also += (f"{len(others) - MOST_TOLD} more",)
    return first


def _parent(error: StudyError) -> str:
    return (error.key or "").rpartition(".")[0]


def _suggestion(error: StudyError) -> str:
    """The key that the remedy of a misspelt key suggests."""
    return f"Did you mean '{(error.key or '').rpartition('.')[2]}'?"


def _explained(error: ValidationError, *, file: str | Path) -> Iterator[StudyError]:
    """The errors of one place: one for all unknown keys, one for all missing keys."""
    path = [str(part) for part in error.absolute_path]
    schema = cast("Mapping[str, Any]", error.schema)
    instance: Any = error.instance
    properties = schema.get("properties", {})
    constants = _constants(schema)
    if error.validator == "additionalProperties":
        for key in (str(key) for key in instance if key not in properties):
            remedy = _sentence(nearest(key, properties))
            yield StudyError("A key is not known.", file=file, key=".".join([*path, key]), remedy=remedy)
        return
    if error.validator == "required":
        for key in (key for key in schema["required"] if key not in instance):
            expected = _described({"enum": constants[key]} if key in constants else properties.get(key, {}))
            yield StudyError(_MISSING, file=file, key=".".join([*path, key]), expected=expected)
        return
    if "propertyNames" in error.absolute_schema_path:
        key = ".".join([*path, str(instance)])
        yield StudyError("A name is not allowed.", file=file, key=key, expected=_described(schema))
        return
    if error.validator == "oneOf" and constants:
        key, allowed = next(iter(constants.items()))
        path, schema, instance = [*path, key], {"enum": allowed}, instance.get(key)
    yield StudyError(
        "A value does not fit its key.",
        file=file,
        key=".".join(path) or None,
        expected=_described(schema),
        got=_shown(instance),
        remedy=_remedy(instance, schema),
    )


def _constants(schema: Mapping[str, Any]) -> dict[str, list[str]]:
    """The keys whose constants tell the branches of a choice apart, each with its known values."""
    keys = [branch.get("properties", {}) for branch in schema.get("oneOf", ())]
    shared = set(keys[0]).intersection(*keys) if keys else set()
    return {
        key: [known[key]["const"] for known in keys] for key in sorted(shared) if all("const" in k[key] for k in keys)
    }


def _sentence(clause: str) -> str:
    return clause[0].upper() + clause[1:]


def _described(schema: Mapping[str, Any]) -> str:
    """What a schema allows, in words."""
    if "const" in schema:
        return _shown(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return ", or ".join(_described(branch) for branch in schema["anyOf"])
    types = schema.get("type", [])
    named = " or ".join(_TYPE_NAMES[name] for name in ([types] if isinstance(types, str) else types))
    bounds = {
        "minimum": "of at least {}",
        "exclusiveMinimum": "above {}",
        "maximum": "of at most {}",
        "exclusiveMaximum": "below {}",
        "pattern": "matching {}",
        "format": "that is a {}",
    }
    counts = {
        "minLength": ("character", "characters"),
        "minItems": ("item", "items"),
        "minProperties": ("entry", "entries"),
    }
    clauses = [wording.format(schema[bound]) for bound, wording in bounds.items() if bound in schema]
    clauses += [f"of at least {_counted(schema[bound], *noun)}" for bound, noun in counts.items() if bound in schema]
    if schema.get("uniqueItems"):
        clauses.append("without repetition")
    return " ".join([named or "any value", ", ".join(clauses)]).strip()


def _counted(n: int, singular: str, plural: str) -> str:
    return f"one {singular}" if n == 1 else f"{n} {plural}"


def _shown(value: object) -> str:
    match value:
        case None:
            return "nothing (null)"
        case bool():
            return str(value).lower()
        case str():
            return f"the text '{value}'"
        case _:
            return repr(value)


def _remedy(value: object, schema: Mapping[str, Any]) -> str | None:
    if isinstance(value, str) and schema.get("type") in ("number", "integer"):
        return "Write the number without quotes; YAML reads 1e-3 as text and 1.0e-3 as a number."
    if isinstance(value, str) and "enum" in schema:
        return _sentence(nearest(value, map(str, schema["enum"])))
    if isinstance(value, list) and len(value) < schema.get("minItems", 0):
        otherwise = ", or leave the key out." if "default" in schema else "."
        return f"List at least {_counted(schema['minItems'], 'item', 'items')}{otherwise}"
    return None


def _with_defaults(value: Any, schema: Mapping[str, Any]) -> Any:
    """A valid value, copied, with what it leaves out taken from the schema."""
    for choice in ("oneOf", "anyOf"):
        for branch in schema.get(choice, ()):
            if _Validator(branch).is_valid(value):
                return _with_defaults(value, branch)
    if isinstance(value, Mapping):
        properties = schema.get("properties", {})
        others = schema.get("additionalProperties") or {}
        left_out = {key: known["default"] for key, known in properties.items() if "default" in known}
        return {key: _with_defaults(item, properties.get(key, others)) for key, item in {**left_out, **value}.items()}
    if isinstance(value, list):
        return [_with_defaults(item, schema.get("items", {})) for item in value]
    return deepcopy(value)
