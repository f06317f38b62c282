"""`yarn-ops serve-check` as a person types it, of a server that speaks each engine's form over real HTTP.

What stands behind the forms is the fingerprint itself; real engines are in test_serving_engines.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest
from loopback import listening
from typer.testing import CliRunner

from yarn_ops.claim import Claim, Reached, read_signing_key, sign_claim
from yarn_ops.cli import app
from yarn_ops.cli.pull import check_files
from yarn_ops.digests import digest_tree
from yarn_ops.errors import ServingError, YarnOpsError
from yarn_ops.records import CLAIM
from yarn_ops.serving.fingerprint import FINGERPRINT, MEASURED
from yarn_ops.store.trees import manifest_of

KEY = "sesame"


def completion(token, told, tokens):
    return {
        "choices": [{"text": token, "logprobs": {"top_logprobs": [told]}}],
        "usage": {"prompt_tokens": tokens},
    }


def later_form(token, told, tokens):
    tops = [{"token": one, "logprob": value} for one, value in told.items()]
    choice = {"text": token, "logprobs": {"content": [{"token": token, "top_logprobs": tops}]}}
    return {"choices": [choice], "usage": {"prompt_tokens": tokens}}


def tokens_alone(token, told, tokens):
    return {"choices": [{"text": token}], "usage": {"prompt_tokens": tokens}}


def llama_cpp(token, told, tokens):
    tops = later_form(token, told, tokens)["choices"][0]["logprobs"]["content"]
    return {"content": token, "completion_probabilities": tops, "tokens_evaluated": tokens}


@contextmanager
def serving(
    fingerprint,
    form,
    *,
    state=MEASURED,
    most=None,
    key=None,
    models=("m",),
    odd=None,
    context=None,
    meta=None,
) -> Iterator[str]:
    """The address of a server that answers the fingerprint's prompts as a state does."""
    known = dict(
        zip(
            fingerprint.prompts(),
            zip(fingerprint.probes, fingerprint.logprobs(state), strict=True),
            strict=True,
        )
    )

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def say(self, status, value):
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            self.say(200, {"data": [{"id": name, "max_model_len": context, "meta": meta} for name in models]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            path = "/completion" if form is llama_cpp else "/v1/completions"
            if key is not None and self.headers["Authorization"] != f"Bearer {key}":
                return self.say(401, {"detail": "who?"})
            if self.path != path:
                return self.say(404, {"detail": "Not Found"})
            if odd is not None:
                return self.say(*odd)
            if most is not None and body.get("logprobs") not in most:
                return self.say(400, {"error": {"message": f"logprobs must be one of {most}"}})
            probe, row = known[body["prompt"]]
            told = dict(zip(probe.candidates, row.tolist(), strict=True))
            self.say(200, form(max(told, key=told.__getitem__), told, probe.tokens))

    with listening(Handler) as url:
        yield url


@pytest.fixture
def check(measured):
    """check(url, …): (exit code, what was printed) of serve-check of the measured model."""

    def run(url, *options, model=None):
        answer = CliRunner().invoke(app, ["serve-check", url, "--model", str(model or measured), *options])
        if isinstance(answer.exception, YarnOpsError):
            return 2, str(answer.exception)
        return answer.exit_code, answer.stdout

    return run


@pytest.mark.parametrize("form", [completion, later_form, llama_cpp, tokens_alone])
def test_every_form_of_an_answer_is_read(fingerprint, check, form):
    with serving(fingerprint, form) as url:
        status, told = check(url + "/v1/")
    assert (status, told[:24]) == (0, "right to 0.000 nats over") or (form is tokens_alone and status == 0)
    assert ("by next tokens alone" in told) == (form is tokens_alone)


@pytest.mark.parametrize("form", [completion, later_form, llama_cpp, tokens_alone])
def test_a_fault_is_named_and_ends_with_one(fingerprint, check, form):
    with serving(fingerprint, form, state="linear") as url:
        status, told = check(url, "--json")
    assert status == 1
    assert json.loads(told)["fault"] == "linear"


@pytest.mark.parametrize("most", [(5,), (None,)])
def test_a_server_that_tells_fewer_is_asked_for_fewer(fingerprint, check, most):
    with serving(fingerprint, completion if most[0] else tokens_alone, most=most) as url:
        assert check(url)[0] == 0


def test_the_key_is_sent_and_never_printed(fingerprint, check, monkeypatch):
    with serving(fingerprint, completion, key=KEY) as url:
        status, told = check(url)
        assert status == 2 and "YARN_OPS_SERVER_KEY" in told
        monkeypatch.setenv("YARN_OPS_SERVER_KEY", KEY)
        assert check(url)[0] == 0
    status, told = check(url)
    assert status == 2 and "cannot be asked" in told and KEY not in told
    with serving(fingerprint, completion, key="other") as url:
        assert KEY not in check(url)[1]


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        ((200, b"<html>"), "answers without JSON"),
        ((200, {"choices": []}), "not as OpenAI's completions do"),
        ((200, {"choices": [{"text": 3}]}), "not as OpenAI's completions do"),
        ((200, ["choices"]), "not as OpenAI's completions do"),
        ((200, completion("a", {"a": 7.0}, 3)), "not as OpenAI's completions do"),
        ((200, completion("a", {"a": "x"}, 3)), "not as OpenAI's completions do"),
        ((200, b"[" * 100_000), "answers without JSON"),
        ((200, b" " * (5 << 20)), "more than"),
        ((302, {}), "sends elsewhere"),
        ((429, {"error": "busy"}), "answers 429 (busy)"),
        ((500, {"error": {"message": "no\n\x1b[2Jroom"}}), "it says 500 (no"),
    ],
)  # fmt: skip
def test_an_odd_answer_is_one_clear_line(fingerprint, check, odd, told):
    with serving(fingerprint, completion, odd=odd) as url:
        status, said = check(url)
    assert status == 2
    assert told in said and "\n" not in said.rstrip("\n") and "\x1b" not in said


