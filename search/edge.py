"""Where human input meets the program: YAML 1.2 in, one clear sentence out when something is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from estimator.errors import BestServeError

_ACCEPTED_BY_TYPE = {
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list, for example [a, b]",
    "dict_type": "a mapping of names to values",
    "model_type": "a mapping of names to values",
    "model_attributes_type": "a mapping of names to values",
    "date_type": "a date, for example 2026-11-09",
}


class Edge(BaseModel):
    """Base of every part of a spec: strict types, no unknown fields, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _names(cls, given: Any) -> Any:
        """Unknown and missing names, told with what would be accepted."""
        if not isinstance(given, Mapping):
            return given
        for name in given:
            if name not in cls.model_fields:
                accepted = _nearest(str(name), list(cls.model_fields))
                raise _custom(str(name), given[name], "is not a known field", accepted)
        for name, field in cls.model_fields.items():
            if field.is_required() and name not in given:
                raise _custom(name, None, "must be given", field.description or "a value")
        return given


Model = TypeVar("Model", bound=Edge)


def read_yaml(path: Path, *, field: str = "spec") -> Any:
    """What a YAML 1.2 file holds; `1e-3` is a number and `no` a word.

    Raises `BestServeError` for a missing file or broken YAML, naming the line.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    text = read_text(path, field=field)
    try:
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "unknown place"
        problem = str(error.problem or "a syntax error").split("\n")[0]
        raise BestServeError(field, str(path), f"is not YAML ({where}: {problem})", "YAML 1.2") from error
    except YAMLError as error:
        raise BestServeError(field, str(path), "is not YAML", "YAML 1.2") from error


def read_text(path: Path, *, field: str) -> str:
    """The text of a file, or `BestServeError` if there is none."""
    if path.is_dir():
        raise BestServeError(field, str(path), "is a folder", "the path of a file")
    if not path.is_file():
        near = _nearest(path.name, sorted(p.name for p in path.parent.glob(f"*{path.suffix}") if p.is_file()))
        raise BestServeError(field, str(path), "does not exist", f"the path of a file ({near})" if near else "a file")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BestServeError(field, str(path), "is not UTF-8 text", "a text file") from error


@contextmanager
def writing(path: Path, *, field: str) -> Iterator[None]:
    """Tells in one sentence where a place that the user named cannot be written, or the disk is full."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BestServeError(
            field, str(path), f"cannot be written ({reason})", "a place that can be written"
        ) from error


def validated(model: type[Model], given: Any, *, field: str = "spec") -> Model:
    """`given` as an instance of `model`; the first thing wrong with it raises `BestServeError`."""
    if not isinstance(given, Mapping):
        raise BestServeError(field, given, "must be a mapping", f"fields {', '.join(model.model_fields)}")
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise _sentence(_telling(error.errors())) from error


def nearest_names(name: str, names: list[str]) -> str:
    """What to suggest for a wrong name: the nearest one first, then all."""
    return _nearest(name, names)


def _nearest(name: str, names: list[str]) -> str:
    """The nearest name as a question, then the others."""
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return f"{near[0]} (did you mean this?), of {shown}" if near else shown


def _custom(name: str, value: object, rule: str, accepted: str) -> PydanticCustomError:
    context = {"name": name, "value": value, "rule": rule, "accepted": accepted}
    return PydanticCustomError("name", "{name} {rule}", context)


def _telling(errors: list[ErrorDetails]) -> ErrorDetails:
    """The first error; of a field that may be text or a mapping, the one about the form that was given."""
    for error in errors:
        if error["loc"][-1:] != ("str",) or not isinstance(error["input"], Mapping):
            return error
    return errors[0]


def _sentence(error: ErrorDetails) -> BestServeError:
    """One pydantic error as the sentence of the field, the value, the rule and what would be accepted."""
    path = _path(error["loc"])
    context = error.get("ctx", {})
    kind = error["type"]
    if kind == "name":
        field = f"{path}.{context['name']}" if path else str(context["name"])
        return BestServeError(field, context["value"], str(context["rule"]), str(context["accepted"]))
    if isinstance(inner := context.get("error"), BestServeError):
        field = f"{path}.{inner.field}" if path else inner.field
        return BestServeError(field, inner.value, inner.rule, inner.accepted)
    rule, accepted = _rule(kind, context, error["msg"])
    value = error["input"]
    return BestServeError(path, dict(value) if isinstance(value, Mapping) else value, rule, accepted)


def _rule(kind: str, context: Mapping[str, Any], message: str) -> tuple[str, str]:
    """Rule and accepted values of a built-in pydantic error."""
    bounds = {"greater_than": (">", "gt"), "greater_than_equal": ("≥", "ge"), "less_than": ("<", "lt")}
    bounds["less_than_equal"] = ("≤", "le")
    if kind in bounds:
        sign, key = bounds[kind]
        return f"must be {sign} {context[key]}", f"a number {sign} {context[key]}"
    if kind in ("literal_error", "enum"):
        return "is unknown", str(context["expected"]).replace("'", "")
    if kind == "union_tag_invalid":
        return "has an unknown kind", str(context["expected_tags"]).replace("'", "")
    if kind == "union_tag_not_found":
        return "has no kind", f"a mapping with the field {context['discriminator']}"
    if kind == "finite_number":
        return "is not finite", "a finite number"
    if kind == "string_pattern_mismatch":
        return "holds other characters than it may", f"text that matches {context['pattern']}"
    if kind == "too_short":
        return "is too short", f"at least {context['min_length']} entries"
    if kind in _ACCEPTED_BY_TYPE:
        return "has the wrong type", _ACCEPTED_BY_TYPE[kind]
    return f"is not valid ({message[0].lower() + message[1:]})", "see `bestserve schema`"


# Pydantic names the chosen branch of a union in an error's place; these are not field names of the file.
_BRANCHES = {
    *("fixed", "uniform", "lognormal", "empirical", "poisson", "gamma", "constant", "trace"),
    *("str", "GpuSpec", "PriceSpec", "LinkOptionSpec", "CalibrationSpec"),
}


def _path(loc: tuple[int | str, ...]) -> str:
    """`('gpus', 0, 'memory_gb')` as `gpus[0].memory_gb`."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in _BRANCHES and not part.startswith("function-"):  # a validator's own place in a union
            path += f".{part}" if path else part
    return path
