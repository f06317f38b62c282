"""What may be shown: text without passwords in its addresses and without what commands a terminal."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from urllib.parse import unquote

MASK = "***"
SECRET_WORDS = ("token", "secret", "passw", "pwd", "signature", "credential", "api-key", "api_key", "apikey",
                "access-key", "access_key", "accesskey")  # fmt: skip
SECRET_NAMES = ("sig", "key", "sas", "auth", "authorization", "pass", "pw")

_PARAMETER = rf"[^=?&;#\s]*(?:{'|'.join(SECRET_WORDS)})[^=?&;#\s]*|{'|'.join(SECRET_NAMES)}"
_VALUE = r"(?:[^&;#\s'\"]|['\"](?=[^\s,;:)\]}'\"]))+"  # a quote within it is a part of it, one behind it none
_PARAMETERS = re.compile(rf"([?&;#](?:{_PARAMETER})=){_VALUE}", re.IGNORECASE)
_SECRET = (
    r"[\w.-]*(?:passw|passphrase|secret|pwd|api[-_]?key|access[-_]?key|credential"
    r"|(?:access|auth|session|security|refresh|api)[-_]?token)[\w-]*"
)
_QUOTED = r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'"
_PAIRS = re.compile(
    rf"((?:(?<![\w.?&;#-]){_SECRET}\s*=\s*|['\"]{_SECRET}['\"]\s*[:=]\s*))(?:{_QUOTED}|[^\s,;&)\]}}]+)",
    re.IGNORECASE,
)
"""of a connection string, an environment, JSON or a dict"""
_HEADERS = re.compile(
    r"(authorization['\"]?\s*[:=]\s*['\"]?(?:basic|bearer|token)\s+|\bBearer\s+)[^\s'\"]{6,}", re.IGNORECASE
)
_USERS = re.compile(r"((?::|%3a)(?:/|%2f){2})(\S*)(@|%40)", re.IGNORECASE)
_AUTHORITY = re.compile(r"(?:^|:)//(.*)@", re.DOTALL)
_BARE_USER = re.compile(r"(?!\w+://|(?:hf|models|shipped|stdlib|mailto):)[^/\s:@]+:\S*@\S*")
_DIRECTIONS = re.compile("[\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f]")
"""marks that turn the order of what is shown around, or end its line"""
UNQUOTED = 3


def without_password(text: str) -> str:
    """A text with the passwords masked in every address, parameter, pair and header that it holds.

    A user before a password stays, and so does one alone, but not in http://, where it is often a token.
    What is behind a colon and before the last @ of an address counts as its password, whatever else it holds.
    """
    text = _USERS.sub(_masked, text)
    for named in (_PARAMETERS, _PAIRS, _HEADERS):
        text = named.sub(rf"\1{MASK}", text)
    return text


def _masked(address: re.Match[str]) -> str:
    scheme, user, at = address.groups()
    before = address.string[: address.start()].lower()
    name, colon, _ = user.partition(":" if ":" in user else "%3a" if "%3a" in user else "%3A")
    if colon:
        return f"{scheme}{name}:{MASK}{at}" if "/" not in name else f"{scheme}{MASK}{at}"
    if before.endswith(("http", "https")) and "/" not in user:
        return f"{scheme}{MASK}{at}"
    return address[0]


def holds_password(text: str) -> bool:
    """Whether a text looks like an address with a user, a password, a token or a signature in it.

    Also where these hold slashes or @, where parts are percent-encoded, and without a scheme.
    """
    for form in _decoded(text):
        authority = _AUTHORITY.search(form)
        if authority and (":" in authority[1] or "/" not in authority[1]):
            return True
        if _BARE_USER.fullmatch(form) or _PARAMETERS.search(form):
            return True
    return False


def _decoded(text: str) -> Iterator[str]:
    for _ in range(UNQUOTED):
        yield text
        if (plain := unquote(text)) == text:
            return
        text = plain


def form_pattern() -> str:
    """A regular expression, as JavaScript and Python read it, that addresses with a password do not match."""
    colon, at, slash = (f"(?:{sign}|%{code})" for sign, code in ((":", "3[aA]"), ("@", "40"), ("/", "2[fF]")))
    users = rf"(?:^|{colon}){slash}{{2}}(?:[^/]*|[\s\S]*{colon}[\s\S]*){at}"
    words, names = (
        "".join(f"[{sign}{sign.upper()}]" if sign.isalpha() else sign for sign in "|".join(of))
        for of in (SECRET_WORDS, SECRET_NAMES)
    )
    return rf"^(?![\s\S]*{users})(?![\s\S]*[?&;#](?:[^=]*(?:{words})[^=]*|{names})=)"


def printable(text: str) -> str:
    """A text in which every sign that would command a terminal, or turn a line around, is �; lines stay."""
    if text.isprintable():
        return _DIRECTIONS.sub("�", text)
    return "".join(
        "�" if unicodedata.category(sign) == "Cc" and sign not in "\n\t" else sign
        for sign in _DIRECTIONS.sub("�", text)
    )


def one_line(text: str) -> str:
    """A text on one line, printable and without passwords."""
    return printable(without_password(" ".join(text.split())))


def duration(seconds: float) -> str:
    """61.5 s, 17.3 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
