"""The merge stage: base and adapter become one checkpoint, proven to be the model that was trained.

Two passes over the model, part by part (`models/parts.py`), so that a part's memory is all it takes. The
first folds the adapter in and writes. The second reads the files back and lets three versions of every part
read the same held-out windows (`train/layerwise.py`). Three links, each checked by itself, so that no
tolerance has to hide a lost tensor in rounding noise:

    base + adapter   = merged, float32     log-probabilities on held-out windows, to float32's rounding
    merged, bfloat16 = the files           every parameter, bit for bit
    base + adapter   ~ the files           log-probabilities again: what rounding to bfloat16 costs, recorded
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from yarn_ops.atomic import atomic_write
from yarn_ops.data.windows import ShardReader, spread
from yarn_ops.errors import MergeError, TrainError
from yarn_ops.models.device import Device, resolve_device
from yarn_ops.models.files import (
    CONFIG,
    GENERATION_CONFIG,
    TOKENIZER_FILES,
    copy_model_files,
    read_config,
    write_object,
)
from yarn_ops.models.loading import lay_out
from yarn_ops.models.parts import ModelPart, PartedModel, PartWeights
from yarn_ops.progress import OnProgress
from yarn_ops.records import Adapter, BaseModel, Checkpoint, Local, PatchedModel, ShardSet
from yarn_ops.rope.config import rope_spec_of
from yarn_ops.train.layerwise import Layerwise
from yarn_ops.train.lora import attach_to_modules, learnt_names, merge_lora, require_adapter
from yarn_ops.train.weight_files import write_weights

LENGTHS = (0.5, 1.0)
"""compared windows, in original contexts; one of the target context is added"""
COMPARED_POSITIONS = 64
"""of each window, evenly spaced, the last one among them"""
SEED = 0
MERGE_TOLERANCE = 0.01
"""of a log-probability, all in float32. base512: 2e-5; with any one of its nine norms lost, from 0.05"""
ROUNDING_TOLERANCE = 3e-3
"""mean divergence in nats, bfloat16 weights against float32: 0.3 % of perplexity. base512: 4e-5"""

M_MMAP_THRESHOLD = -3  # glibc's malloc.h
RETURNED_BYTES = 4 << 20


def merge(
    base: Local[BaseModel | Checkpoint],
    patched: Local[PatchedModel],
    adapter: Local[Adapter],
    shards: Local[ShardSet],
    out: Path,
    *,
    device: Device,
    report: OnProgress,
) -> Checkpoint:
    """Write the merged checkpoint into `out`, whole or not at all: bfloat16 and the patched config.

    MergeError: a trained tensor is missing or unchanged, or one of the three links does not hold.
    Memory: the embedding, a layer, or the head in float32, and the windows' hidden states thrice.
    """
    _return_freed_tensors()
    config = read_config(patched.path)
    parted = PartedModel(config, rope_spec_of(config), device=resolve_device(device))
    windows = held_out_windows(shards.path, patched.record)
    _require_adapter(patched.path, adapter.path)
    total = 2 * len(parted.parts)
    with atomic_write(out) as draft:
        try:
            _write_directory(config, patched.path, draft)
            merged = _merged_tensors(parted, PartWeights(parted, base.path), adapter.path, report, total)
            write_weights(draft, _shapes(parted), merged)
        except (OSError, SafetensorError) as error:
            raise MergeError(
                f"{out}: the merged model cannot be written ({error}); make room there and run again"
            ) from error
        difference = _prove(draft, base.path, adapter.path, windows, parted.device, report, total)
    report(total, total, "merged")
    return Checkpoint(
        parents=(base.record.digest, patched.record.digest, adapter.record.digest),
        method=patched.record.method,
        factor=patched.record.factor,
        original_context_tokens=patched.record.original_context_tokens,
        context_tokens=patched.record.target_context_tokens,
        parameters=base.record.parameters,
        merge_difference=difference,
    )


def _return_freed_tensors() -> None:
    """Else glibc keeps freed blocks of up to 32 MiB, in a heap for every thread that has read a tensor."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, RETURNED_BYTES)


def held_out_windows(shards: Path, patched: PatchedModel) -> list[Tensor]:
    """One window (int64, 1 × T) of each compared length, the same in every run."""
    original, target = patched.original_context_tokens, patched.target_context_tokens
    reader = ShardReader(shards, "held_out")
    lengths = sorted({*(int(original * share) for share in LENGTHS), target})
    windows = [window for length in lengths for window in spread(reader, length, 1, SEED)]
    return [torch.as_tensor(window.ids[:-1])[None] for window in windows]


def _merged_tensors(
    parted: PartedModel, base: PartWeights, adapter: Path, report: OnProgress, total: int
) -> Iterator[tuple[str, Tensor]]:
    """The first pass: every tensor of the merged model by its name in a file. What did not learn stays in
    bfloat16 all the way."""
    learnt = learnt_names(adapter)
    for number, part in enumerate(parted.parts):
        report(number, total, f"merging part {number + 1} of {len(parted.parts)}")
        parted.fill(part, base, lambda name: torch.float32 if name in learnt else torch.bfloat16)
        _attach(parted, part, adapter)
        _merge(parted, part)
        yield from parted.tensors(part).items()
        parted.release(part)


