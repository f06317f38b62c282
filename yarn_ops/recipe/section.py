"""What the parts of a recipe are made of: names to choose from, numbers, and the class of all sections."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationInfo, field_validator
from pydantic.config import JsonDict
from pydantic_core import CoreSchema

from yarn_ops.errors import RecipeError
from yarn_ops.secrecy import holds_password
from yarn_ops.secret_names import form_pattern

MOST = 2**63 - 1
"""of a whole number: what a database keeps"""
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
RopeMethod = Literal[
    "none", "linear", "ntk", "dynamic-ntk", "by-parts", "yarn", "dynamic-yarn", "llama3", "longrope", "abf"
]
LENGTH_DEPENDENT = ("dynamic-ntk", "dynamic-yarn", "longrope")
"""methods that turn heads by the length of the text, as no engine's cache serves it"""
SuiteName = Literal["tiny", "quick", "use", "full"]
SuiteChoice = Literal["none", "tiny", "quick", "use", "full"]
"""one flat list: a run form shows a union as alternatives"""
FittedMethod = Literal["yarn", "longrope"]
"""methods with parameters that can be searched for"""

UNSTORABLE = re.compile("[\0\ud800-\udfff]")
"""what no file name, database or UTF-8 text holds"""
NO_PASSWORD: JsonDict = {"pattern": form_pattern()}
"""of a place in the form's schema, so that Prefect keeps none either"""


class Section(BaseModel):
    """Part of a recipe: frozen; unknown keys, NaN, infinity and text that nothing can hold are refused.

    So are passwords: a recipe is shown in the registry, in Prefect and in MLflow.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), hide_input_in_errors=True
    )

    LATER: ClassVar[frozenset[str]] = frozenset()
    """fields that were added since digests are kept; at their defaults they are in none"""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """For a run form: a field that is empty at first is a plain one; one that never is, is required."""
        made = handler(schema)
        shown = handler.resolve_ref_schema(made)
        required = set(shown.get("required", ()))
        for name, field in shown["properties"].items():
            kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
            if len(kinds) == 1 and field.get("default", ...) is None:
                del field["anyOf"], field["default"]
                field.update(kinds[0])
            elif field.get("type") in ("string", "number", "integer") or "minItems" in field:
                required.add(name)
        shown["required"] = sorted(required)
        return made

    @field_validator("*", mode="before")
    @classmethod
    def _storable(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(kind, type) and issubclass(kind, Section) and isinstance(value, dict | kind):
            return value  # it looks for itself, and names the field
        yes_or_no = any(isinstance(item, bool) for item in (value if isinstance(value, list) else [value]))
        if yes_or_no and kind is not bool and bool not in get_args(kind):
            raise ValueError("true and false are no numbers and no text; write one")
        for text in _texts(value):
            if UNSTORABLE.search(text):
                raise ValueError("holds NUL or half a character; remove it")
            if holds_password(text):
                raise ValueError("holds a password, and a recipe is no secret; set YARN_OPS_S3_SECRET_KEY")
        return value

    @field_validator("*")
    @classmethod
    def _countable(cls, value: Any) -> Any:
        if isinstance(value, int) and abs(value) > MOST:
            raise ValueError(f"a database keeps numbers up to {MOST}; write a smaller one")
        return value

    def key_values(self) -> dict[str, Any]:
        """As JSON, for digests: without what `LATER` names and is as it was before there was such a field."""
        values = self.model_dump(mode="json")
        for name, value in self:
            if isinstance(value, Section):
                values[name] = value.key_values()
            if name in self.LATER and value == type(self).model_fields[name].default:
                del values[name]
        return values

    def with_defaults(self, *names: str) -> Self:
        """A copy with these fields at their defaults."""
        return self.model_copy(update={name: type(self).model_fields[name].default for name in names})


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in (*value.keys(), *value.values()) for text in _texts(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    return []


def parse_methods(names: Sequence[str]) -> list[RopeMethod]:
    """The RoPE methods of these names; RecipeError for an unknown one, or one that is there twice."""
    known: tuple[Any, ...] = get_args(RopeMethod)
    for place, name in enumerate(names):
        if name not in known:
            raise RecipeError(f"method {name!r} is unknown; known are {', '.join(known)}")
        if name in names[:place]:
            raise RecipeError(f"method {name!r} is named twice; name it once")
    return [known[known.index(name)] for name in names]
