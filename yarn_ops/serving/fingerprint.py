"""A model's fingerprint: what it and its nearest faults say next after some texts. Read without torch.

A fingerprint is a JSON file of some 20 kB beside the weights. Of every probe, a beginning of a text, it keeps
the log-probabilities of a few candidates for the next token: of the model as measured, and of the same
weights under each fault that a server may have. The texts themselves are made again from their number.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from yarn_ops.digests import canonical_json
from yarn_ops.errors import ServingError
from yarn_ops.models.files import open_model_file
from yarn_ops.records import FINGERPRINT as FINGERPRINT

MEASURED = "measured"
"""the state of the model as it was measured"""
FAULTS = {
    "unscaled": "the RoPE is not scaled at all",
    "scaled": "the RoPE is scaled, though the model was measured unscaled",
    "linear": "positions are interpolated linearly, not by the model's own method",
    "attention factor missing": "the RoPE's attention factor is 1",
    "attention factor squared": "the RoPE's attention factor is applied twice",
    "original length doubled": "the RoPE's original length is twice the model's",
    "original length halved": "the RoPE's original length is half the model's",
    "original length is the target": "the RoPE takes the extended length for the original one",
    "factor halved": "the RoPE's factor is half the model's",
    "factor doubled": "the RoPE's factor is twice the model's",
    "factor squared": "the RoPE's factor is applied twice",
    "context cut": "only the end of a long text is read",
    "BOS": "a text begins with a BOS token where the model's does not, or the other way round",
}
"""states of the same weights under a fault -> what a server then does"""
BITS = (16, 8, 4, 2)
"""of weights: bfloat16; 8-bit floats or integers; 4 and 2-bit integers in blocks of 32"""
MOST_BYTES = 4 << 20
MOST_CHARS = 64 << 20
FAR = 3.0
"""nats; a token that is farther off tells no more"""
NAMES = 40
WORDS = """
anchor apple autumn barley basket beacon bridge candle canyon carpet cedar cherry cloud copper cotton
curtain daisy falcon feather fiddle forest garden glass granite harbor hazel honey island ivory kettle
ladder lantern lemon linen maple marble meadow mirror morning needle ocean olive orchard paper pebble
pepper pillow raven ribbon river saddle shadow silver slate sparrow spring stone storm thistle thunder
timber tunnel valley velvet violet walnut window winter
""".split()  # noqa: SIM905
FORMS = (
    "The {a} of {n} is kept in the {b} beside the {c}.",
    "In the year {d} the {a} was sold to {n} for {e} coins.",
    "{n} wrote that the {a} and the {b} were never seen after the {c}.",
    "The number of the {a} in the {b} is {d}{e}.",
    "self.{a}_{b} = {c}.{n}({d}, {e})",
    "When {n} came to the {a}, the {b} had gone and the {c} was open.",
)

Counts = Annotated[int, Field(ge=1, le=1 << 31)]
MilliNats = Annotated[int, Field(ge=0, le=200_000)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TextProbe(_Part):
    """A beginning of a text, whose next token is asked for."""

    text: int = Field(ge=0, le=99)
    chars: Annotated[int, Field(ge=1, le=MOST_CHARS)]
    tokens: Counts
    """of the prompt, with the special tokens that the model's own tokenizer puts before it"""
    candidates: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(min_length=2)


class RoundingNoise(_Part):
    """Mean distance (nats) of the same weights, rounded, from what was measured."""

    logprobs: float = Field(ge=0)
    """where a server tells log-probabilities"""
    tokens: float = Field(ge=0)
    """where it tells its next token alone"""


class Fingerprint(_Part):
    """`states`: for each probe the candidates' log-probabilities in −1/1000 nat, by state."""

    version: Literal[1] = 1
    method: str = Field(max_length=40)
    factor: float
    original_context_tokens: Counts
    target_context_tokens: Counts
    texts: tuple[Annotated[str, Field(pattern="^[0-9a-f]{64}$")], ...]
    """sha256 of each text up to its longest probe"""
    probes: tuple[TextProbe, ...] = Field(min_length=1, max_length=1000)
    states: dict[str, tuple[tuple[MilliNats, ...], ...]]
    noise: dict[int, RoundingNoise]
    """by the bits of the weights"""

    @model_validator(mode="after")
    def _whole(self) -> Fingerprint:
        if MEASURED not in self.states or self.states.keys() - FAULTS.keys() != {MEASURED}:
            raise ValueError(f"states: expected {MEASURED} and known faults")
        if self.noise.keys() != set(BITS):
            raise ValueError(f"noise: expected {BITS}")
        shape = [len(probe.candidates) for probe in self.probes]
        for name, state in self.states.items():
            if [len(row) for row in state] != shape:
                raise ValueError(f"states: {name} has not a number for every candidate")
        if any(probe.text >= len(self.texts) for probe in self.probes):
            raise ValueError("probes: one is of a text that is not there")
        return self

    def logprobs(self, state: str) -> list[NDArray[np.float64]]:
        """Of every probe's candidates, in nats."""
        return [-np.asarray(row, dtype=np.float64) / 1000 for row in self.states[state]]

    def prompts(self) -> list[str]:
        """The text of every probe. ServingError where this version makes other texts than it was made of."""
        longest: dict[int, int] = {}
        for probe in self.probes:
            longest[probe.text] = max(longest.get(probe.text, 0), probe.chars)
        for number, chars in longest.items():
            if text_digest(number, chars) != self.texts[number]:
                raise ServingError(
                    f"{FINGERPRINT}: made of other texts than this version of yarn-ops makes; "
                    "run `yarn-ops fingerprint` on the model again"
                )
        return [text_of(probe.text, probe.chars)[: probe.chars] for probe in self.probes]

    def to_bytes(self) -> bytes:
        return canonical_json(self.model_dump(mode="json")).encode() + b"\n"


