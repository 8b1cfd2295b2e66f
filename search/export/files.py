"""From values to files: YAML and scripts with the export's stamp, and a folder that appears whole or not at all."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from estimator.errors import BestServeError

if TYPE_CHECKING:
    from jinja2 import Environment

MARKER = "export.json"  # what tells a folder of ours from another's
LINE_WIDTH = 100_000  # YAML scalars are never folded


def yaml_text(value: Mapping[str, Any], stamp: Sequence[str]) -> str:
    """YAML of a mapping under comment lines."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap

    stamped = CommentedMap(value)
    stamped.yaml_set_start_comment("\n".join(stamp))
    yaml = YAML()
    yaml.width = LINE_WIDTH
    yaml.representer.ignore_aliases = lambda *_: True
    stream = StringIO()
    yaml.dump(stamped, stream)
    return stream.getvalue()


def render(template: str, **values: Any) -> str:
    """A template of this package filled in."""
    return _templates().get_template(template).render(**values)


def quoted(word: str) -> str:
    """One word of a shell command; a word with a host's variable is quoted so that the shell fills it in."""
    return f'"{word}"' if "${" in word else shlex.quote(word)


def write_folder(out: Path, files: Mapping[str, str]) -> None:
    """All `files` (path in the folder → text) as the folder `out`; scripts can be run.

    Raises `BestServeError` if `out` holds something else; an export that is there already is replaced whole.
    """
    is_ours = (out / MARKER).is_file()
    if out.exists() and not is_ours and (not out.is_dir() or any(out.iterdir())):
        raise BestServeError("out", str(out), "holds something else", "a new folder, or one that an export made")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for name, text in files.items():
        path = part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        if name.endswith(".sh"):
            path.chmod(0o755)
    if out.exists():
        shutil.rmtree(out)
    part.rename(out)


@lru_cache(maxsize=1)
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(  # shell and Markdown: nothing to escape for HTML
        loader=PackageLoader("search.export"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quoted"] = quoted
    return environment
