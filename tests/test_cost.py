"""Bills, owning, and break-even, against sums done by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.catalogue.prices import load_prices, parse_prices
from estimator.cost import PriceCard, bill, default_cards
from estimator.errors import BestServeError
from estimator.ownership import Ownership


def card_of(
    usd_per_gpu_h: float, *, gpu: str = "h100_sxm", gpus_per_node: int = 8, kind: str = "on_demand"
) -> PriceCard:
    """A card with a made-up offer."""
    return PriceCard(
        id=f"{gpu}-{kind}-{usd_per_gpu_h:g}",
        provider="test",
        gpu=gpu,
        gpus_per_node=gpus_per_node,
        kind=kind,  # type: ignore[arg-type]
        usd_per_gpu_h=usd_per_gpu_h,
        region="any",
        source="made up for this test",
        date="2026-11-01",
    )


def node_of(server_usd: float, **changes: float) -> Ownership:
    """An eight-GPU H100 node: network 15 %, 4 years, residual 15 %, 8 %, 1.37 kW, PUE 1.25."""
    base = Ownership(
        gpu="h100_sxm",
        server_usd=server_usd,
        gpus_per_server=8,
        kw_load_per_gpu=1.37,
        source="worked by hand",
        date="2026-11-01",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_nodes_are_bought_whole() -> None:
    """12 H100 in nodes of 8 at 2 $ cost 32 $/h with 4 stranded; 3 L40S sold singly at 1 $ cost 3 $/h."""
    cards = {"h100_sxm": card_of(2.0), "l40s": card_of(1.0, gpu="l40s", gpus_per_node=1)}
    cluster = bill({"h100_sxm": 12, "l40s": 3}, cards)
    assert cluster.usd_per_h == pytest.approx(35.0)
    assert cluster.num_stranded == 4
    assert cluster.usd_per_year == pytest.approx(35.0 * 8760)
    assert cluster.usd_per_month == pytest.approx(35.0 * 730)


def test_token_prices_by_hand() -> None:
    """36 $/h at 10 requests/s of 100 output tokens: 0.01 $/s over 1,000 tokens/s is 10 $/1M, and 1 $/1k requests."""
    cluster = bill({"h100_sxm": 8}, {"h100_sxm": card_of(4.5)})
    assert cluster.usd_per_million_tokens(10.0, 100.0) == pytest.approx(10.0)
    assert cluster.usd_per_thousand_requests(10.0) == pytest.approx(1.0)
    assert cluster.usd_per_thousand_requests(0.0) == math.inf


def test_unpriced_gpu_is_refused() -> None:
    """A GPU type without a card is an error that lists the priced ones."""
    with pytest.raises(BestServeError, match="'h100_sxm' has no price card; accepted: a card for it; priced: l40s"):
        bill({"h100_sxm": 8}, {"l40s": card_of(1.0, gpu="l40s")})


def test_currencies_do_not_mix() -> None:
    """A bill in dollars and euros is refused."""
    cards = {"h100_sxm": card_of(2.0), "l40s": replace(card_of(1.0, gpu="l40s"), currency="EUR")}
    with pytest.raises(BestServeError, match="'EUR, USD' mix currencies"):
        bill({"h100_sxm": 8, "l40s": 8}, cards)


def test_tco_h100_node_four_years() -> None:
    """300 k$ node at load 0.8: capital 1.3225 + power 0.1096 + hosting 0.2815 + maintenance 0.1477 = 1.8613 $/GPU-h."""
    node = node_of(300_000)
    # C = 300,000·1.15/8 = 43,125; resale 6,468.75/1.08⁴ = 4,754.72; annuity 0.08/(1 − 1.08⁻⁴) = 0.301921
    assert node.capital_usd_per_h == pytest.approx((43_125 - 4_754.72) * 0.301921 / 8760, rel=1e-5)
    assert node.power_usd_per_h(0.8) == pytest.approx(1.37 * 0.8 * 1.25 * 0.08)
    assert node.usd_per_gpu_h(0.8) == pytest.approx(1.8613, abs=2e-4)


@pytest.mark.parametrize(("years", "usd_per_h"), [(3.0, 2.22), (5.0, 1.65)])
def test_tco_by_life(years: float, usd_per_h: float) -> None:
    """The same node costs 2.22 $/GPU-h over 3 years and 1.65 over 5."""
    assert node_of(300_000, years=years).usd_per_gpu_h(0.8) == pytest.approx(usd_per_h, abs=0.006)


def test_tco_b200_node() -> None:
    """A 450 k$ node at 1.71 kW per GPU costs 2.69 $/GPU-h."""
    assert node_of(450_000, kw_load_per_gpu=1.71).usd_per_gpu_h(0.8) == pytest.approx(2.69, abs=0.006)


def test_tco_without_interest_by_hand() -> None:
    """80 k$ for 8 GPUs over 2 years, no resale, no interest, 1 kW at load, 0.4 idle, half loaded, staff 876 $/year.

    Capital 10,000/17,520 = 0.5708; power 0.7·1.5·0.1 = 0.105; hosting 73·1·12/8760 = 0.1; maintenance 8.76 % = 0.1;
    staff 0.1: together 0.9758 $/GPU-h.
    """
    node = node_of(
        80_000,
        network_frac=0.0,
        years=2.0,
        residual_frac=0.0,
        cost_of_capital_frac=0.0,
        kw_load_per_gpu=1.0,
        kw_idle_per_gpu=0.4,
        pue=1.5,
        usd_per_kwh=0.1,
        hosting_usd_per_kw_month=73.0,
        maintenance_frac_per_year=0.0876,
        staff_usd_per_gpu_year=876.0,
    )
    assert node.usd_per_gpu_h(0.5) == pytest.approx(10_000 / 17_520 + 0.105 + 0.3, rel=1e-12)


def test_break_even_by_hand() -> None:
    """C = 43,125 $ against rent of 4 $ round the clock: 43,125/(4 − 0.137 − 0.42918)/730 = 17.2 months."""
    node, rent = node_of(300_000), card_of(4.0)
    assert node.break_even_months(rent, 1.0) == pytest.approx(43_125 / (4 - 0.137 - 0.42918) / 730, rel=1e-4)
    assert node.break_even_months(card_of(0.5), 1.0) == math.inf


def test_servers_are_bought_whole() -> None:
    """5 GPUs need a server of 8: each needed carries 8/5 of the cost of one owned; 16 need two servers, no more."""
    node = node_of(300_000, staff_usd_per_gpu_year=1000.0)
    num, per_needed = node.whole_servers(5)
    assert num == 8
    assert 5 * per_needed.usd_per_gpu_h(0.7) == pytest.approx(8 * node.usd_per_gpu_h(0.7))
    assert node.whole_servers(16) == (16, node)


@given(rent_usd=st.floats(0.3, 20.0))
def test_break_even_utilisation_is_where_costs_meet(rent_usd: float) -> None:
    """At the break-even share of hours, rent for those hours equals the full cost of owning."""
    node, rent = node_of(300_000), card_of(rent_usd)
    u = node.break_even_utilisation(rent)
    assert u * rent_usd == pytest.approx(node.usd_per_gpu_h(u), rel=1e-9)


@given(
    factor=st.floats(0.1, 10.0),
    num_h100=st.integers(1, 64),
    num_l40s=st.integers(0, 64),
    h100_usd=st.floats(0.1, 20.0),
    l40s_usd=st.floats(0.1, 20.0),
)
def test_scaling_every_price_scales_every_cost(
    factor: float, num_h100: int, num_l40s: int, h100_usd: float, l40s_usd: float
) -> None:
    """k times every price gives k times the bill and k times each derived price."""
    cards = {"h100_sxm": card_of(h100_usd), "l40s": card_of(l40s_usd, gpu="l40s", gpus_per_node=1)}
    scaled = {gpu: replace(card, usd_per_gpu_h=factor * card.usd_per_gpu_h) for gpu, card in cards.items()}
    count = {"h100_sxm": num_h100, "l40s": num_l40s}
    before, after = bill(count, cards), bill(count, scaled)
    assert after.usd_per_h == pytest.approx(factor * before.usd_per_h)
    assert after.usd_per_million_tokens(3.0, 200.0) == pytest.approx(factor * before.usd_per_million_tokens(3.0, 200.0))


@given(num_gpus=st.integers(1, 200), more=st.integers(0, 50), gpus_per_node=st.integers(1, 16))
def test_more_gpus_never_cost_less(num_gpus: int, more: int, gpus_per_node: int) -> None:
    """The bill grows with the GPUs, whole nodes cover the need, and less than a node is stranded."""
    card = card_of(2.0, gpus_per_node=gpus_per_node)
    small, large = (
        bill({"h100_sxm": num_gpus}, {"h100_sxm": card}),
        bill({"h100_sxm": num_gpus + more}, {"h100_sxm": card}),
    )
    assert large.usd_per_h >= small.usd_per_h
    assert 0 <= small.num_stranded < gpus_per_node


def test_default_is_the_cheapest_on_demand() -> None:
    """Spot, marketplace and survey prices are passed over where an on-demand price is listed."""
    cards = [
        card_of(3.0),
        card_of(2.5),
        card_of(1.0, kind="spot"),
        card_of(1.2, kind="survey"),
        card_of(0.9, kind="owned"),
    ]
    assert default_cards(cards)["h100_sxm"].usd_per_gpu_h == 2.5
    assert default_cards(cards, ("spot",))["h100_sxm"].usd_per_gpu_h == 1.0
    assert default_cards(cards[3:])["h100_sxm"].kind == "survey"
    assert default_cards(cards[4:]) == {}


def test_bundled_cards_are_complete() -> None:
    """Each bundled card has a date of this decade, a source and a plausible price, and each GPU a default card."""
    cards = load_prices()
    assert all(card.date.startswith(("2024-", "2025-", "2026-")) for card in cards.values())
    assert all(0.5 < card.usd_per_gpu_h < 15 for card in cards.values())
    assert set(default_cards(cards.values())) == {card.gpu for card in cards.values()}


def test_user_card_overrides(tmp_path: Path) -> None:
    """A user's card with a bundled id replaces it; a new id joins."""
    text = "\n".join(
        f'[[price]]\nid = "{name}"\nprovider = "me"\ngpu = "h100_sxm"\ngpus_per_node = 8\nkind = "on_demand"\n'
        'usd_per_gpu_h = 1.5\nregion = "eu"\nsource = "contract"\ndate = "2026-10-01"\n'
        for name in ("aws-p5-h100", "mine")
    )
    path = tmp_path / "prices.toml"
    path.write_text(text)
    cards = load_prices(path)
    assert cards["aws-p5-h100"].usd_per_gpu_h == cards["mine"].usd_per_gpu_h == 1.5
    assert len(cards) == len(load_prices()) + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": ""}, "source: '' must be given"),
        ({"date": ""}, "date: '' must be given"),
        ({"kind": "free"}, "kind: 'free' is unknown; accepted: on_demand"),
        ({"usd_per_gpu_h": -1.0}, "usd_per_gpu_h: -1.0 must be finite and not negative"),
        ({"usd_per_gpu_h": math.nan}, "must be finite"),
        ({"gpus_per_node": 0}, "gpus_per_node: 0 must be at least 1"),
    ],
)
def test_bad_cards_are_refused(change: dict[str, object], message: str) -> None:
    """A card without source or date, or with an impossible number, is refused by name."""
    with pytest.raises(BestServeError, match=message):
        replace(card_of(2.0), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[price]]\nid = "x"\nprovider = "p"', "price x.gpu: None is missing"),
        ("[[price]", "is not TOML"),
    ],
)
def test_bad_files_are_refused(text: str, message: str) -> None:
    """A file with a missing field or broken syntax is refused by name."""
    with pytest.raises(BestServeError, match=message):
        parse_prices(text)
