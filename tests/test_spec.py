"""The run spec: what is read from YAML, and the one sentence that wrong input gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from estimator.errors import BestServeError
from search.edge import read_yaml
from search.run import frozen_text
from search.spec import LognormalLengthsSpec, Spec, load_spec, parse_spec

RUNS = Path(__file__).parent.parent / "runs"


def spec_with(**changes: Any) -> dict[str, Any]:
    """A small valid spec as a mapping, with top-level fields replaced."""
    return {
        "name": "small",
        "model": {"id": "qwen3-32b", "weights": "fp8"},
        "traffic": {"rate_req_s": 5, "lengths": {"kind": "fixed", "input_tokens": 1000, "output_tokens": 100}},
        "slo": {"ttft": {"p90_ms": 1500}, "tpot": {"p90_ms": 50}},
        "gpus": ["h100_sxm"],
        **changes,
    }


def sentence(**changes: Any) -> str:
    """What the error of a wrong spec says."""
    with pytest.raises(BestServeError, match="accepted: ") as caught:
        parse_spec(spec_with(**changes), folder=Path("."))
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(RUNS.glob("*.yaml")), ids=lambda path: path.stem)
def test_example_specs_are_valid(path: Path) -> None:
    """Every spec in runs/ reads, and is named like its file."""
    assert load_spec(path).name == path.stem


def test_quickstart_asks_what_the_readme_says() -> None:
    """Qwen3-32B in fp8, 20 requests/s, TTFT P90 1.5 s, TPOT P90 50 ms, 32 GPUs of three types."""
    spec = load_spec(RUNS / "quickstart.yaml")
    assert (spec.model.id, spec.model.weights, spec.traffic.rate_req_s) == ("Qwen/Qwen3-32B", "fp8", 20)
    assert spec.slo is not None
    assert spec.slo.ttft is not None
    assert spec.slo.ttft.limits() == [(90.0, 1500.0)]
    assert (spec.search.max_gpus, spec.gpu_names) == (32, ["h100_sxm", "h200_sxm", "l40s"])
    assert isinstance(spec.traffic.lengths, LognormalLengthsSpec)


def test_frozen_spec_reads_back_equal() -> None:
    """A spec written with all its defaults is the same spec when read again."""
    import io

    from ruamel.yaml import YAML

    spec = load_spec(RUNS / "quickstart.yaml")
    again = YAML(typ="safe", pure=True).load(io.StringIO(frozen_text(spec)))
    assert parse_spec(again, folder=Path(".")) == spec


@pytest.mark.parametrize(
    ("changes", "field", "rest"),
    [
        ({"slo": {"tftt": {"p90_ms": 3}}}, "slo.tftt", "is not a known field; accepted: ttft (did you mean this?)"),
        ({"slo": {"ttft": {"p90_ms": -3}}}, "slo.ttft.p90_ms", "-3 must be > 0"),
        ({"slo": {"ttft": {"p90_s": 3}}}, "slo.ttft.p90_s", "accepted: p90_ms (did you mean this?)"),
        ({"slo": {"share": 1.2, "ttft_ms": 3}}, "slo.share", "1.2 must be ≤ 1"),
        ({"slo": {"ttft_ms": 3}}, "slo.ttft_ms", "needs a share"),
        ({"slo": {"share": 0.9, "ttft": {"p90_ms": 3}, "tpot_ms": 9}}, "slo.ttft", "cannot be combined with a share"),
        ({"slo": {}}, "slo.limits", "must be given"),
        ({"slo": {"ttft": {}}}, "slo.ttft.percentile", "must be given"),
        (
            {"model": {"id": "m", "weights": "fp7"}},
            "model.weights",
            "'fp7' is unknown; accepted: bf16, fp8, fp4 or int4",
        ),
        ({"model": {}}, "model.id", "None must be given; accepted: a bundled id"),
        ({"model": "qwen3-32b"}, "model", "has the wrong type; accepted: a mapping"),
        ({"gpus": []}, "gpus", "is too short; accepted: at least 1"),
        ({"gpus": ["l40s", "l40s"]}, "gpus", "'l40s' is named twice"),
        ({"gpus": [{"name": "mine"}]}, "gpus[0].memory_gb", "must be given; accepted: GB"),
        ({"prices": {"l40s": "x"}}, "prices.l40s", "is not among the spec's gpus; accepted: h100_sxm"),
        ({"prices": {"h100_sxm": {"usd_per_gpu_h": 3.0}}}, "prices.h100_sxm.source", "must be given"),
        ({"engine": "tgi"}, "engine", "accepted: vllm, sglang or trtllm"),
        ({"search": {"max_gpus": 0}}, "search.max_gpus", "0 must be ≥ 1"),
        ({"search": {"tp": [1, 0]}}, "search.tp[1]", "0 must be ≥ 1"),
        ({"name": "a b"}, "name", "'a b' holds other characters than it may; accepted: text that matches"),
    ],
)
def test_wrong_input_gets_one_sentence(changes: dict[str, Any], field: str, rest: str) -> None:
    """The sentence begins with the field's path and says the value, the rule and what is accepted."""
    said = sentence(**changes)
    assert said.startswith(f"{field}: ")
    assert rest in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("traffic", "field", "rest"),
    [
        ({"rate_req_s": "20/s"}, "traffic.rate_req_s", "'20/s' has the wrong type; accepted: a number"),
        ({"rate_req_s": True}, "traffic.rate_req_s", "True has the wrong type; accepted: a number"),
        ({"rate_req_s": float("inf")}, "traffic.rate_req_s", "accepted: a finite number"),
        ({"lengths": {"kind": "normal"}}, "traffic.lengths", "has an unknown kind; accepted: fixed, uniform"),
        ({"lengths": {"input_tokens": 1}}, "traffic.lengths", "has no kind"),
        (
            {"lengths": {"kind": "fixed", "input_tokens": 10.5, "output_tokens": 3}},
            "traffic.lengths.input_tokens",
            "10.5 has the wrong type; accepted: a whole number",
        ),
        (
            {
                "lengths": {
                    "kind": "uniform",
                    "input_tokens": {"min": 5, "max": 3},
                    "output_tokens": {"min": 1, "max": 2},
                }
            },
            "traffic.lengths.input_tokens.max",
            "3 must not be below min = 5",
        ),
        ({"lengths": {"kind": "empirical", "path": "no.csv"}}, "traffic.lengths.path", "'no.csv' does not exist"),
        ({"arrivals": {"kind": "gamma", "cv": 0}}, "traffic.arrivals.cv", "0 must be > 0"),
    ],
)
def test_wrong_traffic_gets_one_sentence(traffic: dict[str, Any], field: str, rest: str) -> None:
    """The same for the parts of the traffic, whose unions must not leak pydantic's branch names into the path."""
    lengths = {"kind": "fixed", "input_tokens": 10, "output_tokens": 3}
    said = sentence(traffic={"rate_req_s": 1, "lengths": lengths, **traffic})
    assert said.startswith(f"{field}: ")
    assert rest in said


