"""A plan from Python, cell by cell: open it in Jupyter or VS Code, or run `python runs/explore.py`."""

# %% A question: the same fields as in YAML; a path to a spec would do as well.
import os
import tempfile
from pathlib import Path

from search import plan, read_run

question = {
    "name": "explore",
    "model": {"id": "llama-3.1-8b"},
    "traffic": {
        "rate_req_s": 10,
        "lengths": {"kind": "fixed", "input_tokens": 800, "output_tokens": 200},
    },
    "slo": {"ttft": {"p90_ms": 800}, "tpot": {"p90_ms": 40}},
    "gpus": ["h100_sxm", "l40s"],
    "search": {"max_gpus": 8, "trials": int(os.environ.get("TRIALS", "96"))},
}
folder = Path(tempfile.mkdtemp()) / "explore"
answer = plan(question, out=folder)
print(answer)

# %% The front as a table: goodput, cost, latencies, what sets the limit.
columns = ["strategy", "gpus", "goodput_req_s", "usd_per_h", "ttft_p90_ms", "tpot_p90_ms", "binding_limit"]
print(answer.front[columns].to_string(index=False))

# %% Dollars per thousand requests at full goodput, cheapest five of all that were tried.
tried = answer.candidates
tried["usd_per_1k_requests"] = tried["usd_per_h"] / 3600 / tried["goodput_req_s"] * 1000
print(tried.nsmallest(5, "usd_per_1k_requests")[["strategy", "usd_per_1k_requests"]].to_string(index=False))

# %% Figures are plotly's: show them here, change them, or write them anywhere.
figures = answer.figures
figures["front"].update_layout(title="Goodput against cost")
print("figures:", ", ".join(figures))

# %% Look closer at one strategy: its latencies at the demand, and the most it can do.
best = answer.recommended
if best is not None:
    at_demand = answer.estimate(best.strategy, rate_req_s=10)
    print(f"{best.strategy}: TTFT P90 {1e3 * at_demand.summary.ttft.p90_s:.0f} ms at 10 requests/s")
    most = answer.goodput(best.strategy)
    print(f"at most {most.rate_req_s:.3g} requests/s, {most.low_req_s:.3g} to {most.high_req_s:.3g}")

# %% A finished run can be read again, and leaves a page to send around.
print(read_run(folder).write_report())
