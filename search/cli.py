"""The command line. Heavy libraries are imported inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from estimator.errors import BestServeError, require
from search.commands import compare, errors, schema
from search.commands.export import export
from search.commands.fit import EPILOG as FIT_EPILOG
from search.commands.fit import fit
from search.commands.reprice import reprice
from search.commands.space import space
from search.commands.verify import verify
from search.commands.whatif import whatif
from search.console import print_json, standard_console
from search.kernel_cache import keep_kernels

if TYPE_CHECKING:
    from collections.abc import Callable

    from search.study import Progress
    from search.view import View

app = typer.Typer(
    name="bestserve",
    help="Which GPUs, how many, in what layout, serve your model within its latency targets at the least cost?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="Run spec in YAML, for example runs/quickstart.yaml.")]
StrategyText = Annotated[str, typer.Option("--strategy", "-s", help="Written form, for example 2m-tp4@h100_sxm.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"bestserve {version('bestserve')}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Which GPUs, how many, in what layout, serve your model within its latency targets at the least cost?"""


class Known(StrEnum):
    """What the catalogue lists."""

    models = "models"
    gpus = "gpus"
    prices = "prices"
    links = "links"
    servers = "servers"


@app.command(epilog="Example: bestserve plan runs/quickstart.yaml --trials 300")
def plan(  # noqa: PLR0913  (one parameter per option)
    spec: SpecFile,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/<name>.")] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Strategies evaluated at most; default: the spec's.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Ray workers here; 0: none; default: one per core if it takes long.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to use, host:port.")] = None,
    storage: Annotated[
        str | None, typer.Option(help="PostgreSQL shared with other drivers, postgresql://…; default: a journal file.")
    ] = None,
    warm_start: Annotated[Path | None, typer.Option(help="Finished run of a similar problem to begin with.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find the cheapest strategy that serves the demand within the targets, and the front of goodput against cost."""
    from search.planner import plan as run_plan
    from search.result_view import view_of_run
    from search.spec import load_spec

    question = load_spec(spec)
    try:
        with progress_bar(quiet=as_json) as on_progress:
            result = run_plan(
                question,
                out=out,
                trials=trials,
                workers=workers,
                address=address,
                storage=storage,
                warm_start=warm_start,
                resume=resume,
                progress=on_progress,
                command=_command(),
            )
    except KeyboardInterrupt:
        again = _command() if resume else f"{_command()} --resume"
        typer.echo(f"Stopped; what is done is kept. Go on with: {again}", err=True)
        raise typer.Exit(130) from None
    with busy("simulating what the report shows", quiet=as_json):
        view = view_of_run(result.folder)
    _show_view(view, result.folder, as_json=as_json)


@app.command(epilog="Example: bestserve estimate runs/quickstart.yaml --strategy 2m-tp2@h100_sxm --rate 8")
def estimate(
    spec: SpecFile,
    strategy: StrategyText,
    rate: Annotated[float, typer.Option("--rate", "-r", help="Arrival rate, requests per second.")],
    as_json: AsJson = False,
) -> None:
    """TTFT, TPOT and E2E of one strategy at one rate, its load, and where the time goes."""
    from search.estimate import estimate as run_estimate
    from search.estimate import existing_system, plain
    from search.simulated_view import breakdown_of
    from search.spec import load_spec
    from search.terminal import print_estimate
    from spaces.strategy import Strategy

    problem = load_spec(spec).problem()
    parsed = Strategy.parse(strategy)
    system = existing_system(problem, parsed)
    answer = run_estimate(problem, system, str(parsed), rate_req_s=rate)
    breakdown = breakdown_of(problem, parsed, answer.summary)
    if as_json:
        print_json(plain(answer) | {"where_the_time_goes": plain(breakdown)})
    else:
        print_estimate(answer, breakdown, standard_console())


@app.command(epilog="Example: bestserve goodput runs/quickstart.yaml --strategy 1p-tp2@h100_sxm+2d-tp2@h200_sxm")
def goodput(spec: SpecFile, strategy: StrategyText, as_json: AsJson = False) -> None:
    """Largest rate at which one strategy keeps the targets, with its interval, what limits it, and its cost."""
    from estimator.outcome import Unstable
    from search.estimate import plain, priced_goodput
    from search.spec import load_spec
    from search.tariff import tariff_of
    from search.terminal import print_goodput
    from spaces.strategy import Strategy

    question = load_spec(spec)
    parsed = Strategy.parse(strategy)
    answer = priced_goodput(question.problem(), parsed, tariff_of(question), seed=question.search.seed)
    if as_json:
        unstable = {"strategy": str(parsed), "goodput": None} if isinstance(answer, Unstable) else {}
        cost = {} if isinstance(answer, Unstable) else {"usd_per_h": answer.bill.usd_per_h}
        print_json(unstable | plain(answer) | cost)
    else:
        print_goodput(answer, standard_console())


@app.command(epilog="Example: bestserve validate measurements.csv --peers peers.csv --out predictions.csv")
def validate(
    measurements: Annotated[Path, typer.Argument(metavar="MEASUREMENTS.csv", help="Measured runs, one a row.")],
    peers: Annotated[Path | None, typer.Option(help="What other tools predicted for the same ids.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the predictions to this CSV.")] = None,
    held_out: Annotated[bool, typer.Option("--held-out", help="Fit anew without each group (minutes).")] = False,
    write_table: Annotated[Path | None, typer.Option(help="README whose table between markers to replace.")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict measured runs and print the error by source and mode, and the regret of the layout decision."""
    from rich.markdown import Markdown

    from search.estimate import plain
    from search.validate import accuracy_table
    from search.validate import validate as run_validate
    from search.validate import write_table as replace_table

    for path in (measurements, peers):
        require(
            path is None or path.is_file(),
            field="validate",
            value=str(path),
            rule="does not exist",
            accepted="a CSV file",
        )
    found = run_validate(measurements, predictions=out, peers=peers, held_out=held_out)
    if write_table is not None:
        replace_table(write_table, accuracy_table(found))
    if as_json:
        print_json(plain(found))
        return
    console = standard_console()
    table = accuracy_table(found)
    console.print(Markdown(table) if console.is_terminal else table, markup=False, highlight=False)
    note = f"{found.num_runs} runs"
    console.print(f"{note}; predictions in {out}" if out else note, highlight=False)


@app.command(epilog="Example: bestserve report runs/quickstart")
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")], as_json: AsJson = False
) -> None:
    """Write the report of a run again, and print its answer."""
    from search.result_view import view_of_run

    with busy("simulating what the report shows", quiet=as_json):
        view = view_of_run(run)
    _show_view(view, run, as_json=as_json)


@app.command(epilog="Example: bestserve catalogue prices")
def catalogue(
    what: Annotated[Known, typer.Argument(help="What to list.")],
    as_json: AsJson = False,
) -> None:
    """List the bundled models, GPUs, price cards, links or servers with their sources."""
    from search.catalogue_view import ROWS
    from search.terminal import print_rows

    rows = ROWS[what.value]()
    if as_json:
        print_json({what.value: rows})
    else:
        print_rows(rows, standard_console())


app.command(epilog="Example: bestserve space runs/quickstart.yaml")(space)


@app.command(epilog="Example: bestserve lengths AzureLLMInferenceTrace_conv.csv")
def lengths(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="Trace file with input and output tokens.")],
    as_json: AsJson = False,
) -> None:
    """Fit lognormal lengths to a trace and print them as YAML for a spec, with the goodness of fit."""
    from search.lengths import fit_yaml

    fitted = fit_yaml(trace)
    if as_json:
        from ruamel.yaml import YAML

        print_json(YAML(typ="safe", pure=True).load(fitted))
    else:
        typer.echo(fitted, nl=False)


app.command(epilog=compare.EXAMPLE)(compare.compare)
app.command(epilog=errors.EXAMPLE)(errors.errors)
app.command(epilog=schema.EXAMPLE)(schema.schema)
app.command(epilog="Example: bestserve export runs/quickstart --target vllm")(export)
app.command(epilog=FIT_EPILOG)(fit)
app.command(epilog="Example: bestserve verify runs/quickstart result-vllm.json")(verify)
app.command(epilog="Example: bestserve reprice runs/quickstart --prices mine.toml")(reprice)
app.command(epilog="Example: bestserve whatif runs/quickstart --set traffic.rate=2x --set slo.tpot=30ms")(whatif)


def _show_view(view: View, folder: Path, *, as_json: bool) -> None:
    """Write the report of a run and print its answer."""
    from search.estimate import plain
    from search.report.page import write_report
    from search.terminal import print_view

    page = write_report(view, folder)
    if as_json:
        print_json(plain(view.as_json()) | {"report": str(page)})
        return
    console = standard_console()
    print_view(view, console)
    console.print(f"Report: {page}", highlight=False)


@contextmanager
def busy(what: str, *, quiet: bool) -> Iterator[None]:
    """A moving sign on standard error while something takes seconds; nothing where nobody looks."""
    from rich.console import Console

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """A bar on standard error with the remaining time; nothing where nobody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None)

        def on_progress(progress: Progress) -> None:
            best = "" if progress.best_usd_per_h is None else f", best {progress.best_usd_per_h:.2f}/h"
            bar.update(
                task,
                description=f"{progress.phase}, area {progress.hypervolume:.4g}{best}",
                completed=progress.num_evaluated,
                total=progress.num_planned,
            )

        yield on_progress


def _command() -> str:
    """How this process was called."""
    import shlex

    return " ".join(["bestserve", *map(shlex.quote, sys.argv[1:])])


def main() -> None:
    """Run a command; wrong input is one sentence on standard error and exit code 2."""
    keep_kernels()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small matrices: a second thread spins more than it computes
    try:
        app()
    except BestServeError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
