"""Commands about what is kept and what runs: runs, models, the database, the service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from yarn_ops.cli.app import (
    MOST,
    JsonOption,
    RecipeArgument,
    SetOption,
    TagOption,
    app,
    db_app,
    load_asked,
    pairs_of,
    run_registry,
    runs_app,
    tracking,
)
from yarn_ops.export.engines import Engine

PORTS = 65_535
MOST_DAYS = 100 * 366


@runs_app.callback()
def runs(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=MOST, help="How many.")] = 20,
    json: JsonOption = False,
) -> None:
    """List runs, newest first."""
    if context.invoked_subcommand is None:
        import yarn_ops.cli.display as display

        display.show_runs(run_registry().runs(limit), as_json=json)


@runs_app.command("show")
def runs_show(
    run_id: Annotated[str | None, typer.Argument(metavar="ID")] = None,
    last: Annotated[bool, typer.Option("--last", help="The newest run.")] = False,
    json: JsonOption = False,
) -> None:
    """Show one run: stages, scores, verdict, release."""
    import yarn_ops.cli.display as display
    from yarn_ops.settings import read_settings

    if last == (run_id is not None):
        raise typer.BadParameter("give a run's id, or --last")
    view = run_registry().run_view(run_id or "last")
    display.show_run(view, as_json=json, language=read_settings().language)


@app.command()
def approve(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Its id, or last.")],
    reject: Annotated[bool, typer.Option("--reject", help="Leave the alias where it is.")] = False,
    note: Annotated[str, typer.Option(metavar="TEXT", help="Why; kept in the registry.")] = "",
) -> None:
    """Promote what a run waits with, or reject it."""
    import getpass

    from yarn_ops.cli.up import decide
    from yarn_ops.settings import read_settings
    from yarn_ops.shown import one_line

    person = getpass.getuser()
    typer.echo(decide(read_settings(), run, person, one_line(note), approved=not reject))


@app.command()
def models(tag: TagOption = None, json: JsonOption = False) -> None:
    """List registered model versions, newest first."""
    import yarn_ops.cli.display as display

    display.show_models(tracking().models(pairs_of(tag)), as_json=json)


@app.command("compare-releases")
def compare_releases(
    releases: Annotated[
        list[str],
        typer.Argument(metavar="RELEASE…", help="NAME (its newest version), NAME@ALIAS or NAME:VERSION."),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where a page and a picture of it go.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Put released versions side by side. By the cells that all of them were measured by."""
    from yarn_ops.cli.compare_releases import compare

    compare(releases, tracking(), run_registry(), out, as_json=json)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="Registered model name.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Where the model directory goes.")],
    tag: TagOption = None,
    alias: Annotated[str | None, typer.Option(help="E.g. champion.")] = None,
    version: Annotated[int | None, typer.Option(min=1, max=MOST)] = None,
    any_gate: Annotated[
        bool, typer.Option("--any-gate", help="Versions that failed their gate too.")
    ] = False,
) -> None:
    """Download the newest version that matches. Every file is verified, and its RoPE proven."""
    tags = pairs_of(tag)
    from yarn_ops.cli.pull import pull_release

    release = pull_release(name, to, tags=tags, alias=alias, version=version, include_rejected=any_gate)
    typer.echo(f"{release.name} version {release.version} -> {to}")
    if release.tree_digest is None:
        typer.echo(
            "MLflow has no digest of it (released before 2026-11-29?): its files were checked against the "
            "store's own list only",
            err=True,
        )


@app.command("export")
def export_(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL_DIR", help="An extended model, e.g. one that was pulled.")
    ],
    engine: Annotated[
        Engine,
        typer.Option("--for", help="What will serve it; vllm-0.29 is vLLM up to 0.29."),
    ],
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where files go that the engine needs.")
    ] = None,
    weights: Annotated[
        Literal["f16", "bf16", "q8_0"], typer.Option("--type", help="Of the matrices in a GGUF.")
    ] = "f16",
    adapter: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Serve --base with this LoRA adapter, unmerged.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The model that the adapter was trained on.")
    ] = None,
) -> None:
    """Print the command that serves a model by its own RoPE. Writes the files it needs, or says why not."""
    from yarn_ops.errors import ExportError
    from yarn_ops.export.adapter import export_adapter
    from yarn_ops.export.model import export_model
    from yarn_ops.progress import ProgressBars

    if adapter is None and base is None:
        with ProgressBars() as bars:
            exported = export_model(model, engine, to=to, weights=weights, report=bars.of("export"))
    elif adapter is None or base is None or to is None:
        raise ExportError("--adapter: needs --base and --to as well; give all three")
    else:
        exported = export_adapter(adapter, engine, base=base, patched=model, to=to)
    typer.echo(f"# {exported.requires}\n{exported.command}")


