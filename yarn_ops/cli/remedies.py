"""`yarn-ops remedies`: what would help a model that sees far and does not use it."""

from __future__ import annotations

import json
from pathlib import Path

from yarn_ops.cli.display import CONSOLE, writing_picture
from yarn_ops.cli.rope import directory_of
from yarn_ops.data.files import LocalFiles
from yarn_ops.data.haystack import STANDARD_LIBRARY
from yarn_ops.models.device import resolve_device, resolve_dtype
from yarn_ops.progress import ProgressBars
from yarn_ops.remedies.compare import Asked, compare
from yarn_ops.remedies.side_by_side import SideBySide
from yarn_ops.remedies.table import lines
from yarn_ops.settings import read_settings


def run(
    model: str,
    *,
    base: str | None,
    factor: float | None,
    length: int | None,
    documents: list[str] | None,
    templates: str,
    windows: int,
    seed: int,
) -> SideBySide:
    """Resolve what was typed, and compare."""
    asked = Asked(
        model=directory_of(model, None, only_read=True),
        name=Path(model).name,
        base=None if base is None else directory_of(base, None, only_read=True),
        factor=factor,
        documents=documents or STANDARD_LIBRARY,
        context_tokens=length,
        windows=windows,
        templates=[name.strip() for name in templates.split(",")],
        seed=seed,
    )
    device = resolve_device(read_settings().device)
    with ProgressBars() as bars:
        return compare(
            asked,
            LocalFiles(),
            device=device,
            precision=resolve_dtype("auto", device),
            progress=bars.of("remedies"),
        )


def show(side: SideBySide, *, as_json: bool) -> None:
    """One table; or all of it as JSON."""
    if as_json:
        print(json.dumps(side.model_dump(mode="json"), indent=2))  # in ASCII
        return
    CONSOLE.print(
        f"{side.model}, {side.context_tokens:,} tokens of which {side.window_tokens:,} were trained on, "
        f"{side.device}",
        style="bold",
    )
    for line in lines(side):
        CONSOLE.print(line)
    for name, why in side.unavailable.items():
        CONSOLE.print(f"{name}: {why}")


def draw(side: SideBySide, path: Path) -> None:
    """The picture of it; ExportError where it cannot be written."""
    from yarn_ops.remedies import picture

    with writing_picture(path):
        picture.draw(side, path)
