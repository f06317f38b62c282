"""Checkpoint directories as Hugging Face lays them out: which files make one up, and whether to trust it.

Nothing here loads a tensor, unpickles or runs a checkpoint's code.
"""

from __future__ import annotations

import copy
import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from yarn_ops.errors import BaseModelError
from yarn_ops.models.files import (
    CONFIG,
    GENERATION_CONFIG,
    TOKENIZER_CONFIG,
    copy_model_files,
    place_of,
    read_object,
    read_stated,
    tokenizer_files,
)
from yarn_ops.models.harmless import harmless_config
from yarn_ops.opening import open_regular
from yarn_ops.processes import scratch

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
QUANTISED = ("quantization_config", "quantization", "compression_config")
FLOATS = ("F64", "F32", "F16", "BF16")
OUTPUT_HEADS = ("lm_head.weight", "embed_out.weight")
MOST_HEADER_BYTES = 32 << 20
"""of a safetensors file: a quarter of a million tensors"""


def checkpoint_files(path: Path) -> list[str]:
    """Names of the files in `path` that make up a checkpoint, sorted: config, weights, tokenizer, no more.

    Raises BaseModelError where the weights are missing, pickled, or named by an index but not there.
    """
    names = {CONFIG, GENERATION_CONFIG, *tokenizer_files(path), *weight_files(path)}
    if not (path / WEIGHTS).is_file():
        names.add(INDEX)
    return sorted(name for name in names if (path / name).is_file())


def weight_files(path: Path) -> list[str]:
    """Names of the safetensors files that hold the weights, sorted; all of them are there."""
    if (path / WEIGHTS).is_file():
        return [WEIGHTS]
    if not (path / INDEX).is_file():
        raise BaseModelError(_without_weights(path))
    names = sorted(set(weight_map(path).values()))
    for name in names:
        if not (path / name).is_file():
            raise BaseModelError(
                f"{path / name}: missing, though {INDEX} names it; download the checkpoint again"
            )
    return names


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor, from the safetensors headers alone; headers, sizes and index are checked."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in weight_files(path):
        shapes.update(_header(path / name))
    if not (path / WEIGHTS).is_file():
        listed = weight_map(path).keys()
        for tensor in sorted(listed ^ shapes.keys()):
            fault = "is in no shard" if tensor in listed else "is in a shard but not listed"
            raise BaseModelError(f"{path / INDEX}: {tensor} {fault}; download the checkpoint again")
    if not shapes:
        raise BaseModelError(f"{path / WEIGHTS}: holds no tensor; download the checkpoint again")
    return shapes


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a checkpoint directory (a transformers PreTrainedTokenizer); local files, no code."""
    from transformers import AutoTokenizer

    if not any((path / name).is_file() for name in VOCABULARIES):
        raise BaseModelError(
            f"{path}: no tokenizer ({', '.join(VOCABULARIES)}); add the base's tokenizer files"
        )
    with scratch() as folder, quiet_transformers():
        copy_model_files(path, folder, (CONFIG, *tokenizer_files(path)))  # and no file that these may name
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except BaseException as error:  # of damaged files; Rust's panics are no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise BaseModelError(f"{path}: the tokenizer cannot be read: {error}") from None


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """transformers without progress bars and warnings; its own settings return afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def refuse_code(path: Path) -> None:
    """BaseModelError where a model directory asks for, or brings, code of its own, or is quantised.

    Quantised weights are read by kernels that transformers may fetch. MLX says `quantization`.
    """
    for name in (CONFIG, TOKENIZER_CONFIG):
        if name != CONFIG and not (path / name).is_file():
            continue
        stated = read_stated(path, name)
        if "auto_map" in stated:
            raise BaseModelError(
                f"{path / name}: auto_map asks for remote code, which is never run; choose another base"
            )
        if any(stated.get(key) is not None for key in QUANTISED):
            raise BaseModelError(f"{path / name}: the weights are quantised; extend the unquantised model")
    for code in sorted(path.glob("*.py")):
        raise BaseModelError(f"{code}: the checkpoint brings code, which is never run; choose another base")


def refuse_links(path: Path) -> None:
    """BaseModelError where a file of the checkpoint is a link to one outside of its directory."""
    for name in checkpoint_files(path):
        place_of(path, name)


def built_config(config: Mapping[str, Any], where: str = CONFIG) -> Any:
    """The transformers config object: checked by its class, which fills in what config.json leaves out.

    Nothing in it makes transformers fetch anything (see harmless.py). BaseModelError names `where`.
    """
    from transformers import CONFIG_MAPPING

    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise BaseModelError(f"{where}: model_type {model_type!r} is unknown to transformers; correct it")
    try:
        with quiet_transformers():
            return CONFIG_MAPPING[model_type].from_dict(copy.deepcopy(harmless_config(config)))
    except Exception as error:  # whatever the many config classes raise
        raise BaseModelError(f"{where}: refused by transformers: {error}") from None


def _without_weights(path: Path) -> str:
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES) if path.is_dir() else []
    if pickles:
        return (
            f"{path / pickles[0]}: pickled weights can run code and are refused; convert them to safetensors"
        )
    if (path / "adapter_model.safetensors").is_file():
        return f"{path}: an adapter, not a model; merge it into its base first"
    return f"{path}: no weights ({WEIGHTS} or {INDEX}); download the checkpoint again"


def weight_map(path: Path) -> dict[str, str]:
    weight_map = read_object(path, INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BaseModelError(f"{path / INDEX}: no weight_map; download the checkpoint again")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise BaseModelError(
                f"{path / INDEX}: {tensor} lies in {name!r}; only safetensors beside the index are read"
            )
    return weight_map


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with open_regular(Path(os.path.realpath(file))) as raw:
            header_bytes = int.from_bytes(raw.read(8), "little")
        if header_bytes > MOST_HEADER_BYTES:
            raise OSError(errno.EINVAL, f"a header of {header_bytes:,} bytes")
        with safe_open(file, framework="numpy") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            dtypes = {name: str(held.get_dtype()) for name, held in slices.items() if "weight" in name}
            shapes = {name: tuple(held.get_shape()) for name, held in slices.items()}
    except (SafetensorError, OSError) as error:
        raise BaseModelError(
            f"{file}: truncated or corrupt at {file.stat().st_size} bytes ({error}); download it again"
        ) from None
    for name, dtype in dtypes.items():
        if dtype not in FLOATS:
            raise BaseModelError(f"{file}: {name} is {dtype}: quantised; extend the unquantised model")
    return shapes
