"""Tables of rows: a grammar of signs, so that no two tables need look alike.

A row is a key and a value, each in signs of its own, joined and ended by others. A question names the key and
opens the value's signs. A model that learnt from a handful of forms copies every token of a value in a form
that it has never met, except the first, which it finds only behind signs it knows (decision 26). So forms are
composed, of more signs than a hundred steps can learn by heart.

A row whose key stands in quotation marks before a colon is JSON's, which an evaluation asks for: it is never
composed, nor is a question that puts a colon before a quoted key or value.
"""

from __future__ import annotations

from yarn_ops.exercises.draw import Draw
from yarn_ops.exercises.language import Form

BARE = ("", "")
SIGNS = (
    BARE, ('"', '"'), ("'", "'"), ("`", "`"), ("<", ">"), ("[", "]"), ("(", ")"), ("*", "*"),
    ("“", "”"), ("$", "$"), ("|", "|"), ("/", "/"), ("#", "#"), ("@", ";"),
)  # fmt: skip
"""around a key or a value"""
QUOTES = (('"', '"'), ("'", "'"), ("“", "”"))
COLONS = {":", "："}
QUOTED = 0.4
"""of keys and of values; the others stand in any signs"""
JOINS = (" = ", " -> ", " => ", " := ", ", ", "\t", " | ", "; ", " ~ ", " <- ", " == ", " / ", ": ", " : ")
ENDS = ("\n", ";\n", ",\n", ".\n", " |\n", "\n\n", " \\\n")


def row_form(draw: Draw) -> tuple[Form, str]:
    """The form of one table's rows, and the heading above them."""
    key, value = (_signs(draw) for _ in range(2))
    if draw.rng.random() < 0.5:
        key = value
    join, end = draw.one_of(JOINS), draw.one_of(ENDS)
    if key in QUOTES and ":" in join:
        join = " = "
    before, between = draw.one_of(draw.language.row_questions)
    if COLONS & {*before, *between}:
        key = BARE if key in QUOTES else key
        value = BARE if value in QUOTES else value
    plant = f"{key[0]}{{k}}{key[1]}{join}{value[0]}{{v}}{value[1]}{end}"
    ask = f"\n{before}{key[0]}{{k}}{key[1]}{between}{value[0]}"
    answer = "{v}"
    if ask.endswith(" "):
        ask, answer = ask[:-1], " {v}"
    return Form(
        "code", "code", plant, ask, answer, f"{value[1]}\n"
    ), f"\n{draw.one_of(draw.language.row_headings)}\n"


def _signs(draw: Draw) -> tuple[str, str]:
    return draw.one_of(QUOTES if draw.rng.random() < QUOTED else SIGNS)
