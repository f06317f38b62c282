"""What commands share: their groups, common options, the way to a recipe, its services and the registry."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from yarn_ops import __version__

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

MOST = 2**63 - 1
"""of a whole number: what a database keeps"""

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A TOML file, or the name of a shipped recipe.")
]
NameOption = Annotated[
    str | None,
    typer.Option("--name", metavar="TEXT", help="What the run is called; left out: as its model."),
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


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"yarn-ops {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    pass


@contextmanager
def services_of(
    recipe: Recipe, flow: str, reusing: Callable[[], bool] = lambda: False,
    begin: Callable[[], None] = lambda: None,
) -> Iterator[None]:  # fmt: skip
    """Within the block, a run of the recipe finds every service it needs, Prefect's server among them.

    flow: the module of the run's flow; it is imported while the server starts. reusing: of a recipe whose run
    came to its end before: do it without a server, and tell whether all of it could be reused. begin: what to
    start before the flow is imported.
    """
    from yarn_ops import servers
    from yarn_ops.services import open_run_registry, require_services
    from yarn_ops.settings import adopt_environment, read_settings

    settings = read_settings()
    require_services(settings, recipe.publish.experiment)  # before a server is started for nothing

    def prepare(environment: dict[str, str]) -> None:
        adopt_environment(environment)
        begin()
        importlib.import_module(flow)

    def needless(environment: dict[str, str]) -> bool:
        if not open_run_registry(settings).came_to_its_end(recipe.digest()):
            return False
        adopt_environment(environment)
        return reusing()

    try:
        with servers.run_environment(settings, prepare, needless):
            yield
    except KeyboardInterrupt:
        sys.stderr.write("yarn-ops: stopped; the same command goes on from here\n")
        raise


def load_asked(recipe: str, overrides: list[str] | None) -> Recipe:
    from yarn_ops.recipe import load_recipe
    from yarn_ops.shipped import recipe_path

    return load_recipe(recipe_path(recipe), overrides or ())


def run_registry():  # type: ignore[no-untyped-def]
    from yarn_ops.services import open_run_registry
    from yarn_ops.settings import read_settings

    return open_run_registry(read_settings())


def tracking():  # type: ignore[no-untyped-def]
    from yarn_ops.services import try_mlflow
    from yarn_ops.settings import read_settings

    return try_mlflow(read_settings())


def pairs_of(tags: list[str] | None) -> dict[str, str]:
    pairs = [tag.partition("=") for tag in tags or ()]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise typer.BadParameter("write --tag key=value")
    return {key: value for key, _, value in pairs}
