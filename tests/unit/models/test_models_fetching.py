"""No key of a model's files makes transformers fetch or open anything, from the base to what is released."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest
import torch
import transformers.utils.hub
from transformers import AutoTokenizer

from yarn_ops.bases import fetch_base
from yarn_ops.errors import BaseModelError
from yarn_ops.evals.subject import open_subject
from yarn_ops.models.checkpoints import built_config, load_tokenizer
from yarn_ops.models.files import read_config
from yarn_ops.models.loading import load_proven
from yarn_ops.models.patch import patch
from yarn_ops.recipe import Base, Rope
from yarn_ops.records import Local
from yarn_ops.rope.config import rope_spec_of
from yarn_ops.store import StoreOptions

EVIL = "evil/kernel"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """What was asked of the hub or the network, online as a person's machine is; everything is refused."""
    found: list[str] = []

    def refuse(name: str) -> Any:
        def refused(*arguments: Any, **more: Any) -> Any:
            found.append(f"{name} {arguments[:2]}")
            raise OSError(f"{name} was asked")

        return refused

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for module in (huggingface_hub, huggingface_hub.file_download, transformers.utils.hub):
        for name in ("hf_hub_download", "snapshot_download"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, refuse(name))
    for name in ("hf_hub_download", "snapshot_download", "model_info", "list_repo_files", "list_repo_tree"):
        monkeypatch.setattr(huggingface_hub.HfApi, name, refuse(f"HfApi.{name}"))
    monkeypatch.setattr("transformers.integrations.hub_kernels.get_kernel", refuse("get_kernel"))
    monkeypatch.setattr("transformers.integrations.hub_kernels.lazy_load_kernel", refuse("lazy_load_kernel"))
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", refuse("flash"))
    monkeypatch.setattr(socket.socket, "connect", refuse("connect"))
    monkeypatch.setattr(socket, "getaddrinfo", refuse("getaddrinfo"))
    yield found


KEYS = {
    "config.json": {
        "attn_implementation": EVIL,
        "_attn_implementation": EVIL,
        "_attn_implementation_internal": "flash_attention_2",
        "_attn_implementation_autoset": True,
        "experts_implementation": "sonicmoe",
        "_experts_implementation": "deepgemm",
        "use_kernels": True,
        "use_hub_kernels": True,
        "kernel_config": {"RMSNorm": EVIL},
        "kernels": {"attention": EVIL},
        "_name_or_path": EVIL,
        "name_or_path": EVIL,
        "_commit_hash": "0" * 40,
        "transformers_weights": "../elsewhere.safetensors",
        "trust_remote_code": True,
        "custom_pipelines": {"x": {"impl": "evil.py"}},
        "vision": {"attn_implementation": EVIL, "_name_or_path": EVIL},
        "quantization_config": None,
    },
    "tokenizer_config.json": {
        "gguf_file": "evil.gguf",
        "name_or_path": EVIL,
        "vocab_file": "/etc/passwd",
        "tokenizer_file": "/etc/passwd",
        "merges_file": "/etc/passwd",
        "tokenizer_object": "x",
        "fast_tokenizer_files": ["tokenizer.0.0.1.json", "/etc/passwd"],
        "init_inputs": ["/etc/passwd"],
        "from_slow": True,
        "processor_class": EVIL,
        "local_files_only": False,
        "_commit_hash": "0" * 40,
    },
    "special_tokens_map.json": {
        "gguf_file": "evil.gguf",
        "name_or_path": EVIL,
        "vocab_file": "/etc/passwd",
        "tokenizer_file": None,
    },
    "generation_config.json": {
        "custom_generate": EVIL,
        "_name_or_path": EVIL,
        "watermarking_config": None,
        "compile_config": None,
    },
    "adapter_config.json": {"base_model_name_or_path": EVIL, "peft_type": "LORA", "r": 8},
    "processor_config.json": {"auto_map": {"AutoProcessor": "evil--x.Y"}},
}  # fmt: skip


def changed(checkpoint: Path, name: str, changes: dict[str, Any]) -> None:
    path = checkpoint / name
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**values, **changes}))


def through(checkpoint: Path, tmp_path: Path) -> None:
    """Everything that the product does with a model directory's config and tokenizer."""
    record, base = fetch_base(
        Base(model=str(checkpoint)), cache=tmp_path / "cache", store_options=StoreOptions(), find_release=None
    )
    patch(Rope(factor=2), Local(record, base), tmp_path / "patched", factor=2)
    for path in (base, checkpoint):
        config = read_config(path)
        load_proven(path, None, rope_spec_of(config), dtype=torch.float32, device="cpu")
        open_subject(path).load("cpu", "fp32")
    assert len(load_tokenizer(tmp_path / "patched")) == 8192
    for file in (tmp_path / "patched").iterdir():
        for word in (
            ()
            if file.name == "tokenizer.json"
            else ("evil", "passwd", "sonicmoe", "deepgemm", "flash_attention")
        ):
            assert word not in file.read_text("utf-8"), file


@pytest.mark.parametrize("name", KEYS)
def test_every_key_at_once(checkpoint: Path, tmp_path: Path, asked: list[str], name: str) -> None:
    changed(checkpoint, name, KEYS[name])
    through(checkpoint, tmp_path)
    assert asked == []


@pytest.mark.parametrize("key", KEYS["config.json"])
def test_every_key_of_a_config(checkpoint: Path, asked: list[str], key: str) -> None:
    changed(checkpoint, "config.json", {key: KEYS["config.json"][key]})
    built = built_config(json.loads((checkpoint / "config.json").read_text()))
    assert built._attn_implementation is None and built._experts_implementation is None
    assert not built.name_or_path and not hasattr(built, "auto_map")
    assert asked == []


def test_without_us_transformers_asks(checkpoint: Path, asked: list[str]) -> None:
    """That the spies see what they are there for."""
    changed(checkpoint, "special_tokens_map.json", KEYS["special_tokens_map.json"])
    with pytest.raises((OSError, ValueError, TypeError)):
        AutoTokenizer.from_pretrained(checkpoint)
    config = built_config(read_config(checkpoint))
    config._attn_implementation = EVIL
    with pytest.raises((OSError, ValueError, ImportError)):
        transformers.AutoModelForCausalLM.from_config(config)
    assert asked


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("config.json", {"quantization_config": {"quant_method": "mxfp4"}}, "quantised"),
        ("config.json", {"auto_map": {"AutoModel": "evil--x.Y"}}, "remote code"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil--x.Y", None]}}, "remote code"),
        (
            "config.json",
            {"architectures": ["<img src=x>ForCausalLM"]},
            "architectures names",
        ),
        ("config.json", {"architectures": ["\x1b]0;x\x07ForCausalLM"]}, "architectures names"),
    ],
)
def test_what_cannot_be_left_out_is_refused(
    checkpoint: Path, tmp_path: Path, name: str, changes: dict[str, Any], says: str
) -> None:
    changed(checkpoint, name, changes)
    with pytest.raises(BaseModelError, match=says) as caught:
        fetch_base(
            Base(model=str(checkpoint)), cache=tmp_path, store_options=StoreOptions(), find_release=None
        )
    assert "\x1b" not in str(caught.value)
    if "architectures" not in changes:
        with pytest.raises(BaseModelError, match=says):
            open_subject(checkpoint)
