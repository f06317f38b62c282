"""Our files read by other versions of transformers, each in an environment of its own (from PyPI)."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose

from yarn_ops.recipe import Rope
from yarn_ops.rope.config import patch_config
from yarn_ops.rope.methods import attention_factor, float32_rounding, inverse_frequencies

READERS = {
    "4.51.3": ["transformers==4.51.3", "tokenizers==0.21.4", "huggingface-hub==0.36.0"],
    "4.57.6": ["transformers==4.57.6", "tokenizers==0.22.1", "huggingface-hub==0.36.0"],
    "5.17.0": ["transformers==5.17.0", "huggingface-hub==1.5.0"],
}
"""the floor that the model card states, the last 4, the floor of this project; torch is this environment's"""
READ = """
import json, sys, torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM
answers = {"version": transformers.__version__}
for path in sys.argv[1:]:
    try:
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    except Exception as error:
        answers[path] = repr(error)
        continue
    rotary = next(module for module in model.modules() if hasattr(module, "inv_freq"))
    with torch.no_grad():
        model(torch.zeros(1, 8, dtype=torch.long))
    answers[path] = [rotary.inv_freq.double().tolist(), float(rotary.attention_scaling)]
print(json.dumps(answers))
"""
METHODS = {
    "none": Rope(method="none", factor=4),
    "linear": Rope(method="linear", factor=4),
    "ntk": Rope(method="ntk", factor=4),
    "by-parts": Rope(method="by-parts", factor=4),
    "yarn": Rope(method="yarn", factor=4),
    "yarn-fitted": Rope(method="yarn", factor=4, beta_fast=11.31, beta_slow=0.7071, attention_factor=1.111),
    "llama3": Rope(method="llama3", factor=4),
    "abf": Rope(method="abf", factor=4, theta=500_000.0),
    "dynamic-ntk": Rope(method="dynamic-ntk", factor=4),
    "longrope": Rope(method="longrope", factor=4, short_factors=(1.0,) * 16, long_factors=(4.0,) * 16),
    "dynamic-yarn": Rope(method="dynamic-yarn", factor=4),
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=sorted(READERS))
def reader(request, tmp_path_factory):
    """reader(*directories) -> {directory: [frequencies, attention factor], or an error's repr}"""
    target = tmp_path_factory.mktemp(f"transformers-{request.param}")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    installed = subprocess.run([*install, *READERS[request.param]], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"transformers {request.param} cannot be installed here: {installed.stderr[-300:]}")

    def read(*paths):
        answer = subprocess.run(
            [sys.executable, "-c", READ, *map(str, paths)],
            env={**os.environ, "PYTHONPATH": str(target)}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        answers = json.loads(answer.stdout.splitlines()[-1])
        assert answers.pop("version") == request.param
        return answers

    return read


def written(directory, config, rope):
    patched, spec = patch_config(config, rope, factor=4.0, original_context_tokens=None)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(patched))
    return spec


def check(answer, spec):
    assert isinstance(answer, list), answer
    frequencies, scaling = answer
    reference = inverse_frequencies(spec)
    allowed = np.maximum(1e-6, float32_rounding(spec))
    assert (np.abs(np.array(frequencies) - reference) <= allowed * reference).all()
    assert_allclose(scaling, attention_factor(spec), rtol=1e-6)


def test_every_method_is_read_as_the_reference(reader, config_of, tmp_path):
    specs = {
        tmp_path / name: written(tmp_path / name, config_of("llama"), rope) for name, rope in METHODS.items()
    }
    answers = reader(*specs)
    for path, spec in specs.items():
        if path.name == "dynamic-yarn":
            assert answers[str(path)] == "KeyError('dynamic-yarn')"  # loud everywhere, misread nowhere
        else:
            check(answers[str(path)], spec)


def test_yarn_is_read_alike_on_the_common_architectures(reader, config_of, tmp_path):
    names = (
        "llama",
        "qwen2",
        "qwen3",
        "mistral",
        "mixtral",
        "olmo2",
        "gpt_neox",
        "phi",
        "stablelm",
        "granite",
    )
    specs = {tmp_path / name: written(tmp_path / name, config_of(name), METHODS["yarn"]) for name in names}
    answers = reader(*specs)
    for path, spec in specs.items():
        if isinstance(answers[str(path)], str):
            assert path.name == "olmo2", answers[str(path)]  # 4 raises on any scaling of it
        else:
            check(answers[str(path)], spec)
