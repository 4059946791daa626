"""Which tensors of a checkpoint belong to which decoder layer, and how a layer is loaded and freed."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

from outlier_moe.architectures.structure import DecoderStructure, find_structure, other_towers
from outlier_moe.errors import StudyError
from outlier_moe.machine.heap import release_freed_memory
from outlier_moe.machine.host_memory import available_bytes
from outlier_moe.sources.checkpoint_map import ignored_tensors, refuse_lacking, unlisted_tensors, warn_of_ignored
from outlier_moe.sources.safetensors_header import TensorEntry, read_header
from outlier_moe.streaming.loading import Skeleton
from outlier_moe.streaming.misfits import lacks_weights, some
from outlier_moe.streaming.no_account import of_no_account
from outlier_moe.streaming.safetensors_files import TORCH_DTYPES, forget_cached, read_tensors
from outlier_moe.streaming.shards import ShardSource
from outlier_moe.streaming.stored_tensors import CheckpointTensor, UndoneTensor
from outlier_moe.streaming.undoing import StoredWeight

log = logging.getLogger(__name__)

REST = -1
"""The portion of a checkpoint that lies outside the decoder layers: embeddings, final norm, head."""

# Of the memory that is free. A checkpoint that is larger is not kept in the system's cache for a run after this one.
SHARE_OF_CACHE = 0.5

# What transformers' conversion makes plain by itself.
_MXFP4_PARTS = ("_blocks", "_scales")

RawPortion = Mapping[str, CheckpointTensor]
"""The tensors of one portion as they lie in the checkpoint."""


class _Slot(NamedTuple):
    """The place of one weight of a layer."""

    module: nn.Module
    """The module that has it."""
    name: str
    """Its name there."""
    on_meta: Tensor
    """The parameter on the meta device while the layer is not loaded."""


class LayerStore:
    """The weights of a model, layer by layer.

    Other towers of the model (vision, audio) stay on the meta device and are not read.

    Args:
        skeleton: The model without its weights.
        source: Its checkpoint.

    Raises:
        StudyError: If the checkpoint lacks a weight, has one too many, or a file of it is broken.
    """

    def __init__(self, skeleton: Skeleton, source: ShardSource) -> None:
        self.skeleton = skeleton
        self.source = source
        self.model: PreTrainedModel = skeleton.model
        self.structure: DecoderStructure = find_structure(self.model)
        self.n_layers = len(self.structure.layers)
        self.bytes_read = 0
        self._layer_of = re.compile(re.escape(self.structure.prefix) + r"\.(\d+)\.")
        self._towers = tuple(other_towers(self.model, self.structure.backbone))
        self._headers: dict[str, Mapping[str, TensorEntry]] = {}
        self._ignored: dict[str, Sequence[str]] = {}
        names = source.weight_map
        self._owner = {name: skeleton.undoing.owner(name, names) for name in names}
        of_weights = skeleton.targets(set(self._owner.values()))
        self._targets = {name: of_weights[owner] for name, owner in self._owner.items()}
        self._portions = self._checked_portions()
        self._stored = self._stored_in_parts()
        self._slots = [list(self._slots_of(layer)) for layer in range(self.n_layers)]
        self._read_order: list[int] = []
        self._has_rest = False
        self._outgrows_memory = self._bytes_here() > available_bytes() * SHARE_OF_CACHE

    def __enter__(self) -> LayerStore:
        """The store itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End what the source does in the background."""
        self.source.close()

    def _bytes_here(self) -> int:
        shards = sorted(set(self.source.weight_map.values()))
        return sum(self.source.path(shard).stat().st_size for shard in shards if self.source.is_here(shard))

    def _checked_portions(self) -> Mapping[int, Sequence[str]]:
        for shard in sorted(set(self.source.weight_map.values())):
            if self.source.is_here(shard):
                self._header(shard)
        self._check_names()
        portions: dict[int, list[str]] = defaultdict(list)
        for name, targets in self._targets.items():
            if targets[0] in self.skeleton.weights and not targets[0].startswith(self._towers):
                portions[self._portion(targets)].append(name)
        return portions

    def _check_names(self) -> None:
        for names in self.skeleton.rivals.values():
            raise self._unfit(
                "Several tensors of the checkpoint are the same weight of the model.",
                key=names,
                file=self.source.weight_map.get(names[0], "config.json"),
                expected="one tensor for each weight",
            )
        found = self.skeleton.discrepancies(self._targets)
        if found.missing:
            raise lacks_weights(
                self.source.directory,
                found.missing,
                model=self.model,
                unlisted=unlisted_tensors(self._ignored, self.source.weight_map),
            )
        unexpected = [name for name, targets in self._targets.items() if targets[0] in found.unexpected]
        owners = self.skeleton.of_other_towers([self._owner[name] for name in unexpected])
        towers = {name for name in unexpected if self._owner[name] in owners}
        left = of_no_account(
            unexpected,
            self._targets,
            layers=self._layer_of,
            n_layers=self.n_layers,
            is_quantized=self.skeleton.quantized,
        )
        if left:
            log.info("of no account for what is computed, and not read: %s", some(sorted(left)))
        if unexpected := [name for name in unexpected if name not in towers | left]:
            raise self._unfit(
                "The checkpoint has tensors that belong nowhere in the model.",
                key=unexpected,
                file=self.source.weight_map[unexpected[0]],
                expected=f"weights of {type(self.model).__name__}, and no other",
            )

    def _unfit(self, problem: str, *, key: Sequence[str], expected: str, file: str = "config.json") -> StudyError:
        return StudyError(
            problem,
            file=self.source.directory / file,
            key=some(key),
            expected=expected,
            remedy="Check that config.json and the shards are of the same model and save.",
        )

    def _stored_in_parts(self) -> Mapping[str, StoredWeight]:
        """The weights that are stored in parts, each checked to have all its parts."""
        parts: dict[str, list[str]] = defaultdict(list)
        for name in (name for names in self._portions.values() for name in names):
            parts[self._owner[name]].append(name)
        found = {}
        for weight, stored in parts.items():
            if stored != [weight]:
                found[weight] = self.skeleton.stored_weight(weight, stored, self._targets[stored[0]][0])
                self._check_parts(found[weight])
        return found

    def _check_parts(self, weight: StoredWeight) -> None:
        try:
            self.skeleton.undoing.check(weight)
        except StudyError as error:
            error.file = self.source.directory / self.source.weight_map[min(weight.parts)]
            raise

    def _portion(self, targets: Sequence[str]) -> int:
        """The layer that all weights belong to, else the rest."""
        layers = {int(match[1]) if (match := self._layer_of.match(target)) else REST for target in targets}
        return layers.pop() if len(layers) == 1 else REST

    def _slots_of(self, layer: int) -> Iterator[_Slot]:
        prefix = f"{self.structure.prefix}.{layer}."
        for name, tensor in self.skeleton.weights.items():
            if name.startswith(prefix):
                path, _, leaf = name.rpartition(".")
                yield _Slot(self.model.get_submodule(path), leaf, tensor)

    def plan(self, *, first_layer: int = 0) -> None:
        """Tell the source what will be read: the rest, then the layers from one on."""
        self._read_order = [REST, *range(first_layer, self.n_layers)]
        self.source.plan([self._shards(portion) for portion in self._read_order])

    def _shards(self, portion: int) -> list[str]:
        return sorted({self.source.weight_map[name] for name in self._portions[portion]})

    def _header(self, shard: str) -> Mapping[str, TensorEntry]:
        if shard not in self._headers:
            path = self.source.path(shard)
            header = read_header(path)
            refuse_lacking(path, header, self.source.weight_map)
            if ignored := ignored_tensors(shard, header, self.source.weight_map):
                self._ignored[shard] = ignored
                warn_of_ignored({shard: ignored}, self.source.weight_map, directory=path.parent)
            self._headers[shard] = header
        return self._headers[shard]

    def read(self, portion: int) -> RawPortion:
        """Read a portion into memory as it lies in the checkpoint; may run in a thread beside a layer's computing."""
        raw: dict[str, CheckpointTensor] = {}
        for shard in self._shards(portion):
            header = self._header(shard)
            names = self._names(portion, shard)
            for name in names:
                self._check_dtype(name, header[name])
            tensors = read_tensors(self.source.path(shard), header, names)
            self.bytes_read += sum(tensor.nbytes for tensor in tensors.values())
            raw |= {name: CheckpointTensor(tensor, header[name].dtype) for name, tensor in tensors.items()}
        return raw

    def _names(self, portion: int, shard: str) -> list[str]:
        return [name for name in self._portions[portion] if self.source.weight_map[name] == shard]

    def _check_dtype(self, name: str, entry: TensorEntry) -> None:
        if self._owner[name] in self._stored or (self.skeleton.converts_quantized and name.endswith(_MXFP4_PARTS)):
            return
        expected = self.skeleton.weights[self._targets[name][0]].dtype
        # Values of less than 16 bits mean something only together with their scales.
        stored = TORCH_DTYPES[entry.dtype]
        alike = stored.is_floating_point == expected.is_floating_point and (
            stored.itemsize >= 2 or not stored.is_floating_point
        )
        if not alike:
            raise StudyError(
                "A tensor of the checkpoint has a dtype that its weight cannot come from.",
                file=self.source.directory / self.source.weight_map[name],
                key=name,
                expected=f"a dtype that becomes {str(expected).removeprefix('torch.')}",
                got=entry.dtype,
                remedy="If the checkpoint is quantised, config.json must say how (quantization_config).",
            )

    @property
    def has_rest(self) -> bool:
        """Whether the rest has its weights, which it keeps."""
        return self._has_rest

    def install(self, portion: int, raw: RawPortion) -> None:
        """Convert what was read into the weights of a portion.

        Raises:
            StudyError: If a tensor does not fit, or a weight is left without one.
        """
        try:
            self.skeleton.install(self._weights_of(raw))
        except StudyError as error:
            error.file = self._file_of(error.key)
            raise
        if portion == REST:
            self._has_rest = True
            self.skeleton.tie_weights(target for targets in self._targets.values() for target in targets)
        left = [name for name, tensor in self._held(portion) if tensor.is_meta]
        if left:
            unlisted = unlisted_tensors(self._ignored, self.source.weight_map)
            raise lacks_weights(self.source.directory, left, model=self.model, unlisted=unlisted)
        release_freed_memory()

    def _weights_of(self, raw: RawPortion) -> Mapping[str, CheckpointTensor | UndoneTensor]:
        """The tensors that were read, with the parts of a weight together."""
        parts: dict[str, dict[str, CheckpointTensor]] = defaultdict(dict)
        for name, tensor in raw.items():
            parts[self._owner[name]][name] = tensor
        device = self.skeleton.placement.device
        return {
            weight: UndoneTensor(self._stored[weight], stored, self.skeleton.undoing, device)
            if weight in self._stored
            else stored[weight]
            for weight, stored in parts.items()
        }

    def _file_of(self, weight: str | None) -> Path:
        """The file with the tensor, or the first of those, that become a weight."""
        names = [name for name, targets in self._targets.items() if weight in (*targets, name, self._owner[name])]
        return self.source.directory / min((self.source.weight_map[name] for name in names), default="config.json")

    def _held(self, portion: int) -> Iterator[tuple[str, Tensor]]:
        """The weights and tables of a portion as they are now."""
        root: nn.Module = self.model if portion == REST else self.structure.layers[portion]
        outside = (f"{self.structure.prefix}.", *self._towers) if portion == REST else ()
        for tensors in (root.named_parameters(remove_duplicate=False), root.named_buffers(remove_duplicate=False)):
            yield from ((name, tensor) for name, tensor in tensors if not name.startswith(outside))

    def free(self, layer: int) -> None:
        """Put the weights of a layer back on the meta device."""
        for slot in self._slots[layer]:
            setattr(slot.module, slot.name, slot.on_meta)
        release_freed_memory()
        if self._outgrows_memory:
            for shard in self._shards(layer):
                forget_cached(self.source.path(shard), self._header(shard), self._names(layer, shard))
        if layer in self._read_order:
            self.source.finish(self._read_order.index(layer))
