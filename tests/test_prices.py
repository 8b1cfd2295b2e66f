"""Price cards: whose win, that currencies never mix, that a run keeps the cards it was planned with."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from estimator.catalogue.prices import load_links, load_prices, load_servers, read_price_file
from estimator.errors import BestServeError
from search.prices import age_days, old_card_warnings, price_book
from search.spec import Spec, parse_spec
from search.tariff import Tariff, tariff_of
from spaces.strategy import Strategy

CARD = """
[[price]]
id = "{id}"
provider = "acme"
gpu = "{gpu}"
gpus_per_node = 8
kind = "{kind}"
usd_per_gpu_h = {price}
source = "quote 17"
date = 2026-11-20
"""


def spec_of(folder: Path, **changes: object) -> Spec:
    """A spec of H100 and L40S."""
    base = {
        "name": "prices",
        "model": {"id": "meta-llama/Llama-3.1-8B"},
        "traffic": {"rate_req_s": 5, "lengths": {"kind": "fixed", "input_tokens": 500, "output_tokens": 100}},
        "slo": {"ttft": {"p90_ms": 1000}},
        "gpus": ["h100_sxm", "l40s"],
    }
    return parse_spec(base | changes, folder=folder)


def file_of(folder: Path, *cards: str, head: str = "") -> str:
    """The name of a price file of those cards."""
    (folder / "mine.toml").write_text(head + "".join(cards))
    return "mine.toml"


def test_a_file_s_cards_go_before_the_bundled_ones(tmp_path: Path) -> None:
    """The cheapest card of the file is taken for its GPU, of whatever kind; other GPUs keep the catalogue's."""
    cards = [CARD.format(id=f"acme-{p}", gpu="h100_sxm", kind="reserved_1y", price=p) for p in (2.5, 2.25)]
    chosen = price_book(spec_of(tmp_path, price_file=file_of(tmp_path, *cards))).chosen
    assert chosen["h100_sxm"].id == "acme-2.25"
    assert chosen["l40s"] == price_book(spec_of(tmp_path)).chosen["l40s"]


def test_the_spec_goes_before_its_file(tmp_path: Path) -> None:
    """A price in the spec wins over the file, and may name the file's card by id."""
    name = file_of(tmp_path, *(CARD.format(id=f"acme-{p}", gpu="h100_sxm", kind="spot", price=p) for p in (1.5, 3.0)))
    own = {"usd_per_gpu_h": 9.0, "source": "me", "date": "2026-11-25"}
    assert price_book(spec_of(tmp_path, price_file=name, prices={"h100_sxm": own})).chosen["h100_sxm"].provider == "own"
    named = price_book(spec_of(tmp_path, price_file=name, prices={"h100_sxm": "acme-3.0"})).chosen["h100_sxm"]
    assert named.usd_per_gpu_h == 3.0


def test_a_book_written_and_read_is_the_same(tmp_path: Path) -> None:
    """The file that a run freezes gives the same choice back, and nothing of the catalogue beside it."""
    book = price_book(spec_of(tmp_path))
    (tmp_path / "frozen.toml").write_text(book.text())
    again = price_book(spec_of(tmp_path, price_file="frozen.toml"))
    assert again.chosen == book.chosen
    assert again.cards == book.cards
    assert read_price_file(tmp_path / "frozen.toml").complete


