"""Servers of real engines: the command that starts one under a fault, and one that runs for a while."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from yarn_ops import processes
from yarn_ops.export.serving import serving_settings
from yarn_ops.models.files import read_config

UP_S = 300


def command_of(engine: str, model: Path, context: int, flags: dict[str, Any], asked: Any) -> list[str]:
    """The command that serves a model under a fault; PORT stands for the port."""
    context = flags.get("context", context)
    if engine == "transformers":
        words = ("serve", str(model), "--port", "PORT", "--device", "cpu", "--dtype", "float32")
        return [str(asked.transformers), *words]
    if engine == "vllm":
        settings = serving_settings(read_config(model), "vllm")
        command = shlex.split(replace(settings, context_tokens=context).command(str(model)))
        rope = json.dumps({"rope_parameters": flags.get("rope")})
        overrides = ["--hf-overrides", rope] if "rope" in flags else []
        more = shlex.split(asked.flags)
        return [*shlex.split(asked.vllm), *command[1:], *overrides, *more, "--port", "PORT"]
    if engine == "llama-server":
        command = [asked.llama_server, "--model", model, "--ctx-size", context, "--parallel", 1]
        command += ["--port", "PORT", "--threads", 2]
        names = {"scaling": "--rope-scaling", "original": "--yarn-orig-ctx"}
        factor = {"--rope-scale": flags["factor"]} if "factor" in flags else {}
    else:
        command = [asked.llama_python, "-m", "llama_cpp.server", "--model", model, "--n_ctx", context]
        command += ["--port", "PORT", "--n_threads", 2]
        names = {"scaling": "--rope_scaling_type", "original": "--yarn_orig_ctx"}
        if "scaling" in flags:
            flags = {**flags, "scaling": {"none": 0, "linear": 1}[flags["scaling"]]}
        factor = {"--rope_freq_scale": 1 / flags["factor"]} if "factor" in flags else {}
    told = {names[name]: value for name, value in flags.items() if name in names} | factor
    return [str(word) for word in (*command, *(word for pair in told.items() for word in pair))]


@contextmanager
def running(command: list[str], log: Path) -> Iterator[str]:
    """The address of a server that runs during the block."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    words = [str(port) if word == "PORT" else word for word in command]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    with log.open("wb") as out:
        process = subprocess.Popen(words, stdout=out, stderr=out, env=environment, start_new_session=True)
        try:
            url, until = f"http://127.0.0.1:{port}", time.monotonic() + UP_S
            while True:
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"{words[0]}: not up: {log.read_text('utf-8', 'replace')[-2000:]}")
                try:
                    # transformers' own answers 500
                    if httpx.get(f"{url}/v1/models", timeout=5).status_code != 503:
                        break
                except httpx.HTTPError:
                    pass
                time.sleep(0.3)
            yield url
        finally:
            processes.stop(process)
