"""Servers that nobody guards are found, and the server of a single run answers that run only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
from attacks import attack, files_of_living, prefect_of
from service_up import wait_until

from yarn_ops import processes, servers
from yarn_ops.cli.security import examine_ports
from yarn_ops.errors import SettingsError
from yarn_ops.settings import Settings

pytestmark = pytest.mark.timeout(400)


def test_a_server_that_asks_nobody_is_found(tmp_path: Path) -> None:
    """As before there was a guard, and beside it a port that nobody knows of."""
    settings = Settings(state_dir=tmp_path / "state")
    settings.make_home()
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "health").touch()
    ports = servers.free_ports(2)
    serving = f"""
import socket, subprocess, sys
quiet = socket.create_server(("127.0.0.1", {ports[1]}))
command = [sys.executable, "-m", "http.server", "{ports[0]}", "--bind", "127.0.0.1"]
subprocess.run(command, cwd={str(tmp_path)!r})
"""
    process = processes.start([sys.executable, "-c", serving], log=tmp_path / "log", env=os.environ)
    api = f"http://127.0.0.1:{ports[0]}/api"
    try:
        wait_until(lambda: servers.answers(f"{api}/health"), timeout_s=60)
        service = servers.Service(api, "sqlite:///nowhere", "yarn-ops:a password", pid=process.pid)
        with servers.only_service(settings):
            servers.announce(settings, service, "")
            environment = {**os.environ, "YARN_OPS_STATE_DIR": str(settings.home)}
            command = [sys.executable, "-m", "yarn_ops.cli", "doctor", "--security", "--json"]
            told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    finally:
        processes.stop(process)
    assert told.returncode == 2, told.stderr
    found = {door["port"]: door for door in json.loads(told.stdout)}
    assert set(found) == set(ports)
    assert found[ports[0]]["password"] == "not asked" and not found[ports[0]]["closed"]
    assert found[ports[0]]["foreign_host"] == found[ports[0]]["foreign_origin"] == "answered"
    assert found[ports[1]]["password"] == "not known: silent" and not found[ports[1]]["closed"]


def test_without_a_service_there_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no service runs there; start it with `yarn-ops up`"):
        examine_ports(Settings(state_dir=tmp_path))


def test_a_server_of_its_own_answers_its_run_only(tmp_path: Path, small_recipe: Path) -> None:
    """The Prefect server of a single `extend`, attacked while it lasts; another run, another password."""
    environment = {**os.environ, "YARN_OPS_STATE_DIR": str(tmp_path / "state")}
    command = [sys.executable, "-m", "yarn_ops.cli", "extend", str(small_recipe)]
    run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _answering(run.pid) is not None, timeout_s=200)
        server = _answering(run.pid)
        assert server is not None
        auth, url = server.environ()["YARN_OPS_PREFECT_AUTH"], server.environ()["PREFECT_API_URL"]
        attack(prefect_of(url, auth))
        assert run.poll() is None, "the run was over before the attack"
        password = auth.partition(":")[2]
        lines = [" ".join(one.cmdline()) for one in psutil.Process(run.pid).children(recursive=True)]
        assert not any(password in line for line in lines)
        files = dict(files_of_living(tmp_path / "state"))
        assert files, "nothing was looked at"
        assert [path for path, content in files.items() if password.encode() in content] == []
    finally:
        run.terminate()
        run.wait(60)


def _answering(pid: int) -> psutil.Process | None:
    """The Prefect server among the children of a process, once it is healthy."""
    for child in psutil.Process(pid).children():
        if "flows.prefect_server" in child.cmdline():
            try:
                return child if httpx.get(f"{child.environ()['PREFECT_API_URL']}/health").is_success else None
            except httpx.HTTPError:
                return None
    return None
