"""Claims signed with keys that openssl made: openssl verifies them, and whatever was changed is refused."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path

import pytest

from yarn_ops.claim import (
    Claim,
    Reached,
    key_id,
    read_claim,
    read_signing_key,
    read_verify_key,
    require_measured,
    require_signed_files,
    sign_claim,
)
from yarn_ops.errors import ClaimError, SettingsError

ED25519 = ("-algorithm", "ed25519")
P256 = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
FILES = {"config.json": "a" * 64, "model.safetensors": "b" * 64, "README.md": "c" * 64}
CLAIM = Claim(
    model="small", base="shipped:base512", method="yarn", factor=4, original_context_tokens=512,
    target_context_tokens=2048, sees=Reached(tokens=2048, low=1024, high=2048), uses=None,
    evaluation_version=5, suite="none", protocol="d" * 64, data="e" * 64, passed=True, checks=(),
)  # fmt: skip


def openssl(*words: object) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


def key_pair(folder: Path, *kind: str) -> tuple[Path, Path]:
    """Files of a private and its public key."""
    folder.mkdir(parents=True)
    openssl("genpkey", *kind, "-out", folder / "private.pem")
    openssl("pkey", "-in", folder / "private.pem", "-pubout", "-out", folder / "public.pem")
    return folder / "private.pem", folder / "public.pem"


@pytest.fixture(scope="module", params=[ED25519, P256], ids=["ed25519", "p256"])
def pair(request, tmp_path_factory) -> tuple[Path, Path]:
    return key_pair(tmp_path_factory.mktemp("keys") / "mine", *request.param)


@pytest.fixture(scope="module")
def signed(pair) -> bytes:
    return sign_claim(read_signing_key(pair[0]), CLAIM, FILES)


def test_what_was_signed_is_read_and_is_an_in_toto_statement(pair, signed):
    key = read_verify_key(pair[1])
    statement = read_claim(signed, key, "here")
    assert (statement.predicate, statement.files) == (CLAIM, FILES)
    require_signed_files(statement, {**FILES, "claim.intoto.json": "f" * 64}, "here")
    envelope = json.loads(signed)
    payload = json.loads(base64.b64decode(envelope["payload"]))
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    assert envelope["signatures"][0]["keyid"] == key_id(key)
    assert payload["_type"] == "https://in-toto.io/Statement/v1"
    assert payload["subject"][0] == {"name": "README.md", "digest": {"sha256": "c" * 64}}
    assert payload["predicate"]["sees"] == {"tokens": 2048, "low": 1024, "high": 2048}


def test_openssl_verifies_the_signature(pair, signed, tmp_path):
    envelope = json.loads(signed)
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"].encode()
    (tmp_path / "signed").write_bytes(b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload))
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    openssl(
        "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", pair[1], "-in", tmp_path / "signed",
        "-sigfile", tmp_path / "sig", *(("-digest", "sha256") if len(base64.b64decode(
            envelope["signatures"][0]["sig"])) != 64 else ()),
    )  # fmt: skip


def test_no_byte_of_an_envelope_may_change(pair, signed):
    key = read_verify_key(pair[1])
    for place in range(len(signed)):
        changed = bytearray(signed)
        changed[place] ^= 1
        with pytest.raises(ClaimError, match=r"^here: claim\.intoto\.json "):
            read_claim(bytes(changed), key, "here")
    for changed in (signed[:-1], signed + b" ", b"", b"{}", b"[" * 100_000, signed.replace(b":", b": ", 1)):
        with pytest.raises(ClaimError, match="no envelope of ours"):
            read_claim(bytes(changed), key, "here")


def test_another_key_is_named(signed, tmp_path):
    for name, kind in (("ed", ED25519), ("ec", P256)):
        key = read_verify_key(key_pair(tmp_path / name, *kind)[1])
        with pytest.raises(
            ClaimError, match=rf"with another key \(\w+\) than YARN_OPS_VERIFY_KEY \({key_id(key)[:16]}"
        ):
            read_claim(signed, key, "here")  # fmt: skip


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({**FILES, "config.json": "0" * 64}, "here: config.json is not as it was signed; "),
        ({**FILES, "more.json": "0" * 64}, "here: more.json is not among the signed files; "),
        ({"config.json": "a" * 64}, "here: README.md was signed and is missing; "),
    ],
)  # fmt: skip
def test_other_files_than_were_signed_are_named(pair, signed, files, told):
    statement = read_claim(signed, read_verify_key(pair[1]), "here")
    with pytest.raises(ClaimError) as refusal:
        require_signed_files(statement, files, "here")
    assert str(refusal.value).startswith(told)


@pytest.mark.parametrize(
    ("measured", "told"),
    [
        ({"sees": 1024.0}, "claims sees 2,048, and MLflow says 1,024"),
        ({"sees": None}, "claims sees 2,048, and MLflow says nothing"),
        ({"target_context_tokens": 1024}, "claims target_context_tokens 2,048, and MLflow says 1,024"),
        ({"passed": 0}, "claims passed 1, and MLflow says 0"),
    ],
)
def test_a_claim_above_the_measured_is_refused(measured, told):
    with pytest.raises(ClaimError, match=told):
        require_measured(CLAIM, measured, "MLflow", "here")
    require_measured(CLAIM, {"sees": 2048, "uses": None, "passed": 1}, "MLflow", "here")


def test_a_file_that_is_no_key_is_one_line_that_repeats_nothing_of_it(tmp_path):
    private, public = key_pair(tmp_path / "mine", *ED25519)
    rsa = key_pair(tmp_path / "rsa", "-algorithm", "RSA")
    p384 = key_pair(tmp_path / "p384", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384")
    locked, fifo, large = tmp_path / "locked.pem", tmp_path / "fifo", tmp_path / "large"
    openssl("pkey", "-in", private, "-aes256", "-passout", "pass:sesame", "-out", locked)
    os.mkfifo(fifo)
    large.write_bytes(b"x" * 100_000)
    both = [
        (tmp_path / "none", "cannot be read"), (tmp_path, "cannot be read"), (fifo, "cannot be read"),
        (large, "more than 65,536 bytes"),
    ]  # fmt: skip
    cases = [(read_signing_key, *case) for case in both] + [(read_verify_key, *case) for case in both]
    cases += [
        (read_signing_key, public, "no private key in PEM"),
        (read_signing_key, locked, "is protected by a password"),
        (read_signing_key, rsa[0], "neither ECDSA P-256 nor Ed25519"),
        (read_signing_key, p384[0], "neither ECDSA P-256 nor Ed25519"),
        (read_verify_key, private, "no public key in PEM"),
        (read_verify_key, rsa[1], "neither ECDSA P-256 nor Ed25519"),
        (read_verify_key, p384[1], "neither ECDSA P-256 nor Ed25519"),
    ]
    for read, path, told in cases:
        with pytest.raises(SettingsError, match=told) as refusal:
            read(path)
        said = str(refusal.value)
        assert said.startswith("YARN_OPS_") and f": {path}: " in said and "\n" not in said
        if path.is_file():
            assert not any(line in said for line in path.read_text().splitlines())
