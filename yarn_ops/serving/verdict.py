"""Whether a server's answers are those of the model that was measured, or which fault they are nearest to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yarn_ops.errors import ServingError
from yarn_ops.serving.client import NextToken
from yarn_ops.serving.fingerprint import FAR, FAULTS, MEASURED, Fingerprint, TextProbe, distance, regret

BITS_OF_WEIGHTS = (16, 8, 4)
ALLOWED = 1.75
"""times the distance of the model's own rounded weights: engines round otherwise, and compute otherwise"""
ALLOWED_BY_TOKENS = 4.0
"""the same where single tokens tell it, of which few differ and these by much"""
SUMMED_OTHERWISE = 0.02
"""nats that are always allowed: engines sum in another order"""
CERTAIN = 5.0
"""standard errors by which a fault has to show to be named"""
EXCLUDED = 3.5
"""standard errors by which the rest of it has to be missing, for a fault to be excluded"""
FEWEST_PROBES = 8


@dataclass(frozen=True)
class ServedVerdict:
    """What came of a check. `fault` None: the server is right."""

    fault: str | None
    line: str
    nats: float | None
    """mean distance from the model as measured; None where something told before"""
    texts: int
    tells_logprobs: bool
    explained_by_bits: int | None
    distances: Mapping[str, float]
    """nats, by state"""
    unsure: tuple[str, ...]
    """faults that these answers cannot exclude"""


def judge(fingerprint: Fingerprint, replies: Sequence[NextToken], bits: int | None) -> ServedVerdict:
    """Compare the replies to a fingerprint's probes with every state. bits: of the server's weights.

    ServingError where there are too few answers to tell anything.
    """
    probes = fingerprint.probes
    answered = [number for number, reply in enumerate(replies) if reply.refused is None]
    if len(answered) < min(FEWEST_PROBES, len(probes)):
        refused = next(reply.refused for reply in replies if reply.refused is not None)
        raise ServingError(f"the server answers {len(answered)} of {len(probes)} texts; it says {refused}")
    told = _by_counts(probes, replies, answered)
    if told is not None:
        return _early(*told, texts=len(answered))
    telling = [number for number in answered if replies[number].logprobs]
    tells = 2 * len(telling) >= len(answered)
    verdict = _by_distance(fingerprint, replies, telling if tells else answered, tells, bits)
    cut = _refused(probes, replies, answered)
    return verdict if cut is None or verdict.fault is not None else _early(*cut, texts=len(answered))


def _early(fault: str, why: str, texts: int) -> ServedVerdict:
    return ServedVerdict(fault, f"served wrongly: {fault}: {why}", None, texts, False, None, {}, ())


def _by_counts(
    probes: Sequence[TextProbe], replies: Sequence[NextToken], answered: Sequence[int]
) -> tuple[str, str] | None:
    """A fault that the numbers of tokens tell; with the reason."""
    counted = {number: count for number in answered if (count := replies[number].prompt_tokens) is not None}
    more = Counter(count - probes[number].tokens for number, count in counted.items())
    if not more or set(more) == {0}:
        return None
    if set(more) in ({1}, {-1}):
        which = "has one token more than the model's own tokenizer puts, as with a BOS" if 1 in more else \
            "has one token less than the model's own tokenizer puts, as without a BOS"  # fmt: skip
        return "BOS", f"every text {which}"
    wrong = sorted((number for number in counted if counted[number] != probes[number].tokens),
                   key=lambda number: probes[number].tokens)  # fmt: skip
    first = probes[wrong[0]].tokens
    shown = f"a text of {first:,} tokens counts {counted[wrong[0]]:,}"
    shorter = [number for number in counted if probes[number].tokens < first]
    if len(shorter) >= 2 and all(counted[number] < probes[number].tokens for number in wrong):
        return "context cut", f"{shown}, shorter ones are read whole"
    return "other tokenizer", f"{shown}, {len(wrong)} of {len(counted)} differ"


def _refused(
    probes: Sequence[TextProbe], replies: Sequence[NextToken], answered: Sequence[int]
) -> tuple[str, str] | None:
    """The longer texts that a server does not answer; ServingError where it leaves out others."""
    refused = sorted(set(range(len(probes))) - set(answered), key=lambda number: probes[number].tokens)
    if not refused:
        return None
    least, longest = probes[refused[0]].tokens, max(probes[number].tokens for number in answered)
    complaint = replies[refused[0]].refused
    if least < longest:
        raise ServingError(f"the server refuses {len(refused)} of {len(probes)} texts; it says {complaint}")
    return "context cut", f"texts of up to {longest:,} tokens are answered, one of {least:,} not: {complaint}"


