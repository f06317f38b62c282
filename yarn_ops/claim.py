"""The signed claim of a release: which files it consists of, and what was measured of them.

One file, an in-toto statement (v1) in a DSSE envelope, signed offline with a bare key: ECDSA on P-256 with
SHA-256, or Ed25519. Its subjects are the sha256 of every other file of the release.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from yarn_ops.digests import canonical_json
from yarn_ops.errors import ClaimError, SettingsError
from yarn_ops.opening import open_regular
from yarn_ops.records import CLAIM
from yarn_ops.scores import Check, Score

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "tag:yarn-ops,2026:context-claim/v1"
MOST_BYTES = 4 << 20
MOST_KEY_BYTES = 64 << 10
SHOWN = 16
"""hexadecimal digits of a key's id in messages"""

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
P_256 = ec.SECP256R1()
UNFIT = "neither ECDSA P-256 nor Ed25519"
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Tokens = Annotated[int, Field(ge=0)]


class _ClaimPart(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False, populate_by_name=True)


class Reached(_ClaimPart):
    """How far a model sees or uses, with its 95 % interval."""

    tokens: Tokens
    low: Tokens
    high: Tokens

    @classmethod
    def of(cls, score: Score) -> Reached:
        low, high = score.bounds
        return cls(tokens=round(score.value), low=round(low), high=round(high))


class Claim(_ClaimPart):
    """What was measured of a release: the predicate of its statement."""

    model: str
    base: str
    method: str
    factor: float
    original_context_tokens: Tokens
    target_context_tokens: Tokens
    sees: Reached | None
    uses: Reached | None
    evaluation_version: int
    suite: str
    protocol: Sha256
    """digest of the recipe's evaluate section"""
    data: Sha256
    """digest of the tokenised documents, held-out ones included"""
    passed: bool
    checks: tuple[Check, ...]


class _Digest(_ClaimPart):
    sha256: Sha256


class _Subject(_ClaimPart):
    name: str
    digest: _Digest


class Statement(_ClaimPart):
    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[_Subject, ...] = Field(min_length=1)
    predicate_type: Literal["tag:yarn-ops,2026:context-claim/v1"] = Field(alias="predicateType")
    predicate: Claim

    @property
    def files(self) -> dict[str, str]:
        """{name: sha256} of the files that it speaks of."""
        return {one.name: one.digest.sha256 for one in self.subject}


class _Signature(_ClaimPart):
    keyid: str
    sig: str


class _Envelope(_ClaimPart):
    model_config = ConfigDict(extra="forbid")

    payload: str
    payload_type: Literal["application/vnd.in-toto+json"] = Field(alias="payloadType")
    signatures: tuple[_Signature] = Field()

    def to_bytes(self) -> bytes:
        return canonical_json(self.model_dump(mode="json", by_alias=True)).encode() + b"\n"


