"""The reference of every spec field, written from the pydantic models: `search/SPEC.md`."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

HEAD = """# The run spec, field by field

Written by `bestserve schema --markdown` from the models that check the spec; a test keeps it up to date.
`bestserve schema > bestserve.schema.json` gives editors the same as a JSON Schema. Unknown fields are refused.
"""


def spec_markdown() -> str:
    """One table per part of the spec, in the order in which the parts are met."""
    from search.spec import Spec

    return "\n".join([HEAD, *(part for model in _models(Spec) for part in _section(model))])


def _models(top: type[BaseModel]) -> list[type[BaseModel]]:
    """`top` and every model its fields lead to, each once, parents first."""
    found: dict[type[BaseModel], None] = {}
    queue = [top]
    while queue:
        model = queue.pop(0)
        if model in found:
            continue
        found[model] = None
        queue += [part for field in model.model_fields.values() for part in _inside(field.annotation)]
    return list(found)


def _inside(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not Literal:
        for argument in get_args(annotation):
            yield from _inside(argument)


def _section(model: type[BaseModel]) -> list[str]:
    said = " ".join((model.__doc__ or "").split())
    lines = [f"## {model.__name__}", "", said, "", "| field | type | default | accepted |", "|---|---|---|---|"]
    lines += [
        f"| `{name}` | {_type(field.annotation, field)} | {_default(field)} | {_accepted(field)} |"
        for name, field in model.model_fields.items()
    ]
    return [*lines, ""]


def _type(annotation: Any, field: FieldInfo | None = None) -> str:
    """In words; other parts of the spec are links."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(argument) for argument in arguments if argument is not type(None))
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"mapping to {_type(arguments[1])}"
    names = {float: "number", int: "whole number", str: "text", bool: "true or false"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None:
        return ""
    if isinstance(value, BaseModel):
        given = value.model_dump(exclude_defaults=True)
        return f"`{given}`".replace("'", "") if given else "its defaults"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != {} else "none"


def _accepted(field: FieldInfo) -> str:
    """The description, and bounds that it leaves out."""
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    bounds = [
        f"{sign} {getattr(rule, name):g}"
        for rule in field.metadata
        for name, sign in signs.items()
        if getattr(rule, name, None) is not None
    ]
    said = (field.description or "").replace("|", "\\|")
    missing = [bound for bound in bounds if bound not in said]
    return "; ".join(part for part in (said, ", ".join(missing)) if part)
