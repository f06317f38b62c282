"""The context that a model directory is made for."""

from __future__ import annotations

from pathlib import Path

from yarn_ops.models.files import TOKENIZER_CONFIG, read_config, read_object
from yarn_ops.rope.config import rope_spec_of
from yarn_ops.rope.fields import read_fields
from yarn_ops.rope.methods import LENGTH_DEPENDENT


def context_tokens_of(folder: Path) -> int:
    """Tokens that the model was trained, measured and released for.

    As config.json says. A factor larger than the target needs makes that larger than the target, since
    loaders hold max_position_embeddings to be factor × original context; then tokenizer_config.json's
    model_max_length is the target. Raises BaseModelError and RopeError as what reads the two files.
    """
    config = read_config(folder)
    spec = rope_spec_of(config)
    grows = spec.method in LENGTH_DEPENDENT  # from its original context, which is what its config says
    most = spec.target_context_tokens if grows else read_fields(config).context_tokens
    if not (folder / TOKENIZER_CONFIG).is_file():
        return most
    stated = read_object(folder, TOKENIZER_CONFIG).get("model_max_length")
    if isinstance(stated, int | float) and spec.original_context_tokens < stated < most:
        return int(stated)
    return most
