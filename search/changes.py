"""Changes of a run's spec as people write them: `traffic.rate=2x`, `slo.tpot=30ms`, `prices.h100_sxm=+20%`.

A value may be absolute with the unit of the field or another of its kind, a factor (`2x`), or a change in per cent with
its sign (`+20%`). What a change touches decides what must be simulated again.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

from estimator.errors import BestServeError
from search.edge import nearest_names

Touches = Literal["price", "rate", "link", "requests"]
_VALUE = re.compile(r"(?P<number>[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*(?P<unit>[A-Za-z%/µ]*)")
UNITS: dict[str, dict[str, float]] = {  # by the end of the field's name: factor into the field's unit
    "rate_req_s": {"": 1.0, "/s": 1.0, "req/s": 1.0, "/min": 1 / 60, "/h": 1 / 3600},
    "_ms": {"": 1.0, "ms": 1.0, "s": 1e3, "us": 1e-3, "µs": 1e-3},
    "_us": {"": 1.0, "us": 1.0, "µs": 1.0, "ms": 1e3},
    "_s": {"": 1.0, "s": 1.0, "ms": 1e-3, "min": 60.0},
    "gbit_s_per_gpu": {"": 1.0, "Gbit": 1.0, "Gbit/s": 1.0, "Tbit/s": 1e3, "GB/s": 8.0},
}
ALIASES = {
    "rate": "traffic.rate_req_s",
    "traffic.rate": "traffic.rate_req_s",
    "link": "link.gbit_s_per_gpu",
    "link.rate": "link.gbit_s_per_gpu",
    "link.price": "link.per_gpu_h",
    "traffic.input_tokens": "traffic.input_scale",
    "traffic.output_tokens": "traffic.output_scale",
    "penalty": "penalty_per_miss",
}
TOUCHES: dict[str, Touches] = {
    "prices": "price",
    "ownership": "price",
    "demand": "price",
    "penalty_per_miss": "price",
    "link.per_gpu_h": "price",
    "link.options": "price",
    "traffic.rate_req_s": "rate",
    "link": "link",
    "traffic": "requests",
    "slo": "requests",
    "classes": "requests",
}
EXAMPLES = "traffic.rate=2x, slo.tpot=30ms, prices.h100_sxm=+20%, link=400Gbit, traffic.output_tokens=+50%"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One field of the spec, what it was and what it becomes."""

    path: str
    before: Any
    after: Any
    touches: Touches

    def __str__(self) -> str:
        """For example `slo.tpot.p90_ms 50 → 30`."""
        return f"{self.path} {_shown(self.before)} → {_shown(self.after)}"


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float | int) else str(value)


def apply_changes(
    spec: Mapping[str, Any], texts: list[str], means: Mapping[str, float]
) -> tuple[dict[str, Any], list[Change]]:
    """The spec (every default written out) with each `path=value` applied, and what changed.

    `means`: values of today for what a factor needs and the spec leaves open, by path: a GPU's price, the network's
    rate, mean lengths. Raises `BestServeError` for a path that does not exist or a value that cannot be read.
    """
    changed = deepcopy(dict(spec))
    done = []
    for text in texts:
        given, separator, value = text.partition("=")
        if not separator or not value.strip():
            raise BestServeError("set", text, "is not path=value", EXAMPLES)
        for path in _paths(given.strip(), changed):
            before = _get(changed, path)
            now = before if before is not None else means.get(path)
            after = _price(path, _value(path, value.strip(), now, means), changed, means)
            _put(changed, path, after)
            done.append(
                Change(path=path, before=_plain(before, now), after=_plain(after, after), touches=_touches(path))
            )
    return changed, done


def _plain(value: Any, other: Any) -> Any:
    """A price's number instead of its card."""
    if isinstance(value, Mapping):
        return value.get("per_gpu_h", value.get("usd_per_gpu_h"))
    return other if isinstance(value, str) and isinstance(other, float) else (other if value is None else value)


def _paths(given: str, spec: Mapping[str, Any]) -> list[str]:
    """The fields meant: an alias, a metric's only limit, or the path itself."""
    path = ALIASES.get(given, given)
    head, _, rest = path.partition(".")
    if head == "slo":
        return [_slo_path("slo", rest, spec.get("slo"), given)]
    if head == "classes":
        name, _, inner = rest.partition(".")
        for index, each in enumerate(spec.get("classes") or ()):
            if each["name"] == name and inner.startswith("slo."):
                return [_slo_path(f"classes.{index}.slo", inner.removeprefix("slo."), each["slo"], given)]
            if each["name"] == name:
                return [f"classes.{index}.{inner}"]
    return [path]