@pytest.mark.parametrize(
    ("url", "options", "told"),
    [
        ("ftp://host", (), "write http://host:port"),
        ("nothing", (), "write http://host:port"),
        ("http://me:secret@host", (), "holds a user or a password"),
        ("http://127.0.0.1:1", (), "cannot be asked"),
        ("http://[::1", (), "write http://host:port"),
        ("http://host:99999", (), "write http://host:port"),
        ("http://127.0.0.1:1", ("--bits", "5"), "--bits: 5: write one of 16, 8, 4"),
    ],
)
def test_a_fault_of_what_was_typed_is_one_line(check, url, options, told):
    status, said = check(url, *options)
    assert status == 2 and told in said and "secret" not in said


def test_one_of_several_models_is_named(fingerprint, check):
    with serving(fingerprint, completion, models=("a", "b")) as url:
        status, told = check(url)
        assert status == 2 and "serves a, b; say which with --served" in told
        assert check(url, "--served", "b")[0] == 0


def test_a_model_without_a_fingerprint_says_how_to_make_one(check, base512, tmp_path):
    status, told = check("http://127.0.0.1:1", model=tmp_path)
    assert status == 2 and f"run `yarn-ops fingerprint {tmp_path}` first" in told


def test_a_release_may_hold_a_fingerprint_and_no_other_file_of_that_name(measured, tmp_path):
    check_files(measured, manifest_of(measured))
    (tmp_path / "m").mkdir()
    for path in measured.iterdir():
        (tmp_path / "m" / path.name).write_bytes(path.read_bytes() if path.name != FINGERPRINT else b"{}")
    with pytest.raises(ServingError, match="no fingerprint"):
        check_files(tmp_path / "m", manifest_of(tmp_path / "m"))


@pytest.mark.parametrize(("context", "above"), [(256, False), (257, True), (None, False)])
def test_a_server_that_takes_more_than_was_measured_is_told(fingerprint, check, context, above):
    with serving(fingerprint, completion, context=context) as url:
        status, told = check(url)
        assert json.loads(check(url, "--json")[1])["context_tokens"] == context
    assert status == 0
    assert ("the server takes 257 tokens, 256 were measured" in told) == above
    with serving(fingerprint, llama_cpp, meta={"n_ctx": context}) as url:
        assert ("the server takes 257 tokens, 256 were measured" in check(url)[1]) == above


def test_texts_much_shorter_than_the_target_are_told(measured, fingerprint, check, tmp_path):
    longer = fingerprint.model_copy(update={"target_context_tokens": 4096})
    folder = shutil.copytree(measured, tmp_path / "longer")
    (folder / FINGERPRINT).write_bytes(longer.to_bytes())
    most = max(probe.tokens for probe in fingerprint.probes)
    with serving(fingerprint, completion) as url:
        assert "were asked, of" not in check(url)[1]
        assert f"texts of up to {most} tokens were asked, of 4,096" in check(url, model=folder)[1]


