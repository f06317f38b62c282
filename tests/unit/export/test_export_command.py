"""`yarn-ops export` as a person types it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from yarn_ops import cli

Export = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Export]:
    """`yarn-ops export …` in this process."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = ["yarn-ops", "export", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(command, int(end.value.code or 0), printed.out, printed.err)

    handler = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, handler)


def test_the_command_is_printed_below_the_versions_it_holds_for(export, extended, tmp_path):
    to = tmp_path / "to"
    done = export(extended(), "--for", "llama.cpp", "--to", to, "--type", "q8_0")
    gguf = to / "extended-q8_0.gguf"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"# llama-cpp-python>=0.3.36\nllama-server --model {gguf} --ctx-size 2048 --parallel 1\n"
    )
    assert gguf.stat().st_size > 5_000_000


def test_a_refusal_is_one_line(export, extended):
    done = export(extended(attention_factor=1.25), "--for", "sglang")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("yarn-ops: attention_factor: 1.25 is ignored by sglang")
    assert done.stderr.count("\n") == 1


def test_an_adapter_needs_its_base_and_a_place(export, tmp_path):
    done = export(tmp_path, "--for", "vllm", "--adapter", tmp_path)
    assert done.stderr == "yarn-ops: --adapter: needs --base and --to as well; give all three\n"
