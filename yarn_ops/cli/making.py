"""Commands that do what a recipe says, or look at a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from yarn_ops.cli.app import (
    ARMS_HELP,
    MOST,
    JsonOption,
    NameOption,
    RecipeArgument,
    SetOption,
    app,
    load_asked,
    recipe_app,
    rope_app,
    run_registry,
    services_of,
)
from yarn_ops.errors import AwaitsApproval, GateFailed
from yarn_ops.processes import importing


@app.command()
def extend(recipe: RecipeArgument, set_: SetOption = None, name: NameOption = None) -> None:
    """Run a recipe here: extend, measure, judge and register."""
    import yarn_ops.cli.display as display
    from yarn_ops.settings import read_settings

    asked, ended = load_asked(recipe, set_), None
    language = read_settings().language

    def reusing() -> bool:
        with importing():
            from flows import extend as extending
            from flows.run import reuse_all

        nonlocal ended
        ended = reuse_all(extending.extend, name, asked)
        return ended is not None

    def begin() -> None:
        if ended is None:
            from flows import warm_trainer

            warm_trainer.start()

    try:
        with services_of(asked, "flows.extend", reusing, begin):
            with importing():
                from flows import extend as extending
                from flows.outcome import run_here

            view = run_registry().run_view(ended or run_here(extending.extend, name, asked))
    except GateFailed as rejected:
        display.show_run(run_registry().run_view(rejected.run_id or "last"), language=language)
        raise
    except AwaitsApproval as waits:
        view = run_registry().run_view(waits.run_id or "last")
    display.show_run(view, language=language)


@app.command()
def compare(
    recipe: RecipeArgument,
    methods: Annotated[str, typer.Option(help="Separated by commas.")] = "none,linear,ntk,by-parts,yarn",
    arms: Annotated[str, typer.Option(help=ARMS_HELP)] = "zero-shot,lora",
    set_: SetOption = None,
    name: NameOption = None,
) -> None:
    """Compare RoPE methods on a recipe's base and data. Zero-shot and trained; the gate names the winner."""
    import yarn_ops.cli.display as display
    from yarn_ops.recipe import parse_arms, parse_methods

    asked, chosen, ways = (
        load_asked(recipe, set_),
        parse_methods(methods.split(",")),
        parse_arms(arms.split(",")),
    )
    with services_of(asked, "flows.compare"):
        from flows import compare as comparing
        from flows.outcome import run_here

        view = run_registry().run_view(run_here(comparing.compare, name, asked, chosen, ways))
    display.show_comparison(view)


@app.command()
def plan(
    recipe: RecipeArgument,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="H100, H200, 24GB (any size) or H200:24GB; left out: the GPU here, or usual cards."
        ),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, max=MOST, help="Machines.")] = 1,
    gpus: Annotated[int, typer.Option(min=1, max=MOST, help="GPUs of each machine.")] = 1,
    documents_gb: Annotated[
        float, typer.Option(min=0, max=1e9, metavar="GB", help="Text to prepare; it is not looked at.")
    ] = 1.0,
    host_gb: Annotated[
        float,
        typer.Option(min=0, max=1e9, metavar="GB", help="Host memory that the steps of a GPU may take."),
    ] = 96.0,
    gpu_hour: Annotated[
        float | None,
        typer.Option(min=0, max=1e9, metavar="$", help="Price of a GPU's hour; left out: the settings'."),
    ] = None,
    node_hour: Annotated[
        float | None,
        typer.Option(min=0, max=1e9, metavar="$", help="Of a machine of 32 cores; left out: the settings'."),
    ] = None,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Tell memory, time, disk and money that a recipe takes. Nothing is trained."""
    import yarn_ops.cli.plan as plans
    from yarn_ops.bill import Machines
    from yarn_ops.cli.rope import directory_of
    from yarn_ops.models.device import resolve_device
    from yarn_ops.planning import plan_cards, plan_run
    from yarn_ops.settings import read_settings

    usual = read_settings()
    machines = Machines(
        nodes, gpus,
        usual.gpu_hour if gpu_hour is None else gpu_hour,
        usual.node_hour if node_hour is None else node_hour,
    )  # fmt: skip
    asked = load_asked(recipe, set_)
    directory = directory_of(asked.base.model, asked.base.original_context_tokens)
    if gpu is None and resolve_device("auto") == "cpu":
        plans.show_cards(plan_cards(asked, directory, machines, documents_gb * 1e9, host_gb), as_json=json)
        return
    found = plan_run(asked, directory, gpu, machines, documents_gb * 1e9, host_gb)
    plans.show(found, as_json=json)


@app.command()
def fit(
    recipe: RecipeArgument,
    method: Annotated[
        Literal["yarn", "longrope"], typer.Option(help="Whose parameters: betas, or a factor for each pair.")
    ] = "yarn",
    set_: SetOption = None,
    name: NameOption = None,
    json: JsonOption = False,
) -> None:
    """Search RoPE parameters for a recipe's base. On its held-out documents; prints a [rope] section."""
    import yarn_ops.cli.rope as rope

    asked = load_asked(recipe, set_)
    with services_of(asked, "flows.fit"):
        from flows import fit as fitting
        from flows.outcome import run_here

        found = run_here(fitting.fit, name, asked, method)
    rope.show_fit(found, as_json=json)


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Any causal model directory; or a base as a recipe names it."),
    ],
    suite: Annotated[
        Literal["tiny", "quick", "use", "full"],
        typer.Option(help="tiny: seconds for a small model; quick: minutes; use: beyond needles; full: all."),
    ] = "quick",
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Measured on the same texts, beside it.")
    ] = None,
    documents: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Your own texts; left out: Python's standard library."),
    ] = None,
    longest: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, metavar="TOKENS", help="Left out: what the model's config says."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST, help="Of texts and needles: another asks anew.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write capacity.html and capacity.png there.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Of a running server: what it serves as MODEL is measured."),
    ] = None,
    served: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What the server calls the model, where it has several."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure how far a model sees and uses; no recipe needed."""
    import yarn_ops.cli.evaluate as evaluation
    from yarn_ops.settings import read_settings

    measured = evaluation.evaluate(
        read_settings(), model, suite, base=base, documents=documents or (), longest=longest, seed=seed,
        out=out, url=url, served=served,
    )  # fmt: skip
    evaluation.show(measured, out, as_json=json)


