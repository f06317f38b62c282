"""A model with one part at a time in memory: its embedding, each of its layers, and the norm with the head.

transformers loads a model whole. Its own rules for a checkpoint's names and layouts (experts that lie in
separate tensors and are one parameter, names of older checkpoints, prefixes) are applied here to a part's
tensors alone, so that what they cost in memory is a part's.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.modeling_utils import LoadStateDictConfig

from yarn_ops.errors import BaseModelError
from yarn_ops.models.checkpoints import quiet_transformers, weight_files
from yarn_ops.models.device import side_by_side
from yarn_ops.models.loading import lay_out_proven
from yarn_ops.rope.methods import RopeSpec

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
"""by their names in safetensors"""
PIECE_BYTES = 1 << 20
LENGTH_BYTES = 8
"""of a safetensors header's length, at the beginning of its file"""


@dataclass(frozen=True)
class ModelPart:
    """Modules of a model that are in memory together."""

    modules: tuple[str, ...]
    names: tuple[str, ...]
    """their parameters and buffers that a file keeps, in the model's order; a tied one belongs to its
    source"""


class PartedModel:
    """A causal model whose parameters are on the meta device until a part is filled, its RoPE proven.
    Float32."""

    def __init__(self, config: Mapping[str, Any], spec: RopeSpec, *, device: str) -> None:
        self.model = lay_out_proven(config, spec, device=device)
        self.device = device
        self.rules = get_model_conversion_mapping(self.model)
        """between names and layouts of files and those of the model"""
        self.layers: list[nn.Module] = list(self.model.base_model.layers)
        self.front, *self.middle, self.back = _split(self.model, self.layers)

    @property
    def parts(self) -> list[ModelPart]:
        """All parts, in the order of the forward."""
        return [self.front, *self.middle, self.back]

    def release(self, part: ModelPart) -> None:
        """Free a part's parameters."""
        for name in part.names:
            module, leaf = _owner(self.model, name)
            if leaf in module._parameters:
                empty = torch.empty_like(getattr(module, leaf), dtype=torch.float32, device="meta")
                setattr(module, leaf, nn.Parameter(empty, requires_grad=False))

    def hand_over(self, part: ModelPart, following: ModelPart | None) -> None:
        """Free a part's parameters, or leave their memory to the following part, if that is alike: the system
        fills each new page with zeros, which takes longer than reading a part."""
        shapes = [
            [value.shape for value in self.values(one).values()] if one else [] for one in (part, following)
        ]
        if following is not None and shapes[0] == shapes[1]:
            for name, other in zip(part.names, following.names, strict=True):
                module, leaf = _owner(self.model, other)
                if leaf in module._parameters:
                    setattr(module, leaf, self.model.get_parameter(name))
        self.release(part)

    def fill(self, part: ModelPart, weights: PartWeights) -> None:
        """Read a part's parameters into memory. BaseModelError as `PartWeights.load`."""
        weights.load(part)
        self.model.tie_weights()

    @property
    def converts(self) -> bool:
        """Whether files hold a parameter in other layouts than the model does."""
        return any(isinstance(rule, WeightConverter) for rule in self.model._weight_conversions)

    def published(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters by the model's own names, in the names and layouts of published checkpoints."""
        return dict(revert_weight_conversion(self.model, dict(values)))

    def values(self, part: ModelPart) -> dict[str, Tensor]:
        """A part's parameters by the model's own names."""
        return {name: self.model.get_parameter_or_buffer(name).detach() for name in part.names}


class _Place(NamedTuple):
    """Where a tensor of the model lies."""

    name: str
    """in the model"""
    file: Path
    first: int
    """byte"""
    size: int
    """in bytes"""
    dtype: str
    """as safetensors calls it"""
    shape: torch.Size


class PartWeights:
    """The safetensors of a directory, by the parts of a model. Nothing is memory-mapped: a tensor is held
    only while it is loaded."""

    def __init__(self, parted: PartedModel, path: Path) -> None:
        """BaseModelError where a file is damaged."""
        self._path, self._parted = path, parted
        model = parted.model
        renamings = [rule for rule in parted.rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in parted.rules if isinstance(rule, WeightConverter)]
        places, owner = model.state_dict(), {name: part for part in parted.parts for name in part.names}
        self._slices: dict[ModelPart, dict[str, Any]] = defaultdict(dict)
        self._places: dict[ModelPart, dict[str, _Place]] = defaultdict(dict)
        for file in weight_files(path):
            for key, tensor, place in _slices(path / file):
                name, _ = rename_source_key(key, renamings, converters, model.base_model_prefix, places)
                name = name if name in owner else key  # a rule may fit a name that needs none
                if name in owner:  # the rest is what `from_pretrained` leaves out as well
                    self._slices[owner[name]][key] = tensor
                    self._places[owner[name]][key] = place._replace(name=name)
        # As `from_pretrained` leaves it: what these files needed is undone on the way to others.
        model._weight_conversions = [rule for rule in parted.rules if rule.was_used()]

    def read_ahead(self, part: ModelPart) -> None:
        """Have the kernel read a part's bytes, where it can be told to, while something else is done."""
        for place in self._places[part].values() if hasattr(os, "posix_fadvise") else ():
            with place.file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), place.first, place.size, os.POSIX_FADV_WILLNEED)

    def take(self, part: ModelPart, tensors: Mapping[str, Tensor]) -> list[str]:
        """Put what the files hold of a part, bfloat16, into these tensors (float32). Returns the names of
        those that, rounded, were not exactly that. OSError."""
        places = self._places[part]
        both = [*(places.keys() & tensors.keys())]
        taken = side_by_side(lambda name: _take(places[name], tensors[name]), both, self._parted.device)
        wrong = [name for name, same in zip(both, taken, strict=True) if not same]
        return sorted([*wrong, *(places.keys() ^ tensors.keys())])

    def load(self, part: ModelPart) -> None:
        """Load a part into the model. BaseModelError names a tensor that is missing or of another shape."""
        places = [*self._places[part].values()]
        try:
            if self._parted.converts or any(place.dtype not in DTYPES for place in places):
                missing, mismatched = self._convert(part)
            else:
                missing = {*part.names} - {place.name for place in places}
                placed = side_by_side(self._place, places, self._parted.device)
                mismatched = {place.name for place, fits in zip(places, placed, strict=True) if not fits}
        except (OSError, SafetensorError) as error:
            raise BaseModelError(f"{self._path}: cannot be read ({error}); fetch it again") from None
        for fault, names in {"missing": missing, "mismatched": mismatched}.items():
            if names:
                raise BaseModelError(
                    f"{self._path}: {fault} tensor {min(names)} ({len(names)} in all); "
                    "weights and config are not of one model, fetch both again"
                )

    def _place(self, place: _Place) -> bool:
        """Read a tensor into its parameter; False where it has another shape."""
        module, leaf = _owner(self._parted.model, place.name)
        there: Tensor = getattr(module, leaf)
        if there.shape != place.shape:
            return False
        value = _read(place, there).to(self._parted.device)
        if leaf in module._parameters:
            setattr(module, leaf, nn.Parameter(value, requires_grad=False))
        else:
            module._buffers[leaf] = value
        return True

    def _convert(self, part: ModelPart) -> tuple[set[str], set[str]]:
        """Load a part by transformers' rules for layouts; the names that are missing, or of another shape."""
        self._parted.release(part)
        rules = LoadStateDictConfig(
            device_map={"": self._parted.device},
            dtype=torch.float32,
            weight_mapping=self._parted.rules,
        )
        with quiet_transformers():
            report, _ = convert_and_load_state_dict_in_model(self._parted.model, self._slices[part], rules)
        return report.missing_keys & {*part.names}, {name for name, *_ in report.mismatched_keys}


