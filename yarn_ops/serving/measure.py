"""Making a fingerprint: what a model, its faults and its rounded weights say next after each probe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from yarn_ops.errors import RopeError, ServingError
from yarn_ops.models.checkpoints import load_tokenizer
from yarn_ops.models.context import context_tokens_of
from yarn_ops.models.files import read_config
from yarn_ops.models.loading import load_proven
from yarn_ops.progress import OnProgress
from yarn_ops.rope.config import rope_spec_of
from yarn_ops.rope.methods import LENGTH_DEPENDENT, RopeSpec, attention_factor, inverse_frequencies
from yarn_ops.rope.proof import retune
from yarn_ops.serving.fingerprint import (
    BITS,
    MEASURED,
    Fingerprint,
    RoundingNoise,
    TextProbe,
    distance,
    regret,
    repeats,
    text_digest,
    text_of,
)
from yarn_ops.serving.reading import (
    Logprobs,
    TokenisedText,
    forward,
    forward_ends,
    in_bfloat16,
    lean_kernel,
    round_weights,
    with_bos,
)

TEXTS = 4
LENGTHS = 10
"""of a text's probes, as many from each octave between the shortest and the target"""
SHORTEST_TOKENS = 48
SPARED_TOKENS = 8
"""that engines keep free of a prompt at the target length"""
ASKED = 20
"""of the likeliest next tokens; as many as vLLM tells"""
KEPT = 12
"""candidates of a probe"""
SAME = 1e-6
"""relative; frequencies that differ by less are one RoPE"""


def make_fingerprint(
    model_dir: Path, *, device: str, report: OnProgress, longest: int | None = None
) -> Fingerprint:
    """The fingerprint of a model directory, in float32 (bfloat16 on a GPU that float32 does not fit), by
    `reading.quick_products`.

    Some dozen forwards of four texts of the target length, or of `longest` tokens where that is less.
    ServingError where no engine could serve the model's RoPE, or its tokenizer has no stable places to cut
    a text; else as `load_proven`.
    """
    config = read_config(model_dir)
    spec = rope_spec_of(config)
    if spec.method in LENGTH_DEPENDENT:
        raise ServingError(
            f"{model_dir}: {spec.method} turns heads by the length of the text, which no engine's cache "
            "serves; nothing to compare with"
        )
    tokenizer = load_tokenizer(model_dir)
    target = context_tokens_of(model_dir)
    most_tokens = min(longest or target, target - SPARED_TOKENS)
    probes, texts = cut(tokenizer, most_tokens)
    specs = faulty_specs(spec)
    steps, step = len(specs) + 2 + len(BITS), 0

    def tell(note: str) -> None:
        nonlocal step
        report(step, steps, note)
        step += 1

    tell(MEASURED)
    model = load_proven(model_dir, None, spec, dtype=_dtype(model_dir, device), device=device)
    kernel = lean_kernel(model, texts[0])
    found = {MEASURED: forward(model, texts, kernel)}
    for name, other in specs.items():
        tell(name)
        retune(model, inverse_frequencies(other), attention_factor(other))
        found[name] = forward(model, texts, kernel)
    retune(model, inverse_frequencies(spec), attention_factor(spec))
    tell("context cut")
    original = spec.original_context_tokens
    if most_tokens > original:
        found["context cut"] = forward_ends(model, texts, found[MEASURED], original, kernel)
    bos = tokenizer.bos_token_id
    bos = config.get("bos_token_id") if bos is None else bos
    if isinstance(bos, int):
        found["BOS"] = forward(model, [with_bos(text, bos) for text in texts], kernel)
    rounded = {}
    for bits in BITS:
        tell(f"{bits} bits")
        if bits == 16:
            with in_bfloat16(model):
                rounded[bits] = forward(model, texts, kernel)
        else:
            round_weights(model, bits)
            rounded[bits] = forward(model, texts, kernel)
    report(steps, steps, "")
    return _fingerprint(spec, target, tokenizer, probes, found, rounded)


