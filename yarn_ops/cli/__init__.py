"""The command line. Heavy packages are imported inside the commands: `yarn-ops --help` stays quick."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer.exceptions import TyperException

from yarn_ops.errors import YarnOpsError

if TYPE_CHECKING:
    from yarn_ops.recipe import Recipe

app = typer.Typer(
    help="Extend RoPE language models to long contexts: safely, measurably and on a schedule.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
recipe_app = typer.Typer(help="Recipes: what to do.", no_args_is_help=True)
rope_app = typer.Typer(help="Rotary position embeddings.", no_args_is_help=True)
runs_app = typer.Typer(help="Runs in the registry, newest first.", invoke_without_command=True)
db_app = typer.Typer(help="The run registry's database.", no_args_is_help=True)
app.add_typer(recipe_app, name="recipe")
app.add_typer(rope_app, name="rope")
app.add_typer(runs_app, name="runs")
app.add_typer(db_app, name="db")

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A TOML file, or the name of a shipped recipe.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one value.")
]
TagOption = Annotated[
    list[str] | None, typer.Option("--tag", metavar="K=V", help="Only versions with this tag.")
]
ARMS_HELP = (
    "Of zero-shot, lora (as the recipe has it), lora-only (norms frozen), lora+norms, lora+norms+embeddings, "
    "full; behind a lora +r64 is another rank, +all-linear or +qv other layers."
)
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Entry point: a user's fault is one line on standard error and exit code 2."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what a command started, it also ends
    try:
        sys.exit(app(prog_name="yarn-ops", standalone_mode=False))
    except YarnOpsError as error:
        complaint = f"yarn-ops: {error}"
    except TyperException as error:
        complaint = _usage(error)
    sys.stderr.write(f"{complaint}\n")
    sys.exit(2)


@app.command()
def extend(recipe: RecipeArgument, set_: SetOption = None) -> None:
    """Run a recipe here: extend, measure, judge and register one model."""
    import yarn_ops.cli.display as display

    asked = _load(recipe, set_)
    with _services_of(asked):
        from flows.extend import run_here

        view = run_here(asked)
    display.show_run(view)


@app.command()
def compare(
    recipe: RecipeArgument,
    methods: Annotated[str, typer.Option(help="Separated by commas.")] = "none,linear,ntk,by-parts,yarn",
    arms: Annotated[str, typer.Option(help=ARMS_HELP)] = "zero-shot,lora",
    set_: SetOption = None,
) -> None:
    """Compare RoPE methods on a recipe's base and data, zero-shot and trained; the gate names the winner."""
    import yarn_ops.cli.display as display
    from yarn_ops.recipe import parse_arms, parse_methods

    asked, chosen, ways = _load(recipe, set_), parse_methods(methods.split(",")), parse_arms(arms.split(","))
    with _services_of(asked):
        from flows.compare import compare_here

        view = compare_here(asked, chosen, ways)
    display.show_comparison(view)


