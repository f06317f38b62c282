"""A model's safetensors files, written a tensor at a time.

The library's own writer wants a file's tensors in memory together, 5 GB of them. The format does not: a
length (8 bytes, little-endian), a JSON header with every tensor's type, shape and place, then their bytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from yarn_ops.models.checkpoints import INDEX, WEIGHTS

FILE_BYTES = 5 * 10**9
"""the size at which transformers splits models"""
ALIGNMENT = 8
"""of the first tensor's place, as in the library's writer"""
AT_ONCE = 1 << 19
"""elements rounded and written at a time: 1 MiB, which a processor's cache holds"""
BF16_BYTES = 2

TensorShape = tuple[int, ...]


class WeightFiles:
    """The safetensors files of a model in bfloat16, with the index where they need more than one.

    They have their headers and lengths from the beginning, so they can be opened before all tensors are
    written; what is not written yet reads as zeros.
    """

    def __init__(self, out: Path, shapes: Mapping[str, TensorShape], file_bytes: int = FILE_BYTES) -> None:
        """Make the files in the directory `out`. OSError."""
        self._places: dict[str, tuple[Path, int, TensorShape]] = {}
        files = list(_files(shapes, file_bytes))
        for file, held in files:
            header = _header({name: shapes[name] for name in held})
            end = len(header)
            for name in held:
                self._places[name] = out / file, end, shapes[name]
                end += _size(shapes[name])
            with (out / file).open("wb") as stream:
                stream.write(header)
                stream.truncate(end)
        if len(files) > 1:
            index = {
                "metadata": {"total_size": sum(map(_size, shapes.values()))},
                "weight_map": {name: file for file, held in files for name in held},
            }
            (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor to its place. OSError."""
        file, start, shape = self._places[name]
        assert tuple(tensor.shape) == shape
        with file.open("r+b") as stream:
            stream.seek(start)
            for piece in tensor.reshape(-1).split(AT_ONCE):
                stream.write(piece.bfloat16().cpu().view(torch.int16).numpy())


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
