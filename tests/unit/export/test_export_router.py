"""`yarn-ops router`: what it writes is run by nginx before two real servers that say who they are.

`apt-get install nginx libnginx-mod-http-js`; without them these tests skip. Real engines are behind it in
tests/unit/serving/test_serving_engines.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest
from loopback import listening
from tokenizers import Tokenizer
from typer.testing import CliRunner

from yarn_ops import processes
from yarn_ops.cli import app
from yarn_ops.errors import ExportError, YarnOpsError
from yarn_ops.export.router import export_router
from yarn_ops.servers import free_port

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
NJS = Path("/usr/lib/nginx/modules/ngx_http_js_module.so")
ORIGINAL = 512
needs_nginx = pytest.mark.skipif(not (NGINX and NJS.exists()), reason="no nginx with njs")


def counts_as_vllm(body, count):
    text = body.get("prompt") or "".join(message["content"] for message in body["messages"])
    return "/tokenize", {"count": count(text), "tokens": [], "max_model_len": ORIGINAL}


def counts_as_llama_cpp(body, count):
    return "/tokenize", {"tokens": [7] * count(body["content"]) if "content" in body else []}


def counts_as_sglang(body, count):
    return ("/tokenize", {"count": count(body["prompt"]), "tokens": []}) if "prompt" in body else (None, {})


def counts_nothing(body, count):
    return None, {}


@dataclass
class Served:
    """The router's address, and what its two servers do."""

    url: str
    go_on: threading.Event
    """which a streamed answer waits for after its first part"""

    def ask(self, body, path="/v1/completions", **headers) -> dict:
        """What the server that answered says: its name, and the request as it arrived."""
        data = body if isinstance(body, bytes | str) else json.dumps(body)
        reply = httpx.post(self.url + path, content=data, headers=headers, timeout=60)
        assert reply.headers["X-Served-By"] == reply.json()["name"], reply.text
        return reply.json()


@pytest.fixture(scope="module")
def count(base512):
    """count(text): its tokens."""
    tokenizer = Tokenizer.from_file(str(base512 / "tokenizer.json"))
    return lambda text: len(tokenizer.encode(text).ids)


@contextmanager
def routed(extended: Path, folder: Path, count, form=counts_as_vllm, *, base_up=True) -> Iterator[Served]:
    go_on = threading.Event()

    def server(who):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                self.answer({"name": who, "path": self.path})

            def do_POST(self):
                chunked = self.headers.get("Transfer-Encoding") == "chunked"
                data = b"" if chunked else self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/apply-template" and form is counts_as_llama_cpp:
                    words = "".join(one["content"] for one in json.loads(data)["messages"])
                    return self.answer({"prompt": words})
                if self.path == "/tokenize":
                    assert who == "base"
                    path, told = form(json.loads(data), count)
                    return self.answer(told, 200 if path else 404)
                if b'"stream"' in data:
                    return self.stream()
                seen = {"name": who, "path": self.path, "body": data.decode("utf-8", "replace")}
                return self.answer(seen | {"key": self.headers.get("Authorization")})

            def answer(self, value, status=200):
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def stream(self):
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for part in (f"data: {who}\n\n".encode(), b"data: [DONE]\n\n"):
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                    self.wfile.flush()
                    assert go_on.wait(60)
                self.wfile.write(b"0\r\n\r\n")

        return listening(Handler)

    listen, to = f"127.0.0.1:{free_port()}", folder / "router"
    with server("base") as base, server("extended") as extension:
        base = base if base_up else f"http://127.0.0.1:{free_port()}"
        export_router(extended, base=base, extended=extension, listen=listen, to=to)
        process = subprocess.Popen(
            [NGINX, "-p", to, "-c", "nginx.conf"], stderr=(folder / "log").open("w"), start_new_session=True
        )
        try:
            until = time.monotonic() + 60
            while True:
                try:
                    httpx.get(f"http://{listen}/v1/models")
                    break
                except httpx.ConnectError:
                    assert process.poll() is None and time.monotonic() < until, (folder / "log").read_text()
                    time.sleep(0.05)
            yield Served(f"http://{listen}", go_on)
        finally:
            processes.stop(process)


