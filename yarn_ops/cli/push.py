"""`yarn-ops push`: a model to where people fetch models."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yarn_ops.cli.app import MOST, app
from yarn_ops.errors import ReleaseError

if TYPE_CHECKING:
    from yarn_ops.store.manifest import Manifest

WAYS = "hf:OWNER/NAME, oci:DIR[:TAG] or oci://HOST/NAME[:TAG]"


@app.command()
def push(
    model: Annotated[
        str,
        typer.Argument(metavar="DIR|NAME", help="A model directory, or the name of a registered model."),
    ],
    to: Annotated[str, typer.Argument(metavar="DESTINATION", help=f"{WAYS}.")],
    alias: Annotated[str | None, typer.Option(help="Of a registered model, e.g. champion.")] = None,
    version: Annotated[int | None, typer.Option(min=1, max=MOST, help="Of a registered model.")] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make a new Hugging Face repository public, not private.")
    ] = False,
) -> None:
    """Send a model to Hugging Face or as an OCI artifact."""
    from yarn_ops.progress import ProgressBars
    from yarn_ops.settings import read_settings

    kind, _, rest = to.partition(":")
    if kind not in ("hf", "oci") or not rest.strip("/"):
        raise ReleaseError(f"{to}: is no destination; write {WAYS}")
    settings = read_settings()
    with _verified(model, alias, version) as (folder, manifest, title):
        if kind == "hf":
            from yarn_ops.cli.pull import of_a_model
            from yarn_ops.push.hf import push_to_hub

            sent = push_to_hub(
                folder, manifest, rest, public=public, message=f"{title} by yarn-ops", of_a_model=of_a_model
            )
            typer.echo(f"{title} -> {sent}")
            return
        from yarn_ops.push.oci import TITLE, OciRegistry, write_layout

        where, tag = (rest, "latest") if ":" not in rest.rpartition("/")[2] else rest.rsplit(":", 1)
        with ProgressBars() as bars:
            if rest.startswith("//"):
                host, _, name = where.removeprefix("//").partition("/")
                password = settings.registry_password
                login = (settings.registry_user or "", password.get_secret_value()) if password else None
                with OciRegistry(host, name, login) as registry:
                    digest = registry.push(folder, manifest, tag, {TITLE: title}, bars.of("push"))
            else:
                digest = write_layout(folder, manifest, Path(where), tag, {TITLE: title}, bars.of("push"))
        typer.echo(f"{title} -> oci:{where}:{tag}@{digest}")


@contextmanager
def _verified(model: str, alias: str | None, version: int | None) -> Iterator[tuple[Path, Manifest, str]]:
    """(directory, its files, what it is called); every byte is verified, as far as anything tells it."""
    from yarn_ops.cli.pull import check_files, pull_release, strangers, verified_directory
    from yarn_ops.models.checkpoints import refuse_code, refuse_links
    from yarn_ops.settings import read_settings
    from yarn_ops.store.damage import faults_here, refusal
    from yarn_ops.store.manifest import MANIFEST, parse_manifest
    from yarn_ops.store.transfer import Transfer
    from yarn_ops.store.trees import manifest_of

    settings = read_settings()
    if not Path(model).is_dir():
        settings.make_home()
        with tempfile.TemporaryDirectory(dir=settings.home) as scratch:
            folder = Path(scratch) / "model"
            release = pull_release(
                model, folder, tags={}, alias=alias, version=version, include_rejected=False
            )
            manifest = parse_manifest((folder / MANIFEST).read_bytes(), str(folder))
            yield folder, manifest, f"{release.name} version {release.version}"
        return
    folder = Path(model)
    if alias is not None or version is not None:
        raise ReleaseError(f"{model}: is a directory, which has no alias or version; leave them out")
    refuse_links(folder)
    refuse_code(folder)
    listed = folder / MANIFEST
    if listed.is_file():
        manifest = parse_manifest(listed.read_bytes(), str(listed))
        if faults := faults_here(folder, manifest, Transfer(manifest.size_bytes, None), alone=False):
            raise refusal(folder, faults, "pull it again")
    else:
        manifest = manifest_of(folder)
    if strange := strangers(manifest):
        raise ReleaseError(f"{folder}: holds {strange[0]}, which is no file of a model; move it elsewhere")
    check_files(folder, manifest)
    verified_directory(settings, folder)
    yield folder, manifest, folder.resolve().name
