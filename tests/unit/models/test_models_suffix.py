"""Kernels of attention that come with an extra: absent, there, or there in parts."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from yarn_ops.models.suffix import import_flash_attention_4

BROKEN = {
    "for no CUDA that is here": "raise RuntimeError('No CTK flavor installed: expected one of cu12, cu13')",
    "without what it needs": "import a_package_that_nobody_has",
    "of another version": "_flash_attn_fwd = _flash_attn_bwd = None",
    "that cannot be read": "this is no Python",
    "without a library": "raise OSError('libcudart.so.12: cannot open shared object file')",
    "of no words": "raise ValueError",
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a `flash_attn` that shadows any other one may be laid."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "flash_attn"
    package.mkdir()
    (package / "__init__.py").touch()
    import_flash_attention_4.cache_clear()
    yield package
    import_flash_attention_4.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]:
        del sys.modules[name]


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_kernel_is_told_of_in_a_line_and_left(
    how: str, installed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (installed / "cute").mkdir()
    (installed / "cute" / "__init__.py").touch()
    (installed / "cute" / "interface.py").write_text(BROKEN[how] + "\n")
    with caplog.at_level(logging.WARNING):
        assert import_flash_attention_4() is None
    (told,) = caplog.messages
    assert told.startswith("FlashAttention-4 cannot be loaded (") and "\n" not in told


def test_one_that_is_not_installed_is_no_news(installed: Path, caplog: pytest.LogCaptureFixture) -> None:
    """FlashAttention-2 alone has no `cute`."""
    with caplog.at_level(logging.WARNING):
        assert import_flash_attention_4() is None
    assert not caplog.messages