def _split(model: Any, layers: list[nn.Module]) -> Iterator[ModelPart]:
    tied = getattr(model, "all_tied_weights_keys", {})
    names = [name for name in model.state_dict() if name not in tied]
    path_of = {module: path for path, module in model.named_modules()}
    inside = [path_of[module] for module in (model.get_input_embeddings(), *layers)]
    taken: set[str] = set()
    for module in inside:
        own = tuple(name for name in names if name.startswith(module + "."))
        taken.update(own)
        yield ModelPart((module,), own)
    rest = tuple(name for name in names if name not in taken)
    yield ModelPart(tuple(dict.fromkeys(name.rpartition(".")[0] for name in rest)), rest)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    module, _, leaf = name.rpartition(".")
    return model.get_submodule(module), leaf


def _take(place: _Place, into: Tensor) -> bool:
    """Put a file's bfloat16 numbers into a float32 tensor, in pieces that a processor's cache holds; False as
    soon as they are not the tensor's own, rounded."""
    if place.size != into.numel() * torch.bfloat16.itemsize:
        return False
    buffer = memoryview(bytearray(PIECE_BYTES))
    with place.file.open("rb") as stream:
        stream.seek(place.first)
        for piece in into.view(-1).split(PIECE_BYTES // torch.bfloat16.itemsize):
            some = buffer[: piece.numel() * torch.bfloat16.itemsize]
            if stream.readinto(some) != len(some):
                return False
            read = torch.frombuffer(some, dtype=torch.bfloat16).to(into.device)
            if not _same_bits(read, piece.bfloat16()):
                return False
            piece.copy_(read)
    return True


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Of two bfloat16 tensors on one device; on a processor by NumPy, which takes a fifth of torch's time."""
    found, wanted = one.view(torch.int16), other.view(torch.int16)
    if one.is_cuda:
        return torch.equal(found, wanted)
    return np.array_equal(found.numpy(), wanted.numpy())


def _read(place: _Place, into: Tensor) -> Tensor:
    """A tensor in float32, read and widened in pieces that a processor's cache holds. `into`: of its shape;
    where that is memory of the processor the numbers are put there, else into new memory."""
    dtype = DTYPES[place.dtype]
    piece = memoryview(bytearray(PIECE_BYTES))
    usable = into.device.type == "cpu" and into.dtype == torch.float32 and into.is_contiguous()
    value = (into.detach() if usable else torch.empty(place.shape, dtype=torch.float32)).view(-1)
    with place.file.open("rb") as stream:
        stream.seek(place.first)
        for start in range(0, place.size, PIECE_BYTES):
            read = piece[: place.size - start]
            if stream.readinto(read) != len(read):
                raise OSError(f"{place.file.name}: ends within {place.name}")
            first = start // dtype.itemsize
            value[first : first + len(read) // dtype.itemsize] = torch.frombuffer(read, dtype=dtype)
    return value.view(place.shape)


def _slices(file: Path) -> Iterator[tuple[str, Any, _Place]]:
    """Name, slice and place of every tensor, the place by the file's own name for it."""
    try:
        tensors = safe_open(file, framework="pt", backend="pread")  # it checks the header
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
            header = json.loads(stream.read(length))
        for key in tensors.keys():  # noqa: SIM118
            facts = header[key]
            first, end = (LENGTH_BYTES + length + offset for offset in facts["data_offsets"])
            shape = torch.Size(facts["shape"])
            yield key, tensors.get_slice(key), _Place(key, file, first, end - first, facts["dtype"], shape)
    except (OSError, SafetensorError) as error:
        raise BaseModelError(f"{file}: truncated or corrupt ({error}); fetch it again") from None
