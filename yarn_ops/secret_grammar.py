r"""The grammar of secrets in a text.

    text      = { address | pair | credentials | private key | other }
    address   = kind "://" [ user [ ":" password ] "@" ] host { "/" segment } [ "?" pair { "&" pair } ]
    pair      = name separator value
    separator = "=" | ":" | "=>" | ":=" | ">" of a tag | "," between quotes | a blank behind an option
    value     = quoted | bracketed | word | rest of the line

A secret is: the password of an address, its user in http where there is no password, the whole address
where its kind is not in OPEN (those of chat services are keys), the path of a webhook, and the value of a
pair whose name says so. A message of ours that names a variable in capitals and goes on in words
(`YARN_OPS_S3_SECRET_KEY: write one`) is no pair.
"""

from __future__ import annotations

import base64
import re
from binascii import Error as NotBase64
from bisect import bisect_left
from collections.abc import Iterator
from functools import lru_cache

from yarn_ops.secret_names import ANYWHERE, ASSIGNED, PARAMETER, weight

Span = tuple[int, int]

OPEN = {
    "http", "https", "ws", "wss", "ftp", "ftps", "sftp", "ssh", "git", "s3", "s3a", "gs", "gcs", "az",
    "abfs", "abfss", "wasbs", "hdfs", "file", "sqlite", "postgresql", "postgres", "mysql", "mariadb",
    "mssql", "oracle", "redis", "rediss", "mongodb", "amqp", "amqps", "ldap", "ldaps", "tcp", "tls", "udp",
    "unix", "inproc", "ucx", "dask", "docker", "npipe", "oci", "hf", "models", "runs", "dbfs",
    "mlflow-artifacts", "nfs", "smb", "rsync", "memory", "grpc", "ipc", "zmq", "chrome",
    "gopher", "dav", "davs", "scp", "svn", "telnet", "ipfs", "swift", "bolt", "kafka", "nats",
}  # fmt: skip
"""kinds of addresses that may be shown"""
OF_FILES = ("file", "sqlite")
OF_WEB = ("http", "https")
HOOK_HOSTS = (
    "webhook.office.com", "logic.azure.com", "powerplatform.com", "hooks.slack.com", "hooks.zapier.com",
    "api.telegram.org", "chat.googleapis.com", "maker.ifttt.com",
)  # fmt: skip
HOOKS = ("hook", "hooks", "webhook", "webhooks", "webhookb2")
"""segments of a path behind which the rest is a secret"""
SCHEMES = ("bearer", "basic", "token", "apikey", "negotiate", "ntlm")
OF_PROSE = ("token", "auth", "scheme", "realm", "key", "error", "credential")
"""how words begin that follow `Bearer` in a sentence"""
LONGEST = 4000
"""signs of a bracket or a path that are looked at"""
BEHIND = " \t\r\n,;:)]}>&|"
"""what stands behind a closing quote"""

_TOKEN = re.compile(r"-{5}BEGIN [A-Z ]*PRIVATE KEY|-{0,2}[A-Za-z_][\w.+-]*(?P<address>://)?")
_NO_VALUE = re.compile(
    r"['\"`]*(?:none|null|true|false|\**|\.{3}|[\w:+/]{,20}…)['\"`]*[.,;:)\]}]{,2}", re.IGNORECASE
)
_SEPARATOR = re.compile(r"[ \t]*(=>|:=|==?|:|,)[ \t]*|>|[ \t]+")
_QUOTE = re.compile(r"(?<!\\)['\"`]|\n")
_APOSTROPHE = re.compile(r"(?:.?[^\W_bruf]|[^\W_][bruf])['\"`][^\W\d_]", re.DOTALL)
"""a quote that follows a letter, other than a prefix of a string, and stands before another"""
_WORD, _PARAMETER = re.compile(r"[^\s'\"`\\]*"), re.compile(r"[^\s'\"`\\&;#]*")
_MASKED = re.compile(r"\*{3}(?![^\s,;:)\]}>&|])")
_SCHEME = re.compile(r"(\w+) +")
_SUBJECT = re.compile(r"[a-z]+[,;:]?|[A-Z]+(_[A-Z0-9]+)+")
"""how a message of ours goes on behind the name of a variable: by a plain word, or by another one's name"""
SENTENCE = 3
"""words behind the first that make a message of ours, whatever that is"""


def secrets_in(text: str) -> Iterator[Span]:
    """Where secrets stand in a text, as it is written."""
    word_end = bracket_end = 0
    for token in _TOKEN.finditer(text):
        first, last = token.span()
        if last < bracket_end or (last < word_end and not {*"'\""} & {*text[last : last + 4]}):
            continue  # within a secret, and no further
        if token["address"]:
            spans = _address(text, first, last)
        elif text.startswith("-----", first):
            end = text.find("-----END", last)
            spans = iter([(last, end if end >= 0 else len(text))])
        elif (secret := weight(token[0])) or token[0].lower() in SCHEMES:
            spans = _pair(text, secret, first, last)
        else:
            continue
        for start, end in spans:
            value = text[start:end]
            if not _NO_VALUE.fullmatch(value):
                word_end = max(word_end, end)
                bracket_end = end if value[0] in "([{" else bracket_end
                yield start, end


