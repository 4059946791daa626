"""Which class a checkpoint is loaded with, from its `config.json` alone."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    __version__,
)

from outlier_moe.architectures.transformers_private import class_takes_config
from outlier_moe.errors import StudyError, nearest
from outlier_moe.upcycling.simple_model import register_simple

AutoClass = type[AutoModelForCausalLM] | type[AutoModelForImageTextToText]

# The one model of this project's own.
register_simple()

# Names under which a checkpoint of another family is published. The configuration must change its name for good: what
# its keys are converted to goes by the name, and under the published one the experts would stay random.
SAME_ARCHITECTURE = {"kimi_k2": "deepseek_v3"}


def read_config(checkpoint: Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a checkpoint in a local folder.

    Raises:
        StudyError: If there is none, if its family is unknown, or if it takes code from the checkpoint that its entry
            does not allow.
    """
    file = checkpoint / "config.json"
    fields = config_fields(file)
    published = fields.get("model_type")
    if published in SAME_ARCHITECTURE:
        fields = {name: value for name, value in fields.items() if name != "auto_map"}
        published = fields["model_type"] = SAME_ARCHITECTURE[published]
        read = partial(CONFIG_MAPPING[published].from_dict, fields)
    else:
        read = partial(
            AutoConfig.from_pretrained, checkpoint, local_files_only=True, trust_remote_code=trust_remote_code
        )
    if published not in CONFIG_MAPPING and "auto_map" not in fields:
        raise StudyError(
            "The model's family is unknown to the installed version of transformers.",
            file=file,
            key="model_type",
            got=published,
            remedy=f"Install a newer transformers; {nearest(str(published), CONFIG_MAPPING.keys())}",
        )
    if published not in CONFIG_MAPPING and not trust_remote_code:
        raise _needs_remote_code(file, published)
    try:
        return read()
    # Whatever a configuration's class, or transformers' conversion of old keys, makes of a wrong value.
    except Exception as error:
        raise _not_built(error, file, fields) from error


def _not_built(error: Exception, file: Path, fields: dict[str, Any]) -> StudyError:
    remedy = "Mend the value that the message names"
    if "transformers_version" in fields:
        remedy += f"; the file was written by transformers {fields['transformers_version']}, this is {__version__}"
    if isinstance(error, ImportError):
        remedy = f"Install {error.name or 'the package that the message names'}"
    problem = "The model's configuration cannot be built."
    if isinstance(error, StrictDataclassError | ValueError):
        problem = "The model's configuration contradicts itself."
    got = error if isinstance(error, StrictDataclassError | ValueError) else f"{type(error).__name__}: {error}"
    return StudyError(problem, file=file, got=got, remedy=f"{remedy}.")


def model_class_for(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> AutoClass:
    """The auto class that loads a configuration: the text model if there is one, else the one with the towers.

    Given tokens alone, the latter runs its text tower alone.

    Raises:
        StudyError: If neither knows the configuration, or it takes code that is not allowed.
    """
    for auto_class in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if class_takes_config(auto_class, config):
            return auto_class
        if auto_class.__name__ in (getattr(config, "auto_map", None) or {}):
            if trust_remote_code:
                return auto_class
            raise _needs_remote_code(None, config.model_type)
    raise StudyError(
        "The configuration belongs to no language model.",
        key="model_type",
        expected="a causal or an image-text-to-text language model of transformers",
        got=config.model_type,
        remedy="Take a decoder model.",
    )


def config_fields(file: Path) -> dict[str, Any]:
    """What a config.json says.

    Raises:
        StudyError: If there is none, or it is no JSON object.
    """
    try:
        fields = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise StudyError(
            "The model has no configuration.", file=file, remedy="Point to a folder in the hub's layout."
        ) from None
    except (ValueError, OSError, RecursionError) as error:
        raise _no_object(file, f"{type(error).__name__}: {error}") from None
    if not isinstance(fields, dict):
        raise _no_object(file, f"a {type(fields).__name__}")
    return fields


def _no_object(file: Path, got: str) -> StudyError:
    problem, remedy = "The model's configuration is not JSON.", "Mend the file, or copy it again from the model."
    return StudyError(problem, file=file, expected="a JSON object", got=got, remedy=remedy)


def _needs_remote_code(file: Path | None, model_type: str | None) -> StudyError:
    return StudyError(
        "The model needs code that its checkpoint brings along.",
        file=file,
        key="model_type",
        got=model_type,
        remedy="Read the code; if you trust it, set trust_remote_code: true in the model's entry.",
    )