@pytest.fixture(scope="module")
def model(base512, tmp_path_factory):
    """base512, extended ×4."""
    from unit.export.conftest import extend

    return extend(base512, tmp_path_factory.mktemp("router") / "extended")


@pytest.fixture(scope="module")
def router(model, tmp_path_factory, count):
    with routed(model, tmp_path_factory.mktemp("vllm"), count) as served:
        yield served


def text_of(tokens: int, count) -> str:
    """A text of so many tokens."""
    text = " the" * tokens
    while count(text) > tokens:
        text = text[: text.rindex(" ")]
    assert count(text) == tokens
    return text


@needs_nginx
@pytest.mark.parametrize("form", [counts_as_vllm, counts_as_llama_cpp, counts_as_sglang])
def test_what_fits_the_base_goes_to_the_base_to_the_token(model, count, tmp_path, form):
    with routed(model, tmp_path, count, form) as served:
        for prompt, answer, who in ((500, 12, "base"), (500, 13, "extended"), (1900, 12, "extended")):
            asked = {"model": "m", "prompt": text_of(prompt, count), "max_tokens": answer}
            assert served.ask(asked)["name"] == who
            messages = [{"role": "user", "content": text_of(prompt, count)}]
            asked = {"model": "m", "messages": messages, "max_completion_tokens": answer}
            expected = (
                "extended" if form is counts_as_sglang else who
            )  # it counts no chats, by bytes it is long
            assert served.ask(asked, "/v1/chat/completions")["name"] == expected


@needs_nginx
def test_where_the_base_does_not_count_what_fits_by_bytes_goes_there(model, count, tmp_path):
    with routed(model, tmp_path, count, counts_nothing) as served:
        for spare, who in ((0, "base"), (-1, "extended")):
            body = json.dumps({"prompt": "?", "max_tokens": 100})
            filled = body.replace("?", "?" * (413 - len(body) - spare))
            assert len(filled) == 412 - spare and served.ask(filled)["name"] == who
        chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100}
        assert served.ask(chat, "/v1/chat/completions")["name"] == "base"
        tools = {**chat, "tools": [{"type": "function", "function": {"name": "f"}}]}
        assert served.ask(tools, "/v1/chat/completions")["name"] == "extended"


PICTURE = [{"type": "image_url", "image_url": {"url": "data:,"}}]


@needs_nginx
@pytest.mark.parametrize(
    ("body", "who"),
    [
        ({"prompt": [1] * 500, "max_tokens": 12}, "base"),
        ({"prompt": [1] * 500, "max_tokens": 13}, "extended"),
        ({"prompt": ["hi", "hello"], "max_tokens": 12}, "base"),
        ({"prompt": [[1] * 10, [1] * 501], "max_tokens": 12}, "extended"),
        ({"prompt": [1] * 384}, "base"),  # a quarter is kept where nobody says how long the answer is
        ({"prompt": [1] * 385}, "extended"),
        ({"prompt": "hi", "max_tokens": -1}, "extended"),
        ({"prompt": "hi", "max_tokens": "many"}, "extended"),
        ({"prompt": "hi", "suffix": "there", "max_tokens": 1}, "extended"),
        ({"messages": [{"role": "user", "content": PICTURE}]}, "extended"),
        ({"messages": "hi"}, "extended"),
        ({"prompt": None}, "extended"),
        ([], "extended"),
        ("{", "extended"),
        (b"\xff\xfe", "extended"),
    ],
)
def test_each_kind_of_request_arrives_unchanged(router, body, who):
    data = body if isinstance(body, bytes | str) else json.dumps(body)
    seen = router.ask(data, "/v1/completions?a=b", Authorization="Bearer sesame")
    assert (seen["name"], seen["path"], seen["key"]) == (who, "/v1/completions?a=b", "Bearer sesame")
    assert seen["body"] == (data if isinstance(data, str) else data.decode("utf-8", "replace"))


