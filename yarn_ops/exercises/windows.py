"""Training windows with exercises: a pure function of shards, tokenizer, seed and index.

A window of the plain sampler gives the text; events of exercises are inserted into it until they take their
part of it, and what the text loses at its end is not trained on in this window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from yarn_ops.data.haystack import is_chinese
from yarn_ops.data.tokenizer import Tokenizer
from yarn_ops.data.windows import Window, WindowSampler
from yarn_ops.exercises.draw import Draw
from yarn_ops.exercises.en import ENGLISH
from yarn_ops.exercises.families import FAMILIES, Event, Quote
from yarn_ops.exercises.language import Language
from yarn_ops.exercises.zh import CHINESE

FILL = (0.6, 0.97)
"""of a window with exercises, in planted facts and questions at most: uniform between these"""
LEAST_TEXT = 64
"""tokens that stay of a text that exercises are put into: a quotation has to find its place in them"""
LEAST_TOKENS = 256
"""of a text that exercises are put into"""
DRAWN_AT_ONCE = 16
MISSES = 8
"""exercises that did not fit, or of which a text has all it may, after which it is full"""
LANGUAGE_TOKENS = 256
"""from the beginning of a text: they tell its language"""

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class _Run:
    """Token ids that are inserted, or a quotation of the text; and which of them are answers."""

    content: Ids | Quote
    answers: Mask


@dataclass(frozen=True)
class _Encoded:
    place: float
    runs: tuple[_Run, ...]
    tokens: int


class ExerciseSampler:
    """The windows of a plain sampler, a share of them with exercises.

    `share` of any run of consecutive windows, rounded, have exercises: windows are not drawn for it but
    counted. With a document mask exercises stay within a document: nothing else could be attended to.
    """

    def __init__(
        self,
        windows: WindowSampler,
        tokenizer: Tokenizer,
        *,
        seed: int,
        share: float,
        document_mask: bool,
        families: Sequence[str] = tuple(FAMILIES),
    ) -> None:
        self._windows, self._tokenizer = windows, tokenizer
        self._seed, self._share, self._document_mask = seed, share, document_mask
        self._families = [FAMILIES[name][0] for name in families]
        shares = np.array([FAMILIES[name][1] for name in families])
        self._shares = shares / shares.sum()

    def window(self, index: int) -> Window:
        """Window number `index` ≥ 0, of as many tokens as the plain one."""
        plain = self._windows.window(index)
        if int((index + 1) * self._share) == int(index * self._share):
            return plain
        digest = hashlib.sha256(b"exercises:%d:%d" % (self._seed, index)).digest()
        rng = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
        ids = plain.ids.copy()
        answers, planted = np.zeros((2, len(ids)), dtype=np.bool_)
        segments = plain.segments.copy()
        for start, stop in self._texts(plain):
            text = plain.ids[start:stop]
            room = min(int(len(text) * rng.uniform(*FILL)), len(text) - LEAST_TEXT)
            draw = Draw(rng, self._language(text), room)
            events = self._draw_events(draw)
            inserted = insert(text, events)
            ids[start:stop], answers[start:stop] = inserted.ids, inserted.answers
            planted[start:stop] = inserted.planted
            segments[start:stop] = plain.segments[start:stop][inserted.sources]
        return replace(plain, ids=ids, segments=segments, answers=answers, planted=planted)

    def _texts(self, window: Window) -> list[tuple[int, int]]:
        """(start, stop) of the texts that exercises are put into."""
        if not self._document_mask:
            return [(self._windows.prefix.size, len(window.ids))]
        borders = np.flatnonzero(np.diff(window.segments)) + 1
        edges = [self._windows.prefix.size, *borders.tolist(), len(window.ids)]
        return [(start, stop) for start, stop in pairwise(edges) if stop - start >= LEAST_TOKENS]

    def _language(self, text: Ids) -> Language:
        sample = self._tokenizer.decode(text[:LANGUAGE_TOKENS])
        return CHINESE if is_chinese(sample) else ENGLISH

    def _draw_events(self, draw: Draw) -> list[_Encoded]:
        """Exercises that take all the room at most; those that no longer fit are left out."""
        chosen: list[_Encoded] = []
        room, misses = draw.room, 0
        while misses < MISSES:
            drawn = [
                self._families[int(index)](draw)
                for index in draw.rng.choice(len(self._families), DRAWN_AT_ONCE, p=self._shares)
            ]
            for events in self._encode(drawn):
                tokens = sum(event.tokens for event in events)
                if events and tokens <= room:
                    room -= tokens
                    chosen += events
                else:
                    misses += 1
        return chosen

    def _encode(self, exercises: Sequence[Sequence[Event]]) -> list[list[_Encoded]]:
        texts = [text for events in exercises for event in events for text in _texts_of(event)]
        encoded = iter(self._tokenizer.encode_with_offsets([text for text, _ in texts]))
        marked = iter(
            _Run(ids, _overlaps(offsets, spans))
            for (ids, offsets), (_, spans) in zip(encoded, texts, strict=True)
        )
        return [[_encoded(event, marked) for event in events] for events in exercises]


class Inserted(NamedTuple):
    """A text with exercises in it, as long as the text without them."""

    ids: Ids
    answers: Mask
    planted: Mask
    """facts and questions, up to each question's answer; what leads back to the text is text"""
    sources: NDArray[np.int64]
    """for each token the index in the text that it stands at or behind"""


