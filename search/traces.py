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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from estimator.errors import BestServeError
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
    for form in CSV_FORMS:
        if set(form.columns) <= set(header):
            return form, ((number, row) for number, row in enumerate(csv.DictReader(lines), start=2))
    accepted = "columns " + ", or ".join(",".join(form.columns) for form in CSV_FORMS)
    raise BestServeError("trace", str(path), f"has unknown columns {','.join(header)[:80]}", accepted)


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
    """Arrival in s, input and output tokens."""
    try:
        arrival, inputs, outputs = (values[column] for column in form.columns)
        return form.seconds(arrival), int(inputs), int(outputs)
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, number, str(values)) from error


def _unreadable(path: Path, number: int, line: str) -> BestServeError:
    return BestServeError("trace", line[:80], f"cannot be read (line {number} of {path.name})", "a time and two counts")
