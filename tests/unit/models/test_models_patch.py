"""The patch stage on the shipped base: files, limits, record; nothing half-written."""

import json
import shutil

import pytest
from transformers import AutoConfig, AutoTokenizer

from yarn_ops.errors import ProofError, RopeError
from yarn_ops.models import patch as stage
from yarn_ops.models.inspection import inspect_checkpoint
from yarn_ops.models.patch import patch
from yarn_ops.recipe import Rope
from yarn_ops.records import Local
from yarn_ops.rope.config import rope_spec_of
from yarn_ops.shipped import MODELS

BASE = MODELS / "base512"
YARN = Rope(method="yarn", factor=4.0)


@pytest.fixture(scope="module")
def record():
    return inspect_checkpoint(BASE, source="shipped:base512")


def test_files_and_record(record, tmp_path):
    done = patch(YARN, Local(record, BASE), tmp_path / "out", factor=4.0)
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert (done.method, done.factor) == ("yarn", 4.0)
    assert (done.original_context_tokens, done.target_context_tokens) == (512, 2048)
    assert done.attention_factor == pytest.approx(1.138629436112, rel=1e-12)
    assert 0 < done.inverse_frequency_error < 1e-6
    assert done.tree is None and done.parents == (record.digest,)


def test_limits_move_together(record, tmp_path):
    patch(YARN, Local(record, BASE), tmp_path / "out", factor=4.0)
    assert AutoConfig.from_pretrained(tmp_path / "out").max_position_embeddings == 2048
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.model_max_length == 2048
    text = "def f(x):\n    return x\n" * 3
    assert tokenizer(text) == AutoTokenizer.from_pretrained(BASE)(text)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert rope_spec_of(config).target_context_tokens == 2048


def test_a_generation_limit_at_the_old_context_moves_too(record, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(BASE, base)
    (base / "generation_config.json").write_text(json.dumps({"max_length": 512, "temperature": 0.7}))
    (base / "chat_template.jinja").write_text("{{ messages }}")
    patch(YARN, Local(record, base), tmp_path / "out", factor=4.0)
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation == {"max_length": 2048, "temperature": 0.7}
    assert (tmp_path / "out/chat_template.jinja").read_text() == "{{ messages }}"


def test_the_same_input_writes_the_same_bytes(record, tmp_path):
    for name in ("one", "two"):
        patch(YARN, Local(record, BASE), tmp_path / name, factor=4.0)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_an_empty_directory_is_filled(record, tmp_path):
    (tmp_path / "out").mkdir()
    patch(YARN, Local(record, BASE), tmp_path / "out", factor=4.0)
    assert (tmp_path / "out/config.json").is_file()


def test_a_refused_request_writes_nothing(record, tmp_path):
    with pytest.raises(RopeError):
        patch(YARN, Local(record, BASE), tmp_path / "out", factor=0.5)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_proof_writes_nothing(record, tmp_path, monkeypatch):
    def other_config(*arguments, **options):
        config, spec = patch_config(*arguments, **options)
        return config, spec.model_copy(update={"factor": 2.0})

    patch_config = stage.patch_config
    monkeypatch.setattr(stage, "patch_config", other_config)
    with pytest.raises(ProofError):
        patch(YARN, Local(record, BASE), tmp_path / "out", factor=4.0)
    assert list(tmp_path.iterdir()) == []