def _prove(
    written: Path,
    base: Path,
    adapter: Path,
    windows: list[Tensor],
    device: str,
    report: OnProgress,
    total: int,
) -> float:
    """The second pass: MergeError unless the three links hold; the largest difference that rounding made."""
    config = read_config(written)
    parted = PartedModel(config, rope_spec_of(config), device=device)
    base_weights, files = PartWeights(parted, base), PartWeights(parted, written)
    reading = Layerwise(parted, windows)
    found: dict[str, list[Tensor]] = {}

    def read(version: str, number: int) -> None:
        """Take a version through the part that has its data."""
        if number == 0:
            reading.embed(version)
        elif number <= len(parted.middle):
            reading.advance(version, number - 1)
        else:
            found[version] = reading.log_probabilities(version, COMPARED_POSITIONS)

    tied = parted.model.all_tied_weights_keys  # the head is the embedding then: the last part needs both
    for number, part in enumerate(parted.parts):
        report(total // 2 + number, total, f"reading back part {number + 1} of {total // 2}")
        held = [parted.front, part] if tied and part is parted.back else [part]
        for each in held:
            parted.fill(each, base_weights)
            _attach(parted, each, adapter)
        read("trained", number)
        for each in held:
            _merge(parted, each)
        read("merged", number)
        for each in held:
            _fill_from_files(parted, each, files)
        read("written", number)
        for each in held:
            parted.release(each)
    _check_merged(found["trained"], found["merged"])
    return _check_rounded(found["trained"], found["written"])


def _require_adapter(patched: Path, adapter: Path) -> None:
    try:
        require_adapter(lay_out(patched), adapter)
    except TrainError as error:
        raise MergeError(str(error)) from error


def _attach(parted: PartedModel, part: ModelPart, adapter: Path) -> None:
    unchanged = attach_to_modules(parted.model, adapter, part.modules)
    if unchanged:
        raise MergeError(
            f"{adapter}: {len(unchanged)} trained tensors hold the base's values, {unchanged[0]} first; "
            "nothing was learnt there: train again"
        )


def _merge(parted: PartedModel, part: ModelPart) -> None:
    for module in part.modules:
        merge_lora(parted.model.get_submodule(module))


def _shapes(parted: PartedModel) -> dict[str, tuple[int, ...]]:
    """Of what the first pass gives, in its order."""
    return {
        name: tuple(tensor.shape) for part in parted.parts for name, tensor in parted.tensors(part).items()
    }


def _write_directory(config: Mapping[str, Any], patched: Path, out: Path) -> None:
    """A model directory as transformers reads it, weights excepted."""
    out.mkdir(parents=True)
    copy_model_files(patched, out, (GENERATION_CONFIG, *TOKENIZER_FILES))
    # both names of one key: transformers before 4.56 knows only the second
    merged_config = {**config, "dtype": "bfloat16", "torch_dtype": "bfloat16"}
    write_object(out, CONFIG, merged_config)


def _check_merged(trained: list[Tensor], merged: list[Tensor]) -> None:
    difference = _largest_difference(trained, merged)
    if not difference <= MERGE_TOLERANCE:
        raise MergeError(
            f"merge: folding the adapter in moved log-probabilities by {difference:.3g} (at most "
            f"{MERGE_TOLERANCE:g}); this architecture is not merged rightly: nothing was kept"
        )


def _fill_from_files(parted: PartedModel, part: ModelPart, files: PartWeights) -> None:
    """Let a merged part hold what was written of it; MergeError unless that is what it held, rounded."""
    merged = {name: value.bfloat16() for name, value in parted.values(part).items()}
    parted.fill(part, files)
    read = parted.values(part)
    wrong = [name for name, value in read.items() if not torch.equal(value.bfloat16(), merged[name])]
    if wrong:
        raise MergeError(
            f"merge: {len(wrong)} of {len(read)} parameters read back are not those merged, "
            f"{wrong[0]} first; nothing was kept: merge again"
        )


def _check_rounded(trained: list[Tensor], rounded: list[Tensor]) -> float:
    """Largest absolute difference of log-probabilities."""
    for expected, found in zip(trained, rounded, strict=True):
        divergence = (expected.exp() * (expected - found)).sum(-1).mean().item()
        if not divergence <= ROUNDING_TOLERANCE:
            raise MergeError(
                f"merge: rounding to bfloat16 moved the model by {divergence:.3g} nats (at most "
                f"{ROUNDING_TOLERANCE:g}); its weights do not fit bfloat16: nothing was kept"
            )
    return _largest_difference(trained, rounded)


def _largest_difference(expected: list[Tensor], found: list[Tensor]) -> float:
    return max((one - other).abs().max().item() for one, other in zip(expected, found, strict=True))
