"""What stands for Hugging Face: it speaks the hub's documented preupload, LFS and commit API."""

from __future__ import annotations

import hashlib
import json
import threading
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """Hugging Face's API for one repository, in memory; `breaks`: large files after which it breaks off."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[str, bytes]] = {
            "old.safetensors": ("lfs", b"old"),
            ".gitattributes": ("", b""),
        }
        self.large: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.breaks: int | None = None
        self.created: dict = {}
        self.flips = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def say(self, status, value):
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(data)

            def body(self):
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers["Content-Length"]))
                data = b""
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return data

            def do_GET(self):
                if "/tree/" in self.path:
                    return self.say(
                        200, [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in hub.files]
                    )
                self.say(200, {"id": "me/small", "sha": "c" * 40, "siblings": hub.siblings()})

            def do_PUT(self):
                data, oid = self.body(), self.path.rpartition("/")[2]
                if hub.breaks is not None and len(hub.uploads) >= hub.breaks:
                    return self.say(400, {"error": "the disk is full"})
                hub.uploads.append(oid)
                assert hashlib.sha256(data).hexdigest() == oid
                hub.large[oid] = data
                self.say(200, {})

            def do_POST(self):
                data = self.body()
                if self.headers.get("Authorization") != "Bearer hf_right":
                    return self.say(401, {"error": "Invalid username or password."})
                if self.path == "/api/repos/create":
                    hub.created = json.loads(data)
                    return self.say(200, {"url": f"{hub.url}/me/small"})
                if self.path == "/api/validate-yaml":
                    return self.say(200, {"errors": [], "warnings": []})
                if "/preupload/" in self.path:
                    modes = [
                        {"path": one["path"], "shouldIgnore": False, "oid": None,
                         "uploadMode": "lfs" if one["path"].endswith((".safetensors", ".png")) else "regular"}
                        for one in json.loads(data)["files"]
                    ]  # fmt: skip
                    return self.say(200, {"files": modes})
                if self.path.endswith("/info/lfs/objects/batch"):
                    asked = json.loads(data)["objects"]
                    return self.say(200, {"transfer": "basic", "objects": [hub.action(one) for one in asked]})
                for line in map(json.loads, data.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        hub.files[value["path"]] = "", b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        hub.files[value["path"]] = "lfs", hub.large[value["oid"]]
                    elif line["key"] == "deletedFile":
                        del hub.files[value["path"]]
                told = {"commitUrl": f"{hub.url}/me/small/commit/c", "commitOid": "c" * 40}
                self.say(200, {**told, "hookOutput": "", "pullRequestUrl": None})

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def action(self, one: dict) -> dict:
        upload = {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}}
        return one if one["oid"] in self.large else one | {"actions": upload}

    def siblings(self) -> list[dict]:
        told = []
        for name, (kind, data) in self.files.items():
            data = data + b"!" if self.flips and name == "config.json" else data
            entry = {"rfilename": name, "size": len(data), "blobId": git_digest(data)}
            if kind == "lfs":
                entry["lfs"] = {
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "size": len(data),
                    "pointerSize": 1,
                }
            told.append(entry)
        return told

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def git_digest(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
