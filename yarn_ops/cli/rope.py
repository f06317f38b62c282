"""`yarn-ops rope show`: what a method does to the pairs of dimensions of a model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from yarn_ops.cli.display import CONSOLE, print_table, writing_picture
from yarn_ops.errors import RopeError
from yarn_ops.models.checkpoints import refuse_links
from yarn_ops.models.files import read_config
from yarn_ops.recipe import Base, Rope, parse_methods
from yarn_ops.rope.config import patch_config, rope_spec_of
from yarn_ops.rope.methods import RopeSpec, attention_factor
from yarn_ops.rope.table import fit_section, pair_table, summary
from yarn_ops.scores import Fit


def asked_spec(model: str, asked: dict[str, Any], original_context_tokens: int | None) -> RopeSpec:
    """The rotary embedding of a model: as `asked` (fields of a recipe's rope section), or its own if nothing.

    RopeError where the model or the request does not allow it.
    """
    config = read_config(directory_of(model, original_context_tokens, only_read=not asked))
    if not asked:
        return rope_spec_of(config)
    parse_methods([asked["method"]] if "method" in asked else [])
    try:
        rope = Rope.model_validate(asked)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["rope", *map(str, first["loc"])])
        raise RopeError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
    factor = rope.resolve_factor(original_context_tokens or config["max_position_embeddings"])
    return patch_config(config, rope, factor=factor, original_context_tokens=original_context_tokens)[1]


def show(spec: RopeSpec, *, as_json: bool) -> None:
    """One line a pair and the summary; or all of it as JSON."""
    pairs = pair_table(spec)
    if as_json:
        factor = attention_factor(spec, spec.target_context_tokens)
        facts = {"specification": spec.model_dump(), "attention_factor": factor, "logits_times": factor**2}
        print(json.dumps({**facts, "pairs": [asdict(pair) for pair in pairs]}, indent=2))
        return
    rows = [("pair", "wavelength", f"turns in {spec.original_context_tokens:,}", "new / old", "")]
    for pair in pairs:
        turns = f"{pair.turns:,.3g}" if pair.turns < 100 else f"{pair.turns:,.0f}"
        wavelength, ratio = f"{pair.wavelength_tokens:,.1f}", f"{pair.frequency_ratio:.4f}"
        rows.append((str(pair.index), wavelength, turns, ratio, pair.fate))
    print_table(rows, numbers=rows[0][:-1])
    CONSOLE.print()
    for line in summary(spec):
        CONSOLE.print(line)


def show_fit(fit: Fit, *, as_json: bool) -> None:
    """Print the [rope] section; as comments its gain, the search's cost, engines that cannot serve it."""
    if as_json:
        print(json.dumps(fit.model_dump(mode="json"), indent=2))
        return
    for line in fit_section(fit):
        CONSOLE.print(line, style="bold" if line.startswith("[") else None)


def draw(spec: RopeSpec, path: Path) -> None:
    """The picture of it; ExportError where it cannot be written."""
    from yarn_ops.rope.picture import draw_rope

    with writing_picture(path):
        draw_rope(spec, path)


def directory_of(model: str, original_context_tokens: int | None, *, only_read: bool = False) -> Path:
    """A directory as it is, where no link leaves it; any other base is fetched.

    only_read: it is not extended, so it may be scaled already.
    """
    if (path := Path(model).expanduser()).is_dir():
        refuse_links(path)
        return path
    from yarn_ops.bases import fetch_base
    from yarn_ops.services import try_mlflow
    from yarn_ops.settings import read_settings
    from yarn_ops.store import store_options

    settings = read_settings()

    base = Base(model=model, original_context_tokens=original_context_tokens)
    cache, options = settings.home / "cache", store_options(settings)
    find_release = lambda reference: try_mlflow(settings).behind(reference)  # noqa: E731  asked only where needed
    return fetch_base(
        base, cache=cache, store_options=options, find_release=find_release, only_read=only_read
    )[1]