def _address(text: str, place: int, first: int) -> Iterator[Span]:
    """The secrets of the address whose kind stands at `place` and whose host or user at `first`."""
    end = _word_end(text, first, _open_quote(text, place))
    kind = text[place : first - 3].lower().partition("+")[0]
    if kind not in OPEN and (kind := re.split("[-._]", kind)[-1]) not in OPEN:
        yield first, end
        return
    if kind not in OF_FILES and (at := user_end(text, first, end)):
        colon = text.find(":", first, at)
        if colon >= 0:
            yield (colon + 1, at) if "/" not in text[first:colon] else (first, at)
        elif kind in OF_WEB:
            yield first, at
        first = at + 1
    host, slash, path = text[first:end].partition("/")
    if not slash or kind not in OF_WEB:
        return
    first += len(host) + 1
    name = host.lower().partition(":")[0]
    if not name.endswith(HOOK_HOSTS) and not name.startswith("hooks."):
        segments = path[:LONGEST].lower().split("/")
        hook = next((place for place, segment in enumerate(segments[:-1]) if segment in HOOKS), None)
        if hook is None:
            return
        first += sum(len(segment) + 1 for segment in segments[: hook + 1])
    yield first, end


def user_end(text: str, first: int, end: int) -> int:
    """The @ behind the user of an address that begins at `first`, 0 where it has none.

    What is behind a colon and before the last @ counts as its password, whatever else it holds, but no port.
    """
    at = text.rfind("@", first, end)
    authority = re.split("[/?#]", text[first:at], maxsplit=1)[0] if at >= 0 else ""
    if at < 0 or first + len(authority) == at:
        return max(at, 0)
    if not authority:
        return at if ":" in text[first:at] else 0
    host, colon, port = authority.rpartition(":")
    has_port = port.isdigit() and (host == "localhost" or bool(re.search(r"[.\]]", host)))
    return 0 if "@" not in authority and (has_port or not colon) else at


def has_bare_user(text: str) -> bool:
    """Whether it is user:password@… without a scheme, and no name that a recipe may hold."""
    name, _, rest = text.partition(":")
    if name in ("hf", "models", "shipped", "stdlib", "mailto") or rest.startswith("//"):
        return False
    return bool(re.fullmatch(r"[^/\s@]+", name) and re.fullmatch(r"\S*@\S*", rest))


def _pair(text: str, secret: int, first: int, last: int) -> Iterator[Span]:
    """The value behind the name that stands here, where it is a secret."""
    name, before = text[first:last], text[first - 1 : first] if first else ""
    if before in ("/", "\\"):
        return  # a part of a path
    if name.lower() in SCHEMES and text[last : last + 1] == " ":
        yield from _credentials(text, name.lower(), last + 1)
        return
    option, parameter = name.startswith("-"), before in ("?", "&", ";", "#")
    previous = re.search(r"(\w+) \Z", text[max(0, first - 20) : first]) if before == " " else None
    if previous and not option:
        secret = weight(name, previous[1].lower())
    closed = before in ("'", '"', "`") and text.startswith(before, last)
    value, separator = _separator(text, last + closed + text.startswith("]", last + closed), name, closed)
    least = PARAMETER if parameter else ASSIGNED if option or "=" in separator else ANYWHERE
    if not separator or secret < least or value == len(text) or text[value] == "\n":
        return
    if separator == "," and not option and text[first - 2 : first - 1] not in ("(", "b"):
        return
    if separator == ">":
        yield from [(value, text.find("<", value))] if before == "<" and "<" in text[value:] else []
        return
    if (separator == ":" and text.startswith("//", value)) or _MASKED.match(text, value):
        return
    if text[value] in "bru" and text[value + 1 : value + 2] in ("'", '"'):
        value += 1
    line = text.rfind("\n", 0, first) + 1
    opens_line = not text[line:first].strip(" \t-<>*\"'")
    takes_rest = before == (enclosing := _open_quote(text, first - closed)) != ""
    takes_rest |= opens_line and (separator == ":" or text[value - 1] == " ")
    if any(word in name.lower() for word in ("cookie", "authorization")):
        scheme = _SCHEME.match(text, value)
        takes_rest = not scheme or scheme[1].lower() not in SCHEMES
        value = value if takes_rest or not scheme else scheme.end()
    if parameter:
        end = _word_end(text, value, enclosing, "&;#")
    else:
        bracketed = text[value] in "([{"
        end = _bracket_end(text, value) if bracketed else _word_end(text, value, enclosing)
        whole = (bracketed and separator == "=") or (closed and (bracketed or is_quoted(text, value, end)))
        if takes_rest and not whole:
            end = max(end, _rest_end(text, value, line, enclosing))
    rest = text[value:end] if opens_line else text[value:].partition("\n")[0]
    if separator != ":" or not _is_advice(name, rest):
        yield value, end