@app.command()
def plan(
    recipe: RecipeArgument,
    gpu: Annotated[str | None, typer.Option(help="H100 or H200; without it, the GPU that is here.")] = None,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Memory, time and disk that training a recipe takes, and what its layers keep; nothing is trained."""
    import yarn_ops.cli.plan as planning

    planning.show(planning.plan_run(_load(recipe, set_), gpu), as_json=json)


@app.command()
def fit(
    recipe: RecipeArgument,
    method: Annotated[
        Literal["yarn", "longrope"], typer.Option(help="Whose parameters: betas, or a factor for each pair.")
    ] = "yarn",
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Search RoPE parameters for a recipe's base on its held-out documents; print a [rope] section."""
    import yarn_ops.cli.rope as rope

    asked = _load(recipe, set_)
    with _services_of(asked):
        from flows.fit import fit_here

        found = fit_here(asked, method)
    rope.show_fit(found, as_json=json)


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Any causal model directory; or a base as a recipe names it."),
    ],
    suite: Annotated[
        Literal["quick", "full"], typer.Option(help="quick: minutes for a small model; full: every task.")
    ] = "quick",
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Measured on the same texts, beside it.")
    ] = None,
    documents: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Your own texts; left out: Python's standard library."),
    ] = None,
    longest: Annotated[
        int | None, typer.Option(min=1, metavar="TOKENS", help="Left out: what the model's config says.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of texts and needles: another asks anew.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write capacity.html and capacity.png there.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure how far a model sees and how far it uses; no recipe needed."""
    import yarn_ops.cli.evaluate as evaluation
    from yarn_ops.settings import read_settings

    measured = evaluation.evaluate(
        read_settings(), model, suite, base=base, documents=documents or (), longest=longest, seed=seed,
        out=out,
    )  # fmt: skip
    evaluation.show(measured, out, as_json=json)


@recipe_app.command("show")
def recipe_show(recipe: RecipeArgument, set_: SetOption = None, json: JsonOption = False) -> None:
    """Print a recipe resolved, every default written out, with its digest."""
    import yarn_ops.cli.display as display

    display.show_recipe(_load(recipe, set_), as_json=json)


@recipe_app.command("list")
def recipe_list() -> None:
    """Name the shipped recipes."""
    from yarn_ops.shipped import recipes

    for path in recipes():
        typer.echo(f"{path.stem:<24} {path.read_text('utf-8').splitlines()[0].lstrip('# ')}")


@rope_app.command("show")
def rope_show(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A directory, or a base as in a recipe: shipped:base512, …")
    ],
    method: Annotated[
        str | None,
        typer.Option(metavar="METHOD", help="E.g. yarn; left out: what the model itself asks for."),
    ] = None,
    factor: Annotated[float | None, typer.Option(help="Target context / original context.")] = None,
    beta_fast: Annotated[float | None, typer.Option(help="Turns above which a dimension is kept.")] = None,
    beta_slow: Annotated[float | None, typer.Option(help="Turns below which one is interpolated.")] = None,
    theta: Annotated[float | None, typer.Option(help="abf: the base frequency that replaces.")] = None,
    original: Annotated[
        int | None, typer.Option(min=1, metavar="TOKENS", help="Original context of a model already scaled.")
    ] = None,
    to: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw it as well.")] = None,
    json: JsonOption = False,
) -> None:
    """Show which dimensions a method keeps, blends and interpolates, and how attention changes."""
    import yarn_ops.cli.rope as rope

    asked = {
        "method": method, "factor": factor, "beta_fast": beta_fast, "beta_slow": beta_slow, "theta": theta,
    }  # fmt: skip
    spec = rope.asked_spec(model, {key: value for key, value in asked.items() if value is not None}, original)
    rope.show(spec, as_json=json)
    if to is not None:
        rope.draw(spec, to)


@app.command("remedies")
def remedies_(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A directory, or a base as in a recipe: shipped:base512, …")
    ],
    factor: Annotated[
        float | None, typer.Option(help="Read a model that is not extended yet zero-shot by YaRN.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model before it was extended.")
    ] = None,
    length: Annotated[
        int | None, typer.Option(min=1, metavar="TOKENS", help="Of a document; as the model's config says.")
    ] = None,
    documents: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Text to hide answers in; may be repeated.")
    ] = None,
    templates: Annotated[str, typer.Option(help="Of code, prose.")] = "code",
    windows: Annotated[int, typer.Option(min=1, help="Documents; four answers lie in each.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of places, keys and documents.")] = 0,
    to: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw it as well.")] = None,
    json: JsonOption = False,
) -> None:
    """Compare ways to answer from a long document: attention, rolling, blocks, search, agent; with costs."""
    import yarn_ops.cli.remedies as remedies

    side = remedies.run(
        model, base=base, factor=factor, length=length, documents=documents, templates=templates,
        windows=windows, seed=seed,
    )  # fmt: skip
    remedies.show(side, as_json=json)
    if to is not None:
        remedies.draw(side, to)


@runs_app.callback()
def runs(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    json: JsonOption = False,
) -> None:
    """List runs, newest first."""
    if context.invoked_subcommand is None:
        import yarn_ops.cli.display as display

        display.show_runs(_registry().runs(limit), as_json=json)


@runs_app.command("show")
def runs_show(
    run_id: Annotated[str | None, typer.Argument(metavar="ID")] = None,
    last: Annotated[bool, typer.Option("--last", help="The newest run.")] = False,
    json: JsonOption = False,
) -> None:
    """Show one run: stages, scores, verdict, release."""
    import yarn_ops.cli.display as display

    if last == (run_id is not None):
        raise typer.BadParameter("give a run's id, or --last")
    display.show_run(_registry().run_view(run_id or "last"), as_json=json)