def insert(text: Ids, events: Sequence[_Encoded]) -> Inserted:
    """The text with the events inserted, its end cut off.

    An event that would fall into a quoted run is put behind it, so that the run stands in the window as it is
    quoted. Where that could have moved an event past a quotation that must stand alone, its answer is not
    marked.
    """
    room = len(text) - sum(event.tokens for event in events)
    quotes = {run.content for event in events for run in event.runs if isinstance(run.content, Quote)}
    quoted = sorted({(*_span(quote, room), quote.place) for quote in quotes})
    found: list[Inserted] = []
    at = 0

    def copy_text(to: int) -> None:
        nothing = np.zeros(to - at, dtype=np.bool_)
        found.append(Inserted(text[at:to], nothing, nothing, np.arange(at, to)))

    for event in sorted(events, key=lambda event: event.place):
        own = [_span(run.content, room)[1] for run in event.runs if isinstance(run.content, Quote)]
        to = max(int(event.place * room), at, *own, 0)
        for start, stop, place in quoted:
            inside = start < to < stop or (to == start and place < event.place)
            to = stop if inside else to
        copy_text(to)
        at = to
        misplaced = False
        contents: list[Ids] = []
        for run in event.runs:
            if isinstance(run.content, Quote):
                start, _ = _span(run.content, room)
                begin = start + run.content.skip
                contents.append(text[begin : begin + run.content.tokens])
                misplaced |= run.content.alone and _overlapped(run.content, room, quoted)
            else:
                contents.append(run.content)
        answers = np.concatenate([run.answers for run in event.runs]) & (not misplaced)
        (places,) = np.nonzero(answers)
        planted = ~answers & (np.arange(len(answers)) < (places[-1] if len(places) else len(answers)))
        source = np.full(len(answers), max(0, to - 1))
        found.append(Inserted(np.concatenate(contents), answers, planted, source))
    copy_text(room)
    return Inserted(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _span(quote: Quote, room: int) -> tuple[int, int]:
    """(start, stop) in the text of what has to stay in one piece."""
    start = min(int(quote.place * room), room - quote.span)
    return start, start + quote.span


def _overlapped(quote: Quote, room: int, quoted: Sequence[tuple[int, int, float]]) -> bool:
    """Whether another quotation begins or ends inside this one's run."""
    start, stop = _span(quote, room)
    return any(begin < stop and start < end and place != quote.place for begin, end, place in quoted)


def _texts_of(event: Event) -> list[tuple[str, list[tuple[int, int]]]]:
    """(text, spans of answers in it) of every run of parts that are no quotations."""
    found: list[tuple[str, list[tuple[int, int]]]] = []
    text, spans = "", list[tuple[int, int]]()
    for part in event.parts:
        if isinstance(part.content, Quote):
            found.append((text, spans))
            text, spans = "", []
            continue
        if part.answer:
            spans.append((len(text), len(text) + len(part.content)))
        text += part.content
    return [*found, (text, spans)]


def _encoded(event: Event, texts: Iterator[_Run]) -> _Encoded:
    """The event's runs: encoded texts, taken from `texts` in order, with its quotations between them."""
    runs: list[_Run] = []
    for part in event.parts:
        if isinstance(part.content, Quote):
            runs += [next(texts), _Run(part.content, np.full(part.content.tokens, part.answer))]
    runs.append(next(texts))
    return _Encoded(event.place, tuple(runs), sum(len(run.answers) for run in runs))


def _overlaps(offsets: NDArray[np.int64], spans: Sequence[tuple[int, int]]) -> Mask:
    """Which tokens, by their (start, stop) in characters, lie in one of the spans at least partly."""
    marks = np.zeros(len(offsets), dtype=np.bool_)
    for start, stop in spans:
        marks |= (offsets[:, 1] > start) & (offsets[:, 0] < stop)
    return marks
