"""A model directory, ready for an engine: what is written, what stays, what is refused."""

from __future__ import annotations

import json
import math

import pytest
from gguf import GGUFReader

from yarn_ops.errors import BaseModelError, ExportError, RopeError
from yarn_ops.export.model import export_model
from yarn_ops.models.files import read_config

OWN = 0.1 * math.log(4) + 1


@pytest.fixture
def export(quiet):
    """export(model, engine, to=…)"""

    def call(model, engine, to=None, weights="f16"):
        return export_model(model, engine, to=to, weights=weights, report=quiet)

    return call


@pytest.mark.parametrize("engine", ["transformers", "vllm", "vllm-0.29", "sglang"])
def test_plain_yarn_is_served_where_it_lies(extended, export, engine):
    model = extended()
    exported = export(model, engine)
    assert str(model) in exported.command.split()
    assert exported.requires.startswith(engine.partition("-")[0])


def test_llama_cpp_gets_a_gguf_named_for_model_and_type(extended, export, tmp_path):
    exported = export(extended(), "llama.cpp", tmp_path / "to", "q8_0")
    gguf = tmp_path / "to/extended-q8_0.gguf"
    assert exported.command == f"llama-server --model {gguf} --ctx-size 2048 --parallel 1"
    assert GGUFReader(gguf).fields["llama.context_length"].contents() == 2048


def test_ollama_gets_a_gguf_and_a_modelfile_with_the_context(extended, export, tmp_path):
    model = extended()
    exported = export(model, "ollama", tmp_path / "to")
    modelfile = tmp_path / "to/extended-f16.Modelfile"
    assert exported.command == f"ollama create extended-f16 --file {modelfile}"
    assert modelfile.read_text() == "FROM ./extended-f16.gguf\nPARAMETER num_ctx 2048\n"
    assert (
        GGUFReader(tmp_path / "to/extended-f16.gguf").fields["llama.rope.scaling.type"].contents() == "yarn"
    )
    (tmp_path / "to/extended-f16.gguf").unlink()
    with pytest.raises(ExportError, match="Modelfile: exists; remove it or choose another --to"):
        export(model, "ollama", tmp_path / "to")


def test_lm_studio_is_given_the_gguf_by_its_own_program(extended, export, tmp_path):
    exported = export(extended(), "lm-studio", tmp_path / "to", "q8_0")
    gguf, folder = tmp_path / "to/extended-q8_0.gguf", "yarn-ops/extended-q8-0"
    assert gguf.is_file()
    assert exported.command == (
        f"lms import --hard-link --user-repo {folder} {gguf} && "
        f"lms load --exact {folder}/{gguf.name} --context-length 2048"
    )


def test_vllm_up_to_029_gets_a_directory_with_its_own_config(extended, export, tmp_path):
    model = extended(attention_factor=1.25)
    before = (model / "config.json").read_bytes()
    exported = export(model, "vllm-0.29", tmp_path / "to")
    assert exported.command == f"vllm serve {tmp_path / 'to'} --max-model-len 2048"
    served = read_config(tmp_path / "to")
    assert served["rope_parameters"]["attn_factor"] * OWN == pytest.approx(1.25, rel=1e-12)
    assert (model / "config.json").read_bytes() == before
    assert (tmp_path / "to/model.safetensors").samefile(model / "model.safetensors")
    assert (tmp_path / "to/tokenizer.json").is_file()


def test_files_need_a_place(extended, export):
    with pytest.raises(ExportError, match=r"--to: llama\.cpp needs files of its own; say in which directory"):
        export(extended(), "llama.cpp")


def test_a_place_without_files_is_refused(extended, export, tmp_path):
    with pytest.raises(ExportError, match=r"--to: vllm serves .* as it is; leave --to out"):
        export(extended(), "vllm", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_nothing_is_written_over(extended, export, tmp_path):
    model = extended()
    export(model, "llama.cpp", tmp_path / "to")
    with pytest.raises(ExportError, match=r"extended-f16\.gguf: exists; remove it or choose another --to"):
        export(model, "llama.cpp", tmp_path / "to")


def test_an_engine_s_refusal_writes_nothing(random_model, export, tmp_path):
    model = random_model("qwen2")
    config = read_config(model)
    for name in ("rope_scaling", "rope_parameters"):
        config[name]["beta_fast"] = 16.0
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(RopeError, match="beta_fast 16 and beta_slow 1"):
        export(model, "llama.cpp", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_model_without_its_weights_is_refused(extended, export):
    model = extended()
    (model / "model.safetensors").unlink()
    with pytest.raises(BaseModelError, match="no weights"):
        export(model, "vllm")


def test_what_cannot_be_written_is_said_in_one_line(extended, export, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"file/to/extended-f16\.gguf: cannot be written"):
        export(extended(), "llama.cpp", tmp_path / "file/to")
