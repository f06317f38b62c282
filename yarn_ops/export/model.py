"""Export of an extended model to an inference engine: the command that serves it, and files that it needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yarn_ops.atomic import atomic_write
from yarn_ops.errors import ExportError
from yarn_ops.export.engines import Engine
from yarn_ops.export.serving import GgufRope, modelfile_of, serving_settings
from yarn_ops.models.checkpoints import checkpoint_files
from yarn_ops.models.context import context_tokens_of
from yarn_ops.models.files import CONFIG, link_model_file, read_config, write_object
from yarn_ops.models.inspection import inspect_checkpoint
from yarn_ops.models.patch import prove_directory
from yarn_ops.rope.config import rope_spec_of

if TYPE_CHECKING:
    from yarn_ops.export.gguf_file import WeightType
    from yarn_ops.progress import OnProgress


@dataclass(frozen=True)
class Export:
    """How an engine is started on an exported model."""

    command: str
    requires: str
    """the engine's versions for which this holds"""


def export_model(
    model: Path, engine: Engine, *, to: Path | None, weights: WeightType, report: OnProgress
) -> Export:
    """The command that serves a model directory by its own RoPE, and what it needs written into `to`.

    llama.cpp, ollama, lm-studio: a GGUF with matrices of type `weights`, for Ollama with a Modelfile.
    vllm-0.29: a copy with another config.json where that engine would misread the model's. Otherwise nothing
    is written, and `to` is refused. RopeError where the engine cannot rotate as the model asks,
    BaseModelError and ProofError where the model is not sound.
    """
    config = read_config(model)
    settings = serving_settings(config, engine, context_tokens_of(model))
    spec = rope_spec_of(config)
    inspect_checkpoint(model, source=str(model), original_context_tokens=spec.original_context_tokens)
    prove_directory(model, spec)
    served = model
    if settings.gguf is None and settings.config is None:
        if to is not None:
            raise ExportError(f"--to: {engine} serves {model} as it is; leave --to out")
    elif to is None:
        raise ExportError(f"--to: {engine} needs files of its own; say in which directory to write them")
    elif settings.gguf is not None:
        served = to / f"{model.resolve().name}-{weights}.gguf"
        require_new(served)
        modelfile = modelfile_of(served)
        if engine == "ollama":
            require_new(modelfile)
        _write_gguf(model, settings.gguf, served, weights, report)
        if engine == "ollama":
            context = settings.context_tokens
            modelfile.write_text(f"FROM ./{served.name}\nPARAMETER num_ctx {context}\n", "utf-8")
    elif settings.config is not None:
        served = to
        with new_directory(to) as partial:
            place_files(model, partial, checkpoint_files(model))
            write_object(partial, CONFIG, settings.config)
    return Export(settings.command(str(served)), settings.requires)


def _write_gguf(model: Path, rope: GgufRope, out: Path, weights: WeightType, report: OnProgress) -> None:
    try:
        from yarn_ops.export.gguf_file import write_gguf
    except ModuleNotFoundError as error:
        raise ExportError(
            f"{error.name}: not installed, and needed to write a GGUF; pip install 'yarn-ops[gguf]'"
        ) from None
    write_gguf(model, rope, out, weights=weights, report=report)


def require_new(path: Path) -> None:
    """ExportError where something is there already."""
    if path.exists():
        raise ExportError(f"{path}: exists; remove it or choose another --to")


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to write into that becomes `path` when the block ends, and is gone when it fails.

    ExportError where `path` exists or cannot be written.
    """
    require_new(path)
    try:
        with atomic_write(path) as draft:
            draft.mkdir()
            yield draft
    except OSError as error:
        raise ExportError(f"{path}: cannot be written ({error}); make room there and run again") from error


def place_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Put files of one model directory into another: hard links, or copies where the file system has none."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        link_model_file(source, target, name)
