"""`bestserve export`: from a run to files that deploy one of its strategies."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Target(StrEnum):
    """What the files are for."""

    vllm = "vllm"
    sglang = "sglang"
    ray_serve_llm = "ray-serve-llm"
    dynamo = "dynamo"
    llm_d = "llm-d"


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    target: Annotated[Target, typer.Option("--target", "-t", help="What the files are for.")],
    strategy: Annotated[
        str | None, typer.Option("--strategy", "-s", help="Written form; default: the recommended one.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: RUN/export/TARGET.")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Weights to serve, ORG/NAME or a folder; default: the model's own.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Write what deploys a strategy on a target, and the benchmark that checks it."""
    from search.console import print_json
    from search.export.write import export as write_export

    written = write_export(run, target.value, strategy=strategy, out=out, checkpoint=checkpoint)
    if as_json:
        print_json(written.as_json())
        return
    deployment = written.deployment
    pools = " + ".join(
        f"{pool.count} × {pool.gpus_per_instance} {pool.gpu.name} ({pool.name})" for pool in deployment.pools
    )
    typer.echo(f"{deployment.strategy} for {written.target}: {pools} = {deployment.num_gpus} GPUs. Generated, not run.")
    for note in written.notes:
        typer.echo(f"Note: {note}")
    scripts = [name for name in written.files if name.startswith("serve/")]
    shown = [name for name in written.files if name not in scripts[3:]]
    more = f" (and {len(scripts) - 3} more serve scripts)" if len(scripts) > 3 else ""
    typer.echo(f"{written.folder}: README.md, {', '.join(shown)}{more}")
