"""`yarn-ops lineage`: where a model comes from, from its documents to the files that are served."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yarn_ops.cli.app import MOST, JsonOption, app, run_registry, tracking
from yarn_ops.errors import ClaimError, ReleaseError, YarnOpsError

if TYPE_CHECKING:
    from yarn_ops.registry.lineage import LineageNode
    from yarn_ops.store.manifest import Manifest

RUN_ID = re.compile(r"last|\d{8}-\d{6}-[0-9a-f]{6}")
SHOWN = 12
"""hexadecimal digits of a digest"""
NOT = "NOT "
"""begins what is said of a file that is not as it was released or signed"""
LEAST = 24
"""letters of the tree, however narrow the terminal is"""


@app.command()
def lineage(
    what: Annotated[
        str, typer.Argument(metavar="NAME|RUN", help="A registered model; or a run's id, or last.")
    ],
    alias: Annotated[
        str | None, typer.Option(help="Of the model, e.g. champion; left out: its newest version.")
    ] = None,
    version: Annotated[int | None, typer.Option(min=1, max=MOST, help="Of the model.")] = None,
    directory: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the model was pulled or exported to; every file is hashed."),
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it on a page.")] = None,
    json: JsonOption = False,
) -> None:
    """Show where a model comes from. From documents to served files: digests, sizes, times, runs."""
    from yarn_ops.atomic import atomic_write, disk_errors
    from yarn_ops.registry.lineage import read_lineage, run_of_release

    by_run = RUN_ID.fullmatch(what) is not None
    if by_run and (alias is not None or version is not None):
        raise typer.BadParameter(f"{what} is a run, which has no alias or version")
    registry, run = run_registry(), what
    if not by_run:
        asked = tracking().find(what, alias=alias, version=version, include_rejected=True)
        run = run_of_release(registry, asked.name, asked.version)
    view = registry.run_view(run)
    nodes, title = read_lineage(registry, view.id), f"run {view.id}"
    if view.release is not None:
        title = f"{view.release.name} version {view.release.version}"
        nodes = _with_files(nodes, title, view.release.name, view.release.version, directory)
    elif directory is not None:
        raise ReleaseError(f"{title}: released nothing that {directory} could hold; leave --directory out")
    if html is not None:
        from yarn_ops.cli.lineage_page import page

        with disk_errors(html), atomic_write(html) as draft:
            draft.write_text(page(title, view.id, nodes), "utf-8")
    if json:
        typer.echo(dumps({"run": view.id, "title": title, "nodes": [*map(_as_json, nodes)]}, indent=2))
        return
    show_lineage(f"{title}, run {view.id}" if view.release else title, view.id, nodes)
    if html is not None:
        typer.echo(f"page: {html}")


def show_lineage(title: str, run: str, nodes: Sequence[LineageNode]) -> None:
    """A tree in the terminal, and which parts of it another run made than this one."""
    from rich.table import Table

    from yarn_ops.cli.display import CONSOLE

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("made from", no_wrap=True, overflow="ellipsis", min_width=LEAST)
    for head, least in (("digest", SHOWN), ("bytes", 9), ("took", 7), ("made (UTC)", 11)):
        table.add_column(head, no_wrap=True, min_width=least)
    for guide, node, again in tree_rows(nodes):
        facts = ("", "", "") if again else (*node.size_and_time, node.made[5:])
        table.add_row(f"{guide}{node.kind} {'↑' if again else node.name}", node.digest[:SHOWN], *facts)
    CONSOLE.print(table)
    for node in nodes:
        if node.name.startswith(NOT):
            CONSOLE.print(f"{node.kind}: {node.name}", style="red")
    for other in dict.fromkeys(node.run for node in nodes if node.run not in (None, run)):
        CONSOLE.print(f"run {other} made: {', '.join(node.kind for node in nodes if node.run == other)}")


def tree_rows(nodes: Sequence[LineageNode]) -> Iterator[tuple[str, LineageNode, bool]]:
    """(guide, node, whether it stands above already) of a tree that leads back to what things were made from.

    What stands above already is not followed again.
    """
    from yarn_ops.registry.lineage import nearest_parents

    known, parents = {node.id: node for node in nodes}, nearest_parents(nodes)
    inner = {parent for above in parents.values() for parent in above}
    shown: set[str] = set()

    def below(node_id: str, head: str, rest: str) -> Iterator[tuple[str, LineageNode, bool]]:
        again = node_id in shown
        yield head, known[node_id], again
        shown.add(node_id)
        above = [] if again else parents[node_id]
        for place, parent in enumerate(reversed(above), start=1):
            last = place == len(above)
            yield from below(parent, rest + ("└ " if last else "├ "), rest + ("  " if last else "│ "))

    for node in reversed(nodes):
        if node.id not in inner:
            yield from below(node.id, "", "")


def _as_json(node: LineageNode) -> dict[str, object]:
    finished = node.finished_at.isoformat() if node.finished_at else None
    return {**asdict(node), "finished_at": finished}


def _with_files(
    nodes: list[LineageNode], title: str, name: str, version: int, directory: Path | None
) -> list[LineageNode]:
    """The nodes with what the store has of the release, its claim, and what lies in a directory."""
    from yarn_ops.registry.lineage import CLAIM, LineageNode
    from yarn_ops.settings import read_settings
    from yarn_ops.store import open_store, store_options
    from yarn_ops.store.keys import join
    from yarn_ops.store.manifest import read_manifest

    settings, release = read_settings(), nodes[-1]
    try:
        found = tracking().find(name, version=version, include_rejected=True)
        store = open_store(settings.store, store_options(settings))
        manifest = read_manifest(store, store.key_of(found.source))
        release = replace(release, size_bytes=manifest.size_bytes, uri=found.source)
        nodes = [*nodes[:-1], release]
        from yarn_ops.records import CLAIM as CLAIM_FILE

        if (entry := manifest.files.get(CLAIM_FILE)) is not None:
            data = store.read(join(store.key_of(found.source), CLAIM_FILE))
            nodes.append(
                LineageNode(
                    id=f"{CLAIM} {entry.sha256}", kind=CLAIM, digest=entry.sha256,
                    name=_signature(data, settings.verify_key, manifest, title),
                    size_bytes=entry.size_bytes, finished_at=release.finished_at,
                    run=release.run, uri=f"{found.source}/{CLAIM_FILE}", parents=(release.id,),
                )
            )  # fmt: skip
    except YarnOpsError as error:  # the store, or MLflow: the registry's rows are worth showing alone
        if directory is not None:
            raise
        typer.echo(f"its files were not looked at: {error}", err=True)
        return nodes
    return nodes if directory is None else [*nodes, *_in_directory(directory, manifest, title, nodes)]


def _signature(data: bytes, verify_key: Path | None, manifest: Manifest, where: str) -> str:
    """What is known of a claim's signature, in a few words."""
    from yarn_ops.claim import read_claim, read_verify_key, require_signed_files
    from yarn_ops.shown import counted

    key = None if verify_key is None else read_verify_key(verify_key)
    try:
        statement = read_claim(data, key, where)
        require_signed_files(statement, {name: file.sha256 for name, file in manifest.files.items()}, where)
    except ClaimError as error:
        return f"{NOT}VALID: {error}"
    return f"of {counted(len(statement.files), 'file')}, {'verified' if key else 'signature not looked at'}"


