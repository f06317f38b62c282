"""Exporting a model directory: merged, or as base and adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from yarn_ops.bars import Bars
from yarn_ops.errors import ExportError
from yarn_ops.export.adapter import export_adapter
from yarn_ops.export.model import Export, export_model
from yarn_ops.rope.serving import Engine

if TYPE_CHECKING:
    from yarn_ops.export.gguf_file import WeightType


def export(
    model: Path,
    engine: Engine,
    *,
    to: Path | None,
    weights: WeightType,
    adapter: Path | None,
    base: Path | None,
) -> Export:
    """`export_model`; with an adapter and its base, `export_adapter`."""
    if adapter is None and base is None:
        with Bars() as bars:
            return export_model(model, engine, to=to, weights=weights, report=bars.of("export"))
    if adapter is None or base is None or to is None:
        raise ExportError("--adapter: needs --base and --to as well; give all three")
    return export_adapter(adapter, engine, base=base, patched=model, to=to)
