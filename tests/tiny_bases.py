"""Small random models of every causal class of transformers that rotates, and how they fare."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from yarn_ops.data.layout import ShardWriter, TokenWriter
from yarn_ops.errors import YarnOpsError
from yarn_ops.export.engines import Engine
from yarn_ops.export.model import export_model
from yarn_ops.export.serving import serving_settings
from yarn_ops.models.files import read_config
from yarn_ops.models.inspection import inspect_checkpoint
from yarn_ops.models.loading import load_proven
from yarn_ops.models.patch import patch
from yarn_ops.recipe import Leg, Rope, Train
from yarn_ops.records import Adapter, Dropped, Local, ShardSet
from yarn_ops.rope.architectures import architecture_of
from yarn_ops.rope.config import rope_spec_of
from yarn_ops.train import merge as merging
from yarn_ops.train.events import EventLog
from yarn_ops.train.job import Job
from yarn_ops.train.loop import run_job
from yarn_ops.train.rehearsal import rehearse

VOCABULARY, CONTEXT, LAYERS = 512, 64, 4
REFUSED = "refused: "
ENGINES: tuple[Engine, ...] = get_args(Engine)
TARGETS = {"default": Train().targets, "all-linear": ("all-linear",)}
OFTEN_NONE = (
    *("pad_token_id", "head_dim", "n_routed_experts", "n_shared_experts", "num_experts", "n_group"),
    *("topk_group", "q_lora_rank", "num_experts_per_tok", "mtp_num_hidden_layers"),
)
SIZES = {
    64: "hidden_size d_model n_embd embedding_size keep_window_size index_topk max_position_embeddings",
    96: "intermediate_size ffn_hidden_size ffn_dim intermediate_size_mlp block_ff_dim "
    "dense_intermediate_size",
    32: "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size head_dim "
    "shared_intermediate_size kv_channels sliding_window expert_ffn_hidden_size",
    16: "v_head_dim qk_rope_head_dim qk_nope_head_dim kv_lora_rank q_lora_rank linear_key_head_dim "
    "linear_value_head_dim",
    LAYERS: "num_hidden_layers num_layers n_layer num_attention_heads n_head num_experts num_local_experts "
    "n_routed_experts moe_num_experts",
    2: "num_key_value_heads num_experts_per_tok moe_topk moe_k num_experts_per_token linear_num_key_heads "
    "linear_num_value_heads",
    1: "eos_token_id n_group topk_group n_shared_experts num_shared_experts first_k_dense_replace "
    "decoder_sparse_step moe_layer_start_index",
    0: "pad_token_id bos_token_id num_nextn_predict_layers mtp_num_hidden_layers",
    VOCABULARY: "vocab_size pad_vocab_size",
}
SIZE_OF = {name: size for size, names in SIZES.items() for name in names.split()}


class Outcome(NamedTuple):
    stage: str
    """merged, or the stage that refused"""
    why: str = ""
    exports: Mapping[Engine, str] = MappingProxyType({})
    """the versions of each engine that serve it, or `refused: ` and why"""

    @property
    def engines(self) -> str:
        """Those that serve it."""
        return ", ".join(engine for engine, told in self.exports.items() if not told.startswith(REFUSED))


def rotating() -> list[str]:
    """The model_types of causal classes whose code rotates."""
    root = Path(transformers.__file__).parent / "models"

    def code(model_type: str) -> str:
        folder = root / model_type_to_module_name(model_type)
        return "".join(path.read_text("utf-8") for path in folder.glob("modeling_*.py"))

    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return [name for name in known if re.search("inv_freq|apply_rotary|RotaryEmb", code(name))]


def small_config(model_type: str, **changes: Any) -> Any:
    """The class's default config with every size that it has made small."""
    default = CONFIG_MAPPING[model_type]().to_dict()
    sizes = {
        key: SIZE_OF[key]
        for key, value in default.items()
        if key in SIZE_OF and not isinstance(value, bool | list) and (value is not None or key in OFTEN_NONE)
    }
    sizes["max_position_embeddings"] = CONTEXT
    if "qk_rope_head_dim" in default:
        sizes["num_key_value_heads"] = LAYERS
        sizes.pop("head_dim", None)
    if model_type == "helium":  # whose output is as wide as its heads
        sizes["head_dim"] = 16
    if model_type == "lfm2_moe":
        sizes |= {"layer_types": ["conv", "full_attention"] * (LAYERS // 2), "num_dense_layers": 1}
    if model_type == "mistral":
        sizes |= {"sliding_window": None}
    if isinstance(kinds := default.get("layer_types"), list):
        named = ["full_attention"] * (model_type == "ministral") + list(dict.fromkeys(kinds))
        sizes["layer_types"] = (named * LAYERS)[:LAYERS]
    return CONFIG_MAPPING[model_type](**sizes | changes)


def lay_down(model_type: str, folder: Path, **changes: Any) -> int | None:
    """A random model with tokenizer; what `base.original_context_tokens` has to be, None: nothing."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(
        small_config(model_type, **changes), dtype=torch.float32
    ).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={token: row for row, token in enumerate(["<s>", "</s>", *alphabet])}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    rope = config["rope_parameters"]
    if "factor" not in rope:
        return None
    rope |= {"factor": 2.0, "original_max_position_embeddings": CONTEXT}  # the class's default is scaled
    config["max_position_embeddings"] = 2 * CONTEXT
    (folder / "config.json").write_text(json.dumps(config))
    return 2 * CONTEXT


def lay_shards(folder: Path) -> None:
    random, dtype = np.random.default_rng(0), np.dtype("<u2")
    with ShardWriter(folder, dtype) as writer, TokenWriter(folder / "tokens-00000.bin", dtype) as file:
        for number in range(8):
            extent = file.append(random.integers(2, VOCABULARY, 1000).astype(np.uint16))
            writer.index("held_out" if number % 4 == 0 else "train", f"document-{number}", extent)
    writer.finish([file.tokens], {})


def go(
    model_type: str,
    targets: tuple[str, ...],
    folder: Path,
    shards: Path,
    vary: Callable[[Path], None] = lambda _: None,
    **changes: Any,
) -> Outcome:
    """Read, patch, prove, train two steps, merge, reload with equal logits, and ask every engine.

    The base is of the class's small config with `changes`, and `vary` edits its directory.
    A YarnOpsError ends it as refused at a stage; any other error is a fault of ours.
    """
    stage = "base"
    try:
        architecture_of({"model_type": model_type})
        asked = lay_down(model_type, folder / "base", **changes)
        vary(folder / "base")
        base = inspect_checkpoint(folder / "base", source=model_type, original_context_tokens=asked)
        stage = "patch"
        rope = Rope(method="yarn", factor=4.0)
        patched = patch(rope, Local(base, folder / "base"), folder / "patched", factor=4.0)
        stage = "rehearsal"
        train = Train(targets=targets, rank=4, warmup_steps=1, learning_rate=1e-2, steps=2, batch_windows=1,
                      gradient_accumulation_steps=1, exercises={"share": 0.0})  # fmt: skip
        leg = Leg(context_tokens=patched.target_context_tokens, steps=2, factor=4.0)
        kept = ShardSet(
            tokenizer_digest="", vocab_size=VOCABULARY, train_documents=6, train_tokens=6000,
            held_out_documents=2, held_out_tokens=2000, longest_document_tokens=1000, dropped=Dropped(),
            lengths=(),
        )  # fmt: skip
        local = Local(patched, folder / "patched")
        rehearse(train, [leg], local, device="cpu", processes=1)
        stage = "training"
        job = Job.model_validate({
            "train": train, "leg": leg, "data": {}, "base_dir": folder / "base", "shards_dir": shards,
            "patched_dir": folder / "patched", "out_dir": folder / "adapter", "work_dir": folder / "work",
            "device": "cpu", "threads": 1,
        })  # fmt: skip
        job.work_dir.mkdir()
        run_job(job, EventLog(job.events, steps=2, through_step=0), threading.Event(), None)
        stage = "merge"
        adapter = Adapter(
            method="lora", steps=2, window_tokens=256, tokens_seen=1, trainable_parameters=1, first_loss=1.0,
            final_loss=1.0, seconds=1.0,
        )  # fmt: skip
        merging.merge(
            Local(base, folder / "base"), local, Local(adapter, folder / "adapter"), Local(kept, shards),
            folder / "merged", device="cpu", report=lambda *_: None,
        )  # fmt: skip
    except YarnOpsError as error:
        return Outcome(stage, str(error))
    config = read_config(folder / "merged")
    ours = load_proven(folder / "merged", None, rope_spec_of(config), dtype=torch.float32, device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32).eval()
    ids = torch.arange(2, 2 + 2 * CONTEXT)[None]
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-4)
    return Outcome("merged", exports={engine: _exported(folder / "merged", engine) for engine in ENGINES})


def _exported(model: Path, engine: Engine) -> str:
    """The engine's versions, once the files that it needs are written; or why it serves no such model."""
    try:
        settings = serving_settings(read_config(model), engine)
        if settings.gguf is not None or settings.config is not None:
            to = model.parent / f"for {engine}"
            export_model(model, engine, to=to, weights="bf16", report=lambda *_: None)
    except YarnOpsError as error:
        assert "\n" not in str(error)
        return REFUSED + str(error)
    return settings.requires
