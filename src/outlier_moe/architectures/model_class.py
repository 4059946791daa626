"""Which class a checkpoint is loaded with, from its `config.json` alone."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    __version__,
)

from outlier_moe.architectures.other_kinds import refuse_other_kinds
from outlier_moe.architectures.simple_model import register_simple
from outlier_moe.architectures.transformers_private import class_takes_config
from outlier_moe.errors import StudyError, nearest

AutoClass = type[AutoModelForCausalLM] | type[AutoModelForImageTextToText]

# The one model of this project's own.
register_simple()

COMPUTED_IN = ("float32", "bfloat16", "float16", "float64")

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
    _refuse_unusable(fields, file)
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
    return StudyError(problem, file=file, key=_field_of(error), got=got, remedy=f"{remedy}.")


def _refuse_unusable(fields: dict[str, Any], file: Path) -> None:
    """Refuse a model_type or classes that are not names, and a dtype that torch cannot compute in."""
    published = fields.get("model_type")
    if not isinstance(published, str) and (published is not None or "auto_map" not in fields):
        raise StudyError(
            "The model's configuration does not name its family.",
            file=file,
            key="model_type",
            expected="transformers' name of the family, such as llama",
            got=published,
            remedy="Take the config.json of transformers' format; a params.json is another.",
        )
    named = fields.get("architectures")
    if named is not None and not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        raise StudyError(
            "The model's configuration does not name its classes.",
            file=file,
            key="architectures",
            expected="a list of names, such as [LlamaForCausalLM], or none",
            got=named,
            remedy="Take the value of the model's published config.json.",
        )
    for part in (fields, fields.get("text_config")):
        for key in ("dtype", "torch_dtype"):
            said = part.get(key) if isinstance(part, dict) else None
            if said is not None and (not isinstance(said, str) or said.removeprefix("torch.") not in COMPUTED_IN):
                raise StudyError(
                    "The model's configuration names a dtype in which it cannot be computed.",
                    file=file,
                    key=key,
                    expected=", ".join(COMPUTED_IN),
                    got=said,
                    remedy="Correct it, or take the key out: the dtype of the weights counts then.",
                )


def _field_of(error: Exception) -> str | None:
    """The field that the error of a configuration's own check names, if any."""
    match = re.search(r"field '(\w+)'", str(error))
    return match[1] if match else None


def model_class_for(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> AutoClass:
    """The auto class that loads a configuration: the text model if there is one, else the one with the towers.

    Given tokens alone, the latter runs its text tower alone.

    Raises:
        StudyError: If it is of no decoder language model, neither class knows it, or it takes code that is not allowed.
    """
    refuse_other_kinds(config)
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
        got=f"{config.model_type} ({', '.join(config.architectures or ()) or 'no architectures'})",
        remedy="Take a decoder model.",
    )


def meta_model(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    *,
    trust_remote_code: bool = False,
    auto_class: AutoClass | None = None,
) -> PreTrainedModel:
    """The model of a configuration on the meta device, where weights take no memory.

    Raises:
        StudyError: If the configuration does not build one.
    """
    chosen: Any = auto_class or model_class_for(config, trust_remote_code=trust_remote_code)
    try:
        with torch.device("meta"):
            # transformers writes the dtype into the configuration that it is given.
            return chosen.from_config(deepcopy(config), dtype=dtype, trust_remote_code=trust_remote_code)
    # Whatever the family's own code makes of numbers that do not go together.
    except Exception as error:
        raise StudyError(
            "The model's configuration builds no model.",
            file="config.json",
            key="model_type",
            expected=f"fields from which transformers builds a {config.model_type}",
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            remedy="Compare config.json with the one that the model was published with; sizes must divide evenly.",
        ) from error


def config_fields(file: Path) -> dict[str, Any]:
    """The fields of a config.json.

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