@db_app.command("upgrade")
def db_upgrade() -> None:
    """Create the registry's tables, or bring them up to date."""
    from yarn_ops import registry
    from yarn_ops.settings import read_settings

    settings = read_settings()
    settings.make_home()
    registry.upgrade(settings.database)
    typer.echo("registry: up to date")


@db_app.command("rebuild")
def db_rebuild(
    source: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="ID", help="The lost registry, by its id in the store; see the refusal."
        ),
    ] = None,
) -> None:
    """Make a lost registry again. From what the store and MLflow know; nothing known is changed."""
    from yarn_ops.rebuild import rebuild
    from yarn_ops.settings import read_settings

    for line in rebuild(read_settings(), source=source):
        typer.echo(line)


@app.command()
def up(
    prefect_port: Annotated[
        int | None,
        typer.Option(min=1, max=PORTS, help="Of the Prefect server and UI; left out: as before, or 4200."),
    ] = None,
    mlflow_port: Annotated[
        int | None,
        typer.Option(min=1, max=PORTS, help="Of the MLflow server; left out: as before, or 5000."),
    ] = None,
) -> None:
    """Start the service on loopback. Prefect, MLflow, workers, deployments; Ctrl-C stops it."""
    from yarn_ops.cli.up import run_service
    from yarn_ops.settings import read_settings

    run_service(read_settings(), {"prefect": prefect_port, "mlflow": mlflow_port})


@app.command()
def schedule(
    recipe: RecipeArgument,
    cron: Annotated[str, typer.Option(metavar="TIMES", help="In UTC, e.g. '0 2 * * *': every night at two.")],
    name: Annotated[str | None, typer.Option(help="Of the deployment; left out: as the model's.")] = None,
    pause: Annotated[bool, typer.Option("--pause", help="Make it, but do not run it yet.")] = False,
    set_: SetOption = None,
) -> None:
    """Run a recipe at set times, in a deployment of its own. The same again changes it."""
    from yarn_ops.cli.up import make_schedule
    from yarn_ops.settings import read_settings

    asked = load_asked(recipe, set_)
    called = asked.publish.name if name is None else name
    typer.echo(make_schedule(read_settings(), asked, called, cron, active=not pause))


@app.command()
def gc(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what and how much; remove nothing.")
    ] = False,
    older_than: Annotated[
        float,
        typer.Option(min=0, max=MOST_DAYS, metavar="DAYS", help="Only what nobody wrote to for as long."),
    ] = 7.0,
    adopt: Annotated[
        bool,
        typer.Option(
            "--adopt",
            help="Remove nothing: say that directories which no registry claims are this one's. "
            "Only where no other registry uses the store.",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Remove what nothing refers to. Broken-off uploads, unreferenced directories, stale working files."""
    from datetime import timedelta

    import yarn_ops.cli.display as display
    from yarn_ops import references, upkeep
    from yarn_ops.settings import read_settings
    from yarn_ops.store import open_store, store_options, sweep

    settings, registry = read_settings(), run_registry()
    store = open_store(settings.store, store_options(settings))
    if adopt:
        from yarn_ops.shown import counted

        adopted = references.adopt(store, registry, sweep.trees(store).keys())
        typer.echo(f"adopted: {counted(adopted, 'directory')}; `yarn-ops gc` may remove them")
        return
    found = upkeep.find_garbage(settings, store, registry, timedelta(days=older_than))
    if not dry_run:
        found = [garbage for garbage in found if upkeep.remove(store, registry, garbage)]
    display.show_garbage(found, removed=not dry_run, as_json=json)


@app.command()
def doctor(
    security: Annotated[
        bool, typer.Option("--security", help="Every port of the running service, and who may do what there.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Check every dependency; say the remedy where one fails."""
    import yarn_ops.cli.display as display
    from yarn_ops.cli.doctor import examine
    from yarn_ops.settings import read_settings

    if security:
        from yarn_ops.cli.security import examine_ports

        doors = examine_ports(read_settings())
        display.show_doors(doors, as_json=json)
        if not all(door.closed for door in doors):
            raise typer.Exit(2)
        return
    findings = examine(read_settings())
    display.show_findings(findings, as_json=json)
    if not all(finding.healthy for finding in findings):
        raise typer.Exit(2)
