"""Serve a model rightly and under faults by real engines, and print what `yarn-ops serve-check` says of each.

    python infra/benchmarks/serve_check.py --model shipped:base512 --engine llama-cpp-python --json rows.jsonl

Engines: llama-cpp-python (`.venv-llama`, built by infra/llama; --llama-python), llama-server (--llama-server
PATH), transformers (`transformers serve` of transformers[serving]; --transformers PATH), vllm (--vllm WORDS,
with `--flags` of its own after the command that `yarn-ops export` prints). The model is a base, extended by
YaRN ×4 untrained, or with --extended an extended one as it is. Faults are injected by the engine's own flags,
or by other files.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine_servers import command_of, running

from yarn_ops.export.model import export_model
from yarn_ops.models.files import read_config
from yarn_ops.recipe import Rope
from yarn_ops.rope.config import patch_config, rope_spec_of
from yarn_ops.rope.methods import yarn_scale
from yarn_ops.serving.client import InferenceServer
from yarn_ops.serving.fingerprint import FINGERPRINT, Fingerprint, read_fingerprint
from yarn_ops.serving.measure import make_fingerprint
from yarn_ops.serving.verdict import ServedVerdict, judge
from yarn_ops.shipped import MODELS

FACTOR = 4.0
ROOT = Path(__file__).parents[2]
QUANTISE = """
import ctypes, sys
import llama_cpp
asked = llama_cpp.llama_model_quantize_default_params()
asked.ftype = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + sys.argv[3])
asked.nthread = 1
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(asked)))
"""


def quiet(done: int, total: int, note: str) -> None:
    pass


@dataclass
class Case:
    """One way to serve, and the fault that serve-check should name (None: right)."""

    name: str
    fault: str | None
    files: Callable[[], Path]
    flags: dict[str, Any] = field(default_factory=dict)
    bits: int | None = None


class Models:
    """A model extended ×4 with its fingerprint, and its variants, each made when first asked for."""

    def __init__(
        self, base: Path, folder: Path, llama_python: Path, fingerprint: Path | None, is_extended: bool
    ) -> None:
        self.base, self.folder, self.llama_python = base, folder, llama_python
        if is_extended:
            spec, self.right = rope_spec_of(read_config(base)), base
            self.original, self.target = spec.original_context_tokens, spec.target_context_tokens
            return
        self.original = read_config(base)["max_position_embeddings"]
        self.target = round(FACTOR * self.original)
        self.right = self.extended("right")
        if fingerprint is None:
            made = make_fingerprint(self.right, device="cpu", report=quiet)
            (self.right / FINGERPRINT).write_bytes(made.to_bytes())
        else:
            shutil.copyfile(fingerprint, self.right / FINGERPRINT)

    def extended(self, name: str, **rope: Any) -> Path:
        """The base with a patched config, as `rope` changes it."""
        out = self.folder / name
        if not out.exists():
            out.mkdir()
            for path in self.base.iterdir():
                shutil.copyfile(path, out / path.name)
            method = rope.pop("method", "yarn")
            factor, original = rope.pop("factor", FACTOR), rope.pop("original", self.original)
            config = {**read_config(self.base), "max_position_embeddings": original}
            asked = Rope(method=method, factor=factor, **rope)
            patched, _ = patch_config(config, asked, factor=factor, original_context_tokens=original)
            patched["max_position_embeddings"] = round(factor * original)
            (out / "config.json").write_text(json.dumps(patched))
        return out

    def gguf(self, kind: str = "F16", model: Path | None = None) -> Path:
        model = model or self.right
        plain = self.folder / f"{model.name}-gguf" / f"{model.name}-f16.gguf"
        if not plain.exists():
            export_model(model, "llama.cpp", to=plain.parent, weights="f16", report=quiet)
        if kind == "F16":
            return plain
        out = plain.with_name(f"{model.name}-{kind}.gguf")
        if not out.exists():
            command = [self.llama_python, "-c", QUANTISE, plain, out, kind]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return out

    def other_weights(self) -> Path:
        """The same shape with every matrix's rows in another order of magnitude: another training."""
        import torch
        from safetensors.torch import load_file, save_file

        out = self.folder / "other-weights"
        if not out.exists():
            shutil.copytree(self.right, out)
            torch.manual_seed(0)
            for path in out.glob("*.safetensors"):
                tensors = load_file(path)
                for name, value in tensors.items():
                    if value.ndim == 2:
                        noise = torch.randn(value.shape) * value.float().std()
                        tensors[name] = (value.float() + noise).to(value.dtype)
                save_file(tensors, path, metadata={"format": "pt"})
        return out

    def other_tokenizer(self) -> Path:
        """The same weights with a tokenizer that joins less."""
        out = self.folder / "other-tokenizer"
        if not out.exists():
            shutil.copytree(self.right, out)
            described = json.loads((out / "tokenizer.json").read_text("utf-8"))
            described["model"]["merges"] = described["model"]["merges"][:2000]
            (out / "tokenizer.json").write_text(json.dumps(described), "utf-8")
        return out

    def rewritten(self, key: str, value: float, kind: str = "F16") -> Path:
        """The GGUF with another value of one key."""
        from gguf import GGUFReader

        gguf = self.gguf(kind)
        out = gguf.with_name(f"{key}-{value}-{gguf.name}")
        shutil.copyfile(gguf, out)
        reader = GGUFReader(out, "r+")
        told = next(field for name, field in reader.fields.items() if name.endswith(key))
        told.parts[told.data[0]][0] = value
        reader.data.flush()
        return out


