"""A model's safetensors files, written a tensor at a time.

The library's own writer wants a file's tensors in memory together, 5 GB of them. The format does not: a
length (8 bytes, little-endian), a JSON header with every tensor's type, shape and place, then their bytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from yarn_ops.models.checkpoints import INDEX, WEIGHTS

FILE_BYTES = 5 * 10**9
"""the size at which transformers splits models"""
ALIGNMENT = 8
"""of the first tensor's place, as in the library's writer"""
AT_ONCE = 1 << 25
"""elements rounded and written at a time: 64 MiB"""
BF16_BYTES = 2

TensorShape = tuple[int, ...]


def write_weights(
    out: Path,
    shapes: Mapping[str, TensorShape],
    tensors: Iterable[tuple[str, Tensor]],
    file_bytes: int = FILE_BYTES,
) -> None:
    """Write tensors in bfloat16 into a directory, with the index where they need more than one file.

    `tensors` come in the order of `shapes`, which has all of them; none is kept.
    """
    files = list(_files(shapes, file_bytes))
    coming = iter(tensors)
    for file, held in files:
        with (out / file).open("wb") as stream:
            stream.write(_header({name: shapes[name] for name in held}))
            for expected in held:
                name, tensor = next(coming)
                assert (name, tuple(tensor.shape)) == (expected, shapes[expected])
                for piece in tensor.reshape(-1).split(AT_ONCE):
                    stream.write(piece.bfloat16().cpu().view(torch.int16).numpy())
    assert next(coming, None) is None
    if len(files) > 1:
        index = {
            "metadata": {"total_size": sum(map(_size, shapes.values()))},
            "weight_map": {name: file for file, held in files for name in held},
        }
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _files(shapes: Mapping[str, TensorShape], file_bytes: int) -> Iterator[tuple[str, list[str]]]:
    """(name, tensors) of each file: tensors in order, as many as fit `file_bytes`."""
    groups: list[list[str]] = []
    size = 0
    for name, shape in shapes.items():
        if not groups or size + _size(shape) > file_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += _size(shape)
    stem = WEIGHTS.removesuffix(".safetensors")
    for number, held in enumerate(groups, 1):
        yield (WEIGHTS if len(groups) == 1 else f"{stem}-{number:05}-of-{len(groups):05}.safetensors"), held


def _header(shapes: Mapping[str, TensorShape]) -> bytes:
    places: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + _size(shape)
        places[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(places, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _size(shape: TensorShape) -> int:
    return BF16_BYTES * math.prod(shape)
