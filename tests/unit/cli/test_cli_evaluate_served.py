"""`yarn-ops evaluate --url`: what a server answers over real HTTP, measured as the directory that it serves.

Behind the forms stands the demo's base itself; real engines are in ../serving/test_serving_engines.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler

import pytest
import torch
from loopback import listening
from transformers import AutoModelForCausalLM, AutoTokenizer

from yarn_ops.evals.cells import Size
from yarn_ops.evals.plan import SIZES
from yarn_ops.evals.tasks import skills
from yarn_ops.rope.config import rope_spec_of
from yarn_ops.serving.client import Completion
from yarn_ops.serving.model import ServedModel

DOCUMENTS = ("--documents", "stdlib:json/*.py")
TASKS = ("skills", "context", "needle/code", "copy")
KEY = "sesame"


@dataclass
class Form:
    """How a server speaks."""

    ids: bool = True
    misplaced: bool = False
    """tells log-probabilities of each token behind itself"""
    own: bool = False
    """llama.cpp's"""
    most: int | None = None
    """tokens that it takes; told"""
    extra: str = ""
    """what it puts before a text"""
    odd: tuple[int, dict] | None = None
    """instead of an answer, after `right` answers"""
    right: int = 0
    waits: int = 0
    """that it answers 429 first"""
    key: str | None = None
    asked: int = 0


