"""The report: one page that needs nothing else, checked in a real browser where there is one."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import IO, cast

import pytest
from rich.console import Console

from search.console import Trimmed
from search.report.cost import parts_of
from search.report.figures import figures_of
from search.report.page import PLOTLY, detail, in_script, render_page, write_report
from search.terminal import near_rows, print_view
from search.view import View
from tests.small_view import candidate, errors, money, serving, view


def whole() -> View:
    """Every part that can be shown."""
    return replace(view(), serving=serving(), errors=errors(), money=money())


def printed(shown: View, *, width: int, terminal: bool) -> str:
    """What the terminal shows."""
    text = io.StringIO()
    print_view(shown, Console(file=text, width=width, force_terminal=terminal, color_system=None, highlight=False))
    return text.getvalue()


def test_what_was_found_on_few_requests_says_so() -> None:
    """A strategy that was only explored says so where it is looked at; the answer's certainty counts the others."""
    shown = view()
    rough = replace(shown.candidates[-1], is_explored=True)
    some = replace(shown, candidates=(*shown.candidates[:-1], rough))
    assert "on few requests" in detail(some, rough)["Goodput"]
    assert "on few requests" not in detail(some, some.candidates[0])["Goodput"]
    num = len(shown.candidates) - 1
    assert f"40 strategies evaluated of 1,234 in the space, {num} of them on many requests." in some.certainties
    assert "40 strategies evaluated of 1,234 in the space." in shown.certainties


def test_answer_names_gpus_price_headroom_and_token_price() -> None:
    """20 $/h over 20 req/s of 211 tokens is 20/3600/4220 × 1e6 = 1.32 $ per million; 24 req/s is 20 % headroom."""
    said = view().answer
    for part in ("5 H100 SXM", "$20.00/h", "20 requests/s", "20% headroom", "$1.32 per million"):
        assert part in said


def test_first_line_says_when_little_money_buys_much() -> None:
    """26 $/h is 30 % more than 20; 48 req/s is 140 % headroom over 20. At 24.5 req/s, 2 % more, nothing is said."""
    shown = view()
    more = replace(shown, front=(*shown.front[:2], candidate("3m-tp2@h100_sxm", 48.0, 26.0), shown.front[2]))
    assert "; 30% more money (6 H100 SXM, $26.00/h) buys 140% headroom." in more.answer
    assert more.as_json()["step_up"]["strategy"] == "3m-tp2@h100_sxm"
    little = replace(shown, front=(*shown.front[:2], candidate("3m-tp2@h100_sxm", 24.5, 26.0)))
    assert "more money" not in little.answer
    assert little.as_json()["step_up"] is None
    assert "more money" not in shown.answer  # 36 $/h is too far


def test_comparison_calls_a_tie_a_tie() -> None:
    """Less than 0.5 % apart is the same cost; 20 against 36 $/h is 44 % cheaper."""
    assert view().comparison == "Collocated is 44% cheaper than the best disaggregated one tried."
    near = candidate("1p-tp1@h100_sxm+1d-tp1@h100_sxm", 21.0, 20.05)
    assert "the same" in replace(view(), best_disaggregated=near).comparison


def test_headroom_within_the_sampling_error_is_said() -> None:
    """20.2 req/s with an interval from 19.8 may miss a demand of 20; 24 from 23.5 does not."""
    near = replace(view(), recommended=candidate("2m-tp2@h100_sxm", 20.2, 20.0))
    assert "more than the headroom: it may just miss" in near.certainty
    assert "may just miss" not in view().certainty


def test_no_answer_says_what_comes_nearest() -> None:
    """Without a strategy for the demand the sentence names the largest goodput found, or that there is none."""
    assert "the most is 45 requests/s" in replace(view(), recommended=None).answer
    assert "No strategy tried meets" in replace(view(), recommended=None, front=()).answer


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_terminal_fits_its_width(width: int) -> None:
    """No line is wider than the terminal, the answer comes first, and every front strategy's kind is a letter."""
    lines = printed(view(), width=width, terminal=True).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    assert lines[0].startswith("Rent 5 H100 SXM")
    text = "\n".join(lines)
    assert "✓C" in text
    assert re.search(r"^\W*D ", text, re.M)
    assert "req/s against $/h: c collocated" in text


def long_front() -> View:
    """Thirty strategies with long names from 2 to 60 $/h, of which the one at 20 is recommended."""
    front = tuple(
        candidate(f"{n}p-tp1-pp2@h100_sxm,tokens=16384+{n}d-tp2-pp2@h100_sxm,seqs=1024", 2.4 * n, 2.0 * n)
        for n in range(1, 31)
    )
    return replace(view(), front=front, candidates=front, recommended=front[9])


def test_long_names_break_between_pools() -> None:
    """At 80 columns a name is broken after the + alone: its second line begins with the decode pool."""
    shown = near_rows(long_front())
    lines = printed(long_front(), width=80, terminal=True).splitlines()
    starts = [line.split()[0] for line in lines if line.startswith("      ") and "@h100_sxm" in line]
    assert starts == [c.strategy.split("+")[1] for c in shown]


