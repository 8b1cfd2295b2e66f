"""Option names of serving engines, recorded from their releases.

`python -m tests.export_options WHEEL…` derives the list of each wheel again and writes `PACKAGE-VERSION.json` here; a
wheel comes from `pip download --no-deps PACKAGE==VERSION`. The sources are parsed, never imported, so that no GPU,
torch or CUDA is needed. Recorded: every option string given to `add_argument` (and Dynamo's wrappers of it), every
field of an options class that becomes an option, the fields of configuration classes, and the accepted words of a few
options.
"""

from __future__ import annotations

import ast
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SOURCES: dict[str, dict[str, tuple[str, ...]]] = {
    "vllm": {
        "serve": (
            *("vllm/engine/arg_utils.py", "vllm/entrypoints/openai/cli_args.py"),
            *("vllm/entrypoints/launchers/cli_args.py", "vllm/entrypoints/common/cli_args.py"),
            "vllm/entrypoints/cli/serve.py",
        ),
        "bench": ("vllm/benchmarks/serve.py", "vllm/benchmarks/datasets"),
        "config": ("vllm/config/cache.py", "vllm/config/scheduler.py"),
    },
    "sglang": {"serve": ("sglang/srt/server_args.py", "sglang/srt/arg_groups/fields")},
    "ai_dynamo": {
        "vllm": ("dynamo/vllm/", "dynamo/common/configuration"),
        "sglang": ("dynamo/sglang/", "dynamo/common/configuration"),
        "trtllm": ("dynamo/trtllm/", "dynamo/common/configuration"),
    },
    "vllm_router": {"router": ("vllm_router/router_args.py",)},
    "sglang_router": {"router": ("sglang_router/router_args.py",)},
    "guidellm": {"config": ("guidellm/schemas/",)},
    "inference_perf": {"config": ("inference_perf/config/",)},
}
CLASSES: dict[str, tuple[str, ...]] = {
    "vllm": ("EngineArgs",),
    "guidellm": (
        *("BenchmarkScenario", "BenchmarkArgs", "OpenAIHTTPBackendArgs", "ReplayProfileArgs", "TraceDataArgs"),
        *("MooncakeTraceFormatArgs", "FileDataArgs", "JSONBenchmarkOutputArgs"),
    ),
    "inference_perf": (
        *("Config", "APIConfig", "DataConfig", "Distribution", "LoadConfig", "StandardLoadStage", "StorageConfig"),
        *("ModelServerClientConfig", "ReportConfig", "RequestLifecycleMetricsReportConfig", "StorageConfigBase"),
    ),
}  # whose fields are recorded
OPTION_CLASSES = ("FrontendArgs", "BaseFrontendArgs")
WORDS: tuple[str, ...] = (
    "CacheDType",
    "SchedulerPolicy",
    "--dataset-name",
    "--kv-cache-dtype",
    "--policy",
    "--disaggregation-mode",
)
WORDS += ("QUANTIZATION_CHOICES", "DISAGG_TRANSFER_BACKEND_CHOICES", "--router-mode")
ADDERS = ("add_argument", "add_negatable_bool_argument")


def derive(wheel: Path) -> dict[str, Any]:
    """The record of one wheel."""
    package, version = wheel.name.split("-")[:2]
    lists: dict[str, list[str]] = {}
    words: dict[str, list[str]] = {}
    classes: dict[str, list[str]] = {}
    with zipfile.ZipFile(wheel) as archive:
        for name, prefixes in SOURCES[package].items():
            options: set[str] = set()
            for path in sorted(archive.namelist()):
                if path.startswith(prefixes) and path.endswith(".py") and "/tests/" not in path:
                    tree = ast.parse(archive.read(path).decode())
                    options |= set(option_names(tree, all_fields="/fields/" in path))
                    words |= {key: value for key, value in literal_words(tree).items() if key in WORDS}
                    classes |= class_fields(tree, CLASSES.get(package, ()))
            if options:
                lists[name] = sorted(options)
    source = {"package": package, "version": version, "source": f"{wheel.name}, PyPI"}
    return source | {"options": lists, "classes": classes, "words": words}


def option_names(tree: ast.AST, *, all_fields: bool = False) -> Iterator[str]:
    """Long options that a module defines; with `all_fields` those of every class's annotated fields too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) in ADDERS:
            given = [*node.args, *(key.value for key in node.keywords if key.arg == "flag_name")]
            yield from (name for name in map(_text, given) if name.startswith("--"))
        elif isinstance(node, ast.ClassDef) and (all_fields or node.name in OPTION_CLASSES):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    yield from () if "no_cli" in ast.dump(field) else (f"--{field.target.id.replace('_', '-')}",)


def class_fields(tree: ast.AST, names: tuple[str, ...]) -> dict[str, list[str]]:
    """Annotated fields of the classes of these names."""
    return {
        node.name: sorted(
            field.target.id
            for field in node.body
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        )
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name in names
    }


def literal_words(tree: ast.AST) -> dict[str, list[str]]:
    """`Name = Literal["a", …]` of a module, and literal `choices` of its options."""
    found: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Subscript)
            and _text(node.value.value) == "Literal"
        ):
            found[_text(node.targets[0])] = _strings(node.value.slice)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.List) and _text(node.targets[0]).isupper():
            found[_text(node.targets[0])] = _strings(node.value)
        elif isinstance(node, ast.Call) and _called(node) in ADDERS:
            given = {key.arg: key.value for key in node.keywords}
            option = given.get("flag_name") or (node.args[0] if node.args else None)
            if option is not None and isinstance(given.get("choices"), ast.List):
                found[_text(option)] = _strings(given["choices"])
    return {name: values for name, values in found.items() if name and values}


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else _text(node.func)


def _text(node: ast.AST) -> str:
    """A string, an f-string without its variables, or a name."""
    match node:
        case ast.Constant(value=str() as value):
            return value
        case ast.JoinedStr(values=values):
            return "".join(_text(value) for value in values)
        case ast.Name(id=name):
            return name
    return ""


def _strings(node: ast.AST) -> list[str]:
    return [item.value for item in ast.walk(node) if isinstance(item, ast.Constant) and isinstance(item.value, str)]


def recorded(package: str, version: str) -> dict[str, Any]:
    """A record of this folder."""
    found: dict[str, Any] = json.loads((FOLDER / f"{package}-{version}.json").read_text())
    return found


def main() -> None:
    """Derive and write the record of every wheel named."""
    for name in sys.argv[1:]:
        found = derive(Path(name))
        path = FOLDER / f"{found['package']}-{found['version']}.json"
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(path, {name: len(options) for name, options in found["options"].items()})


if __name__ == "__main__":
    main()