def test_prices_in_euro_need_no_conversion(tmp_path: Path) -> None:
    """With every price in euro the run is in euro."""
    own = {"per_gpu_h": 2.0, "source": "quote", "date": "2026-11-25"}
    spec = spec_of(tmp_path, currency="EUR", prices={"h100_sxm": own, "l40s": own})
    tariff = tariff_of(spec)
    assert tariff.currency == "EUR"
    assert tariff.usd_per_h(Strategy.parse("2m-tp2@h100_sxm")) == 8.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"currency": "EUR"},
            r"prices.h100_sxm: None must be given in EUR, the known prices are in USD; accepted: {per_gpu_h",
        ),
        (
            {
                "currency": "EUR",
                "prices": {g: {"usd_per_gpu_h": 2.0, "source": "q", "date": "2026"} for g in ("h100_sxm", "l40s")},
            },
            r"own-h100_sxm in USD' is not in the run's currency EUR, and currencies are not converted",
        ),
        (
            {"prices": {"h100_sxm": {"usd_per_gpu_h": 2.0, "per_gpu_h": 2.0, "source": "q", "date": "2026"}}},
            r"prices.h100_sxm.usd_per_gpu_h: 'both' must be given once",
        ),
        ({"price_file": "missing.toml"}, r"price_file: 'missing.toml' does not exist"),
        ({"currency": "euro"}, r"currency: 'euro' holds other characters than it may"),
        ({"ownership": {"server_price": 3e5}}, r"ownership.server_price: 300000.0 does not tell which of 2 GPU types"),
        ({"ownership": {"servers": {"b200": {}}}}, r"ownership.servers.b200.price: None must be given"),
        (
            {"demand": {"hourly": [1, 2], "diurnal": {"peak_factor": 2}}},
            r"demand.curve: 'hourly, diurnal' must be given once",
        ),
        ({"demand": {"hourly": [0, 0]}}, r"demand.hourly: 0 has no demand in any hour"),
    ],
)
def test_wrong_money_gets_one_sentence(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    """What is wrong with a price, a currency, a server or a curve is told with what would be accepted."""
    with pytest.raises(BestServeError, match=message):
        price_book(spec_of(tmp_path, **changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CARD.replace('source = "quote 17"\n', ""), r"price a.source: None is missing"),
        (CARD.replace("date = 2026-11-20\n", ""), r"price a.date: None is missing"),
        (CARD.replace('source = "quote 17"', 'source = ""'), r"price a.source: '' must be given"),
        ("[chosen]\nh100_sxm = 'b'\n" + CARD, r"chosen.h100_sxm: 'b' is no card of h100_sxm"),
        ("typo = 1\n" + CARD, r"prices.typo: 1 is unknown"),
        (CARD.replace("{price}", '"3"'), r"price a.usd_per_gpu_h: '3' has the wrong type"),
        ("[[price]\n", r"is not TOML"),
    ],
)
def test_a_price_file_without_date_or_source_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """A card without date or source, an unknown key or a choice of no card raises one sentence."""
    filled = text.replace("{id}", "a").replace("{gpu}", "h100_sxm").replace("{kind}", "spot").replace("{price}", "3")
    (tmp_path / "mine.toml").write_text(filled)
    with pytest.raises(BestServeError, match=message):
        read_price_file(tmp_path / "mine.toml")


def test_planning_with_owned_gpus(tmp_path: Path) -> None:
    """`owned` takes the cost of owning by the spec's terms: 1.8613 per GPU and hour for the worked node at 80 % use."""
    server = {
        "price": 300_000,
        "kw_load_per_gpu": 1.37,
        "kw_idle_per_gpu": 0.0,
        "source": "quote",
        "date": "2026-11-01",
    }
    terms = {"servers": {"h100_sxm": server}, "utilisation": 0.8}
    card = price_book(spec_of(tmp_path, prices={"h100_sxm": "owned"}, ownership=terms)).chosen["h100_sxm"]
    assert (card.kind, card.gpus_per_node, card.source) == ("owned", 8, "quote")
    assert card.usd_per_gpu_h == pytest.approx(1.8613, abs=2e-4)


def test_old_cards_are_told() -> None:
    """61 days warn and 60 do not; a month counts from its last day; text that is no date warns."""
    today = date(2026, 11, 25)
    assert age_days("2026-09-26", today) == 60
    assert age_days("2026-07", today) == 117
    assert age_days("2025-12", today) == 329
    assert age_days("last week", today) is None
    old = [card for card in load_prices().values() if card.id in ("gcp-a3-h100", "lambda-h100-1x", "survey-h100")]
    warned = " ".join(old_card_warnings(old, today))
    assert "lambda-h100-1x is 61 days old" in warned
    assert "survey-h100 is 117 days old" in warned
    assert "gcp-a3-h100 " not in warned


def test_the_network_is_paid_where_it_is_used(tmp_path: Path) -> None:
    """0.05 $ per GPU and hour: a disaggregated pair in one NVLink domain pays none, one of 16 GPUs 0.80 $/h."""
    plain = tariff_of(spec_of(tmp_path))
    tariff = Tariff(cards=plain.cards, gpus=plain.gpus, network_usd_per_gpu_h=0.05)
    within, beyond = (
        Strategy.parse("2p-tp1@h100_sxm+2d-tp1@h100_sxm"),
        Strategy.parse("9p-tp1@h100_sxm+7d-tp1@h100_sxm"),
    )
    assert tariff.usd_per_h(within) == plain.usd_per_h(within)
    assert tariff.usd_per_h(beyond) - plain.usd_per_h(beyond) == pytest.approx(0.80)
    assert tariff.network_usd_per_h(Strategy.parse("16m-tp1@h100_sxm")) == 0.0
    assert tariff.network_usd_per_h(Strategy.parse("1m-tp8-pp2@h100_sxm")) == pytest.approx(0.80)


def test_bundled_links_and_servers_have_a_source() -> None:
    """Every network and server tells where its numbers are from and when."""
    assert {link.kind for link in load_links().values()} >= {"infiniband", "roce", "ethernet"}
    assert all(server["source"] and server["date"] for server in load_servers().values())