def _slo_path(prefix: str, rest: str, slo: Mapping[str, Any] | None, given: str) -> str:
    if slo is None:
        raise BestServeError(
            "set", given, "is not in the spec, whose classes have targets of their own", "classes.NAME.slo.tpot=30ms"
        )
    metric, _, percentile = rest.partition(".")
    if f"{metric}_ms" in slo:
        return f"{prefix}.{metric}_ms"
    limits = slo.get(metric)
    if not isinstance(limits, Mapping):
        if not percentile and metric in ("ttft", "tpot", "e2e"):
            raise BestServeError("set", given, "has no limit now", f"a percentile, {given}.p90=VALUE")
        return f"{prefix}.{rest}" if rest.endswith("_ms") or not percentile else f"{prefix}.{rest}_ms"
    if percentile:
        return f"{prefix}.{metric}.{percentile if percentile.endswith('_ms') else percentile + '_ms'}"
    if len(limits) > 1:
        accepted = ", ".join(f"slo.{metric}.{name.removesuffix('_ms')}" for name in limits)
        raise BestServeError("set", given, f"has {len(limits)} limits", accepted)
    return f"{prefix}.{metric}.{next(iter(limits))}"


def _touches(path: str) -> Touches:
    for depth in range(len(path.split(".")), 0, -1):
        found = TOUCHES.get(".".join(path.split(".")[:depth]))
        if found is not None:
            return found
    accepted = "traffic, slo, classes, prices, link, ownership, demand, penalty; `bestserve plan` anew for the rest"
    raise BestServeError("set", path, "changes what the strategies are", accepted)


def _get(spec: Mapping[str, Any], path: str) -> Any:
    found: Any = spec
    for name in path.split("."):
        if isinstance(found, list) and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, Mapping):
            found = found.get(name)
        else:
            return None
    return found


def _put(spec: dict[str, Any], path: str, value: Any) -> None:
    _touches(path)
    *inner, last = path.split(".")
    place: Any = spec
    for name in inner:
        if isinstance(place, list):
            place = place[int(name)]
        elif isinstance(place.get(name), dict | list):
            place = place[name]
        else:
            place[name] = {}
            place = place[name]
    place[last] = value


def _value(path: str, text: str, now: Any, means: Mapping[str, float]) -> Any:
    """The new value: a factor or per cent of what it is now, a number in the field's unit, or YAML."""
    match = _VALUE.fullmatch(text)
    if match is None:
        return _yaml(text)
    number, unit = float(match["number"]), match["unit"]
    if isinstance(now, Mapping):
        now = _plain(now, now)
    if isinstance(now, str):
        now = means.get(path)
    if unit == "x" or (unit == "%" and text[0] in "+-"):
        if path.startswith("prices."):
            _require_priced(path, means)
        if not isinstance(now, int | float):
            raise BestServeError(
                "set", f"{path}={text}", "has no value now that it could change", f"a value; {EXAMPLES}"
            )
        return now * number if unit == "x" else now * (1.0 + number / 100.0)
    if path.endswith(("input_scale", "output_scale")):  # an absolute mean length in tokens
        return _scale(path, number, unit, now, means)
    if unit == "%":
        return number / 100.0
    for ending, units in UNITS.items():
        if path.endswith(ending):
            if unit not in units:
                raise BestServeError("set", f"{path}={text}", "has an unknown unit", ", ".join(u for u in units if u))
            return number * units[unit]
    if unit:
        return _yaml(text)
    return int(number) if number.is_integer() and not isinstance(now, float) else number


def _scale(path: str, number: float, unit: str, now: Any, means: Mapping[str, float]) -> float:
    if unit not in ("", "tokens"):
        raise BestServeError("set", f"{path}={number:g}{unit}", "has an unknown unit", "tokens, 2x, +20%")
    mean = means[path.removesuffix("_scale") + "_tokens"]
    return float(now or 1.0) * number / mean


def _price(path: str, value: Any, spec: Mapping[str, Any], means: Mapping[str, float]) -> Any:
    """A number for a GPU's price as a card of the user's own; the rest unchanged."""
    head, _, gpu = path.partition(".")
    if head != "prices" or not isinstance(value, int | float):
        return value
    _require_priced(path, means)
    nodes = int(means[f"gpus_per_node.{gpu}"])
    return {"per_gpu_h": float(value), "gpus_per_node": nodes, "source": "asked with --set", "date": "as asked"}


def _require_priced(path: str, means: Mapping[str, float]) -> None:
    known = [name.removeprefix("prices.") for name in means if name.startswith("prices.")]
    if (gpu := path.removeprefix("prices.")) not in known:
        raise BestServeError("set", path, "is not among the spec's gpus", nearest_names(gpu, known))


def _yaml(text: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(io.StringIO(text))
    except YAMLError as error:
        raise BestServeError("set", text, "is not a value", EXAMPLES) from error
