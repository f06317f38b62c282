"""Commands about running servers: whether one answers as the measured model; a router before two of them."""

from __future__ import annotations

import json as json_
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yarn_ops.cli.app import MOST, JsonOption, app

if TYPE_CHECKING:
    from yarn_ops.claim import Claim
    from yarn_ops.serving.fingerprint import Fingerprint

SERVED_WRONGLY = 1
"""exit code"""
LEAST_LONGEST = 256


@app.command("fingerprint")
def fingerprint_(
    model: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="A model directory; written into.")],
    longest: Annotated[
        int | None,
        typer.Option(
            min=LEAST_LONGEST,
            max=MOST,
            help="Tokens of the longest text, where the target is too long to be read here.",
        ),
    ] = None,
) -> None:
    """Write what serve-check compares with into a directory."""
    from yarn_ops.atomic import atomic_write, disk_errors
    from yarn_ops.models.checkpoints import refuse_code, refuse_links
    from yarn_ops.models.device import resolve_device
    from yarn_ops.progress import ProgressBars
    from yarn_ops.serving.fingerprint import FINGERPRINT
    from yarn_ops.serving.measure import make_fingerprint
    from yarn_ops.settings import read_settings
    from yarn_ops.shown import counted

    refuse_links(model)
    refuse_code(model)
    with ProgressBars() as bars:
        made = make_fingerprint(
            model,
            device=resolve_device(read_settings().device),
            report=bars.of("fingerprint"),
            longest=longest,
        )
    with disk_errors(model), atomic_write(model / FINGERPRINT) as draft:
        draft.write_bytes(made.to_bytes())
    typer.echo(f"{model / FINGERPRINT}: {counted(len(made.probes), 'text')}, {len(made.states) - 1} faults")


@app.command("serve-check")
def serve_check(
    url: Annotated[str, typer.Argument(metavar="URL", help="Of a running server, e.g. http://host:8000.")],
    model: Annotated[
        str,
        typer.Option(metavar="DIR|NAME", help="The model as it was measured: a directory, or registered."),
    ],
    served: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What the server calls the model, where it has several."),
    ] = None,
    bits: Annotated[
        int | None, typer.Option(min=4, max=16, help="Of the server's weights: 16, 8 or 4; left out: any.")
    ] = None,
    alias: Annotated[str | None, typer.Option(help="Of a registered model, e.g. champion.")] = None,
    json: JsonOption = False,
) -> None:
    """Tell whether a server answers as the measured model. Exits with 1 where it does not."""
    from yarn_ops.errors import ServingError
    from yarn_ops.progress import ProgressBars
    from yarn_ops.serving.client import InferenceServer
    from yarn_ops.serving.verdict import BITS_OF_WEIGHTS, judge
    from yarn_ops.settings import read_settings

    if bits is not None and bits not in BITS_OF_WEIGHTS:
        raise ServingError(f"--bits: {bits}: write one of {', '.join(map(str, BITS_OF_WEIGHTS))}")
    fingerprint, claim = measured_model(model, alias)
    prompts = fingerprint.prompts()
    with InferenceServer(url, read_settings().server_key, served) as server, ProgressBars() as bars:
        verdict = judge(fingerprint, server.ask(prompts, bars.of("serve-check")), bits)
    how, most = "measured", fingerprint.target_context_tokens
    if claim is not None:
        how, most = "signed", claim.target_context_tokens
    if json:
        told = {"signed": claim is not None, "measured_tokens": most, "context_tokens": server.context_tokens}
        typer.echo(json_.dumps(asdict(verdict) | told))
    else:
        typer.echo(verdict.line)
        if verdict.fault is None and verdict.unsure:
            typer.echo(f"these answers do not exclude: {', '.join(verdict.unsure)}")
        longest = max(probe.tokens for probe in fingerprint.probes)
        if 2 * longest < fingerprint.target_context_tokens:
            typer.echo(
                f"texts of up to {longest:,} tokens were asked, of {fingerprint.target_context_tokens:,}: "
                "whether longer ones are right was not"
            )
        if server.context_tokens is not None and server.context_tokens > most:
            typer.echo(f"the server takes {server.context_tokens:,} tokens, {most:,} were {how}")
    if verdict.fault is not None:
        raise typer.Exit(SERVED_WRONGLY)


def measured_model(model: str, alias: str | None) -> tuple[Fingerprint, Claim | None]:
    """Fingerprint and verified claim of a directory, or of a registered model without its other files."""
    from yarn_ops.cli.pull import check_list, verified_claim, verified_directory
    from yarn_ops.serving.fingerprint import FINGERPRINT, parse_fingerprint, read_fingerprint
    from yarn_ops.settings import read_settings

    if Path(model).is_dir():
        claim = verified_directory(read_settings(), Path(model))
        return read_fingerprint(Path(model)), claim
    import hashlib

    from yarn_ops.errors import ReleaseError, ServingError
    from yarn_ops.services import try_mlflow
    from yarn_ops.store import open_store, store_options
    from yarn_ops.store.keys import join
    from yarn_ops.store.manifest import read_manifest

    settings = read_settings()
    tracking = try_mlflow(settings)
    try:
        release = tracking.find(model, alias=alias, include_rejected=True)
    except ReleaseError as error:
        raise ServingError(f"--model: {model} is no directory, and {error}") from None
    store = open_store(settings.store, store_options(settings))
    prefix = store.key_of(release.source)
    manifest = read_manifest(store, prefix)
    check_list(release, manifest)
    claim = verified_claim(settings, tracking, store, release, manifest)
    where = f"{release.name} version {release.version}"
    if FINGERPRINT not in manifest.files:
        raise ServingError(
            f"{where}: was released without a {FINGERPRINT}; pull it, and run `yarn-ops fingerprint` on it"
        )
    data = store.read(join(prefix, FINGERPRINT))
    if hashlib.sha256(data).hexdigest() != manifest.files[FINGERPRINT].sha256:
        raise ServingError(f"{where}: its {FINGERPRINT} in the store is damaged; run its recipe again")
    return parse_fingerprint(data, where), claim


@app.command("router")
def router_(
    model: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="The extended model.")],
    base: Annotated[str, typer.Option(metavar="URL", help="Where its base is served, http://host:port.")],
    extended: Annotated[str, typer.Option(metavar="URL", help="Where it is served itself.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="Where nginx.conf and route.js go.")],
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Of the one address.")] = "127.0.0.1:8000",
) -> None:
    """Write an nginx configuration that routes by prompt length."""
    from yarn_ops.export.router import export_router

    exported = export_router(model, base=base, extended=extended, listen=listen, to=to)
    typer.echo(f"# {exported.requires}\n{exported.command}")
