"""A configuration of nginx that sends short prompts to the base and long ones to the extended model.

Prompts are counted by the base's own server (`/tokenize` of vLLM, SGLang and llama.cpp). Where it does not
count, only what fits by its bytes goes to the base: no token is shorter than one.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import urlsplit

from yarn_ops.errors import ExportError
from yarn_ops.export.model import Export, new_directory
from yarn_ops.models.checkpoints import load_tokenizer
from yarn_ops.models.files import read_config
from yarn_ops.rope.config import rope_spec_of
from yarn_ops.rope.methods import LENGTH_DEPENDENT
from yarn_ops.shipped import ROUTER

REQUIRES = "nginx>=1.22 with njs>=0.7.9 (Debian: nginx-light, libnginx-mod-http-js)"
HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
MOST_ANSWER_TOKENS = 1024
"""that are kept for an answer whose request names no length; a quarter of the base's context at most"""


def export_router(model: Path, *, base: str, extended: str, listen: str, to: Path) -> Export:
    """Write nginx.conf and route.js into the new directory `to`; the command that runs them.

    model: the extended one. base, extended: `http://host:port` of the servers; listen: `host:port`.
    ExportError where the model would not be served better beside its base, or an address is none.
    """
    spec = rope_spec_of(read_config(model))
    if spec.target_context_tokens <= spec.original_context_tokens:
        raise ExportError(f"{model}: is not extended; serve it alone")
    if spec.method in LENGTH_DEPENDENT:
        raise ExportError(
            f"{model}: {spec.method} turns short texts as its base does; serve it alone by transformers"
        )
    addresses = {
        "base": _address("--base", base, "http"),
        "extended": _address("--extended", extended, "http"),
        "listen": _address("--listen", f"http://{listen}", ""),
    }
    if len(set(addresses.values())) < len(addresses):
        raise ExportError("--base, --extended, --listen: name one address twice; give each its own")
    original = spec.original_context_tokens
    values = addresses | {
        "original_tokens": str(original),
        "answer_tokens": str(min(MOST_ANSWER_TOKENS, original // 4)),
        "template_tokens": str(_template_tokens(load_tokenizer(model))),
    }
    with new_directory(to) as draft:
        for source in sorted(ROUTER.iterdir()):
            (draft / source.name).write_text(Template(source.read_text("utf-8")).substitute(values), "utf-8")
    return Export(f"nginx -p {shlex.quote(str(to.absolute()))} -c nginx.conf", REQUIRES)


def _address(option: str, url: str, scheme: str) -> str:
    """host:port of an address without anything else."""
    try:
        parts = urlsplit(url)
        host, colon, port = parts.netloc.rpartition(":")
        sound = parts.scheme == "http" and colon and HOST.fullmatch(host) and (parts.port or 0) > 0
        sound = sound and parts.path in ("", "/") and not parts.query and not parts.fragment
    except ValueError:  # a port beyond 65535, half an IPv6 address
        sound = False
    if not sound or not port.isascii():
        form = "http://host:port, without a path" if scheme else "host:port"
        raise ExportError(f"{option}: {url if scheme else url.removeprefix('http://')}: write {form}")
    return f"{host}:{int(port)}"


def _template_tokens(tokenizer: Any) -> int:
    """Of a chat of one empty message; without a chat template, of an empty prompt."""
    if tokenizer.chat_template is None:
        return len(tokenizer("").input_ids)
    asked = [{"role": "user", "content": ""}]
    return len(tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True).input_ids)