@pytest.fixture(scope="module")
def engine(base512):
    """(model, tokenizer)"""
    model = AutoModelForCausalLM.from_pretrained(base512, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(base512)


@contextmanager
def serving(engine, form: Form) -> Iterator[str]:
    """The address of a server of the engine's model."""
    model, tokenizer = engine

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def say(self, status, value, **headers):
            data = json.dumps(value).encode()
            self.send_response(status)
            for name, told in {"Content-Length": len(data), **headers}.items():
                self.send_header(name.replace("_", "-"), str(told))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            self.say(200, {"data": [{"id": "m", "max_model_len": form.most}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if form.key is not None and self.headers["Authorization"] != f"Bearer {form.key}":
                return self.say(401, {"detail": "who?"})
            if self.path != ("/completion" if form.own else "/v1/completions"):
                return self.say(404, {"detail": "Not Found"})
            if form.waits:
                form.waits -= 1
                return self.say(429, {"error": "busy"}, Retry_After=0)
            form.asked += 1
            if form.odd is not None and form.asked > form.right:
                return self.say(*form.odd)
            prompt = body["prompt"]
            if not isinstance(prompt, str) and not form.ids:
                return self.say(422, {"detail": "prompt must be a string"})
            ids = tokenizer.encode(form.extra + prompt) if isinstance(prompt, str) else prompt
            count = body["n_predict"] if form.own else body["max_tokens"]
            if form.most is not None and len(ids) + count > form.most:
                return self.say(400, {"error": {"message": f"{len(ids)} and {count} tokens are too many"}})
            with torch.inference_mode():
                read = model(torch.tensor([ids]), use_cache=True)
                told = read.logits[0].log_softmax(-1)
                written = [int(told[-1].argmax())]
                while len(written) < count:
                    read = model(torch.tensor([written[-1:]]), past_key_values=read.past_key_values)
                    written.append(int(read.logits[0, -1].argmax()))
            text = tokenizer.decode(written)
            if form.own:
                return self.say(200, {"content": text, "tokens_evaluated": len(ids), "stop_type": "limit"})
            choice = {"text": text, "finish_reason": "length"}
            if body.get("echo"):
                after = told if form.misplaced else told[:-1]
                known = after.gather(1, torch.tensor(ids[-len(after) :])[:, None])[:, 0].tolist()
                likeliest = [None, *({"a": float(top)} for top in told.max(-1).values)]
                choice["logprobs"] = {
                    "token_logprobs": [None, *known, float(told[-1].max())][-len(likeliest) :],
                    "top_logprobs": likeliest,
                }
            self.say(200, {"choices": [choice], "usage": {"prompt_tokens": len(ids)}})

    with listening(Handler) as url:
        yield url


@pytest.fixture
def small(monkeypatch):
    """A suite of seconds with tasks of every kind: losses, answers, choices, tokens of an answer."""
    monkeypatch.setitem(SIZES, "tiny", Size(1, 1, 2, 0, TASKS))
    monkeypatch.setattr(skills, "ITEMS", 1)


def scores_of(answer):
    (facts,) = json.loads(answer.out)
    return {(one["task"], one["depth"]): one for one in facts["scores"]}, facts


def test_a_served_model_scores_what_its_directory_scores(yarn_ops, engine, base512, small):
    asked = ("evaluate", base512, "--suite", "tiny", "--longest", 128, "--json", *DOCUMENTS)
    local, _ = scores_of(yarn_ops(*asked))
    assert local["needle/code", None]["value"] > 0
    for form in (Form(), Form(ids=False, most=128), Form(own=True), Form(misplaced=True)):
        told = not (form.own or form.misplaced)
        with serving(engine, form) as url:
            answer = yarn_ops(*asked, "--url", url)
        assert answer.status == 0, answer.err
        scores, facts = scores_of(answer)
        assert facts["model"] == f"base512 served by {url.removeprefix('http://')}"
        untold = {"copy"} if form.ids and told else {"copy", "skills"}
        assert {cell.split()[0] for cell in facts["skipped"]} == untold | (set() if told else {"context"})
        assert facts["reach"]["uses"] is not None
        asked_of = {key for key in local if key[0].startswith(("needle", "loss") if told else "needle")}
        likely = {key for key in asked_of if "/choice" in key[0] or key[0].endswith("/nats")}
        assert (asked_of if told and form.ids else asked_of - likely) <= set(scores)
        for key, score in scores.items():
            exact = key[0].startswith(("needle", "short/")) and not key[0].endswith("/nats")
            near = 1e-6 if exact else 0.02 if form.most else 2e-3
            assert score["value"] == pytest.approx(local[key]["value"], abs=near), (form, key)
            assert score["samples"] == local[key]["samples"]


def test_a_server_that_says_when_is_waited_for_and_its_key_is_sent(yarn_ops, engine, base512, small):
    asked = ("evaluate", base512, "--suite", "tiny", "--longest", 128, *DOCUMENTS)
    with serving(engine, Form(waits=3, key=KEY, odd=(500, {"error": "no room"}), right=9)) as url:
        refused = yarn_ops(*asked, "--url", url)
        assert refused.status == 2 and "YARN_OPS_SERVER_KEY" in refused.err
        answer = yarn_ops(*asked, "--url", url, YARN_OPS_SERVER_KEY=KEY)
    assert answer.status == 2 and "no room" in answer.err and KEY not in answer.out + answer.err


@pytest.mark.parametrize(
    ("form", "options", "told"),
    [
        (Form(odd=(404, {"error": {"message": "no model m"}})), (), "answers 404 (no model m); correct"),
        (Form(odd=(429, {"error": "busy"}), right=9), (), "answers 429 (busy); ask it again"),
        (Form(odd=(500, {"error": "no room"}), right=9), (), "it says 500 (no room)"),
        (Form(odd=(200, {"choices": [{"text": 7}]}), right=9), (), "not as OpenAI's completions do"),
        (Form(most=100), (), "takes 100 tokens, 128 are asked; serve base512 with more"),
        (Form(ids=False, extra="x y z "), (), "tokens in a text that has"),
        (Form(), ("--url", "http://127.0.0.1:1"), "cannot be asked"),
        (Form(), ("--url", "nowhere"), "write http://host:port"),
    ],
)  # fmt: skip
def test_a_fault_of_the_server_is_one_line(yarn_ops, engine, base512, small, form, options, told):
    with serving(engine, form) as url:
        options = options or ("--url", url)
        answer = yarn_ops(
            "evaluate", base512, "--suite", "tiny", "--longest", 128, *DOCUMENTS, *options, COLUMNS="200"
        )
    assert answer.status == 2 and not answer.out
    assert told in answer.err and answer.err.count("\n") == 1 and "Traceback" not in answer.err


def test_a_name_is_of_a_server(yarn_ops, base512):
    answer = yarn_ops("evaluate", base512, "--served", "m")
    assert answer.status == 2 and "give its address by --url" in answer.err


def test_an_answer_that_ends_the_text_is_told_by_its_end(engine, base512):
    """A token that is not shown, as of a chat's turn, is right where the server stopped there."""
    _, tokenizer = engine

    class Silent:
        url, context_tokens = "", None

        def write(self, prompt, tokens):
            return Completion("", True, None)

    class Whole:
        name, spec = "base512", rope_spec_of(json.loads((base512 / "config.json").read_bytes()))
        encode = encode_whole = staticmethod(lambda text: tokenizer.encode(text, add_special_tokens=False))

    Whole.tokenizer = tokenizer
    model = ServedModel(Silent(), Whole(), ())
    end, answer = tokenizer.all_special_ids[0], tuple(tokenizer.encode(" 1234", add_special_tokens=False))
    before = tokenizer.encode("It is:", add_special_tokens=False)
    assert model.written(" 1234", before, (*answer, end), ended=True) == len(answer) + 1
    assert model.written(" 1234", before, (*answer, end), ended=False) == len(answer)
    assert model.written("1234 more", before, answer, ended=False) == len(answer)
    assert model.written("", before, (end,), ended=True) == 1
    assert model.written("no", before, (end,), ended=True) == 0
    assert model.written("", before, answer, ended=True) == 0