@app.command()
def models(tag: TagOption = None, json: JsonOption = False) -> None:
    """List registered model versions, newest first."""
    import yarn_ops.cli.display as display

    display.show_models(_tracking().models(_pairs(tag)), as_json=json)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="Registered model name.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Where the model directory goes.")],
    tag: TagOption = None,
    alias: Annotated[str | None, typer.Option(help="E.g. champion.")] = None,
    version: Annotated[int | None, typer.Option(min=1)] = None,
    any_gate: Annotated[
        bool, typer.Option("--any-gate", help="Versions that failed their gate too.")
    ] = False,
) -> None:
    """Download the newest version that matches, every file verified, and prove its RoPE."""
    tags = _pairs(tag)
    from yarn_ops.cli.pull import pull_release

    release = pull_release(name, to, tags=tags, alias=alias, version=version, include_rejected=any_gate)
    typer.echo(f"{release.name} version {release.version} -> {to}")


@app.command("export")
def export_(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL_DIR", help="An extended model, e.g. one that was pulled.")
    ],
    engine: Annotated[
        Literal["transformers", "vllm", "vllm-0.29", "sglang", "llama.cpp"],
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
    """Print the command that serves a model by its own RoPE and write the files it needs, or say why not."""
    from yarn_ops.cli.export import export

    exported = export(model, engine, to=to, weights=weights, adapter=adapter, base=base)
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


@app.command()
def up(
    prefect_port: Annotated[int, typer.Option(help="Wanted port of the Prefect server and UI.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Wanted port of the MLflow server.")] = 5000,
) -> None:
    """Start the service on loopback: Prefect, MLflow, a worker, the deployments. Ctrl-C stops it."""
    from yarn_ops.cli.up import run_service
    from yarn_ops.settings import read_settings

    run_service(read_settings(), prefect_port=prefect_port, mlflow_port=mlflow_port)


@app.command()
def gc(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what and how much; remove nothing.")
    ] = False,
    older_than: Annotated[
        float, typer.Option(min=0, metavar="DAYS", help="Only what nobody wrote to for as long.")
    ] = 7.0,
    json: JsonOption = False,
) -> None:
    """Remove what nothing refers to: broken-off uploads, unreferenced directories, stale working files."""
    import yarn_ops.cli.display as display
    from yarn_ops.cli.gc import collect
    from yarn_ops.settings import read_settings

    found = collect(read_settings(), older_than_days=older_than, dry_run=dry_run)
    display.show_garbage(found, removed=not dry_run, as_json=json)


@app.command()
def doctor(json: JsonOption = False) -> None:
    """Check every dependency: reachable, of the right version; the remedy where one is not."""
    import yarn_ops.cli.display as display
    from yarn_ops.cli.doctor import examine
    from yarn_ops.settings import read_settings

    findings = examine(read_settings())
    display.show_findings(findings, as_json=json)
    if not all(finding.healthy for finding in findings):
        raise typer.Exit(2)


def _usage(error: TyperException) -> str:
    """What is wrong with the command as typed, in one line; the whole help where a group was typed alone."""
    message = error.format_message().rstrip(".")
    if "\n" in message:
        return message
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "yarn-ops"
    return f"yarn-ops: {message[:1].lower()}{message[1:]}; see `{command} --help`"


@contextmanager
def _services_of(recipe: Recipe) -> Iterator[None]:
    """Within the block, a run of the recipe finds every service it needs, Prefect's server among them."""
    from yarn_ops import servers
    from yarn_ops.services import require_services
    from yarn_ops.settings import adopt_environment, read_settings

    settings = read_settings()
    require_services(settings, recipe.publish.experiment)  # before a server is started for nothing
    try:
        with servers.run_environment(settings) as environment:
            adopt_environment(environment)
            yield
    except KeyboardInterrupt:
        sys.stderr.write("yarn-ops: stopped; the same command goes on from here\n")
        raise


def _load(recipe: str, overrides: list[str] | None) -> Recipe:
    from yarn_ops.recipe import load_recipe
    from yarn_ops.shipped import recipe_path

    return load_recipe(recipe_path(recipe), overrides or ())


def _registry():  # type: ignore[no-untyped-def]
    from yarn_ops.services import open_run_registry
    from yarn_ops.settings import read_settings

    return open_run_registry(read_settings())


def _tracking():  # type: ignore[no-untyped-def]
    from yarn_ops.services import try_mlflow
    from yarn_ops.settings import read_settings

    return try_mlflow(read_settings())


def _pairs(tags: list[str] | None) -> dict[str, str]:
    pairs = [tag.partition("=") for tag in tags or ()]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise typer.BadParameter("write --tag key=value")
    return {key: value for key, _, value in pairs}