def test_missing_and_broken_files(tmp_path: Path) -> None:
    """A spec that is not there suggests the nearest file; one that is no YAML names the line."""
    (tmp_path / "quickstart.yaml").write_text("a: [1, 2\nb: 3\n")
    with pytest.raises(BestServeError, match=r"does not exist; accepted: .*quickstart\.yaml"):
        load_spec(tmp_path / "quickstrat.yaml")
    with pytest.raises(BestServeError, match=r"is not YAML \(line 2"):
        load_spec(tmp_path / "quickstart.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(BestServeError, match="must be a mapping"):
        load_spec(tmp_path / "list.yaml")


def test_yaml_is_version_1_2(tmp_path: Path) -> None:
    """1e-3 is a number and `no` a word: YAML 1.1 would read a string and False."""
    path = tmp_path / "x.yaml"
    path.write_text("a: 1e-3\nb: no\n")
    assert read_yaml(path) == {"a": 1e-3, "b": "no"}


def test_files_are_found_beside_the_spec(tmp_path: Path) -> None:
    """A trace's relative path starts at the spec's folder, not at the working directory."""
    (tmp_path / "t.csv").write_text("arrived_at,input_tokens,output_tokens\n0,5,6\n")
    lengths = {"kind": "empirical", "path": "t.csv"}
    spec = parse_spec(spec_with(traffic={"rate_req_s": 1, "lengths": lengths}), folder=tmp_path)
    assert spec.traffic.lengths.path == str(tmp_path / "t.csv")  # type: ignore[union-attr]


def test_schema_accepts_the_examples() -> None:
    """The JSON Schema that editors get accepts every spec in runs/ and refuses an unknown field."""
    import jsonschema  # type: ignore[import-untyped]

    schema = Spec.model_json_schema()
    for path in RUNS.glob("*.yaml"):
        jsonschema.validate(read_yaml(path), schema)
    with pytest.raises(jsonschema.ValidationError, match="modle"):
        jsonschema.validate(spec_with(modle={}), schema)


def test_reach_and_routers_are_the_users() -> None:
    """By default four times the demand and round robin; both can be told, the reach to have no end."""
    plain, told = (
        parse_spec(spec_with(search=search), folder=Path("."))
        for search in ({}, {"reach": None, "routers": ["round_robin", "least_outstanding"]})
    )
    assert (plain.search.reach, plain.problem().space.routers) == (4.0, ("round_robin",))
    assert (told.search.reach, told.problem().space.routers) == (None, ("round_robin", "least_outstanding"))
    assert "must be ≥ 1.0" in sentence(search={"reach": 0.5})
