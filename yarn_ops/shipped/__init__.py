"""What comes with the package: recipes (`recipes/*.toml`), the demo's base model (`models/base512`), and the
configuration of a router before two servers (`router/*`)."""

from __future__ import annotations

from pathlib import Path

RECIPES = Path(__file__).parent / "recipes"
MODELS = Path(__file__).parent / "models"
ROUTER = Path(__file__).parent / "router"


def recipes() -> list[Path]:
    """The shipped recipe files."""
    return sorted(RECIPES.glob("*.toml"))


def recipe_path(name: str) -> Path:
    """The file that a recipe argument means: an existing path, or a shipped recipe by its name."""
    path = Path(name)
    shipped = RECIPES / f"{name}.toml"
    return shipped if not path.exists() and path.name == name and shipped.is_file() else path
