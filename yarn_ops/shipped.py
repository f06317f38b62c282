"""What the project's checkout ships: recipes and the demo's base model."""

from __future__ import annotations

from pathlib import Path

CHECKOUT = Path(__file__).parent.parent
RECIPES = CHECKOUT / "infra" / "recipes"
MODELS = CHECKOUT / "infra" / "models"


def recipes() -> list[Path]:
    """The shipped recipe files."""
    return sorted(RECIPES.glob("*.toml"))


def recipe_path(name: str) -> Path:
    """The file a recipe argument means: an existing path, or a shipped recipe by its name."""
    path = Path(name)
    shipped = RECIPES / f"{name}.toml"
    return shipped if not path.exists() and path.name == name and shipped.is_file() else path