def read_signing_key(path: Path) -> PrivateKey:
    """The private key in a PEM file without a password. SettingsError, which never repeats what it holds."""
    setting = "YARN_OPS_SIGNING_KEY"
    try:
        key = serialization.load_pem_private_key(_read_key(path, setting), None)
    except TypeError:
        raise SettingsError(
            f"{setting}: {path}: is protected by a password; write one without by `openssl pkey`, mode 0600"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise SettingsError(
            f"{setting}: {path}: no private key in PEM; make one with "
            "`openssl genpkey -algorithm ed25519 -out FILE`"
        ) from None
    if isinstance(key, PrivateKey) and _signs_with(key):
        return key
    raise SettingsError(f"{setting}: {path}: {UNFIT}; make such a key")


def read_verify_key(path: Path) -> PublicKey:
    """The public key in a PEM file; SettingsError."""
    setting = "YARN_OPS_VERIFY_KEY"
    try:
        key = serialization.load_pem_public_key(_read_key(path, setting))
    except (ValueError, UnsupportedAlgorithm):
        raise SettingsError(
            f"{setting}: {path}: no public key in PEM; write one with "
            "`openssl pkey -in PRIVATE -pubout -out FILE`"
        ) from None
    if isinstance(key, PublicKey) and _signs_with(key):
        return key
    raise SettingsError(f"{setting}: {path}: {UNFIT}; name the public key that signs")


def _signs_with(key: PrivateKey | PublicKey) -> bool:
    """Whether it is Ed25519, or ECDSA on the one curve that is taken."""
    return isinstance(getattr(key, "curve", P_256), ec.SECP256R1)


def _read_key(path: Path, setting: str) -> bytes:
    try:
        with open_regular(path.resolve(strict=True)) as file:
            data = file.read(MOST_KEY_BYTES + 1)
    except (OSError, ValueError, RuntimeError) as error:
        told = getattr(error, "strerror", None) or error
        raise SettingsError(f"{setting}: {path}: cannot be read ({told}); correct it") from None
    if len(data) > MOST_KEY_BYTES:
        raise SettingsError(f"{setting}: {path}: more than {MOST_KEY_BYTES:,} bytes; no key")
    return data


def key_id(key: PublicKey) -> str:
    """sha256 of a public key's SubjectPublicKeyInfo in DER."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def sign_claim(key: PrivateKey, claim: Claim, files: Mapping[str, str]) -> bytes:
    """The envelope's bytes. files: {name: sha256} of every other file of the release."""
    statement = Statement(
        type=STATEMENT_TYPE,
        subject=tuple(
            _Subject(name=name, digest=_Digest(sha256=sha256)) for name, sha256 in sorted(files.items())
        ),
        predicate_type=PREDICATE_TYPE,
        predicate=claim,
    )
    payload = canonical_json(statement.model_dump(mode="json", by_alias=True)).encode()
    signed = _pre_authentication(payload)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        signature = key.sign(signed)
    else:
        signature = key.sign(signed, ec.ECDSA(hashes.SHA256()))
    return _Envelope(
        payload=_base64(payload),
        payload_type=PAYLOAD_TYPE,
        signatures=(_Signature(keyid=key_id(key.public_key()), sig=_base64(signature)),),
    ).to_bytes()


def read_claim(data: bytes, key: PublicKey | None, where: str) -> Statement:
    """The statement in an envelope, whose signature is verified unless `key` is None. ClaimError.

    An envelope is taken in the one form in which `sign_claim` writes it, so that no byte of it may change.
    """
    try:
        envelope = _Envelope.model_validate_json(data)
        (signature,) = envelope.signatures
        payload = base64.b64decode(envelope.payload, validate=True)
        signed_with = base64.b64decode(signature.sig, validate=True)
        exact = envelope.to_bytes() == data and envelope.payload == _base64(payload)
        if not exact or signature.sig != _base64(signed_with):
            raise ValueError
    except ValueError:
        raise ClaimError(f"{where}: {CLAIM} is no envelope of ours, or was changed; do not use it") from None
    if key is not None:
        if signature.keyid != key_id(key):
            raise ClaimError(
                f"{where}: {CLAIM} was signed with another key ({_shown(signature.keyid)}) than "
                f"YARN_OPS_VERIFY_KEY ({_shown(key_id(key))}); do not use it, or name the signer's key"
            )
        try:
            if isinstance(key, ed25519.Ed25519PublicKey):
                key.verify(signed_with, _pre_authentication(payload))
            else:
                key.verify(signed_with, _pre_authentication(payload), ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise ClaimError(
                f"{where}: {CLAIM} was changed after it was signed; do not use the model"
            ) from None
    try:
        return Statement.model_validate(json.loads(payload))
    except (ValidationError, ValueError, RecursionError):
        raise ClaimError(
            f"{where}: {CLAIM} holds no claim of this version of yarn-ops; take the version that signed it"
        ) from None


def require_signed_files(statement: Statement, files: Mapping[str, str], where: str) -> None:
    """ClaimError unless `files` ({name: sha256}) are those that were signed, and no others."""
    signed = statement.files
    for name in sorted(signed.keys() | (files.keys() - {CLAIM})):
        if name not in files:
            raise ClaimError(f"{where}: {name} was signed and is missing; do not use the model")
        if name not in signed:
            raise ClaimError(f"{where}: {name} is not among the signed files; do not use the model")
        if files[name] != signed[name]:
            raise ClaimError(f"{where}: {name} is not as it was signed; do not use the model")


def require_measured(claim: Claim, measured: Mapping[str, float | None], says: str, where: str) -> None:
    """ClaimError where a claim is above what was measured: {sees, uses, target_context_tokens, passed}.

    says: who knows it, e.g. MLflow. What it does not tell is not compared, and None means not measured.
    """
    claimed = {
        "sees": None if claim.sees is None else claim.sees.tokens,
        "uses": None if claim.uses is None else claim.uses.tokens,
        "target_context_tokens": claim.target_context_tokens,
        "passed": int(claim.passed),
    }
    for name, known in measured.items():
        value = claimed[name]
        if value is not None and (known is None or value > known):
            told = "nothing" if known is None else f"{known:,.0f}"
            raise ClaimError(
                f"{where}: {CLAIM} claims {name} {value:,}, and {says} says {told}; do not use the model"
            )


def _pre_authentication(payload: bytes) -> bytes:
    """What DSSE signs: type and payload, each behind its length."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _shown(keyid: str) -> str:
    return keyid[:SHOWN]
