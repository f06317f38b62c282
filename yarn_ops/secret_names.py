"""Names of secrets: password, X-Api-Key, dbPassword, AWS_SECRET_ACCESS_KEY; not eos_token, secret.txt."""

from __future__ import annotations

import re
from functools import lru_cache

NO, PARAMETER, ASSIGNED, ANYWHERE = range(4)
"""where the value behind a name is a secret: nowhere, in an address, before = too, behind any separator"""
HOLDS = ("passphrase", "secret", "apikey", "accesskey", "cookie", "authorization")
ENDS = ("token", "pwd", "credential", "credentials")
OF_OTHERS = {
    "passwords", "secrets", "passphrases", "file", "dir", "path", "name", "type", "length", "ttl", "url",
    "uri", "policy", "store", "mount", "expires", "expiry", "domain", "count", "size", "class", "error",
}  # fmt: skip
"""last words of a name that say something about secrets, and hold none"""
WORDS = ("password", "passwd", *HOLDS, *ENDS)
"""that tell nothing where somebody took one for a password"""
OF_PARAMETERS = ("key", "sig", "sas", "signature", "jwt", "auth", "pass", "pw")
OF_OPTIONS = ("auth", "pass", "pw")
QUALIFIED = ("key", "auth", "pass")
QUALIFIERS = {
    "api", "access", "secret", "private", "auth", "account", "shared", "session", "server", "storage",
    "master", "encryption", "license", "subscription", "client", "user", "admin", "root", "db", "database",
    "smtp", "mail", "ftp", "ssh", "proxy", "http", "prefect", "basic",
}  # fmt: skip
"""words before one of QUALIFIED that make it a secret's name"""
OF_MODELS = {
    "bos", "eos", "pad", "unk", "sep", "cls", "mask", "image", "audio", "video", "vision", "start", "end",
    "begin", "special", "added", "new", "next", "prev", "last", "first", "second", "per", "a", "an", "any",
    "no", "each", "other", "extra", "one", "the", "stop", "decoder", "forced", "prefix", "suffix", "middle",
    "boi", "eoi", "boa", "eoa", "eot", "sot", "fim",
}  # fmt: skip
"""words before `token` that make it a model's"""
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W_A-Z]+")


@lru_cache(maxsize=4096)
def weight(name: str, previous: str = "") -> int:
    """Where the value behind a name is a secret. previous: the word before it, for a name of one word."""
    parts = [part.lower() for part in _PART.findall(name.rpartition(".")[2])]
    if not parts or parts[-1] in OF_OTHERS or name in ("PWD", "OLDPWD"):
        return NO
    last, before = parts[-1], parts[-2] if len(parts) > 1 else previous
    whole = "".join(parts)
    if any(word in whole for word in HOLDS) or any("passw" in part for part in parts):
        return ANYWHERE
    if last.endswith(ENDS) and before not in OF_MODELS:
        return ANYWHERE
    if (last in QUALIFIED and before in QUALIFIERS) or ("signature" in whole and len(parts) > 1):
        return ANYWHERE
    if last in OF_OPTIONS and len(parts) == 1:
        return ASSIGNED
    return PARAMETER if last in OF_PARAMETERS else NO


def form_pattern() -> str:
    """A regular expression, as JavaScript and Python read it, that addresses with a password do not match."""
    colon, at, slash = (f"(?:{sign}|%{code})" for sign, code in ((":", "3[aA]"), ("@", "40"), ("/", "2[fF]")))
    users = rf"(?:^|{colon}){slash}{{2}}(?:[^/]*|[\s\S]*{colon}[\s\S]*){at}"
    said = (*HOLDS, *ENDS, "passw", "signature", "api-key", "api_key", "access-key", "access_key")
    words, names = (
        "".join(f"[{sign}{sign.upper()}]" if sign.isalpha() else sign for sign in "|".join(of))
        for of in (said, OF_PARAMETERS)
    )
    return rf"^(?![\s\S]*{users})(?![\s\S]*[?&;#](?:[^=]*(?:{words})[^=]*|{names})=)"