def parse_fingerprint(data: bytes, where: str) -> Fingerprint:
    """ServingError, naming `where`, unless `data` is a fingerprint."""
    try:
        return Fingerprint.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        told = f"{'.'.join(map(str, first['loc'][:3]))}: {first['msg']}".removeprefix(": ")
        raise ServingError(
            f"{where}: no fingerprint of this version ({told}); run `yarn-ops fingerprint` on the model"
        ) from None


def read_fingerprint(model: Path) -> Fingerprint:
    """The fingerprint of a model directory; ServingError where it has none."""
    if not (model / FINGERPRINT).exists():
        raise ServingError(f"{model}: has no {FINGERPRINT}; run `yarn-ops fingerprint {model}` first")
    with open_model_file(model, FINGERPRINT) as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ServingError(f"{model / FINGERPRINT}: more than {MOST_BYTES:,} bytes; no fingerprint of ours")
    return parse_fingerprint(data, str(model / FINGERPRINT))


@cache
def _sentences(number: int, chars: int) -> tuple[tuple[str, bool], ...]:
    """(sentence, whether it stood before) of a text of at least so many characters.

    Every third sentence says an earlier one again, from any distance: what follows its first words is known
    to whoever attends to it there.
    """
    draw = random.Random(number).random  # the one method whose numbers never change
    found: list[tuple[str, bool]] = []
    length = 0

    def word() -> str:
        return WORDS[int(draw() * len(WORDS))]

    def name() -> str:
        return "".join(word()[:3] for _ in range(2)).capitalize()

    names = [name() for _ in range(NAMES)]
    while length <= chars:
        again = len(found) % 3 == 2
        if again:
            back = int(len(found) ** draw())  # as many from each octave of distances
            sentence = found[len(found) - back][0]
        else:
            sentence = FORMS[int(draw() * len(FORMS))].format(
                a=word(),
                b=word(),
                c=word(),
                n=names[int(draw() * NAMES)],
                d=int(draw() * 9000) + 1000,
                e=int(draw() * 90) + 10,
            )
        found.append((sentence, again))
        length += len(sentence) + 1
    return tuple(found)


def text_of(number: int, chars: int) -> str:
    """At least so many characters of a text; more of it begin with the same."""
    return " ".join(sentence for sentence, _ in _sentences(number, _rounded(chars))) + " "


def repeats(number: int, chars: int) -> list[tuple[int, int]]:
    """(first, last character) of every sentence of a text that says an earlier one again."""
    found, at = [], 0
    for sentence, again in _sentences(number, _rounded(chars)):
        if again:
            found.append((at, at + len(sentence)))
        at += len(sentence) + 1
    return found


def text_digest(number: int, chars: int) -> str:
    """sha256 of a text's first characters."""
    return hashlib.sha256(text_of(number, chars)[:chars].encode()).hexdigest()


def _rounded(chars: int) -> int:
    return 1 << max(12, chars.bit_length())


def distance(expected: NDArray[np.float64], told: Mapping[int, float], least: float) -> float:
    """How far a server's next token is from a state's, in nats: mean over the candidates that either expects.

    expected: log-probabilities of the candidates. told: what the server says of some of them, by index.
    least: the smallest log-probability that it tells; the others have at most that.
    """
    found = np.full(len(expected), least)
    for index, value in told.items():
        found[index] = value
    difference = np.abs(expected - found)
    weight = np.exp(expected) + np.exp(found)
    for index in range(len(expected)):
        if index not in told and expected[index] <= least:
            weight[index] = 0.0
    total = float(weight.sum())
    return min(float((difference * weight).sum()) / total, FAR) if total else 0.0


def regret(expected: NDArray[np.float64], token: int | None) -> float:
    """Nats by which a state finds the server's next token less likely than its own; None: no candidate."""
    told = float(expected.min()) if token is None else float(expected[token])
    return min(float(expected.max()) - told, FAR)
