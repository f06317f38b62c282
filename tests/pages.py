"""The pages that people read, and what they tell them to type."""

from __future__ import annotations

import re
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
PAGES = [
    CHECKOUT / "README.md",
    *sorted((CHECKOUT / "infra" / "docs").glob("*.md")),
    CHECKOUT / "infra" / "kubernetes" / "README.md",
    CHECKOUT / "infra" / "images" / "README.md",
]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def text() -> str:
    """All pages, one behind the other."""
    return "\n".join(page.read_text("utf-8") for page in PAGES)


def blocks(language: str) -> list[str]:
    """What stands in the pages' fenced blocks of one language ("" for those that name none)."""
    return [body for named, body in _BLOCK.findall(text()) if named == language]


def commands() -> list[str]:
    """Every command of the pages' bash blocks, without comments, each once, in order."""
    lines = [
        re.split(r"(?:^|\s)#", line)[0].strip() for block in blocks("bash") for line in block.splitlines()
    ]
    return list(dict.fromkeys(line for line in lines if line))


def mentioned() -> list[str]:
    """Every `yarn-ops …` within a sentence, each once."""
    prose = _BLOCK.sub("", text())
    return list(dict.fromkeys(re.findall(r"`(yarn-ops [^`]+)`", prose)))
