"""Trace files as requests: when each arrived and how long it was.

| form | told by | arrival | input, output |
|---|---|---|---|
| Azure CSV | `TIMESTAMP,ContextTokens,GeneratedTokens` | date and time | tokens |
| BurstGPT CSV | `Timestamp,…,Request tokens,Response tokens,…` | s | tokens; rows without a response are dropped |
| plain CSV | `arrived_at,input_tokens,output_tokens` | s | tokens |
| Mooncake JSONL | `timestamp`, `input_length`, `output_length` | ms | tokens |
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from estimator.errors import BestServeError, require
from estimator.requests import Requests
from search.edge import read_text


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """Column names of one kind of file, and how its arrival becomes seconds."""

    arrival: str
    input_tokens: str
    output_tokens: str
    seconds: Callable[[str], float]

    @property
    def columns(self) -> tuple[str, str, str]:
        return self.arrival, self.input_tokens, self.output_tokens


def _clock_s(text: str) -> float:
    """Seconds of a date and time; digits beyond microseconds are cut."""
    return datetime.fromisoformat(text).timestamp()


AZURE = _Form(
    arrival="TIMESTAMP", input_tokens="ContextTokens", output_tokens="GeneratedTokens", seconds=_clock_s
)  # Azure LLM inference traces 2023 and 2024
BURST_GPT = _Form(
    arrival="Timestamp", input_tokens="Request tokens", output_tokens="Response tokens", seconds=float
)  # arXiv 2401.17644
PLAIN = _Form(arrival="arrived_at", input_tokens="input_tokens", output_tokens="output_tokens", seconds=float)
MOONCAKE = _Form(
    arrival="timestamp", input_tokens="input_length", output_tokens="output_length", seconds=lambda ms: float(ms) / 1e3
)  # arXiv 2407.00079
CSV_FORMS = (AZURE, BURST_GPT, PLAIN)
ACCEPTED = ("a time", "a whole number", "a whole number, 0 where the request failed")  # by column


def load_trace(path: Path) -> Requests:
    """The trace's requests by arrival, the first at 0 s; rows without output are failures and left out.

    Raises `BestServeError` for a missing file, an unknown form, or a row that cannot be read, naming its line.
    """
    text = read_text(path, field="trace")
    lines = text.splitlines()
    form, rows = _json_rows(path, lines) if text.lstrip().startswith("{") else _csv_rows(path, lines)
    read = [row for number, values in rows if (row := _row(path, number, form, values))[2] > 0]
    if not read:
        raise BestServeError("trace", str(path), "holds no finished request", "at least one row with output tokens")
    read.sort(key=lambda row: row[0])
    arrival_s = np.array([row[0] for row in read])
    return Requests(
        arrival_s=arrival_s - arrival_s[0],
        input_tokens=np.array([row[1] for row in read], dtype=np.int64),
        output_tokens=np.array([row[2] for row in read], dtype=np.int64),
        cached_tokens=np.zeros(len(read), dtype=np.int64),
    )


Rows = Iterator[tuple[int, Mapping[str, str]]]


def _csv_rows(path: Path, lines: list[str]) -> tuple[_Form, Rows]:
    header = next(csv.reader(lines), [])
    if not header:
        raise BestServeError("trace", str(path), "is empty", _accepted_columns())
    for form in CSV_FORMS:
        if set(form.columns) <= set(header):
            return form, ((number, row) for number, row in enumerate(csv.DictReader(lines), start=2))
    raise BestServeError("trace", str(path), f"has unknown columns {','.join(header)[:80]}", _accepted_columns())


def _accepted_columns() -> str:
    return "columns " + ", or ".join(",".join(form.columns) for form in CSV_FORMS)


def _json_rows(path: Path, lines: list[str]) -> tuple[_Form, Rows]:
    def rows() -> Rows:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    raise _unreadable(path, number, line) from error

    return MOONCAKE, rows()


def _row(path: Path, number: int, form: _Form, values: Mapping[str, str]) -> tuple[float, int, int]:
    """Arrival in s, input and output tokens; a value that cannot be is told with its column and line."""
    where, told = f"(line {number} of {path.name})", isinstance(values, Mapping)
    readers: tuple[Callable[[str], float], ...] = (form.seconds, int, int)
    found: list[float] = []
    for column, read, accepted in zip(form.columns, readers, ACCEPTED, strict=True):
        value: Any = values.get(column) if told else values
        try:
            found.append(read(value))
        except (TypeError, ValueError) as error:
            raise BestServeError("trace", value, f"cannot be read {where}", f"{column}: {accepted}") from error
    arrival_s, inputs, outputs = found
    for column, tokens, least in zip(form.columns[1:], (inputs, outputs), (outputs > 0, 0), strict=True):
        rule, accepted = f"is no length {where}", f"{column}: a whole number ≥ {least:d}"
        require(tokens >= least, field="trace", value=tokens, rule=rule, accepted=accepted)
    require(math.isfinite(arrival_s), field="trace", value=arrival_s, rule=f"is not finite {where}", accepted="a time")
    return arrival_s, int(inputs), int(outputs)


def _unreadable(path: Path, number: int, line: str) -> BestServeError:
    return BestServeError("trace", line[:80], f"is not JSON (line {number} of {path.name})", "one JSON object a line")