@recipe_app.command("show")
def recipe_show(recipe: RecipeArgument, set_: SetOption = None, json: JsonOption = False) -> None:
    """Print a recipe, every default written out, with its digest."""
    import yarn_ops.cli.display as display

    display.show_recipe(load_asked(recipe, set_), as_json=json)


@recipe_app.command("check")
def recipe_check(recipe: RecipeArgument, set_: SetOption = None) -> None:
    """Check a recipe against its base. Refuses what contradicts itself, or says what is measured."""
    from yarn_ops.cli.rope import directory_of
    from yarn_ops.models.files import read_config
    from yarn_ops.shown import counted

    asked = load_asked(recipe, set_)
    stated = asked.base.original_context_tokens
    original = stated or read_config(directory_of(asked.base.model, stated))["max_position_embeddings"]
    legs = asked.curriculum(original)
    lengths = ", ".join(f"{round(length * original):,}" for length in asked.measured(original).lengths)
    typer.echo(
        f"{asked.publish.name}: {original:,} to {asked.rope.target_tokens(original):,} tokens, "
        f"{counted(sum(leg.steps for leg in legs), 'step')}; measured at {lengths} tokens"
    )


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
        int | None,
        typer.Option(min=1, max=MOST, metavar="TOKENS", help="Original context of a model already scaled."),
    ] = None,
    to: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw it as well.")] = None,
    json: JsonOption = False,
) -> None:
    """Show what a method does to every pair of dimensions. And how attention changes."""
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
        float | None,
        typer.Option(min=1, max=1024, help="Read a model that is not extended yet zero-shot by YaRN."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model before it was extended.")
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, metavar="TOKENS", help="Of a document; as the model's config says."),
    ] = None,
    documents: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Text to hide answers in; may be repeated.")
    ] = None,
    templates: Annotated[str, typer.Option(help="Of code, prose.")] = "code",
    windows: Annotated[int, typer.Option(min=1, max=MOST, help="Documents; four answers lie in each.")] = 16,
    seed: Annotated[int, typer.Option(min=0, max=MOST, help="Of places, keys and documents.")] = 0,
    to: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw it as well.")] = None,
    json: JsonOption = False,
) -> None:
    """Compare ways to answer from a long document. Attention, rolling, blocks, search, agent; with costs."""
    import yarn_ops.cli.remedies as remedies

    side = remedies.run(
        model, base=base, factor=factor, length=length, documents=documents, templates=templates,
        windows=windows, seed=seed,
    )  # fmt: skip
    remedies.show(side, as_json=json)
    if to is not None:
        remedies.draw(side, to)
