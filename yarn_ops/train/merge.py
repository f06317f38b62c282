"""The merge stage: base and adapter become one checkpoint, proven to be the model that was trained.

One pass over the model, part by part (`models/parts.py`), so that a part's memory is all it takes. Each part
is read once from the base, folded with the adapter, written and read back from the files; three versions of
it read the same held-out windows on the way (`train/layerwise.py`). Three links, each checked by itself, so
that no tolerance has to hide a lost tensor in rounding noise:

    base + adapter   = merged, float32     log-probabilities on held-out windows, to float32's rounding
    merged, bfloat16 = the files           every parameter, bit for bit
    base + adapter   ~ the files           log-probabilities again: what rounding to bfloat16 costs, recorded
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from yarn_ops.atomic import atomic_write
from yarn_ops.data.windows import ShardReader, spread
from yarn_ops.errors import MergeError, TrainError
from yarn_ops.models.device import Device, freed_memory, resolve_device, side_by_side
from yarn_ops.models.files import (
    CONFIG,
    GENERATION_CONFIG,
    copy_model_files,
    read_config,
    tokenizer_files,
    write_object,
)
from yarn_ops.models.parts import ModelPart, PartedModel, PartWeights
from yarn_ops.progress import OnProgress
from yarn_ops.records import Adapter, BaseModel, Checkpoint, Local, PatchedModel, ShardSet
from yarn_ops.rope.config import rope_spec_of
from yarn_ops.train.layerwise import Layerwise, Window
from yarn_ops.train.lora import attach_to_modules, merge_lora, read_facts
from yarn_ops.train.weight_files import WeightFiles

LENGTHS = (0.5, 1.0)
"""compared windows, in original contexts; one more has as many tokens as the last, spread over the target"""
COMPARED_POSITIONS = 64
"""of each window, evenly spaced, the last one among them"""
SEED = 0
MERGE_TOLERANCE = 0.01
"""of a log-probability, all in float32. base512: 2e-5; with any one of its nine norms lost, from 0.05"""
ROUNDING_TOLERANCE = 1e-2
"""mean divergence in nats of bfloat16 weights from float32's: 1 % of perplexity. base512: 4e-5; SmolLM2-135M
after 100 steps at a learning rate of 1.5e-3: up to 3.2e-3. What follows measures the rounded files."""
COMPARED_AT_ONCE = 1 << 18
"""elements of a tensor: 1 MiB, which a processor's cache holds"""


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
    config = read_config(patched.path)
    parted = PartedModel(config, rope_spec_of(config), device=resolve_device(device))
    windows = held_out_windows(shards.path, patched.record)
    total = len(parted.parts)
    with freed_memory(kept=False), atomic_write(out) as draft:
        try:
            _write_directory(config, patched.path, draft)
            merging = _Merging(parted, base.path, adapter.path, draft)
            difference = _merge_proven(merging, windows, report)
        except (OSError, SafetensorError) as error:
            raise MergeError(
                f"{out}: the merged model cannot be written ({error}); make room there and run again"
            ) from error
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


def held_out_windows(shards: Path, patched: PatchedModel) -> list[Window]:
    """Tokens and positions (int64, 1 × T) of each compared window, the same in every run.

    The last is as long as the original context, at positions evenly spread over the target context: it asks
    for every distance there is, and costs no square of the target's length.
    """
    original, target = patched.original_context_tokens, patched.target_context_tokens
    reader = ShardReader(shards, "held_out")
    windows = []
    for length, end in [*((int(original * share),) * 2 for share in LENGTHS), (original, target)]:
        (window,) = spread(reader, length, 1, SEED)
        positions = torch.linspace(0, end - 1, length, dtype=torch.float64).round().long()
        windows.append((torch.as_tensor(window.ids[:-1])[None], positions[None]))
    return windows