def make_keys(private, public):
    for words in (
        ("genpkey", "-algorithm", "ed25519", "-out", private),
        ("pkey", "-in", private, "-pubout", "-out", public),
    ):
        subprocess.run(["openssl", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def signed(measured, tmp_path_factory):
    """A signed model directory; the public key beside it verifies it."""
    folder = tmp_path_factory.mktemp("signed")
    private, public = folder / "key.pem", folder / "key.pub"
    make_keys(private, public)
    model = shutil.copytree(measured, folder / "model")
    claim = Claim(
        model="small", base="base", method="yarn", factor=4, original_context_tokens=64,
        target_context_tokens=256, sees=None, uses=None, evaluation_version=5, suite="none",
        protocol="d" * 64, data="e" * 64, passed=True, checks=(),
    )  # fmt: skip
    (model / CLAIM).write_bytes(sign_claim(read_signing_key(private), claim, digest_tree(model)))
    return model


def test_a_signed_directory_is_verified_before_a_server_is_asked(
    fingerprint, check, signed, tmp_path, monkeypatch
):
    monkeypatch.setenv("YARN_OPS_VERIFY_KEY", str(signed.parent / "key.pub"))
    with serving(fingerprint, completion, context=512) as url:
        status, told = check(url, model=signed)
        assert status == 0 and "the server takes 512 tokens, 256 were signed" in told
        assert json.loads(check(url, "--json", model=signed)[1])["signed"] is True
        (signed / "notes.txt").write_text("a person's own")
        assert check(url, model=signed)[0] == 0
    nowhere = "http://127.0.0.1:1"
    for name in ("model.safetensors", "config.json", FINGERPRINT, CLAIM):
        model = shutil.copytree(signed, tmp_path / name)
        data = bytearray((model / name).read_bytes())
        data[len(data) // 2] ^= 1
        (model / name).write_bytes(data)
        status, told = check(nowhere, model=model)
        assert status == 2 and told.startswith(f"{model}: {name} ") and "\n" not in told
        (model / name).unlink()
        status, told = check(nowhere, model=model)
        assert status == 2 and name in told and ("missing" in told or "has no" in told)


def test_a_foreign_key_and_a_claim_above_the_measured_are_refused_before_a_server_is_asked(
    check, signed, tmp_path, monkeypatch
):
    other = [tmp_path / "other.pem", tmp_path / "other.pub"]
    make_keys(*other)
    monkeypatch.setenv("YARN_OPS_VERIFY_KEY", str(other[1]))
    status, told = check("http://127.0.0.1:1", model=signed)
    assert status == 2 and "was signed with another key" in told and "\n" not in told
    monkeypatch.setenv("YARN_OPS_VERIFY_KEY", str(signed.parent / "key.pub"))
    model = shutil.copytree(signed, tmp_path / "model")
    (model / "README.md").write_text("- sees: 64 → 128 [64, 256] tokens\n- uses: 64 → not measured tokens\n")
    files = {name: digest for name, digest in digest_tree(model).items() if name != CLAIM}
    claim = Claim.model_validate(
        json.loads(b64decode(json.loads((model / CLAIM).read_bytes())["payload"]))["predicate"]
    )
    for above, named in (
        ({"target_context_tokens": 512}, "claims target_context_tokens 512, and config.json says 256"),
        ({"sees": Reached(tokens=256, low=128, high=256)}, "claims sees 256, and README.md says 128"),
        ({"uses": Reached(tokens=1, low=1, high=1)}, "claims uses 1, and README.md says nothing"),
    ):
        key = read_signing_key(signed.parent / "key.pem")
        (model / CLAIM).write_bytes(sign_claim(key, claim.model_copy(update=above), files))
        status, told = check("http://127.0.0.1:1", model=model)
        assert status == 2 and named in told and "\n" not in told


def test_a_fingerprint_that_was_not_signed_is_not_believed(check, signed, tmp_path, monkeypatch):
    monkeypatch.setenv("YARN_OPS_VERIFY_KEY", str(signed.parent / "key.pub"))
    model = shutil.copytree(signed, tmp_path / "model")
    files = {name: digest for name, digest in digest_tree(model).items() if name not in (FINGERPRINT, CLAIM)}
    claim = json.loads(b64decode(json.loads((model / CLAIM).read_bytes())["payload"]))["predicate"]
    key = read_signing_key(signed.parent / "key.pem")
    (model / CLAIM).write_bytes(sign_claim(key, Claim.model_validate(claim), files))
    status, told = check("http://127.0.0.1:1", model=model)
    assert status == 2 and f"{FINGERPRINT} is not among the signed files" in told
