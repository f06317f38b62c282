"""False alarms and found faults of `yarn-ops serve-check`, by simulation: weights rounded for each server.

    python infra/benchmarks/serve_check_noise.py --model MODEL_DIR --servers 200

A simulated server has the model's weights with the error of 8 or 4-bit rounding, drawn afresh (uniform, half
a step either way, a scale for 32 weights, which is more than Q8_0 and Q4_K_M make). It answers by its 20
likeliest tokens, or by the likeliest alone. MODEL_DIR holds a fingerprint.json.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import torch

from yarn_ops.models.checkpoints import load_tokenizer
from yarn_ops.models.files import read_config
from yarn_ops.models.loading import load_proven
from yarn_ops.rope.config import rope_spec_of
from yarn_ops.rope.methods import attention_factor, inverse_frequencies
from yarn_ops.rope.proof import retune
from yarn_ops.serving.client import NextToken
from yarn_ops.serving.fingerprint import read_fingerprint
from yarn_ops.serving.measure import ASKED, SPARED_TOKENS, cut, faulty_specs, token_text
from yarn_ops.serving.reading import BLOCK, forward
from yarn_ops.serving.verdict import judge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--servers", type=int, default=200, help="right ones, for each number of bits")
    parser.add_argument("--wrong", type=int, default=5, help="for each fault and number of bits")
    parser.add_argument("--bits", type=int, nargs="+", default=(8, 4))
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    spec, tokenizer = rope_spec_of(read_config(asked.model)), load_tokenizer(asked.model)
    fingerprint = read_fingerprint(asked.model)
    _, texts = cut(tokenizer, spec.target_context_tokens - SPARED_TOKENS)
    model = load_proven(asked.model, None, spec, dtype=torch.float32, device=asked.device)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    names = {}
    draw = torch.Generator(asked.device).manual_seed(0)

    def replies(bits: int) -> tuple[list[NextToken], list[NextToken]]:
        """Of a server whose weights are rounded anew: with log-probabilities, and without."""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
                if parameter.ndim == 2 and parameter.shape[1] % BLOCK == 0:
                    blocks = parameter.view(-1, BLOCK)
                    step = blocks.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 0.5)
                    blocks += step * (torch.rand(blocks.shape, generator=draw, device=asked.device) - 0.5)
        telling, silent = [], []
        for row, probe in zip(torch.from_numpy(forward(model, texts)), fingerprint.probes, strict=True):
            values, tokens = row.topk(ASKED)
            for token in tokens.tolist():
                if token not in names:
                    names[token] = token_text(tokenizer, token) or f"<{token}>"
            told = {
                names[token]: value for token, value in zip(tokens.tolist(), values.tolist(), strict=True)
            }
            first = names[tokens[0].item()]
            telling.append(NextToken(first, told, probe.tokens))
            silent.append(NextToken(first, None, probe.tokens))
        return telling, silent

    for bits in asked.bits:
        for name, other in {"none": spec, **faulty_specs(spec)}.items():
            retune(model, inverse_frequencies(other), attention_factor(other))
            found: dict[str, Counter[str]] = {"logprobs": Counter(), "tokens": Counter()}
            largest = {"logprobs": 0.0, "tokens": 0.0}
            for _ in range(asked.servers if name == "none" else asked.wrong):
                for kind, answers in zip(found, replies(bits), strict=True):
                    verdict = judge(fingerprint, answers, bits)
                    found[kind][verdict.fault or "none"] += 1
                    largest[kind] = max(largest[kind], verdict.nats or 0.0)
            row = {"bits": bits, "fault": name, "named": found, "most_nats": largest}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
