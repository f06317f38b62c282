"""Tables of rows: a grammar of signs, so that no two tables need look alike.

A row is a key and a value, each in signs of its own, joined and ended by others. A question names the key and
opens the value's signs. A model that learnt from a handful of forms copies every token of a value in a form
that it has never met, except the first, which it finds only behind signs it knows (decision 26). So forms are
composed, of more signs than a hundred steps can learn by heart: half of the joins, ends and questions are in
common use, half are runs of marks and words drawn anew for each table.

A row whose key stands in quotation marks before a colon is JSON's, which an evaluation asks for: it is never
composed, nor is a question that puts a colon before a quoted key or value.
"""

from __future__ import annotations

from yarn_ops.exercises.draw import Draw
from yarn_ops.exercises.language import Form

Signs = tuple[str, str]
"""what stands before and behind a key or a value"""

BARE: Signs = ("", "")
QUOTES: tuple[Signs, ...] = (('"', '"'), ("'", "'"), ("“", "”"), ("`", "`"))
BRACKETS: tuple[Signs, ...] = (
    ("<", ">"),
    ("[", "]"),
    ("(", ")"),
    ("*", "*"),
    ("|", "|"),
    ("/", "/"),
    ("#", "#"),
)
OTHERS: tuple[Signs, ...] = (BARE, *BRACKETS, ("$", "$"), ("@", ";"))
QUOTED = 0.8
"""of keys and of values; the others stand in any signs"""
NESTED = 0.25
"""of keys and of values in signs: they have brackets around them"""
ASKED_ALIKE = 0.75
"""of questions: the key and the value have the row's signs there"""
MARKS = "=-~>|;,/+*&^!?.#%@<"
JOINS = (" = ", " -> ", " => ", " := ", ", ", "\t", " | ", "; ", " ~ ", " <- ", " == ", " / ", ": ", " : ")
ENDS = ("\n", ";\n", ",\n", ".\n", " |\n", "\n\n", " \\\n")
STARTS = ("", "", "", "  ", "- ", "* ", "\t", "> ", "    ")
LEADS = (" ", ", ", "\n", " = ", ": ")
PAUSES = (", ", "\n", "; ", " - ", ". ")
WITH_WORD = 0.25
"""of the joins and leads that are drawn anew"""
COLONS = {":": "=", "：": "，"}
"""and what stands for one where it may not"""


def row_form(draw: Draw) -> tuple[Form, str]:
    """The form of one table's rows, and the heading above them."""
    key, value = (_signs(draw) for _ in range(2))
    if _coin(draw):
        key = value
    join = draw.one_of(JOINS) if _coin(draw) else _between(draw)
    end = draw.one_of(ENDS) if _coin(draw) else f"{_marks(draw, 0, 2)}\n"
    before, between = draw.one_of(draw.language.row_questions) if _coin(draw) else _question(draw)
    asked_key = key if draw.rng.random() < ASKED_ALIKE else _signs(draw)
    asked_value = value if draw.rng.random() < ASKED_ALIKE else _signs(draw)
    if _quotes(key):
        join = _without_colons(join)
    if _quotes(asked_key) or _quotes(asked_value):
        before, between = _without_colons(before), _without_colons(between)
    start = draw.one_of(STARTS)
    plant = f"{start}{key[0]}{{k}}{key[1]}{join}{value[0]}{{v}}{value[1]}{end}"
    ask = f"\n{before}{asked_key[0]}{{k}}{asked_key[1]}{between}{asked_value[0]}"
    answer = "{v}"
    if ask.endswith(" "):
        ask, answer = ask[:-1], " {v}"
    heading = f"\n{draw.one_of(draw.language.row_headings)}\n"
    return Form("code", "code", plant, ask, answer, f"{asked_value[1]}\n"), heading


def _coin(draw: Draw) -> bool:
    return bool(draw.rng.random() < 0.5)


def _signs(draw: Draw) -> Signs:
    signs = draw.one_of(QUOTES if draw.rng.random() < QUOTED else OTHERS)
    if signs != BARE and draw.rng.random() < NESTED:
        around = draw.one_of(BRACKETS)
        return around[0] + signs[0], signs[1] + around[1]
    return signs


def _quotes(signs: Signs) -> bool:
    return any(mark in signs[0] for mark, _ in QUOTES)


def _marks(draw: Draw, least: int, most: int) -> str:
    return "".join(draw.one_of(MARKS) for _ in range(draw.count(least, most)))


def _words(draw: Draw, most: int) -> str:
    return draw.language.joint.join(draw.one_of(draw.language.words) for _ in range(draw.count(0, most)))


def _between(draw: Draw) -> str:
    """Marks with or without spaces around them; one in four has a word."""
    before, after = (" " if _coin(draw) else "" for _ in range(2))
    if draw.rng.random() < WITH_WORD:
        return f" {draw.one_of(draw.language.words)}{_marks(draw, 0, 1)} "
    return before + _marks(draw, 1, 3) + after


def _question(draw: Draw) -> tuple[str, str]:
    """Words and marks before the key, and between the key and the value."""
    before, between = (_phrase(draw) for _ in range(2))
    return before, (" " if _coin(draw) else draw.one_of(PAUSES)) + between


def _phrase(draw: Draw) -> str:
    """Up to three words, and what leads from them to a key or a value."""
    words = _words(draw, 3)
    return words + (draw.one_of(LEADS) if _coin(draw) else _between(draw))


def _without_colons(text: str) -> str:
    for colon, other in COLONS.items():
        text = text.replace(colon, other)
    return text
