"""What a plain script of transformers and PEFT takes for what the stage `train` does: from the start of its
process to its adapter on disk.

    python infra/benchmarks/plain_script.py BASE OUT TEXT [TEXT …] [--tokens 32768] [--steps 100]

LoRA r=16 on every linear layer, YaRN ×4, AdamW, bf16 autocast, scaled-dot-product attention, one window of
the texts a step; no exercises, which cost a step nothing. Prints a line of JSON: seconds from the process's
start until it had imported, tokenised, loaded, done its first and its last step, and written. Beside it:
the stage of a run (`yarn-ops runs show`).
"""

from __future__ import annotations

import time

import psutil

BEGAN = psutil.Process().create_time()

import argparse  # noqa: E402
import json  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--checkpointing", action="store_true", help="layers are computed again backward")
    parser.add_argument("--device", default="cuda")
    asked = parser.parse_args()
    at_s: dict[str, float] = {}

    def done(what: str) -> None:
        at_s[what] = round(time.time() - BEGAN, 2)

    done("imported")
    tokenizer = AutoTokenizer.from_pretrained(asked.base)
    needed = asked.tokens * asked.steps
    ids: list[int] = []
    for path in asked.texts:
        ids += tokenizer(path.read_text("utf-8"), add_special_tokens=False)["input_ids"]
        if len(ids) >= needed:
            break
    windows = torch.tensor(ids[: len(ids) // asked.tokens * asked.tokens]).view(-1, asked.tokens)
    done("tokenised")
    config = AutoConfig.from_pretrained(asked.base)
    config.rope_parameters = {
        "rope_type": "yarn", "rope_theta": config.rope_parameters["rope_theta"], "factor": 4.0,
        "original_max_position_embeddings": config.max_position_embeddings,
    }  # fmt: skip
    config.max_position_embeddings = asked.tokens
    base = AutoModelForCausalLM.from_pretrained(asked.base, config=config, dtype=torch.bfloat16)
    model = get_peft_model(
        base.to(asked.device), LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    )
    if asked.checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=1e-3, weight_decay=0)
    model.train()
    done("loaded")
    for step in range(asked.steps):
        window = windows[step % len(windows)][None].to(asked.device)
        with torch.autocast(asked.device, torch.bfloat16):
            loss = model(input_ids=window, labels=window, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = float(loss.detach())
        if step == 0:
            done("first step")
    done("last step")
    model.save_pretrained(asked.out)
    done("written")
    peak = torch.cuda.max_memory_allocated() / 2**30 if asked.device == "cuda" else 0
    print(json.dumps({"seconds": at_s, "loss": round(value, 3), "peak_gib": round(peak, 1)}))


if __name__ == "__main__":
    main()