def _in_directory(
    folder: Path, released: Manifest, title: str, nodes: Sequence[LineageNode]
) -> Iterator[LineageNode]:
    """The directory compared with the release file by file, and each file there that was not released."""
    from yarn_ops.atomic import disk_errors
    from yarn_ops.digests import digest_tree, tree_digest
    from yarn_ops.registry.lineage import CLAIM, EXPORT, PULLED, RELEASE, LineageNode
    from yarn_ops.shown import one_line
    from yarn_ops.store.manifest import MANIFEST

    if not any((folder / name).is_file() for name in released.files):
        raise ReleaseError(f"{folder}: holds no file of {title}; name the directory that it was pulled to")
    with disk_errors(folder):
        here = {name: digest for name, digest in digest_tree(folder).items() if name != MANIFEST}
        about = {name: (folder / name).stat() for name in here}
    kept = {name: digest for name, digest in here.items() if name in released.files}
    changed = [name for name, digest in kept.items() if digest != released.files[name].sha256]
    missing = [name for name in released.files if name not in here]
    faults = [*(f"{name} changed" for name in changed), *(f"{name} missing" for name in missing)]

    def node(kind: str, name: str, digest: str, names: Sequence[str], *parents: str) -> LineageNode:
        return LineageNode(
            id=f"{kind} {name} {digest}", kind=kind, name=one_line(name), digest=digest,
            size_bytes=sum(about[one].st_size for one in names),
            finished_at=datetime.fromtimestamp(max(about[one].st_mtime for one in names), UTC),
            uri=(folder if kind == PULLED else folder / name).resolve().as_uri(), parents=parents,
        )  # fmt: skip

    origin = [one.id for one in nodes if one.kind in (RELEASE, CLAIM)]
    told = "as released" if not faults else f"{NOT}as released: {', '.join(faults[:3])}"
    pulled = node(PULLED, told, tree_digest(kept), list(kept), *origin)
    yield pulled
    for name in sorted(here.keys() - kept.keys()):
        yield node(EXPORT, name, here[name], [name], pulled.id)
