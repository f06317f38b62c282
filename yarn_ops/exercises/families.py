"""The families of exercises: what is planted in a window, and what is asked of it later.

A family draws one exercise: events, each at its place in the window. What a question is answered with is
marked; those tokens carry weight in the loss. Families that quote the window's own text say where (`Quote`),
and the planting fills it in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from yarn_ops.exercises.draw import Draw
from yarn_ops.exercises.language import Form
from yarn_ops.exercises.rows import row_form

QUOTED_TOKENS = 16
"""of the user's text that are quoted"""
CONTINUED_TOKENS = 24
"""of the text behind the quotation that are asked for"""
FEWEST_ROWS, MOST_ROWS = 10, 4000
"""of a table; the shortest codes of the fewest symbols are 46,656"""
TOKENS_A_ROW = 26
"""of the room for exercises, that the longest table has a row for"""


@dataclass(frozen=True)
class Quote:
    """`tokens` tokens of the window's own text, from `skip` tokens behind `place`.

    `span`: how many tokens from `place` on have to stand in the window in one piece.
    """

    place: float
    skip: int
    tokens: int
    span: int
    alone: bool = False
    """whether what is asked of it depends on where it stands, so that no other quotation may touch it"""


@dataclass(frozen=True)
class Piece:
    """Text, or a quotation, that is inserted."""

    content: str | Quote
    answer: bool = False


@dataclass(frozen=True)
class Event:
    """Parts inserted into the text, in order, at `place` (0 = the window's begin, 1 = its end)."""

    place: float
    parts: tuple[Piece, ...]


Family = Callable[[Draw], list[Event]]


def lookup(draw: Draw) -> list[Event]:
    """One fact, asked for twice."""
    form = draw.one_of(draw.language.lookup)
    key, value, place = draw.key(form.key), draw.text(form.value), draw.place()
    questions = [_ask(form, draw.later(place), value, k=key) for _ in range(2)]
    return [_plant(form, place, k=key, v=value), *questions]


