"""Signed releases by pull and serve-check: what was changed or claims too much is refused by name."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from yarn_ops.catalogue import DIGEST_TAG
from yarn_ops.claim import Claim, Reached, read_signing_key, sign_claim
from yarn_ops.cli.pull import pull_release
from yarn_ops.cli.serving import measured_model
from yarn_ops.errors import ClaimError, ServingError, YarnOpsError
from yarn_ops.models.checkpoints import checkpoint_files
from yarn_ops.records import CLAIM
from yarn_ops.release import open_tracking
from yarn_ops.settings import Settings
from yarn_ops.shipped import MODELS
from yarn_ops.store import open_store
from yarn_ops.store.manifest import MANIFEST
from yarn_ops.store.trees import manifest_of, put_tree_at

BASE512 = MODELS / "base512"
CARD = "# signed\n\n- sees: 512 → 512 [256, 512] tokens\n- uses: 512 → not measured tokens\n".encode()
FILES = {**{name: (BASE512 / name).read_bytes() for name in checkpoint_files(BASE512)}, "README.md": CARD}
HONEST = Claim(
    model="signed", base="shipped:base512", method="none", factor=1, original_context_tokens=512,
    target_context_tokens=512, sees=Reached(tokens=512, low=256, high=512), uses=None,
    evaluation_version=5, suite="none", protocol="d" * 64, data="e" * 64, passed=True, checks=(),
)  # fmt: skip


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of NAME.pem and NAME.pub: ours and another's."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "other"):
        private, public = folder / f"{name}.pem", folder / f"{name}.pub"
        for words in (
            ("genpkey", "-algorithm", "ed25519", "-out", private),
            ("pkey", "-in", private, "-pubout", "-out", public),
        ):
            subprocess.run(["openssl", *words], check=True, capture_output=True)
    return folder


def signed(key: Path, claim: Claim = HONEST, files: dict[str, bytes] = FILES) -> dict[str, bytes]:
    """The files of a release, with its claim."""
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return {**files, CLAIM: sign_claim(read_signing_key(key), claim, digests)}


def above(**values: object) -> Claim:
    return HONEST.model_copy(update=values)


def flipped(data: bytes) -> bytes:
    return data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]


CASES: dict[str, tuple[Callable[[Path], dict[str, bytes]], str]] = {
    "unsigned": (lambda keys: FILES, f"has no {CLAIM}, and YARN_OPS_VERIFY_KEY asks for a signed release"),
    "foreign": (lambda keys: signed(keys / "other.pem"), "was signed with another key"),
    "changed envelope": (
        lambda keys: FILES | {CLAIM: flipped(signed(keys / "ours.pem")[CLAIM])}, "was changed",
    ),
    "changed file": (
        lambda keys: signed(keys / "ours.pem") | {"model.safetensors": flipped(FILES["model.safetensors"])},
        "model.safetensors is not as it was signed",
    ),
    "one more file": (
        lambda keys: signed(keys / "ours.pem") | {"merges.txt": b"a b"}, "merges.txt is not among the signed",
    ),
    "of another model": (
        lambda keys: signed(keys / "ours.pem", above(model="better")), "was signed as better; ",
    ),
    "sees more": (
        lambda keys: signed(keys / "ours.pem", above(sees=Reached(tokens=513, low=512, high=513))),
        "claims sees 513, and MLflow says 512",
    ),
    "uses what was not measured": (
        lambda keys: signed(keys / "ours.pem", above(uses=Reached(tokens=1, low=1, high=1))),
        "claims uses 1, and MLflow says nothing",
    ),
    "a longer target": (
        lambda keys: signed(keys / "ours.pem", above(target_context_tokens=1024)),
        "claims target_context_tokens 1,024, and MLflow says 512",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(state_dir=tmp_path_factory.mktemp("state"))


@pytest.fixture
def release(
    settings: Settings, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Registers a new version of `signed` with these files: as whoever can write to store and MLflow does."""
    monkeypatch.setenv("YARN_OPS_STATE_DIR", str(settings.home))
    monkeypatch.setenv("YARN_OPS_VERIFY_KEY", str(keys / "ours.pub"))
    store, tracking = open_store(settings.store), open_tracking(settings)

    def register(files: dict[str, bytes], *, sees: float = 512, gate: str = "passed") -> None:
        source = tmp_path / "source"
        source.mkdir()
        for name, data in files.items():
            (source / name).write_bytes(data)
        run_id = tracking.start_run("extend", tmp_path.name, {})
        tracking.log_metrics(run_id, 0, {"sees_tokens": sees})
        uri = f"{tracking.artifact_uri(run_id)}/model"
        assert manifest_of(source).digest == put_tree_at(store, source, store.key_of(uri)).digest
        tags = {"gate": gate, "context_length": "512", DIGEST_TAG: manifest_of(source).digest}
        tracking.register("signed", uri, run_id, tags)

    return register


def pull(to: Path) -> None:
    pull_release("signed", to, tags={}, alias=None, version=None, include_rejected=True)


@pytest.mark.parametrize("case", CASES)
def test_a_release_that_was_not_so_signed_is_refused(
    release: Callable[..., None], keys: Path, tmp_path: Path, case: str
) -> None:
    files, told = CASES[case]
    release(files(keys))
    for take in (lambda: pull(tmp_path / "to"), lambda: measured_model("signed", None)):
        with pytest.raises(ClaimError) as refusal:
            take()
        said = str(refusal.value)
        assert said.startswith("signed version ") and told in said and "\n" not in said
    assert not (tmp_path / "to").exists()


def test_a_gate_that_did_not_pass_is_not_signed_away(
    release: Callable[..., None], keys: Path, tmp_path: Path
) -> None:
    release(signed(keys / "ours.pem"), gate="failed")
    with pytest.raises(ClaimError, match="claims passed 1, and MLflow says 0"):
        pull(tmp_path / "to")


def test_a_card_that_says_less_than_the_claim_is_seen(
    release: Callable[..., None], keys: Path, tmp_path: Path
) -> None:
    """MLflow agrees with the claim; the report in the release does not."""
    files = FILES | {"README.md": CARD.replace(b"[256, 512]", b"").replace(b" 512  tokens", b" 256 tokens")}
    release(signed(keys / "ours.pem", files=files))
    with pytest.raises(ClaimError, match=r"claims sees 512, and README\.md says 256"):
        pull(tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_what_was_signed_is_taken_with_or_without_a_key(
    release: Callable[..., None], keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = signed(keys / "ours.pem")
    release(files)
    pull(tmp_path / "to")
    pull(tmp_path / "to")
    there = {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir() if path.name != MANIFEST}
    assert there == files
    for name in ("signed", str(tmp_path / "to")):  # it is as signed, and only a fingerprint is missing
        with pytest.raises(ServingError, match=r"fingerprint\.json"):
            measured_model(name, None)
    monkeypatch.delenv("YARN_OPS_VERIFY_KEY")
    pull(tmp_path / "again")


def test_a_key_that_cannot_be_read_is_told_before_anything_is_fetched(
    release: Callable[..., None], keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(signed(keys / "ours.pem"))
    monkeypatch.setenv("YARN_OPS_VERIFY_KEY", str(tmp_path / "none.pub"))
    with pytest.raises(YarnOpsError, match=r"^YARN_OPS_VERIFY_KEY: .*none\.pub: cannot be read"):
        pull(tmp_path / "to")
    assert not (tmp_path / "to").exists()
