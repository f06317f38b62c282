"""The merge stage: base and adapter become one checkpoint, proven to be the model that was trained.

Three links, each checked by itself, so that no tolerance has to hide a lost tensor in rounding noise:

    base + adapter   = merged, float32     log-probabilities on held-out windows, to float32's rounding
    merged, bfloat16 = the files           every parameter, bit for bit
    base + adapter   ~ the files           log-probabilities again: what rounding to bfloat16 costs, recorded
"""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from yarn_ops.checkpoints import CONFIG, GENERATION_CONFIG, TOKENIZER_FILES, quiet_transformers, read_config
from yarn_ops.data.windows import ShardReader, spread
from yarn_ops.errors import MergeError, TrainError
from yarn_ops.records import Adapter, BaseModel, Checkpoint, Local, PatchedModel, ShardSet
from yarn_ops.rope.config import rope_spec_of
from yarn_ops.rope.proof import load_proven
from yarn_ops.train.lora import attach_adapter, merge_lora
from yarn_ops.train.precision import Device, resolve_device
from yarn_ops.train.step import Head

SHARD_SIZE = "5GB"
LENGTHS = (0.5, 1.0)
"""compared windows, in original contexts; one of the target context is added"""
COMPARED_POSITIONS = 64
"""of each window, evenly spaced, the last one among them"""
SEED = 0
MERGE_TOLERANCE = 0.01
"""of a log-probability, all in float32. base512: 2e-5; with any one of its nine norms lost, from 0.05"""
ROUNDING_TOLERANCE = 3e-3
"""mean divergence in nats, bfloat16 weights against float32: 0.3 % of perplexity. base512: 4e-5"""

Progress = Callable[[int, int, str], None]
"""(done, to do, what comes next)"""


def merge(
    base: Local[BaseModel] | Local[Checkpoint],
    patched: Local[PatchedModel],
    adapter: Local[Adapter],
    shards: Local[ShardSet],
    out: Path,
    *,
    device: Device,
    report: Progress,
) -> Checkpoint:
    """Write the merged checkpoint into `out`, whole or not at all: bfloat16 and the patched config.

    MergeError: a trained tensor is missing or unchanged, or one of the three links does not hold.
    Memory: one float32 model at a time.
    """
    config, where = read_config(patched.path), resolve_device(device)
    spec = rope_spec_of(config)
    windows = held_out_windows(shards.path, patched.record)
    report(0, 4, "loading the base and its adapter")
    model = load_proven(base.path, config, spec, dtype=torch.float32, device=where)
    _attach(model, adapter.path)
    report(1, 4, "merging")
    trained = [log_probabilities(model, window) for window in windows]
    merge_lora(model)
    _check_merged(trained, [log_probabilities(model, window) for window in windows])
    report(2, 4, "writing")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        try:
            written = _write(model, config, patched.path, partial)
        except (OSError, SafetensorError) as error:
            raise MergeError(
                f"{out}: the merged model cannot be written ({error}); make room there and run again"
            ) from error
        del model
        gc.collect()
        report(3, 4, "reading back")
        model = load_proven(partial, None, spec, dtype=torch.float32, device=where)
        _check_written(written, parameter_digests(model))
        difference = _check_rounded(trained, [log_probabilities(model, window) for window in windows])
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    report(4, 4, "merged")
    return Checkpoint(
        parents=(base.record.digest, patched.record.digest, adapter.record.digest),
        method=patched.record.method,
        factor=patched.record.factor,
        original_context_tokens=patched.record.original_context_tokens,
        context_tokens=patched.record.target_context_tokens,
        parameters=base.record.parameters,
        merge_difference=difference,
    )


def held_out_windows(shards: Path, patched: PatchedModel) -> list[Tensor]:
    """One window (int64, 1 × T) of each compared length, the same in every run."""
    original, target = patched.original_context_tokens, patched.target_context_tokens
    reader = ShardReader(shards, "held_out")
    lengths = sorted({*(int(original * share) for share in LENGTHS), target})
    windows = [window for length in lengths for window in spread(reader, length, 1, SEED)]
    return [torch.as_tensor(window.ids[:-1])[None] for window in windows]


@torch.inference_mode()
def log_probabilities(model: PreTrainedModel, window_1T: Tensor) -> Tensor:
    """Of every next token at `COMPARED_POSITIONS` positions of a window (float32, positions × V, CPU)."""
    output = model.base_model(input_ids=window_1T.to(model.device), use_cache=False)
    hidden_TD = output.last_hidden_state[0]
    positions = torch.linspace(0, len(hidden_TD) - 1, min(COMPARED_POSITIONS, len(hidden_TD))).long()
    head = Head.of(model, hidden_TD.dtype)
    return head.logits(hidden_TD[positions]).log_softmax(-1).cpu()


def parameter_digests(model: PreTrainedModel) -> dict[str, str]:
    """sha256 of every parameter's bfloat16 bytes, by name."""
    return {
        name: hashlib.sha256(parameter.detach().bfloat16().cpu().view(torch.int16).numpy()).hexdigest()
        for name, parameter in model.named_parameters()
    }


def _attach(model: PreTrainedModel, adapter: Path) -> None:
    try:
        unchanged = attach_adapter(model, adapter)
    except TrainError as error:
        raise MergeError(str(error)) from error
    if unchanged:
        raise MergeError(
            f"{adapter}: {len(unchanged)} trained tensors hold the base's values, {unchanged[0]} first; "
            "nothing was learnt there: train again"
        )


def _write(model: PreTrainedModel, config: Mapping[str, Any], patched: Path, out: Path) -> dict[str, str]:
    """Round to bfloat16 and write a directory that transformers reads; the digests of what was written."""
    model.to(torch.bfloat16)  # rounds the rotary frequencies too: this model is written, never run again
    with quiet_transformers():
        model.save_pretrained(out, max_shard_size=SHARD_SIZE)
    for name in (GENERATION_CONFIG, *TOKENIZER_FILES):
        if (patched / name).is_file():
            shutil.copyfile(patched / name, out / name)
    # both names of one key: transformers before 4.56 knows only the second
    merged_config = {**config, "dtype": "bfloat16", "torch_dtype": "bfloat16"}
    (out / CONFIG).write_text(
        json.dumps(merged_config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return parameter_digests(model)


def _check_merged(trained: list[Tensor], merged: list[Tensor]) -> None:
    difference = _largest_difference(trained, merged)
    if not difference <= MERGE_TOLERANCE:
        raise MergeError(
            f"merge: folding the adapter in moved log-probabilities by {difference:.3g} (at most "
            f"{MERGE_TOLERANCE:g}); this architecture is not merged rightly: nothing was written"
        )


def _check_written(written: Mapping[str, str], read: Mapping[str, str]) -> None:
    wrong = sorted(name for name in written.keys() | read.keys() if written.get(name) != read.get(name))
    if wrong:
        raise MergeError(
            f"merge: {len(wrong)} of {len(written)} parameters read back are not those written, "
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
