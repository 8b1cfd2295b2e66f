"""`bestserve verify`: a benchmark's result against the plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from search.calibration import Calibration
    from search.verify import Verdict


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    result: Annotated[
        Path, typer.Argument(metavar="RESULT.json", help="From vllm bench serve, GuideLLM, inference-perf or aiperf.")
    ],
    strategy: Annotated[
        str | None, typer.Option("--strategy", "-s", help="Written form; default: the recommended one.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", "-r", min=0.0, help="Requests per second offered, if the file lacks it.")
    ] = None,
    calibrate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a calibration card that later specs can name.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Say whether a benchmark keeps the plan's limits, and how far the prediction was off; exit code 0 or 1."""
    from search.console import print_json
    from search.verify import verify as judge

    verdict = judge(run, result, strategy=strategy, rate_req_s=rate or None)
    fitted = None
    if calibrate is not None:
        from search.calibration import calibrate as fit
        from search.calibration import write_card

        fitted = fit(run, result, strategy=strategy, rate_req_s=rate or None)
        write_card(calibrate, fitted.card)
    if as_json:
        card = {} if fitted is None else {"calibration": fitted.card.model_dump(mode="json")}
        print_json(verdict.as_json() | card)
    else:
        _print(verdict)
        if fitted is not None:
            _print_card(fitted, calibrate)
    raise typer.Exit(0 if verdict.passed else 1)


def _print(verdict: Verdict) -> None:
    word = "keeps" if verdict.passed else "breaks"
    typer.echo(f"{verdict.strategy} {word} the plan's limits at {verdict.rate_req_s:g} requests/s ({verdict.tool}).")
    for check in verdict.checks:
        sign = "≤" if check.is_upper else "≥"
        mark = "pass" if check.passed else "FAIL"
        measured, limit = f"{check.measured:.4g} {check.unit}".strip(), f"{check.limit:.4g} {check.unit}".strip()
        typer.echo(
            f"  {mark}  {check.name}: {measured} {sign} {limit}"
            if check.passed
            else f"  {mark}  {check.name}: {measured}, limit {sign} {limit}"
        )
    if verdict.comparisons:
        typer.echo("Prediction against measurement:")
    for one in verdict.comparisons:
        pair = f"{one.predicted_ms:9.1f} ms predicted {one.measured_ms:9.1f} ms measured"
        typer.echo(f"  {one.name:<9} {pair} {one.error_frac:+7.1%}")
    for warning in verdict.warnings:
        typer.echo(f"Warning: {warning}.")


def _print_card(fitted: Calibration, path: Path | None) -> None:
    card = fitted.card
    typer.echo(
        f"Calibrated {card.engine} on {card.architecture}: steps × {card.step_time_factor:g}, request overhead "
        f"{card.request_overhead_ms:g} ms; name it in a spec with `calibration: {path}`."
    )
    for name, (measured, predicted) in (("TPOT", fitted.tpot_ms), ("TTFT", fitted.ttft_ms)):
        typer.echo(f"  {name} P50  {predicted:9.1f} ms predicted with it {measured:9.1f} ms measured")
