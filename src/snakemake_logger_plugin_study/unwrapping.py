"""A mistake in its own words, out of what Snakemake wraps around it."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

import yaml

# What a workflow's `configfile:` names.
STUDY_FILE = "config/config.yaml"
_NO_YAML = "file is not valid JSON or YAML"

# `WorkflowError in file "...", line 3:` and `InputFunctionException in rule x in file "...", line 3:`.
_HEAD = re.compile(r'^(?:\w+\.)*\w*(?:Error|Exception)(?: in rule \S+)?(?: in file ".*", line \d+)?:$|^Error:$')
# `    WorkflowError (rule x, line 3, file):`, of one within another; `  StudyError: ` before a text.
_INNER = re.compile(r"^\s*(?:WorkflowError|StudyError)(?: \([^)]*\))?:(?: |$)")
# ` (rule x, line 3, file)` at the end.
_PLACE = re.compile(r" \((?:rule \S+, )?line \d+, [^()]*\)$")
_ORIGIN = re.compile(r'^\s*File ".*", line \d+, in ')
_MISSING = re.compile(
    r"^MissingRuleException.*?:\nNo rule to produce (?P<target>.*?)(?: \(if you use input|$)", re.DOTALL
)
# Of Python's own errors the message is a traceback; these are mistakes in the command line, made before a Snakefile.
_CONFIG = re.compile(r"^ValueError: Invalid config definition: (?P<problem>.*)$", re.MULTILINE)
_CONFIGFILE = re.compile(
    r"load_configfile.*^(?P<kind>\w*Error): (?:\[Errno \d+\] )?(?P<what>[^\n:]*)(?:: '(?P<file>[^\n]*)')?",
    re.MULTILINE | re.DOTALL,
)
# The classes of Snakemake's that carry a message for the user.
_WRAPPED = re.compile(r"^(?:\w+\.)*(?:\w*(?:WorkflowError|Exception|ApiError)|LookupError)\b")


def missing_target(message: str) -> str | None:
    """The target of which an error says that no rule makes it."""
    found = _MISSING.match(message)
    return found["target"] if found else None


def unwrapped(message: str) -> str:
    """An error's own text; a Python error that is no message for the user stays as it is.

    Args:
        message: What Snakemake is about to print.
    """
    if not _WRAPPED.match(message):
        return message
    lines = message.splitlines()
    while lines and _HEAD.match(lines[0].strip()):
        lines.pop(0)
    for end in ("Wildcards:", "Traceback:"):
        if end in lines:
            lines = lines[: lines.index(end)]
    while lines and _ORIGIN.match(lines[-1]):
        lines.pop()
    inner = [index for index, line in enumerate(lines) if _INNER.match(line)]
    if inner:
        lines = lines[inner[-1] :]
        lines[0] = _INNER.sub("", lines[0])
        lines = lines if lines[0] else lines[1:]
    return _PLACE.sub("", textwrap.dedent("\n".join(lines)).strip()) or message


def before_the_workflow(message: str) -> str | None:
    """What to say of a mistake in `--config` and `--configfile`, of which Snakemake shows a traceback."""
    if found := _CONFIG.search(message):
        return _five_lines(
            "--config is not understood.",
            key="--config",
            expected="key=value, as in --config magnitude=6.0 'models=[smollm2]'",
            got=found["problem"],
        )
    if message.startswith("Traceback") and (found := _CONFIGFILE.search(message)):
        return _five_lines(
            "A configuration file cannot be read.",
            file=found["file"],
            key="--configfile",
            expected="a YAML file that there is",
            got=found["what"],
        )
    return _broken_configuration() if _NO_YAML in message else None


def _broken_configuration() -> str | None:
    """Which configuration file is no YAML, and where: Snakemake says neither."""
    named = [argument.rpartition("=")[2] for argument in sys.argv[1:] if argument.endswith((".yaml", ".yml", ".json"))]
    for path in map(Path, [STUDY_FILE, *named]):
        try:
            yaml.safe_load(path.read_bytes())
        except OSError:
            continue
        except yaml.YAMLError as error:
            return _five_lines(
                "A configuration file is not valid YAML.",
                file=str(path),
                expected="YAML in UTF-8, indented with spaces alone",
                got=" ".join(str(error).split()),
                remedy="Mend the line that is named.",
            )
    return None


def _five_lines(problem: str, **details: str | None) -> str:
    """Worded as the study's own mistakes, which this package does not know."""
    return "\n".join([problem, *(f"  {name}: {detail}" for name, detail in details.items() if detail)])
