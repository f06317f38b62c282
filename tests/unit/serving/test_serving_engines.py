"""Real engines, served rightly and under each fault: what serve-check names is what was done.

`infra/llama` builds llama.cpp's Python server into .venv-llama; `pip install 'transformers[serving]'` brings
what transformers' own needs. Without them these tests skip.
"""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from pages import CHECKOUT

from yarn_ops import processes
from yarn_ops.data.haystack import Haystack
from yarn_ops.evals.cells import Size
from yarn_ops.evals.journal import JsonLines
from yarn_ops.evals.measure import measure
from yarn_ops.evals.names import GAIN
from yarn_ops.evals.plan import CellPlan, suite_cells
from yarn_ops.evals.run import Worker
from yarn_ops.evals.subject import open_subject
from yarn_ops.export.model import export_model
from yarn_ops.export.router import export_router
from yarn_ops.servers import free_port
from yarn_ops.serving.client import InferenceServer
from yarn_ops.serving.model import ServedModel

LLAMA_PYTHON = CHECKOUT / ".venv-llama/bin/python"
HAS_LLAMA_SERVER = (
    LLAMA_PYTHON.exists()
    and not subprocess.run(
        [LLAMA_PYTHON, "-c", "import llama_cpp.server.app"], capture_output=True, check=False
    ).returncode
)
LLAMA_SERVER = shutil.which("llama-server")
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
HAS_SERVING = importlib.util.find_spec("openai") is not None

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize(
    ("engine", "cases"),
    [
        pytest.param(
            "llama-cpp-python", 27,
            marks=pytest.mark.skipif(not HAS_LLAMA_SERVER, reason="no .venv-llama; run infra/llama"),
        ),
        pytest.param(
            "transformers", 12,
            marks=pytest.mark.skipif(not HAS_SERVING, reason="no transformers[serving]; pip install it"),
        ),
    ],
)  # fmt: skip
def test_right_servers_pass_and_every_fault_is_named(engine: str, cases: int, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    command = [
        sys.executable,
        CHECKOUT / "infra/benchmarks/serve_check.py",
        "--engine",
        engine,
        "--json",
        rows,
    ]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, cwd=tmp_path)
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(found) == cases
    assert {row["case"]: row["named"] for row in found} == {row["case"]: row["fault"] for row in found}


