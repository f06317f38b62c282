"""The bases of public reports beside the checkout: extended, or refused in one line when they are fetched."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from yarn_ops.errors import RopeError, YarnOpsError
from yarn_ops.export.serving import serving_settings
from yarn_ops.models.files import read_config
from yarn_ops.models.inspection import inspect_checkpoint
from yarn_ops.models.patch import patch
from yarn_ops.recipe import Rope
from yarn_ops.records import Local

MODELS = Path(__file__).parents[3] / ".." / "shared" / "cases" / "models.py"
pytestmark = pytest.mark.skipif(not MODELS.exists(), reason="needs the cases beside the checkout")

ORIGINAL = 256
EXTENDED = (
    *("begins_with_bos", "eval_cohere", "eval_gemma3_of_transformers4", "moe_mixtral", "more_templates"),
    *("no_layer_slides", "served_gemma", "served_gemma2", "served_mixtral"),
)
SHORTER = "factor: 1024 tokens are less than the {} that the base reads already"
REFUSED = {
    "dual_chunk": "dual_chunk_attention_config: inference engines attend in chunks by it",
    "eval_gpt_oss": SHORTER.format(8192),
    "eval_phi3": "transformers renames yarn to longrope for it",
    "llama31": SHORTER.format(4096),
    "mixtral_no_head_dim": "head_dim: null or missing, with which transformers cannot scale the RoPE of",
    "type_and_rope_type": "rope_scaling: type and rope_type are linear and yarn; loaders disagree",
    "unknown_activation": "no model can be built from it: nothing is known as 'swishglu'",
    "yarn_without_original": "original_max_position_embeddings: missing beside rope_type yarn",
}
PYTHON = ("None", "Error", "Traceback", "NoneType", "object", "unsupported operand", "KeyError")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.syspath_prepend(MODELS.parent)
        patched.setattr(sys, "argv", [str(MODELS), str(folder)])
        patched.setattr(sys, "dont_write_bytecode", True)
        runpy.run_path(str(MODELS))
    return folder


def extend(base: Path, out: Path, factor: float = 4.0) -> Path:
    record = inspect_checkpoint(base, source=base.name, original_context_tokens=ORIGINAL)
    patch(Rope(method="yarn", factor=factor), Local(record, base), out, factor=factor)
    return out


def test_every_base_is_extended_or_refused(bases: Path, tmp_path: Path) -> None:
    assert {place.name for place in bases.iterdir()} == {*EXTENDED, *REFUSED}
    for name in EXTENDED:
        assert read_config(extend(bases / name, tmp_path / name))["max_position_embeddings"] == 4 * ORIGINAL
    for name, says in REFUSED.items():
        with pytest.raises(YarnOpsError) as fault:
            extend(bases / name, tmp_path / name)
        told = str(fault.value)
        assert says in told and "\n" not in told and not (tmp_path / name).exists()
        assert not any(word in told for word in PYTHON), told


def test_a_base_that_is_scaled_is_extended_beyond_what_it_reads(bases: Path, tmp_path: Path) -> None:
    """As 128k to 512k are asked of a Llama 3.1, whose original context is 8k."""
    config = read_config(extend(bases / "llama31", tmp_path / "longer", factor=64.0))
    assert config["max_position_embeddings"] == 64 * ORIGINAL > 4096
    assert config["rope_parameters"]["original_max_position_embeddings"] == ORIGINAL


def test_engines_that_ignore_the_scaling_of_a_class_are_refused(bases: Path) -> None:
    for name in ("served_mixtral", "served_gemma", "served_gemma2"):
        config = read_config(bases / name)
        with pytest.raises(RopeError, match="sglang reads no scaling of this class"):
            serving_settings(config, "sglang")
        assert serving_settings(config, "vllm-0.29").requires == "vllm>=0.12,<0.30"
