"""Model directories and documents as a stranger could send them: sound ones, changed at random by a seed."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard
from pyarrow import parquet
from safetensors.numpy import save_file

from yarn_ops.shipped import MODELS

MIB = 1 << 20
SHIPPED = MODELS / "base512"
NUMBERS = [0, -1, 1, 2, 3, 7, 10**9, 2**31, 2**63, 10**30, 10**300, 0.5, 1e308, -1e308, 1e-320]
RAW = ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 5000, "[" * 100_000, '{"a":' * 50_000, "nul"]
VALUES: list[Any] = [
    *NUMBERS, None, True, False, "", "x", "yarn", "llama", "\x1b]0;x\x07", "<script>alert(1)</script>",
    "../../etc", "evil/kernel", "\ud800", [], [0], [1e9] * 3, ["full_attention"] * 5, [[[]]], {}, {"a": {}},
    {"rope_type": "yarn"},
    {"rope_type": "yarn", "factor": 1e300}, {"rope_type": "longrope", "factor": 4, "short_factor": [0] * 8},
    {"rope_type": "llama3", "factor": 0}, {"rope_type": "dynamic-yarn", "factor": -2}, {"full_attention": {}},
]  # fmt: skip
ARCHITECTURES = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gpt_neox",
    "phi",
    "mixtral",
    "granite",
    "glm",
    "olmo2",
]
KEYS = ["rope_scaling", "rope_parameters", "layer_types", "sliding_window", "head_dim", "num_local_experts",
        "partial_rotary_factor", "tie_word_embeddings", "dtype", "quantization_config", "attn_implementation",
        "text_config", "sub_configs", "num_labels", "id2label", "problem_type", "torch_dtype", "pad_token_id",
        "max_window_layers", "use_sliding_window", "hidden_act", "tokenizer_class"]  # fmt: skip


def tiny_model(folder: Path) -> Path:
    """A Llama of 2 layers of 32, with the shipped base's tokenizer."""
    shutil.copytree(SHIPPED, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.md", "pretrain.json"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config |= {"num_key_value_heads": 2, "head_dim": 16}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": (8192, 32), "model.norm.weight": (32,)}
    for layer in range(2):
        for name, shape in {
            **{f"self_attn.{side}_proj": (32, 32) for side in "qkvo"},
            "mlp.gate_proj": (64, 32),
            "mlp.up_proj": (64, 32),
            "mlp.down_proj": (32, 64),
            "input_layernorm": (32,),
            "post_attention_layernorm": (32,),
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    save_file(
        {name: np.ones(shape, np.float32) for name, shape in shapes.items()}, folder / "model.safetensors"
    )
    return folder


def strange_model(draw: random.Random, sound: Path, folder: Path) -> str:
    """A changed copy of `sound`; what was done to it, in words."""
    shutil.copytree(sound, folder, copy_function=os.link)
    for file in folder.iterdir():  # our own, to be changed
        if file.suffix != ".safetensors":
            content = file.read_bytes()
            file.unlink()
            file.write_bytes(content)
    done = []
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        change = draw.choice(MODEL_CHANGES)
        try:
            done.append(f"{change.__name__}: {change(draw, folder)}")
        except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError):  # none is left
            done.append(f"{change.__name__}: not possible")
    return "; ".join(done)[:300]