def with_bos(model: Path, out: Path) -> Path:
    """A model whose tokenizer puts a BOS first: without, llama-cpp-python misplaces log-probabilities."""
    shutil.copytree(model, out)
    bos = "<|eos|>"
    first, text, other = (
        {"SpecialToken": {"id": bos, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}},
    )
    described = json.loads((out / "tokenizer.json").read_bytes())
    described["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, other],
        "special_tokens": {bos: {"id": bos, "ids": [0], "tokens": [bos]}},
    }
    (out / "tokenizer.json").write_text(json.dumps(described))
    config = json.loads((out / "tokenizer_config.json").read_bytes())
    (out / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": bos}))
    return out


@pytest.mark.skipif(not HAS_LLAMA_SERVER, reason="no .venv-llama; run infra/llama")
def test_a_gguf_is_measured_through_its_server_as_its_directory_is(measured: Path, tmp_path: Path) -> None:
    """Answers equal, losses within what float16 rounds: 256 tokens of base512, extended ×4."""

    def quiet(done: int, total: int, note: str) -> None:
        pass

    running = runpy.run_path(str(CHECKOUT / "infra/benchmarks/engine_servers.py"))["running"]
    served_model = with_bos(measured, tmp_path / "bos")
    export_model(served_model, "llama.cpp", to=tmp_path, weights="f16", report=quiet)
    (gguf,) = tmp_path.glob("*.gguf")
    command = f"{LLAMA_PYTHON} -m llama_cpp.server --model {gguf} --n_ctx 258 --logits_all true --port PORT"
    subject, text = open_subject(served_model), Path(json.decoder.__file__).read_text("utf-8")
    documents = (np.asarray(subject.encode(text), dtype=np.int64),)
    haystack = Haystack((text,), documents, (0,), subject.encode, "text", subject.tokenizer.decode)
    size = Size(2, 1, 2, 0, ("context", "needle/code"))
    plan = CellPlan(tuple(suite_cells(size, (128, 256), haystack, 0)), (128, 256), 0, haystack)
    with running(command.split(), tmp_path / "log") as url, InferenceServer(url, None, None) as server:
        here, served = (
            measure(subject, plan, name, Worker("cpu", "fp32", JsonLines(tmp_path / name), quiet), model)
            for name, model in (("here", None), ("served", ServedModel(server, subject, haystack.prefix)))
        )
    assert served.reach == here.reach and not served.skipped
    assert served.card.score(GAIN, 256).value > 0.1
    known = {(one.task, one.context_tokens, one.depth): one.value for one in here.card.scores}
    for one in served.card.scores:
        near = 0.01 if one.task.startswith("loss") or one.task.endswith("/nats") else 0
        assert one.value == pytest.approx(known[one.task, one.context_tokens, one.depth], abs=near), one.task


@pytest.mark.skipif(not (LLAMA_SERVER and NGINX), reason="no llama-server in PATH, or no nginx")
def test_two_llama_servers_behind_the_router_answer_to_the_token(
    base512: Path, measured: Path, tmp_path: Path
) -> None:
    """A model of 64 tokens and its extension to 256: prompts and chats at the boundary and one beyond."""

    def quiet(done: int, total: int, note: str) -> None:
        pass

    running = runpy.run_path(str(CHECKOUT / "infra/benchmarks/engine_servers.py"))["running"]
    export_model(measured, "llama.cpp", to=tmp_path, weights="f16", report=quiet)
    (gguf,) = tmp_path.glob("*.gguf")
    serve = [LLAMA_SERVER, "--model", str(gguf), "--parallel", "1", "--threads", "1", "--port", "PORT"]
    short = [*serve, "--ctx-size", "64", "--rope-scaling", "none"]
    with running(short, tmp_path / "base") as base, running(serve, tmp_path / "extended") as extended:
        listen, to = f"127.0.0.1:{free_port()}", tmp_path / "router"
        export_router(measured, base=base, extended=extended, listen=listen, to=to)
        nginx = subprocess.Popen([NGINX, "-p", to, "-c", "nginx.conf"], start_new_session=True)
        try:
            for path, asked in (("completions", str), ("chat/completions", chat)):
                around = ask(base, path, asked("the"), 1)[1] - 1  # what the engine's chat template puts there
                for tokens, who in ((56, "base"), (57, "extended"), (200, "extended")):
                    prompt = asked("the" + " the" * (tokens - around - 1))
                    direct = ask(base if who == "base" else extended, path, prompt, 8)
                    assert ask(f"http://{listen}", path, prompt, 8) == (who, *direct[1:])
                    assert direct[1] == tokens
        finally:
            processes.stop(nginx)


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def ask(url: str, path: str, asked: object, tokens: int) -> tuple[str | None, int, str]:
    """(who answered, tokens of the prompt, the answer), which is the same when it is streamed."""
    body = {"prompt" if isinstance(asked, str) else "messages": asked, "max_tokens": tokens, "temperature": 0}
    reply = httpx.post(f"{url}/v1/{path}", json=body, timeout=600)
    streamed = httpx.post(f"{url}/v1/{path}", json=body | {"stream": True}, timeout=600)
    assert streamed.headers.get("X-Served-By") == reply.headers.get("X-Served-By")
    assert streamed.text.rstrip().endswith("data: [DONE]")
    choice = reply.json()["choices"][0]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    return reply.headers.get("X-Served-By"), reply.json()["usage"]["prompt_tokens"], text
