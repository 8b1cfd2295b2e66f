"""`bestserve schema`: the run spec for editors and for people."""

from __future__ import annotations

from typing import Annotated

import typer

EXAMPLE = "Example: bestserve schema > bestserve.schema.json"


def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="A reference for people instead, in Markdown.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON Schema, as without options.")] = False,
) -> None:
    """Print the JSON Schema of run specs, for editors that complete YAML; or the reference of every field."""
    if markdown and not as_json:
        from search.schema_table import spec_markdown

        typer.echo(spec_markdown(), nl=False)
        return
    from search.console import print_json
    from search.spec import Spec

    print_json(Spec.model_json_schema())