@needs_nginx
def test_long_texts_arrive_whole_and_other_requests_are_the_extended_model_s(router):
    body = json.dumps({"prompt": "harbour 渡轮 " * 20_000})
    assert router.ask(body) == {"name": "extended", "path": "/v1/completions", "body": body, "key": None}
    assert router.ask({"input": "hi"}, "/v1/embeddings")["name"] == "extended"
    assert httpx.get(f"{router.url}/v1/models").json() == {"name": "extended", "path": "/v1/models"}
    assert httpx.post(f"{router.url}/.count/tokenize", json={"content": "hi"}).status_code == 404


@needs_nginx
@pytest.mark.parametrize(("tokens", "who"), [(10, "base"), (1900, "extended")])
def test_answers_are_streamed_as_they_are_written(router, count, tokens, who):
    router.go_on.clear()
    body = {"prompt": text_of(tokens, count), "stream": True, "max_tokens": 5}
    with httpx.stream("POST", f"{router.url}/v1/completions", json=body, timeout=60) as reply:
        parts = reply.iter_text()
        assert next(parts) == f"data: {who}\n\n"  # nothing more is written before this has arrived
        router.go_on.set()
        assert "".join(parts) == "data: [DONE]\n\n"


@needs_nginx
def test_a_base_that_is_down_is_stood_in_for(model, count, tmp_path):
    with routed(model, tmp_path, count, base_up=False) as served:
        assert served.ask({"prompt": "hi", "max_tokens": 5})["name"] == "extended"


ADDRESSES = {"base": "http://127.0.0.1:1", "extended": "http://127.0.0.1:2", "listen": "127.0.0.1:3"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"base": "https://a:1"}, "--base: https://a:1: write http://host:port, without a path"),
        ({"base": "http://a"}, "--base: http://a: write"),
        ({"extended": "http://a:1/v1"}, "--extended: http://a:1/v1: write"),
        ({"extended": "http://u:p@a:1"}, "--extended: .*write http://host:port"),
        ({"extended": "http://a;b:1"}, "--extended: http://a;b:1: write"),
        ({"extended": "http://a:99999"}, "--extended: http://a:99999: write"),
        ({"extended": "http://[::1:2"}, "--extended: .*: write"),
        ({"listen": "8000"}, "--listen: 8000: write host:port"),
        ({"listen": "a:1;"}, "--listen: a:1;: write host:port"),
        ({"extended": "http://127.0.0.1:01"}, "name one address twice; give each its own"),
    ],
)
def test_an_address_that_is_none_is_refused(model, tmp_path, changes, named):
    with pytest.raises(ExportError, match=named):
        export_router(model, **{**ADDRESSES, **changes}, to=tmp_path / "to")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("rope", "named"),
    [
        ({"method": "dynamic-yarn"}, "dynamic-yarn turns short texts as its base does; serve it alone"),
        (None, "is not extended; serve it alone"),
    ],
)
def test_what_need_not_be_served_beside_its_base_is_refused(base512, extended, tmp_path, rope, named):
    with pytest.raises(YarnOpsError, match=named):
        export_router(extended(**rope) if rope else base512, **ADDRESSES, to=tmp_path / "to")


def test_the_command_is_printed_and_what_is_there_stays(model, tmp_path):
    to = tmp_path / "my router"
    typed = ["router", str(model), "--base", "http://a:1", "--extended", "http://[::1]:2", "--to", str(to)]
    done = CliRunner().invoke(app, typed)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[1] == f"nginx -p '{to}' -c nginx.conf"
    conf = (to / "nginx.conf").read_text()
    assert "proxy_pass http://[::1]:2;" in conf and "listen 127.0.0.1:8000;" in conf
    assert isinstance(CliRunner().invoke(app, typed).exception, ExportError)
    assert (to / "nginx.conf").read_text() == conf