def _own(path: Path) -> Path:
    """A file that is one, so that we neither wait for it nor change another."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > 100 * MIB:
        raise OSError
    return path


def _objects(draw: random.Random, value: Any) -> list[Any]:
    found = [value] if isinstance(value, dict | list) and value else []
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(inner, dict | list) and len(found) < 2000:
            found += _objects(draw, inner)
    return found


def _change_json(draw: random.Random, path: Path, value: Any) -> str:
    """One value somewhere becomes another, goes, or is joined by one."""
    spot = draw.choice(_objects(draw, value))
    keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
    key = draw.choice(keys)
    kind = draw.randrange(4)
    if kind == 0:
        del spot[key]
    elif kind == 1 and isinstance(spot, dict):
        key = draw.choice(KEYS)
        spot[key] = draw.choice(VALUES)
    elif kind == 2:
        text = json.dumps(value).replace(json.dumps(spot[key]), draw.choice(RAW), 1)
        path.write_text(text)
        return f"{key} raw"
    else:
        spot[key] = draw.choice(VALUES)
    path.write_text(json.dumps(value))
    return f"{key} {spot.get(key, 'gone') if isinstance(spot, dict) else 'item'!r}"[:80]


def config_value(draw: random.Random, folder: Path) -> str:
    path = _own(folder / "config.json")
    return _change_json(draw, path, json.loads(path.read_text()))


def config_size(draw: random.Random, folder: Path) -> str:
    path = _own(folder / "config.json")
    config = json.loads(path.read_text())
    key = draw.choice([key for key, value in config.items() if isinstance(value, int | float)])
    config[key] = draw.choice(NUMBERS)
    path.write_text(json.dumps(config))
    return f"{key} {config[key]}"


def architecture(draw: random.Random, folder: Path) -> str:
    path = _own(folder / "config.json")
    config = json.loads(path.read_text())
    config["model_type"] = draw.choice(ARCHITECTURES)
    path.write_text(json.dumps(config))
    return str(config["model_type"])


def tokenizer_value(draw: random.Random, folder: Path) -> str:
    path = folder / draw.choice(
        ["tokenizer.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    )
    return f"{path.name} {_change_json(draw, path, json.loads(_own(path).read_text()))}"


def more_files(draw: random.Random, folder: Path) -> str:
    name = draw.choice(
        ["special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "adapter_config.json"]
    )
    content = draw.choice(
        [json.dumps(draw.choice(VALUES)), '{"eos_token": 3}', '{"gguf_file": "x"}', "{{ x", "\0"]
    )
    if (folder / name).exists() or (folder / name).is_symlink():
        raise OSError
    (folder / name).write_text(content, "utf-8", "surrogatepass")
    return name


def odd_file(draw: random.Random, folder: Path) -> str:
    """One of the files is something else."""
    path = draw.choice(sorted(folder.iterdir()))
    kind = draw.choice(["fifo", "folder", "zeros", "loop", "outside", "empty", "sparse", "gone", "large"])
    _own(path).unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("zeros", "loop", "outside"):
        path.symlink_to({"zeros": "/dev/zero", "loop": path.name, "outside": "/etc/passwd"}[kind])
    elif kind in ("empty", "sparse"):
        with path.open("wb") as file:
            file.truncate(0 if kind == "empty" else 1 << draw.choice([20, 30, 36, 40]))
    elif kind == "large":
        path.write_bytes(draw.choice([b"[", b"{},", b" ", b'"', b"[1,"]) * (70 * MIB // 3))
    return f"{path.name} {kind}"


def damaged(draw: random.Random, folder: Path) -> str:
    return _damage(draw, draw.choice(sorted(folder.iterdir())))


def _damage(draw: random.Random, path: Path) -> str:
    content = bytearray(_own(path).read_bytes())
    if draw.random() < 0.3:
        del content[draw.randrange(len(content) + 1) :]
    for _ in range(draw.choice([0, 1, 4, 64]) if content else 0):
        content[draw.randrange(len(content))] = draw.randrange(256)
    path.unlink()
    path.write_bytes(content)
    return path.name


def header(draw: random.Random, folder: Path) -> str:
    """The header of the weights says something else."""
    path = _own(folder / "model.safetensors")
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    stated = json.loads(content[8 : 8 + length])
    kind = draw.choice(["length", "shape", "offsets", "dtype", "value", "empty", "many"])
    name = draw.choice([key for key in stated if key != "__metadata__"])
    if kind == "length":
        length = draw.choice([0, 1, 2**20, 2**26, 2**31, 2**40, 2**63, 2**64 - 1])
    elif kind == "shape":
        stated[name]["shape"] = draw.choice([[], [0, 10**18], [2**40, 2**40], [-1], [10**9], [1] * 1000, [0]])
    elif kind == "offsets":
        stated[name]["data_offsets"] = draw.choice([[0, 0], [0, 2**40], [5, 1], [2**63, 2**63], [-1, 4]])
    elif kind == "dtype":
        stated[name]["dtype"] = draw.choice(["F64", "BOOL", "F8_E4M3", "X", "I64", 3, None])
    elif kind == "value":
        stated[name] = draw.choice(VALUES)
    elif kind == "empty":
        stated = {}
    else:
        at = max(entry["data_offsets"][1] for key, entry in stated.items() if key != "__metadata__")
        stated |= {f"x{n}": {"dtype": "F32", "shape": [0], "data_offsets": [at, at]} for n in range(200_000)}
    text = json.dumps(stated).encode()
    path.unlink()
    path.write_bytes(
        (len(text) if kind != "length" else length).to_bytes(8, "little") + text + content[8:][-2 * MIB :]
    )
    return f"{kind} {name}"


def index(draw: random.Random, folder: Path) -> str:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    name = draw.choice(
        ["a.safetensors", "../a.safetensors", "/etc/passwd", "b.safetensors", "", ".", 3, None]
    )
    value = draw.choice(
        [{"weight_map": {"model.norm.weight": name}}, {"weight_map": []}, [], {}, {"weight_map": name}]
    )
    (folder / "model.safetensors.index.json").write_text(json.dumps(value))
    return str(name)


MODEL_CHANGES: list[Callable[[random.Random, Path], str]] = [
    config_value, config_value, config_size, config_size, architecture, tokenizer_value, tokenizer_value,
    more_files, odd_file, damaged, header, header, index,
]  # fmt: skip


def strange_documents(draw: random.Random, folder: Path) -> str:
    """One file of documents, sound or not; what it is, in words."""
    folder.mkdir()
    kind = draw.choice([".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
    path = folder / f"a{kind}"
    if kind == ".parquet":
        done = _parquet(draw, path)
    else:
        lines, done = _lines(draw)
        pack = {".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.ZstdCompressor(level=1).compress}
        path.write_bytes(pack.get(kind, bytes)(lines))
    with suppress(OSError):  # it is too large to be changed
        if draw.random() < 0.4:
            done += f", damaged {_damage(draw, path)}"
        if draw.random() < 0.1:
            done += f", {odd_file(draw, folder)}"
    return f"{path.name}: {done}"


def _lines(draw: random.Random) -> tuple[bytes, str]:
    kind = draw.choice(["sound", "values", "raw", "long", "many", "zeros", "bytes", "nest", "parts"])
    line = b'{"text": "one"}\n'
    values = [json.dumps({"text": draw.choice(VALUES)}) for _ in range(5)]
    lines = {
        "sound": lambda: line * 50,
        "values": lambda: "\n".join(values).encode("utf-8", "surrogatepass"),
        "raw": lambda: b'{"text": "a", "n": ' + draw.choice(RAW).encode() + b"}\n",
        "long": lambda: b'{"text": "' + b"a" * (draw.choice([1, 63, 65, 300]) * MIB) + b'"}\n',
        "many": lambda: line * draw.choice([10_000, 1_000_000]),
        "zeros": lambda: b"\0" * (draw.choice([1, 600]) * MIB),
        "bytes": lambda: draw.randbytes(100_000),
        "nest": lambda: draw.choice([b"[", b'{"a":', b'{"text":[']) * (4 * MIB),
        "parts": lambda: b'{"text": "a", "b": [' + b"[]," * (20 * MIB) + b"0]}\n",
    }[kind]()
    return lines, f"{kind}, {len(lines):,} bytes"


def _parquet(draw: random.Random, path: Path) -> str:
    kind = draw.choice(
        ["sound", "dictionary", "rows", "nulls", "numbers", "lists", "large", "binary", "other"]
    )
    values = {
        "sound": lambda: pa.array(["one", "two"] * 50),
        "dictionary": lambda: pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(draw.choice([10, 5000]), np.int32)),
            pa.array(["a" * (draw.choice([1, 60, 200]) * MIB)]),
        ),
        "rows": lambda: pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(3_000_000, np.int32)), pa.array([""])
        ),
        "nulls": lambda: pa.nulls(1_000_000, pa.string()),
        "numbers": lambda: pa.array(np.zeros(1_000_000)),
        "lists": lambda: pa.array([[["a"]] * 1000] * 100),
        "large": lambda: pa.array(["a" * (draw.choice([1, 70, 140]) * MIB)] * 3),
        "binary": lambda: pa.array([b"\xff\xfe", b"a"]),
        "other": lambda: pa.array(["\ud7ff\0"]),
    }[kind]()
    options = draw.choice(
        [{}, {"use_dictionary": False}, {"data_page_version": "2.0"}, {"row_group_size": 7}]
    )
    if len(values) > 10_000:
        options = {}
    compression = draw.choice(["zstd", "snappy", "gzip", "none"]) if values.nbytes < 50 * MIB else "zstd"
    field = "text" if draw.random() < 0.9 else "body"
    parquet.write_table(pa.table({field: values}), path, compression=compression, **options)
    return f"{kind}, {len(values):,} rows, {path.stat().st_size:,} bytes"
