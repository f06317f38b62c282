"""RULER's averages as published, for comparison.

Hsieh et al., RULER: What's the Real Context Size of Your Long-Context Language Models? (2024), and its
repository's table; a length counts as effective where the average is at least Llama-2-7B's at 4k.
"""

from __future__ import annotations

RULER_THRESHOLD = 85.6
"""per cent: Llama-2-7B (chat) at 4k"""
LENGTHS = (4096, 8192, 16_384, 32_768, 65_536, 131_072)
AVERAGES: dict[str, tuple[float, ...]] = {
    "Llama-3.1-8B": (95.5, 93.8, 91.6, 87.4, 84.7, 77.0),
    "Qwen2.5-7B-1M": (96.8, 95.3, 93.0, 91.1, 90.4, 84.4),
    "ProLong-8B": (94.5, 92.5, 92.3, 89.3),
    "Together-7B-32K": (88.2, 81.1, 69.4, 63.0, 0.0, 0.0),
}


def effective_tokens(averages: tuple[float, ...], lengths: tuple[int, ...] = LENGTHS) -> int:
    """The longest length such that every length up to it is at the threshold; 0 when none is."""
    effective = 0
    for length, average in zip(lengths, averages, strict=False):
        if average < RULER_THRESHOLD:
            break
        effective = length
    return effective