def _matched(probe: TextProbe, reply: NextToken) -> tuple[dict[int, float], int | None]:
    """{candidate: its log-probability} of what a reply tells, and which candidate its token is."""
    index = {text: place for place, text in enumerate(probe.candidates)}
    bare = Counter(text.strip() for text in probe.candidates)
    index |= {
        text.strip(): place for text, place in index.items() if bare[text.strip()] == 1 and text.strip()
    }
    told: dict[int, float] = {}
    for token, value in (reply.logprobs or {}).items():
        place = index.get(_plain(token), index.get(token.strip()))
        if place is not None:
            told[place] = max(value, told.get(place, -math.inf))
    return told, index.get(_plain(reply.token), index.get(reply.token.strip()))


def _plain(token: str) -> str:
    """A token's text where an engine tells its piece."""
    return token.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n")


def _by_distance(
    fingerprint: Fingerprint, replies: Sequence[NextToken], used: Sequence[int], tells: bool, bits: int | None
) -> ServedVerdict:
    matched = [_matched(fingerprint.probes[number], replies[number]) for number in used]
    states = {state: [fingerprint.logprobs(state)[number] for number in used] for state in fingerprint.states}
    found: dict[str, NDArray[np.float64]] = {}
    for state, rows in states.items():
        found[state] = np.array([
            distance(row, told, min((replies[number].logprobs or {"": 0.0}).values()))
            if tells else regret(row, token)
            for number, row, (told, token) in zip(used, rows, matched, strict=True)
        ])  # fmt: skip
    means = {state: float(values.mean()) for state, values in found.items()}
    nats, texts = means[MEASURED], len(used)
    spare = SUMMED_OTHERWISE if tells else SUMMED_OTHERWISE / 4
    allowed = {
        width: (ALLOWED * noise.logprobs if tells else ALLOWED_BY_TOKENS * noise.tokens) + spare
        for width, noise in fingerprint.noise.items()
    }
    explained = next((width for width in BITS_OF_WEIGHTS if nats <= allowed[width]), None)
    others = [state for state in states if state != MEASURED]
    if tells:
        told = [one for one, _ in matched]
        shares = {state: likeness(states[MEASURED], states[state], told) for state in others}
        nearer = [one for one, (share, error) in shares.items() if share > max(0.5, CERTAIN * error)]
        nearer = [one for one in nearer if means[one] < nats and means[one] <= max(allowed[4], nats / 2)]
        unsure = [one for one, (share, error) in shares.items() if 1 - share <= EXCLUDED * error]
    else:  # single tokens tell too little to see through coarse rounding that nobody spoke of
        bits = bits or max(BITS_OF_WEIGHTS)
        unsure = [state for state in others if means[state] <= allowed[bits]]
        nearer = unsure if nats > allowed[bits] else []
    off = f"{nats:.3f} nats{'' if tells else ' by next tokens alone'}"
    over = f"over {texts} texts"
    fault = None
    if nearer:
        fault = min(nearer, key=lambda state: means[state])
        line = (
            f"{fault}: {FAULTS[fault]} ({means[fault]:.3f} nats from that, {off} from the measured, {over})"
        )
    elif nats > (fingerprint.noise[2].logprobs if tells else fingerprint.noise[2].tokens):
        fault = "other weights"
        line = f"{fault}: {off} off {over}, and no fault of the RoPE is nearer"
    elif explained is None or (bits is not None and explained < bits):
        fault = "quantisation"
        width = bits or min(BITS_OF_WEIGHTS)
        line = (
            f"{fault} beyond what {width} bits explain ({allowed[width]:.3f} nats), or weights of another "
            f"training: {off} off {over}; --bits says what the server's weights have"
        )
    else:
        line = f"right to {off} {over}; {explained}-bit weights explain {allowed[explained]:.3f}"
    line = line if fault is None else f"served wrongly: {line}"
    return ServedVerdict(fault, line, nats, texts, tells, explained, means, tuple(unsure))


def likeness(
    measured: Sequence[NDArray[np.float64]],
    faulty: Sequence[NDArray[np.float64]],
    told: Sequence[Mapping[int, float]],
) -> tuple[float, float]:
    """How much of a fault's change is in what a server tells (0 none, 1 all of it), and its standard error.

    The slope of the server's differences from the measured over the fault's, weighted by probability; what
    rounding does lies across it. A text counts as one observation. The error is infinite where the fault
    changes nothing.
    """
    along, own = [], []
    for expected, other, found in zip(measured, faulty, told, strict=True):
        kept = list(found)
        weight = np.exp(expected[kept]) + np.exp(other[kept])
        change = np.clip(other[kept] - expected[kept], -FAR, FAR)
        seen = np.clip(np.array([found[place] for place in kept]) - expected[kept], -FAR, FAR)
        along.append(float((weight * change * seen).sum()))
        own.append(float((weight * change * change).sum()))
    total = sum(own)
    if total == 0.0:
        return 0.0, math.inf
    share = sum(along) / total
    error = math.sqrt(sum((one - share * two) ** 2 for one, two in zip(along, own, strict=True))) / total
    return share, error