def test_table_keeps_near_the_demand() -> None:
    """Of thirty strategies at most fifteen are shown: both ends, the recommended one, none between 60 and the last."""
    shown = near_rows(long_front())
    assert 10 <= len(shown) <= 15
    assert (shown[0], shown[-1]) == (long_front().front[0], long_front().front[-1])
    assert long_front().recommended in shown
    assert f"{30 - len(shown)} more in front.csv" in printed(long_front(), width=120, terminal=True)


def test_terminal_and_json_say_the_same() -> None:
    """The sentences that the terminal prints are the JSON's own, and every row of its table is in the JSON's front."""
    shown, text = whole(), printed(whole(), width=400, terminal=False)
    told = shown.as_json()
    for name in ("answer", "certainty", "comparison"):
        assert told[name] in text
    for row in told["front"]:
        assert row["strategy"] in text
        assert f"{row['goodput_req_s']:.2f}" in text


def test_pipes_get_no_spaces_at_line_ends() -> None:
    """What tables fill their width with is left out."""
    text = io.StringIO()
    print_view(whole(), Console(file=cast(IO[str], Trimmed(text)), width=160))
    assert not any(line.endswith(" ") for line in text.getvalue().splitlines())
    assert "Pareto front" in text.getvalue()


def test_piped_output_has_no_plot_and_no_escapes() -> None:
    """Into a pipe goes plain text: no plot, no colour codes."""
    text = printed(view(), width=120, terminal=False)
    assert "req/s against" not in text
    assert "\x1b" not in text


def test_report_files(tmp_path: Path) -> None:
    """A page, and a PNG and a CSV of each figure, none older; the front's CSV holds every candidate with its flag."""
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "gone.png").touch()
    page = write_report(whole(), tmp_path)
    files = {path.name: path for path in (tmp_path / "figures").iterdir()}
    shown = "front latency_ttft_p90 latency_tpot_p90 serving requests breakdown cost tipping_points own_or_rent demand"
    names = shown.split()
    assert set(files) == {f"{name}.{end}" for name in names for end in ("png", "csv")}
    assert all(files[f"{name}.png"].read_bytes().startswith(b"\x89PNG") for name in names)
    with files["front.csv"].open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert {row["strategy"] for row in rows if row["on_front"] == "1"} == {c.strategy for c in view().front}
    assert page.stat().st_size <= 5_000_000


def test_cost_parts_add_up_to_the_bill() -> None:
    """Each pool's dollars and what is bought unused are together the line's price: 5 used and 1 unused at 4 $/h."""
    best = candidate("1p-tp1@h100_sxm+2d-tp2@h100_sxm", 21.0, 20.0)
    assert parts_of(best) == {
        "prefill pool": [4.0],
        "decode pool": [16.0],
        "bought in whole nodes, unused": [4.0],
    }


def test_page_tells_all_there_is_to_tell() -> None:
    """Sentences and tables of money, errors, serving and targets appear; what is absent leaves no heading."""
    html = render_page(whole(), figures_of(whole()))
    said = (
        "What would change the answer",
        "demand above 24 req/s (+20%)",
        "Buying 8 h100_sxm is cheaper over 4 years",
        "With one instance down 50% of the goodput is left",
        "reserve 1 × 1m-tp2@h100_sxm",
        "costs $16.00/h more",
        "price cloud-h100 is 70 days old",
        "7.0%",
        "never measured",
        "2 prefill and 3 decode instances",
        "A decode step takes 21 ms, 62% of it bound by memory bandwidth",
        "bestserve plan small.yaml --trials 40",
    )
    for part in said:
        assert part in html, part
    bare = render_page(view(), figures_of(view()))
    for absent in ("What would change", "Buy or rent", "A few seconds", "Known errors"):
        assert absent not in bare


def test_page_is_escaped_and_names_no_outside_address() -> None:
    """User text cannot close the script or open a tag, and outside the vendored library there is no http address."""
    html = render_page(view(), figures_of(view()))
    own = html.replace(PLOTLY.read_text(encoding="utf-8").replace("</script", "<\\/script"), "")
    assert "</script><b>" not in own
    assert "&lt;/script&gt;&lt;b&gt;" in own
    assert "http://" not in own
    assert "https://" not in own
    assert in_script('"</script>"') == '"\\u003c/script>"'


def test_page_without_an_answer() -> None:
    """A run in which nothing was feasible still has a page that says so."""
    empty = replace(view(), recommended=None, front=(), candidates=(), curves=(), breakdown=(), best_collocated=None)
    empty = replace(empty, best_disaggregated=None)
    html = render_page(empty, figures_of(empty))
    assert "No strategy tried meets the targets" in html
    assert 'id="front"' not in html


def test_vendored_library_is_the_recorded_one() -> None:
    """plotly-basic.min.js has the SHA-256 that its README records, and its licence lies beside it."""
    readme = (PLOTLY.parent / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(PLOTLY.read_bytes()).hexdigest() in readme
    assert "MIT" in (PLOTLY.parent / "LICENSE").read_text(encoding="utf-8")
