"""The language of a text, told from a part of it."""

from __future__ import annotations

SAMPLE_CHARS = 4096


def language_of(text: str) -> str:
    """ISO 639-1 code of the most likely of 97 languages, by the letters in the text's middle."""
    from py3langid import classify  # its model is read on import: a second

    start = max(0, len(text) - SAMPLE_CHARS) // 2
    code: str = classify(text[start : start + SAMPLE_CHARS])[0]
    return code