def _credentials(text: str, scheme: str, first: int) -> Iterator[Span]:
    """What stands behind a scheme of authorization, outside of its header."""
    end = _word_end(text, first, _open_quote(text, first))
    word = text[first:end]
    if scheme == "bearer":
        if len(word) >= 6 and not word.lower().startswith(OF_PROSE):
            yield first, end
    elif scheme == "basic":
        try:
            if b":" in base64.b64decode(word.rstrip("\"',;)")):
                yield first, end
        except NotBase64:
            return


def _separator(text: str, at: int, name: str, closed: bool) -> tuple[int, str]:
    """Where a value begins behind a name, and by what it is separated from it; "" where it is not.

    closed: the name stands in quotes that end before `at`.
    """
    sign = _SEPARATOR.match(text, at)
    if sign is None:
        return at, ""
    separator = sign[1] or sign[0][0]
    quoted = text[sign.end() : sign.end() + 1] in ("'", '"')
    if separator == "," and not ((closed and quoted) or text.startswith(("b'", 'b"'), sign.end())):
        return at, ""
    if separator in " \t" and (closed or not (name.startswith("-") or (quoted and "passw" in name.lower()))):
        return at, ""
    return sign.end(), separator


def _is_advice(name: str, rest: str) -> bool:
    """Whether a variable's name is followed by words about it, and not by its value."""
    first, *more = rest.split() or [""]
    said = len(more) >= SENTENCE or bool(more and _SUBJECT.fullmatch(first))
    return name.isupper() and "_" in name and said


def _open_quote(text: str, place: int) -> str:
    """The quote that is open at this place of its line; "" where none is."""
    places, opened = _quotes(text)
    return opened[bisect_left(places, place)]


@lru_cache(maxsize=4)
def _quotes(text: str) -> tuple[list[int], list[str]]:
    """Where quotes and lines begin or end, and the quote that is open before each, and after the last."""
    places, opened, now = [], [], ""
    for sign in _QUOTE.finditer(text):
        at = sign.start()
        places.append(at)
        opened.append(now)
        if sign[0] in ("\n", now):
            now = ""
        elif not now and not _APOSTROPHE.fullmatch(text, max(0, at - 2), at + 2):
            now = sign[0]
    return places, [*opened, now]


def is_quoted(text: str, first: int, last: int) -> bool:
    """Whether a value is one quoted string and no more."""
    return text[first] in "'\"" and _close(text, first + 1, text[first]) == last - 1


def _word_end(text: str, first: int, enclosing: str, stops: str = "") -> int:
    """Where a word that begins here ends: at a blank, at one of `stops`, at the end of the quote around it.

    One that begins with a quote holds what stands in it, and goes on behind it unless a sign of BEHIND does.
    """
    quoted = not stops and text[first : first + 1] in ("'", '"')
    at = first
    while (at := (_PARAMETER if stops else _WORD).match(text, at).end()) < len(text):  # type: ignore[union-attr]
        sign = text[at]
        if sign.isspace() or sign in stops:
            break
        if sign == "\\" and not stops:
            at += 1
        elif sign == enclosing and at > first and text[at + 1 : at + 2] in BEHIND:
            return at
        elif quoted and sign in "'\"":
            at = _close(text, at + 1, sign)
            if text[at + 1 : at + 2] in BEHIND:
                return min(at + 1, len(text))
        at += 1
    return min(at, len(text))


def _close(text: str, at: int, quote: str) -> int:
    """Where a quote is closed; the text's end where it is not."""
    while at < len(text) and text[at] != quote:
        at += 2 if text[at] == "\\" else 1
    return at


def _bracket_end(text: str, first: int) -> int:
    """Behind the bracket that closes the one here; the line's end where none does."""
    depth, at = 0, first
    while at < min(len(text), first + LONGEST) and text[at] != "\n":
        if text[at] in "'\"":
            at = _close(text, at + 1, text[at])
        depth += (text[at : at + 1] in ("(", "[", "{")) - (text[at : at + 1] in (")", "]", "}"))
        at += 1
        if not depth:
            return _word_end(text, at, "") if text[at : at + 1] not in BEHIND else min(at, len(text))
    end = text.find("\n", first)
    return end if end >= 0 else len(text)


def _rest_end(text: str, first: int, line: int, enclosing: str) -> int:
    """The end of the quote around it, else of the line, else of the lines of a YAML block."""
    at = first
    while enclosing and at < len(text):
        at = _close(text, at, enclosing)
        if at < len(text) and text[at + 1 : at + 2] in BEHIND:
            return at
        at += 1
    end = text.find("\n", first)
    if end < 0 or not re.fullmatch(r"[|>][-+]?", text[first:end].rstrip()):
        return end if end >= 0 else len(text)
    depth = len(text[line:]) - len(text[line:].lstrip(" "))
    block = re.compile(rf"(?:\n *$|\n {{{depth + 1},}}[^\n]*)*", re.MULTILINE).match(text, end)
    return block.end() if block else end
