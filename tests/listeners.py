"""On which ports processes listen, straight from the kernel: /proc, without psutil."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

LISTENS = "0A"


def ports_of(pids: Iterable[int]) -> set[int]:
    """The TCP ports on which any of these processes listens."""
    mine = {inode for pid in pids for inode in _sockets(pid)}
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path("/proc/net", table).read_text().splitlines()[1:]
    ]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == LISTENS and row[9] in mine}


def _sockets(pid: int) -> set[str]:
    found = set()
    try:
        for descriptor in Path("/proc", str(pid), "fd").iterdir():
            match = re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink()))
            if match:
                found.add(match.group(1))
    except OSError:
        pass  # it has ended
    return found