def faulty_specs(spec: RopeSpec) -> dict[str, RopeSpec]:
    """The RoPE of each fault, of those that differ from the model's own."""
    factor, original = spec.factor, spec.original_context_tokens
    scale = attention_factor(spec)
    changes: dict[str, dict[str, Any]] = {
        "unscaled": {"method": "none", "factor": 1.0, "attention_factor": None},
        "scaled": {"method": "yarn", "factor": 4.0},
        "linear": {"method": "linear", "attention_factor": None},
        "attention factor missing": {"attention_factor": 1.0},
        "attention factor squared": {"attention_factor": scale**2},
        "original length doubled": {"original_context_tokens": 2 * original},
        "original length halved": {"original_context_tokens": original // 2},
        "original length is the target": {"original_context_tokens": spec.target_context_tokens},
        "factor halved": {"factor": factor / 2},
        "factor doubled": {"factor": factor * 2},
        "factor squared": {"factor": factor**2},
    }
    if spec.method == "none":
        changes = {"scaled": changes["scaled"]}
    else:
        del changes["scaled"]
    kept: dict[str, RopeSpec] = {}
    for name, change in changes.items():
        try:
            other = RopeSpec(**{**dict(spec), **change})
        except RopeError:  # no such RoPE, e.g. a factor below 1
            continue
        if not any(_same(other, one) for one in (spec, *kept.values())):
            kept[name] = other
    return kept


def _same(one: RopeSpec, other: RopeSpec) -> bool:
    frequencies, others = inverse_frequencies(one), inverse_frequencies(other)
    factor = attention_factor(other)
    return np.allclose(frequencies, others, rtol=SAME, atol=0) and abs(attention_factor(one) - factor) < SAME


def _dtype(model_dir: Path, device: str) -> torch.dtype:
    if device == "cuda":
        weights = sum(path.stat().st_size for path in model_dir.glob("*.safetensors"))
        if 3 * weights > torch.cuda.mem_get_info()[0]:
            return torch.bfloat16
    return torch.float32


def cut(tokenizer: Any, most_tokens: int) -> tuple[list[TextProbe], list[TokenisedText]]:
    """Probes without candidates yet, and the token ids that they are the beginnings of."""
    with ThreadPoolExecutor(TEXTS) as pool:
        found = list(pool.map(lambda number: _cut_one(tokenizer, number, most_tokens), range(TEXTS)))
    probes = [probe for cut_probes, _ in found for probe in cut_probes]
    if len(probes) < TEXTS * LENGTHS // 4:
        raise ServingError(
            "the tokenizer splits no beginning of a text as it splits the whole; not supported"
        )
    return probes, [text for _, text in found]


def _cut_one(tokenizer: Any, number: int, most_tokens: int) -> tuple[list[TextProbe], TokenisedText]:
    """Of one text."""
    chars = 8 * most_tokens + 4096
    text = text_of(number, chars)
    everything = tokenizer(text, verbose=False).input_ids
    per_char = len(everything) / len(text)
    places = repeats(number, chars)
    found: list[TextProbe] = []
    ids: list[int] = []
    for length in np.geomspace(min(SHORTEST_TOKENS, most_tokens // 4), most_tokens, LENGTHS):
        fitting = [
            (first, last) for first, last in places
            if last * per_char < length and (not found or first > found[-1].chars)
        ]  # fmt: skip
        if not fitting:
            continue
        for at in _word_ends(text, *fitting[-1], skipped=len(found) % 3):
            cut = tokenizer(text[:at], verbose=False).input_ids
            if cut == everything[: len(cut)] and len(cut) <= most_tokens:
                found.append(TextProbe(text=number, chars=at, tokens=len(cut), candidates=("a", "b")))
                ids = cut
                break
    return found, TokenisedText(ids, [probe.tokens for probe in found])


def _word_ends(text: str, first: int, last: int, skipped: int) -> Iterator[int]:
    """Where words of a sentence end, from one in its second half on, then the others."""
    ends = [at for at in range(first + 1, last) if text[at] == " "]
    start = len(ends) // 2 + skipped
    yield from ends[start:]
    yield from reversed(ends[:start])


def _fingerprint(
    spec: RopeSpec, target: int, tokenizer: Any, probes: Sequence[TextProbe], found: dict[str, Logprobs],
    rounded: dict[int, Logprobs],
) -> Fingerprint:  # fmt: skip
    ranked = [_likeliest(state, KEPT) for state in found.values()]
    ids = [_candidates(tokenizer, [rank[row] for rank in ranked]) for row in range(len(probes))]
    kept = tuple(
        probe.model_copy(update={"candidates": tuple(ids[row].values())}) for row, probe in enumerate(probes)
    )
    rows = {
        name: [state[row][list(ids[row])].astype(np.float64) for row in range(len(probes))]
        for name, state in found.items()
    }
    longest = {probe.text: probe.chars for probe in probes}
    return Fingerprint(
        method=spec.method,
        factor=spec.factor,
        original_context_tokens=spec.original_context_tokens,
        target_context_tokens=target,
        texts=tuple(text_digest(number, chars) for number, chars in sorted(longest.items())),
        probes=kept,
        states={
            name: tuple(tuple(min(200_000, round(-1000 * float(value))) for value in row) for row in state)
            for name, state in rows.items()
        },
        noise={
            bits: _noise(rows[MEASURED], state, [list(one) for one in ids]) for bits, state in rounded.items()
        },
    )


def _candidates(tokenizer: Any, ranked: Sequence[NDArray[np.int64]]) -> dict[int, str]:
    """{token id: its text}: the likeliest of what was measured, then of each fault in turn.

    ranked: the likeliest `KEPT` tokens by state.
    """
    wanted = [*ranked[0][:5], *(rank[place] for place in range(3) for rank in ranked), *ranked[0]]
    found: dict[int, str] = {}
    for token in map(int, wanted):
        text = token_text(tokenizer, token)
        if text and token not in found and text not in found.values():
            found[token] = text
        if len(found) == KEPT:
            break
    return found


def _likeliest(logprobs: Logprobs, count: int) -> NDArray[np.int64]:
    """int64[probes, count]: the tokens with the most probability, in that order."""
    some: NDArray[np.int64] = np.argpartition(logprobs, -count, axis=-1)[:, -count:]
    order = np.argsort(-np.take_along_axis(logprobs, some, -1), axis=-1)
    return np.take_along_axis(some, order, -1)


def token_text(tokenizer: Any, token: int) -> str:
    """What a server calls a token; empty where that names it badly (part of a letter, a special one)."""
    if token in tokenizer.all_special_ids:
        return ""
    text: str = tokenizer.decode([token])
    piece = tokenizer.convert_ids_to_tokens(token)
    if piece.startswith("▁") and not text.startswith(" "):
        text = " " + text
    return "" if "�" in text else text


def _noise(
    expected: Sequence[NDArray[np.float64]], noisy: Logprobs, ids: Sequence[list[int]]
) -> RoundingNoise:
    """Mean distance of what a server with these logits would tell."""
    distances, regrets = [], []
    likeliest = _likeliest(noisy, ASKED)
    for row, wanted in enumerate(ids):
        ranked = likeliest[row]
        told = {wanted.index(token): float(noisy[row][token]) for token in ranked if token in wanted}
        distances.append(distance(expected[row], told, float(noisy[row][ranked[-1]])))
        first = int(ranked[0])
        regrets.append(regret(expected[row], wanted.index(first) if first in wanted else None))
    return RoundingNoise(
        logprobs=round(float(np.mean(distances)), 4), tokens=round(float(np.mean(regrets)), 4)
    )