def llama_cases(models: Models) -> Iterator[Case]:
    scale = yarn_scale(FACTOR)
    for kind, bits in (("F16", 16), ("Q8_0", 8), ("Q4_K_M", 4)):
        yield Case(f"right {kind}", None, lambda kind=kind: models.gguf(kind), bits=bits)
    for name, fault, flags in (
        ("scaling off", "unscaled", {"scaling": "none"}),
        ("linear", "linear", {"scaling": "linear"}),
        ("original doubled", "original length doubled", {"original": 2 * models.original}),
        ("original halved", "original length halved", {"original": models.original // 2}),
        ("original as target", "original length is the target", {"original": models.target}),
        ("factor halved", "factor halved", {"factor": FACTOR / 2}),
        ("factor doubled", "factor doubled", {"factor": 2 * FACTOR}),
        ("context cut", "context cut", {"context": models.original}),
    ):
        for kind in ("F16", "Q4_K_M"):
            yield Case(f"{name}, {kind}", fault, lambda kind=kind: models.gguf(kind), flags)
    for name, value in (("missing", 1 / scale), ("squared", scale)):  # --yarn-attn-factor is overwritten
        for kind in ("F16", "Q4_K_M"):
            fault = f"attention factor {name}"
            files = lambda value=value, kind=kind: models.rewritten("attn_factor", value, kind)  # noqa: E731
            yield Case(f"{fault}, {kind}", fault, files)
    yield Case("other weights", "other weights", lambda: models.gguf(model=models.other_weights()))
    yield Case("other tokenizer", "other tokenizer", lambda: models.gguf(model=models.other_tokenizer()))
    yield Case("BOS", "BOS", lambda: models.rewritten("add_bos_token", True))
    yield Case("Q2_K told to be 8 bits", "quantisation", lambda: models.gguf("Q2_K"), bits=8)


def transformers_cases(models: Models) -> Iterator[Case]:
    scale = yarn_scale(FACTOR)
    yield Case("right", None, lambda: models.right, bits=16)
    for name, fault, rope in (
        ("unscaled", "unscaled", {"method": "none"}),
        ("linear", "linear", {"method": "linear"}),
        ("attention-1", "attention factor missing", {"attention_factor": 1.0}),
        ("attention-squared", "attention factor squared", {"attention_factor": scale**2}),
        ("original-doubled", "original length doubled", {"original": 2 * models.original}),
        ("original-halved", "original length halved", {"original": models.original // 2}),
        ("original-target", "original length is the target", {"original": models.target}),
        ("factor-halved", "factor halved", {"factor": FACTOR / 2}),
        ("factor-doubled", "factor doubled", {"factor": 2 * FACTOR}),
    ):
        yield Case(name, fault, lambda name=name, rope=rope: models.extended(name, **rope))
    yield Case("other weights", "other weights", models.other_weights)
    yield Case("other tokenizer", "other tokenizer", models.other_tokenizer)


def vllm_cases(models: Models) -> Iterator[Case]:
    """By --hf-overrides; what shortens the context below --max-model-len is refused by vLLM itself."""
    rope = read_config(models.right)["rope_parameters"]
    factor = rope["factor"]
    scale = yarn_scale(factor)
    yield Case("right", None, lambda: models.right, bits=16)
    for name, fault, changed in (
        ("YaRN dropped", "unscaled", {"rope_type": "default"}),
        ("linear", "linear", {"rope_type": "linear"}),
        # up to 0.29 the first key is read, and multiplies; from 0.30 on the second
        ("attention factor missing", None, {"attn_factor": 1 / scale, "attention_factor": 1.0}),
        ("attention factor squared", None, {"attn_factor": scale, "attention_factor": scale**2}),
        ("original length doubled", None, {"original_max_position_embeddings": 2 * models.original}),
        ("factor doubled", None, {"factor": 2 * factor}),
        ("factor squared", None, {"factor": factor**2}),
    ):
        yield Case(name, fault or name, lambda: models.right, {"rope": {**rope, **changed}})
    yield Case("context cut", "context cut", lambda: models.right, {"context": models.original})


CASES = {"transformers": transformers_cases, "vllm": vllm_cases}
"""of each engine that is none of llama.cpp's"""


def check(url: str, fingerprint: Fingerprint, served: str | None, bits: int | None) -> ServedVerdict:
    with InferenceServer(url, None, served) as server:
        return judge(fingerprint, server.ask(fingerprint.prompts(), quiet), bits)


def right_table(rows: Path) -> str:
    """What came of the right servers in a file of rows: nats, texts, seconds."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in map(json.loads, rows.read_text("utf-8").splitlines()):
        if row["fault"] is None:
            weights = row["case"].removeprefix("right").strip() or "float32, tokens alone"
            said = f"{row['nats']:.3f} nats, {row['seconds']:.0f} s"
            told = said if row["named"] is None else f"**{row['named']}** ({said})"
            found.setdefault((row["model"], row["engine"]), []).append(f"{weights}: {told}")
    lines = ["| model | engine | rightly served |", "|---|---|---|"]
    lines += [
        f"| {model} | {engine} | {'; '.join(cells)} |" for (model, engine), cells in sorted(found.items())
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="shipped:base512", help="a base of Llama's class: a directory")
    parser.add_argument("--engine", choices=("llama-cpp-python", "llama-server", "transformers", "vllm"))
    parser.add_argument("--llama-python", type=Path, default=ROOT / ".venv-llama/bin/python")
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--transformers", type=Path, default=Path(sys.executable).with_name("transformers"))
    parser.add_argument("--vllm", default="vllm", help="words that start it, before `serve`")
    parser.add_argument("--flags", default="", help="vllm's own, e.g. '--enforce-eager'")
    parser.add_argument("--extended", action="store_true", help="--model is extended and has a fingerprint")
    parser.add_argument("--fingerprint", type=Path, help="made before of the same extended model")
    parser.add_argument(
        "--context", type=int, help="tokens that the engines are asked to take; else the target"
    )
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--json", type=Path, help="a line a case is added there")
    parser.add_argument("--table", type=Path, help="print what a file of rows says of right servers, no more")
    asked = parser.parse_args()
    if asked.table is not None:
        print(right_table(asked.table))
        return
    if asked.engine is None:
        parser.error("--engine: say which")
    name = asked.model.removeprefix("shipped:")
    base = MODELS / name if asked.model.startswith("shipped:") else Path(asked.model)
    with tempfile.TemporaryDirectory() as folder:
        models = Models(base, Path(folder), asked.llama_python, asked.fingerprint, asked.extended)
        fingerprint = read_fingerprint(models.right)
        cases = CASES.get(asked.engine, llama_cases)(models)
        for case in cases:
            if asked.only not in case.name:
                continue
            served = case.files()
            context = asked.context or models.target
            command = command_of(asked.engine, served, context, case.flags, asked)
            with running(command, Path(folder) / "server.log") as url:
                began = time.monotonic()
                verdict = check(
                    url, fingerprint, str(served) if asked.engine == "transformers" else None, case.bits
                )
                seconds = time.monotonic() - began
            ok = "ok   " if verdict.fault == case.fault else "WRONG"
            print(
                f"{ok} {asked.engine:16} {base.name:8} {case.name:34} {seconds:5.1f} s  {verdict.line}",
                flush=True,
            )
            if asked.json is not None:
                row = {"engine": asked.engine, "model": base.name, "case": case.name, "fault": case.fault,
                       "named": verdict.fault, "nats": verdict.nats, "seconds": round(seconds, 1),
                       "unsure": verdict.unsure, "line": verdict.line}  # fmt: skip
                with asked.json.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