def lookalikes(draw: Draw) -> list[Event]:
    """Six to twenty keys that differ in their first or last part alone; a half of them is asked for."""
    forms = [form for form in draw.language.lookup if form.key in ("person", "constant", "tag")]
    form = draw.one_of(forms)
    keys = draw.keys_alike(form.key, draw.count(6, 20))
    facts = list(zip(keys, draw.distinct(form.value, len(keys)), draw.places(len(keys)), strict=True))
    events = [_plant(form, place, k=key, v=value) for key, value, place in facts]
    for index in draw.rng.choice(len(facts), len(facts) // 2, replace=False).tolist():
        key, value, place = facts[index]
        events.append(_ask(form, draw.later(place), value, k=key))
    return events


def table(draw: Draw) -> list[Event]:
    """Rows of codes alone in one place, from ten to as many as take all the room that there is; four of them
    and two fifths of the others are asked for."""
    form, heading = row_form(draw)
    most = min(MOST_ROWS, max(2 * FEWEST_ROWS, draw.room // TOKENS_A_ROW))
    rows = draw.log_count(FEWEST_ROWS, most)
    alphabet, place = draw.alphabet(), draw.place()
    keys, found = draw.codes(alphabet, rows), draw.codes(alphabet, rows)
    text = heading + "".join(
        form.plant.format(k=key, v=value) for key, value in zip(keys, found, strict=True)
    )
    events = [Event(place, (Piece(text),))]
    for row in draw.rng.choice(rows, 4 + rows * 2 // 5, replace=False).tolist():
        events.append(_ask(form, draw.later(place), found[row], k=keys[row]))
    return events


def values(draw: Draw) -> list[Event]:
    """Two to four values of one key; all are asked for, in order."""
    form = draw.one_of(draw.language.values)
    key, found = draw.key(form.key), draw.distinct(form.value, draw.count(2, 4))
    places = draw.places(len(found))
    planted = [_plant(form, place, k=key, v=value) for place, value in zip(places, found, strict=True)]
    return [*planted, _ask(form, draw.later(places[-1]), draw.language.comma.join(found), k=key)]


def updates(draw: Draw) -> list[Event]:
    """A value that changes one to three times; the latest is asked for, once on the way and twice after."""
    form = draw.one_of(draw.language.updates)
    key, found = draw.key(form.key), draw.distinct(form.value, draw.count(2, 4))
    places = draw.places(len(found))
    events = [_plant(form, place, k=key, v=value) for place, value in zip(places, found, strict=True)]
    between = draw.count(0, len(found) - 2)
    gap = places[between + 1] - places[between]
    events.append(_ask(form, places[between] + gap * float(draw.rng.random()), found[between], k=key))
    return events + [_ask(form, draw.later(places[-1]), found[-1], k=key) for _ in range(2)]


def chain(draw: Draw) -> list[Event]:
    """Two to four references that lead from a key to a value, in any order; the value is asked for, alone and
    with the way there."""
    form = draw.one_of(draw.language.chain)
    keys = [draw.key(form.key) for _ in range(draw.count(2, 4))]
    value = draw.text(form.value)
    stated = [form.link.format(a=one, b=other) for one, other in pairwise(keys)]
    stated.append(form.end.format(a=keys[-1], v=value))
    places = [draw.place() for _ in stated]
    events = [Event(place, (Piece(text),)) for place, text in zip(places, stated, strict=True)]
    last, way = max(places), form.step.join([*keys[1:], value])
    for question, answer in ((form.trace, way), (form.ask, value)):
        events.append(
            _question(draw.later(last), question.format(k=keys[0]), form.answer.format(v=answer), form.close)
        )
    return events


def count(draw: Draw) -> list[Event]:
    """One to nine happenings alike; their number so far is asked for, once on the way and once at the end."""
    form = draw.one_of(draw.language.count)
    key, places = draw.key(form.key), draw.places(draw.count(1, 9))
    events = [_plant(form, place, k=key) for place in places]
    so_far = draw.count(1, len(places))
    after = places[so_far] if so_far < len(places) else 1.0
    place = places[so_far - 1] + (after - places[so_far - 1]) * float(draw.rng.random())
    events.append(_ask(form, place, str(so_far), k=key))
    return [*events, _ask(form, draw.later(places[-1]), str(len(places)), k=key)]


def ordinal(draw: Draw) -> list[Event]:
    """Three to five requests alike, each with another reply; one reply is asked for by its number."""
    form = draw.one_of(draw.language.ordinal)
    key, replies = draw.key(form.key), draw.distinct(form.value, draw.count(3, 5))
    places = draw.places(len(replies))
    events = [_plant(form, place, k=key, v=reply) for place, reply in zip(places, replies, strict=True)]
    for index in draw.rng.choice(len(replies), 2, replace=False).tolist():
        i = draw.language.ordinals[index]
        events.append(_ask(form, draw.later(places[-1]), replies[index], k=key, i=i))
    return events


def association(draw: Draw) -> list[Event]:
    """Three persons and what they did; one is asked for in words that share nothing with what was said."""
    form = draw.one_of(draw.language.association)
    chosen = draw.unused(draw.language.associations, 3)
    if not chosen:
        return []
    people = [draw.key("person") for _ in chosen]
    places = draw.places(len(chosen))
    events = [
        _plant(form, place, k=person, clue=pair.clue)
        for place, person, pair in zip(places, people, chosen, strict=True)
    ]
    asked = draw.count(0, 2)
    question = _ask(form, draw.later(places[-1]), people[asked], k=people[asked], asked=chosen[asked].asked)
    return [*events, question]


def passage(draw: Draw) -> list[Event]:
    """A run of the user's text is quoted; what follows it there is asked for."""
    before, between, after = draw.one_of(draw.language.passage)
    place = draw.place()
    span = QUOTED_TOKENS + CONTINUED_TOKENS
    quoted = Quote(place, 0, QUOTED_TOKENS, span)
    following = Quote(place, QUOTED_TOKENS, CONTINUED_TOKENS, span)
    parts = (Piece(before), Piece(quoted), Piece(between), Piece(following, answer=True), Piece(after))
    return [Event(draw.later(place), parts)]


def section(draw: Draw) -> list[Event]:
    """Four to twelve headings; runs of the user's text are quoted, and the heading above each is asked for.
    Once in a window: another exercise's headings would stand between."""
    if not draw.unused(("section",), 1):
        return []
    heading = draw.one_of(draw.language.heading)
    before, between, after = draw.one_of(draw.language.section)
    places = draw.places(draw.count(4, 12))
    names = [draw.key("pair") for _ in places]
    events = [
        Event(place, (Piece(heading.format(k=name)),)) for place, name in zip(places, names, strict=True)
    ]
    for index in draw.rng.choice(len(places), len(places) // 2, replace=False).tolist():
        end = places[index + 1] if index + 1 < len(places) else 1.0
        place = places[index] + (end - places[index]) * 0.9 * float(draw.rng.random())
        quote = Piece(Quote(place, 0, QUOTED_TOKENS, QUOTED_TOKENS, alone=True))
        answer = Piece(f"{draw.language.joint}{names[index]}", answer=True)
        question = (Piece(before), quote, Piece(between), answer, Piece(after))
        events.append(Event(draw.later(max(place, places[-1])), question))
    return events


FAMILIES: Mapping[str, tuple[Family, float]] = {
    "lookup": (lookup, 0.25),
    "lookalikes": (lookalikes, 0.1),
    "table": (table, 0.4),
    "values": (values, 0.1),
    "updates": (updates, 0.1),
    "chain": (chain, 0.1),
    "count": (count, 0.05),
    "ordinal": (ordinal, 0.05),
    "association": (association, 0.05),
    "passage": (passage, 0.1),
    "section": (section, 0.05),
}
"""each family, and its share of the exercises drawn, as a weight"""


def _plant(form: Form, place: float, **names: str) -> Event:
    return Event(place, (Piece(form.plant.format(**names)),))


def _ask(form: Form, place: float, value: str, **names: str) -> Event:
    return _question(place, form.ask.format(**names), form.answer.format(v=value, **names), form.close)


def _question(place: float, ask: str, answer: str, close: str) -> Event:
    return Event(place, (Piece(ask), Piece(answer, answer=True), Piece(close)))