class _Merging:
    """The parts of a model on their way from the base to the merged files."""

    def __init__(self, parted: PartedModel, base: Path, adapter: Path, out: Path) -> None:
        self.parted = parted
        self._adapter = adapter
        self._base = PartWeights(parted, base)
        shapes = {
            name: tuple(tensor.shape)
            for part in parted.parts
            for name, tensor in parted.published(parted.values(part)).items()
        }
        self._files = WeightFiles(out, shapes)
        self._written = PartWeights(parted, out)
        self._placed: set[str] = set()
        """names of the adapter's tensors that have found their place"""

    def read_ahead(self, part: ModelPart) -> None:
        """Have the base's part in the kernel's cache when it is loaded."""
        self._base.read_ahead(part)

    def load(self, part: ModelPart) -> None:
        """Have the part in memory as it was trained: base and adapter."""
        self.parted.fill(part, self._base)
        try:
            placed, unchanged = attach_to_modules(self.parted.model, self._adapter, part.modules)
        except TrainError as error:
            raise MergeError(str(error)) from error
        if unchanged:
            raise MergeError(
                f"{self._adapter}: {len(unchanged)} trained tensors hold the base's values, {unchanged[0]} "
                "first; nothing was learnt there: train again"
            )
        self._placed |= placed

    def fold(self, part: ModelPart) -> None:
        """Add the adapter's products to the part's weights."""
        for module in part.modules:
            merge_lora(self.parted.model.get_submodule(module))

    def write(self, part: ModelPart, *, again: bool = False) -> None:
        """Write the folded part, and have in memory what the files hold of it; MergeError unless that is what
        was folded, rounded. again: it was written before, and is only read."""
        folded = self.parted.values(part)
        if self.parted.converts:
            folded = {name: value.bfloat16() for name, value in folded.items()}
        published, device = self.parted.published(folded), self.parted.device
        if not again:
            side_by_side(lambda one: self._files.write(*one), published.items(), device)
        if self.parted.converts:  # the way back is proven, too
            self.parted.fill(part, self._written)
            read = self.parted.values(part)
            same = side_by_side(lambda name: _equal(read[name], folded[name]), read, device)
            wrong = [name for name, equal in zip(read, same, strict=True) if not equal]
        else:
            wrong = self._written.take(part, published)
        if wrong:
            raise MergeError(
                f"merge: {len(wrong)} of {len(folded)} parameters read back are not those merged, "
                f"{wrong[0]} first; nothing was kept: merge again"
            )

    def require_whole_adapter(self) -> None:
        """MergeError unless every tensor of the adapter has found its place."""
        tensors = read_facts(self._adapter)["tensors"]
        if len(self._placed) != tensors:
            raise MergeError(
                f"{self._adapter}: {tensors - len(self._placed)} of {tensors} tensors belong to no layer of "
                "this model; it was trained on another base"
            )


def _merge_proven(merging: _Merging, windows: list[Window], report: OnProgress) -> float:
    """Write every part; MergeError unless the three links hold. The largest difference that rounding made."""
    parted, parts = merging.parted, merging.parted.parts
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
    for number, part in enumerate(parts):
        report(number, len(parts), f"part {number + 1} of {len(parts)}")
        held = [parted.front, part] if tied and part is parted.back else [part]
        for each in held:
            merging.load(each)
        following = next(iter(parts[number + 1 :]), None)
        if following is not None:
            merging.read_ahead(following)
        read("trained", number)
        for each in held:
            merging.fold(each)
        read("merged", number)
        for each in held:
            merging.write(each, again=each is not part)
        read("written", number)
        for each in held:
            parted.hand_over(each, following)
    merging.require_whole_adapter()
    _check_merged(found["trained"], found["merged"])
    return _check_rounded(found["trained"], found["written"])


def _write_directory(config: Mapping[str, Any], patched: Path, out: Path) -> None:
    """A model directory as transformers reads it, weights excepted."""
    out.mkdir(parents=True)
    copy_model_files(patched, out, (GENERATION_CONFIG, *tokenizer_files(patched)))
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


def _equal(read: Tensor, rounded: Tensor) -> bool:
    """Whether a float32 tensor holds these bfloat16 numbers, a piece at a time."""
    pieces = zip(
        read.reshape(-1).split(COMPARED_AT_ONCE), rounded.reshape(-1).split(COMPARED_AT_ONCE), strict=True
    )
    return all(torch.equal(one, other.float()) for one, other in pieces)


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
