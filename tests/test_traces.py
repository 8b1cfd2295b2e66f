"""Trace files in every form that is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from estimator.errors import BestServeError
from search.lengths import fit_lognormal
from search.traces import load_trace

FILES = {
    "azure.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:05.4799600,3180,8\n",
    "burst.csv": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,4808,10,4818,Conversation log\n6,GPT-4,77,0,77,API log\n6.5,ChatGPT,3180,8,3188,API log\n",
    "plain.csv": "arrived_at,input_tokens,output_tokens\n1.5,3180,8\n0,4808,10\n",
    "mooncake.jsonl": '{"timestamp": 0, "input_length": 4808, "output_length": 10, "hash_ids": [0]}\n'
    '{"timestamp": 1500, "input_length": 3180, "output_length": 8, "hash_ids": [0, 1]}\n',
}


@pytest.mark.parametrize("name", FILES)
def test_forms(tmp_path: Path, name: str) -> None:
    """The same two requests, 1.5 s apart, in each form: units differ, failures are dropped, order is by arrival."""
    path = tmp_path / name
    path.write_text(FILES[name])
    trace = load_trace(path)
    np.testing.assert_allclose(trace.arrival_s, [0.0, 1.5], atol=1e-6)
    assert trace.input_tokens.tolist() == [4808, 3180]
    assert trace.output_tokens.tolist() == [10, 8]


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("a,b\n1,2\n", "has unknown columns a,b; accepted: columns TIMESTAMP"),
        ("arrived_at,input_tokens,output_tokens\n0,5,6\n1,x,6\n", r"cannot be read \(line 3 of t.csv\)"),
        ('{"timestamp": 0, "input_length": 5}\n', r"cannot be read \(line 1 of t.csv\)"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 6}\n[1]\n', r"cannot be read \(line 2 of t.csv\)"),
        ("arrived_at,input_tokens,output_tokens\n0,5,0\n", "holds no finished request"),
        ("", "is empty; accepted: columns TIMESTAMP"),
        ("arrived_at,input_tokens,output_tokens\n0,-5,6\n", r"-5 is no length \(line 2 of t.csv\); .* input_tokens"),
        ("arrived_at,input_tokens,output_tokens\n0,5,-6\n", r"-6 is no length \(line 2 of t.csv\); .* output_tokens"),
        ("arrived_at,input_tokens,output_tokens\nnan,5,6\n", r"nan is not finite \(line 2 of t.csv\)"),
        (
            "arrived_at,input_tokens,output_tokens\n0,5\n",
            r"None cannot be read \(line 2 .*output_tokens: a whole",
        ),
    ],
)
def test_wrong_traces_name_the_line(tmp_path: Path, text: str, rest: str) -> None:
    """A form that is not known lists those that are; a row that cannot be read names its line."""
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(BestServeError, match=rest):
        load_trace(path)


def test_fit_returns_the_law_it_was_drawn_from() -> None:
    """A moment fit of 400,000 lognormal lengths finds median and sigma to a percent, and a small KS distance."""
    drawn = np.random.default_rng(1).lognormal(np.log(900.0), 0.6, 400_000)
    fit = fit_lognormal(np.rint(drawn).astype(np.int64))
    assert fit.median == pytest.approx(900.0, rel=0.01)
    assert fit.sigma == pytest.approx(0.6, rel=0.01)
    assert fit.ks < 0.01


def test_azure_trace(shared: Path) -> None:
    """The Azure conversation trace: 19,366 requests over 0.9727 h, means 1154.7 and 211.1 tokens (its summary)."""
    trace = load_trace(shared / "traces" / "AzureLLMInferenceTrace_conv.csv")
    assert len(trace) == 19_366
    assert float(trace.arrival_s[-1]) / 3600 == pytest.approx(0.97270, abs=1e-4)
    assert float(trace.input_tokens.mean()) == pytest.approx(1154.697, abs=0.01)
    assert float(trace.output_tokens.mean()) == pytest.approx(211.126, abs=0.01)
