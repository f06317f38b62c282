"""llama.cpp itself computes what transformers computes, from the GGUF and nothing else.

It runs in an environment of its own: `infra/llama` builds .venv-llama beside the checkout's .venv, then
`.venv/bin/pytest tests/unit/export/test_export_llama_cpp.py -m slow`. Without it these tests skip.

The key-value cache is float32 here: llama.cpp's default float16 one adds its own rounding (3e-2 on base512).
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from yarn_ops.export.model import export_model
from yarn_ops.models.checkpoints import load_tokenizer
from yarn_ops.models.files import read_config
from yarn_ops.models.loading import load_proven
from yarn_ops.rope.config import rope_spec_of

LLAMA_PYTHON = Path(__file__).parents[3] / ".venv-llama/bin/python"
NEW_TOKENS = 16
TOLERANCE = 2e-2  # of a logit; a wrong attention factor alone makes 18
TEXT = Path(argparse.__file__).read_text("utf-8") + "\n\n\tnaïve — 東京 🦙 'tis 1234567 we'LL\r\n   end  "

RUN = """
import json, sys
import numpy as np
from llama_cpp import Llama

job = json.load(open(sys.argv[1]))
found = {}
for length, ids in job["prompts"].items():
    context_tokens = len(ids) + job["new_tokens"]
    model = Llama(job["gguf"], n_ctx=context_tokens, logits_all=True, verbose=False, type_k=0, type_v=0)
    model.eval(ids)
    greedy = []
    for _ in range(job["new_tokens"]):
        greedy.append(int(model.scores[model.n_tokens - 1].argmax()))
        model.eval(greedy[-1:])
    found[f"logits-{length}"], found[f"greedy-{length}"] = model.scores[: model.n_tokens].copy(), greedy
text = job["text"].encode()
found["ids"] = model.tokenize(text, add_bos=True, special=True)
np.savez(sys.argv[2], **found)
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LLAMA_PYTHON.exists(), reason="no .venv-llama; build it with infra/llama"),
]


@pytest.fixture
def compare(tmp_path, quiet):
    """compare(model, lengths): {length: (largest difference of a logit there, anywhere, greedy equal)}."""

    def run(model_dir, lengths):
        export_model(model_dir, "llama.cpp", to=tmp_path / "to", weights="f16", report=quiet)
        ids = load_tokenizer(model_dir)(TEXT).input_ids
        prompts = {length: ids[: length - NEW_TOKENS] for length in lengths}
        gguf = str(next((tmp_path / "to").glob("*.gguf")))
        job = {"gguf": gguf, "prompts": prompts, "new_tokens": NEW_TOKENS, "text": TEXT}
        (tmp_path / "job.json").write_text(json.dumps(job))
        command = [LLAMA_PYTHON, "-c", RUN, tmp_path / "job.json", tmp_path / "found.npz"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        found = np.load(tmp_path / "found.npz")
        assert found["ids"].tolist() == ids
        spec = rope_spec_of(read_config(model_dir))
        model = load_proven(model_dir, None, spec, dtype=torch.float32, device="cpu")
        compared = {}
        for length, prompt in prompts.items():
            logits, greedy = continued(model, prompt)
            differences = np.abs(found[f"logits-{length}"] - logits)
            greedy_equal = found[f"greedy-{length}"].tolist() == greedy
            compared[length] = float(differences[-NEW_TOKENS:].max()), float(differences.max()), greedy_equal
        print(model_dir.name, spec.method, compared)  # figures, with pytest -s
        return compared

    return run


@torch.inference_mode()
def continued(model, prompt):
    """Logits at every position (T × V) of a prompt and its greedy continuation, and that continuation."""
    ids, greedy, cache, logits = prompt, [], None, []
    for _ in range(NEW_TOKENS + 1):
        output = model(torch.tensor([ids]), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits[0])
        greedy.append(int(logits[-1][-1].argmax()))
        ids = greedy[-1:]
    return torch.cat(logits).numpy(), greedy[:NEW_TOKENS]


@pytest.mark.parametrize(
    "rope",
    [
        {"method": "yarn"},
        {"method": "by-parts"},
        {"method": "yarn", "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.25},
        {"method": "llama3"},
        {"method": "linear"},
        {"method": "ntk"},
    ],
    ids=["yarn", "by-parts", "betas", "llama3", "linear", "ntk"],
)
def test_extended_base_at_half_one_two_and_four_times_its_context(extended, compare, rope):
    for there, _, greedy_equal in compare(extended(**rope), (256, 512, 1024, 2048)).values():
        assert greedy_equal
        assert there < TOLERANCE


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("llama", {"head_dim": 32, "tie_word_embeddings": False, "attention_bias": True}),
        ("mistral", {"head_dim": 16}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_class_that_is_written(random_model, compare, model_type, config):
    for _, anywhere, greedy_equal in compare(random_model(model_type, **config), (256, 1024)).values():
        assert greedy_equal
        assert anywhere < TOLERANCE
