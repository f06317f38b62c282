"""Text without secrets: those that the grammar finds, and those that the settings know by their value.

The text is read as it stands, then with its escapes (%40, or \\u0040 and \\") taken away in layers. Known
values are found wherever they stand, in base64 too.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Sequence

from yarn_ops.secret_grammar import OF_FILES, Span, has_bare_user, is_quoted, secrets_in, user_end
from yarn_ops.secret_names import WORDS

MASK = "***"
LEAST, WHOLE = 4, 8
"""letters of a known value that is looked for; below WHOLE it has to stand by itself"""
LAYERS = 8
_ESCAPES = {
    "%": re.compile(r"(?:%[0-9A-Fa-f]{2})+"),
    "\\": re.compile(r"(?:\\u[0-9A-Fa-f]{4})+|\\(?:x[0-9A-Fa-f]{2}|U[0-9A-Fa-f]{8}|.)", re.DOTALL),
}
_SHORT = {"n": "\n", "t": "\t", "r": "\r"}
_known: tuple[tuple[str, bool], ...] = ()
"""(form of a value that is known to be secret, whether that is in base64)"""


def without_secrets(text: str) -> str:
    """The text with every secret masked; the same text where there is none."""
    shown, end = [], 0
    for first, last in sorted(_found(text)):
        if first >= end:
            shown += [text[end:first], MASK]
        end = max(end, last)
    return "".join((*shown, text[end:]))


def hide_values(values: Iterable[str], *, more: bool = False) -> None:
    """From now on these values are masked wherever they stand in a text. more: those before them too."""
    global _known
    forms: dict[str, bool] = dict(_known) if more else {}
    for value in values:
        if len(value) >= LEAST and value.lower() not in WORDS:
            forms |= {value: False, value.replace(" ", "+"): False}
            forms |= {form: True for form in _in_base64(value) if len(form) >= WHOLE}
    _known = tuple(forms.items())


def secrets_of(address: str) -> set[str]:
    """What the grammar takes for a secret in an address: as it is written, and plain."""
    return {plain[slice(*span)] for plain, _ in _layers(address) for span in secrets_in(plain)}


def holds_password(text: str) -> bool:
    """Whether a text looks like an address with a user, a password, a token or a signature in it.

    Also where these hold slashes or @, where parts are percent-encoded, and without a scheme.
    """
    for plain, _ in _layers(text):
        for start in re.finditer("(?:^|:)//", plain):
            of_files = plain[: start.start()].lower().endswith(OF_FILES)
            if not of_files and user_end(plain, start.end(), len(plain)):
                return True
        if has_bare_user(plain) or next(secrets_in(plain), None):
            return True
    return False


def _found(text: str) -> Iterator[Span]:
    quoted: set[int] = set()
    for plain, places in _layers(text):
        for first, last in secrets_in(plain):
            start, end = (places[first], places[last]) if places else (first, last)
            whole = is_quoted(plain, first, last)
            if whole or start not in quoted:  # without its escapes it may end elsewhere
                yield start, end
            if whole:
                quoted.add(start)
        for first, last in _values(plain):
            yield (places[first], places[last]) if places else (first, last)


def _layers(text: str) -> Iterator[tuple[str, Sequence[int]]]:
    """The text, then without layers of either kind of escape, and where its letters stood at first."""
    layers: list[tuple[str, Sequence[int]]] = [(text, ())]
    for text, places in layers:
        yield text, places
        for sign, escape in _ESCAPES.items():
            if len(layers) < LAYERS and sign in text:
                plain, stood = _without(escape, text)
                if plain != text:
                    layers.append((plain, [places[place] for place in stood] if places else stood))


def _without(escapes: re.Pattern[str], text: str) -> tuple[str, list[int]]:
    """The text with these escapes read, and where each letter stood, with the end."""
    letters: list[str] = []
    stood: list[int] = []
    end = 0
    for escape in escapes.finditer(text):
        letters += text[end : escape.start()]
        stood += range(end, escape.start())
        place, end = escape.span()
        for letter, signs in _unescaped(escape[0]):
            letters.append(letter)
            stood.append(place)
            place += signs
    letters += text[end:]
    stood += range(end, len(text) + 1)
    return "".join(letters), stood


def _unescaped(escape: str) -> Iterator[tuple[str, int]]:
    """Each letter of an escape, and how many signs tell it there."""
    if escape[0] == "%":
        data = bytes.fromhex(escape.replace("%", ""))
        for letter in data.decode("utf-8", "surrogateescape"):
            yield letter, 3 * len(letter.encode("utf-8", "surrogateescape"))
    elif escape[1] == "u" and len(escape) > 2:
        units = bytes.fromhex(escape.replace("\\u", ""))
        for letter in units.decode("utf-16-be", "surrogatepass"):
            yield letter, 6 * (1 + (letter > "\uffff"))
    elif len(escape) > 2:
        yield chr(min(int(escape[2:], 16), 0x10FFFF)), len(escape)
    else:
        yield _SHORT.get(escape[1], escape[1]), 2


def _values(text: str) -> Iterator[Span]:
    """Where known values stand; of base64 the whole word."""
    for form, encoded in _known:
        last = 0
        while (first := text.find(form, last)) >= 0:
            last = first + len(form)
            if encoded:
                while first and (text[first - 1].isalnum() or text[first - 1] in "+/-_"):
                    first -= 1
                while last < len(text) and (text[last].isalnum() or text[last] in "+/-_="):
                    last += 1
            around = text[first - 1 : first] + text[last : last + 1]
            if len(form) >= WHOLE or not any(sign.isalnum() for sign in around):
                yield first, last


def _in_base64(value: str) -> Iterator[str]:
    """The letters of base64 that a value alone decides, for each place that it may have in a longer text."""
    data = value.encode("utf-8", "surrogateescape")
    for before in range(3):
        decided = slice(-(-before * 4 // 3), (before + len(data)) * 4 // 3)
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(bytes(before) + data).decode()[decided]
