"""What a study may evaluate next: the screen's rows that are still open, and what is learned about them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from search.classes import classes_of, plainest
from search.forecast import NOISE, Features, Forecast, most_gain, shortfall
from search.known import Known
from search.screen import MARGIN, Rows, Screen
from spaces.strategy import Strategy

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
# What a strategy may prove to be, one hope after the other: deviations above the forecast, the share of the area that
# is worth an evaluation, and what the features do not tell, which the forecast's deviation leaves out.
HOPES = ((1.0, 1e-6, 0.0), (2.0, 1e-6, 0.0), (3.0, 1e-6, 0.0), (3.0, 5e-4, NOISE))
FILL = 16  # strategies that a generation of forecasts should have, so that no worker waits for another
DEMAND_FRAC = 0.25  # of a forecast generation looks for less cost at the demand
LEAST_CHANCE = 0.02  # that it carries the demand, for a cheaper strategy to be tried
LEAST_SAVING_FRAC = 1e-5  # of the best cost, expected: less is not worth an evaluation
NUM_CHEAPEST = 4  # choices of shapes whose counts are looked at closely
CLASS_FRAC = 0.25  # of a forecast generation looks for less cost in the classes that the best is not of
LEAST_CLASS_FRAC = 0.002  # of the best cost of a class, expected: less is not worth an evaluation
MOST_OF_CLASS = 4_000  # rows of a class that are forecast, the cheapest


@dataclass(frozen=True, slots=True, kw_only=True)
class Hopeless:
    """A strategy that its bound already puts behind a known one of no more cost: told to the sampler, not simulated."""

    bound_req_s: float


class Prospects:
    """Rows of a screen's table by what they promise, given what is known. `screens`: rule out what its bound does."""

    def __init__(self, screen: Screen, known: Known, *, screens: bool) -> None:
        self.known, self._screens = known, screens
        self._seen: list[IntArray] = []
        self._shortfalls: list[FloatArray] = []
        self._neighbours: dict[Strategy, list[Strategy]] = {}
        self._look_at(screen)

    def _look_at(self, screen: Screen) -> None:
        self.screen = screen
        self.known.measure_by(screen)
        self._row_of = {key: row for row, key in enumerate(screen.keys(screen.table).tolist())}
        self._open = np.ones(len(screen.table), dtype=bool)  # neither known nor refused
        self._features = Features(screen)
        self._table_features = self._features.of(screen.table)
        self._classes = [(one, screen.mask(one.is_disaggregated, one.gpu)) for one in classes_of(screen.space)]
        self._close(screen.rows(list(self.known.evaluations)))

    def widen(self) -> bool:
        """Look further, where nothing known carries the demand and nothing in sight is likely to; whether it helps."""
        if self.screen.demand_req_s is None or math.isfinite(self.known.best_usd_per_h):
            return False
        rows = self._hopeful_rows()
        if np.any(self._chance(self.screen.table.take(rows), *self._fitted().of(self._table_features[rows]))):
            return False
        wider = self.screen.widened()
        if wider is not None:
            self._look_at(wider)
        return wider is not None

    def learn(self, new: Sequence[Strategy]) -> None:
        """Close the rows of strategies now known, and keep what they say about the rest."""
        rows = self.screen.rows(new)
        self._close(rows)
        sound = np.array([self.known.evaluations[strategy].status != "failed" for strategy in new])
        goodput = np.array([self.known.evaluations[strategy].goodput_req_s for strategy in new])
        self._seen.append(self._features.of(rows)[sound])
        self._shortfalls.append(shortfall(goodput, rows.bound_req_s)[sound])

    def _close(self, rows: Rows) -> None:
        for key in self.screen.keys(rows).tolist():
            if key in self._row_of:
                self._open[self._row_of[key]] = False

    # ---- what is behind the front

    def hopeful(self, strategies: Sequence[Strategy]) -> list[Strategy]:
        """Those that their bound does not put behind the front."""
        kept = self._ahead(self.screen.rows(strategies))
        return [strategy for strategy, keep in zip(strategies, kept, strict=True) if keep]

    def hopeless(self, strategy: Strategy) -> Hopeless | None:
        """The bound of a strategy that it puts behind the front."""
        if not self._screens:
            return None
        row = self.screen.rows([strategy])
        behind = not self._ahead(row)[0]
        return Hopeless(bound_req_s=min(float(row.bound_req_s[0]), self.screen.ceiling_req_s)) if behind else None

    def _ahead(self, rows: Rows) -> NDArray[np.bool_]:
        """Whether goodput at its margin, counted up to the ceiling, would add to the front."""
        most = np.minimum(rows.bound_req_s * MARGIN, self.screen.ceiling_req_s)
        within = rows.usd_per_h <= self.screen.most_usd_per_h
        return np.asarray(within & (most > self.known.staircase().at(rows.usd_per_h)))

    def _hopeful_rows(self) -> IntArray:
        return np.flatnonzero(self._open & self._ahead(self.screen.table))

    # ---- proposing

    def plainest(self, room: int) -> list[Strategy]:
        """Tensor parallelism alone, at every degree, as many as the demand asks for: what everyone would try first."""
        tried = plainest(self.screen)
        return [strategy for strategy in tried if strategy in self.screen.space and strategy not in self.known][:room]

    def unruled(self, room: int) -> list[Strategy]:
        """Strategies of the table that the bound cannot rule out, those with the best bound for their cost first."""
        rows, table = self._hopeful_rows(), self.screen.table
        lead = table.bound_req_s[rows] / np.maximum(self.known.staircase().at(table.usd_per_h[rows]), 1e-12)
        return self._take(rows[np.argsort(-lead, kind="stable")], room)

    def forecast(self, room: int) -> list[Strategy]:
        """What should carry the demand for less, and what should add most area, with ever higher hopes until `FILL`."""
        if room < 1:
            return []
        rows, fitted = self._hopeful_rows(), self._fitted()
        hopefuls = self.screen.table.take(rows)
        mean, sd = fitted.of(self._table_features[rows])
        chosen = self._cheaper(hopefuls, mean, sd, int(DEMAND_FRAC * room))
        close = self._close_to_best(fitted, int(DEMAND_FRAC * room))
        behind = self._best_of_classes(fitted, int(CLASS_FRAC * room))
        cheaper = rows[chosen].tolist() + behind
        staircase, area = self.known.staircase(), max(self.known.area(), 1e-12)
        for hope, least_frac, noise in HOPES:
            left = room - len(close) - len(chosen) - len(behind)
            if len(close) + len(chosen) < min(FILL, room):
                hoped = hopefuls.bound_req_s * np.minimum(np.exp(mean + hope * np.hypot(sd, noise)), MARGIN)
                hoped = np.minimum(hoped, self.screen.ceiling_req_s)
                hoped[chosen] = 0.0
                chosen += most_gain(hoped, hopefuls.usd_per_h, staircase, room=left, least_gain=least_frac * area)
        taken = np.array(list(dict.fromkeys([*cheaper, *rows[chosen].tolist()])), dtype=np.int64)
        return close + self._take(taken, room - len(close))

    def _best_of_classes(self, fitted: Forecast, room: int) -> list[int]:
        """Rows of the table that may carry the demand for less than the best known of their class, of layouts one each.

        Classes are those that an answer compares (`search.classes`); the one of the best strategy is left to others.
        """
        table, found = self.screen.table, dict[int, None]()
        demand = self.screen.demand_req_s
        classes = [] if demand is None else self._classes
        for number, (member, mask) in enumerate(classes):
            best = min(self.known.best_of(member), self.screen.most_usd_per_h)
            if best <= self.known.best_usd_per_h:
                continue
            may = mask & self._open & (table.usd_per_h < best)
            rows = np.flatnonzero(may & (table.bound_req_s * MARGIN >= (demand or 0.0)))
            rows = rows[np.argsort(table.usd_per_h[rows], kind="stable")[:MOST_OF_CLASS]]
            some = table.take(rows)
            mean, sd = fitted.of(self._table_features[rows])
            order = rows[self._cheaper(some, mean, sd, len(rows), best, LEAST_CLASS_FRAC)]
            layouts = self._features.layouts(table.take(order))
            _, first = np.unique(layouts, axis=0, return_index=True)
            share = -(-(room - len(found)) // (len(classes) - number))
            found |= dict.fromkeys(order[np.sort(first)][:share].tolist())
        return list(found)

    def _close_to_best(self, fitted: Forecast, room: int) -> list[Strategy]:
        """Counts near those of the cheapest that carry the demand, and may cost less: a thinned table lacks them."""
        found: list[Strategy] = []
        for strategy in () if self.screen.is_complete else self.known.cheapest(NUM_CHEAPEST):
            rows = self.screen.around(strategy)
            rows = rows.take(rows.usd_per_h < self.known.best_usd_per_h)
            strategies = [self.screen.strategy(rows, row) for row in range(len(rows))]
            mean, sd = fitted.of(self._features.of(rows))
            for row in self._cheaper(rows, mean, sd, len(rows)):
                if len(found) < room and strategies[row] not in self.known and strategies[row] in self.screen.space:
                    found.append(strategies[row])
        return found

    def beside(self, room: int, taken: Sequence[Strategy]) -> list[Strategy]:
        """Unevaluated neighbours of the front's strategies that may be better than it, in turn, beside those taken."""
        found: dict[Strategy, None] = {}
        for strategy in self.known.best_and_front(3):
            if strategy not in self._neighbours:
                rounded = map(self.screen.rounded, self.screen.space.neighbours(strategy))
                self._neighbours[strategy] = [other for other in rounded if other in self.screen.space]
            new = [other for other in self._neighbours[strategy] if other not in self.known and other not in taken]
            found |= dict.fromkeys(self.hopeful(new))
            if len(found) >= room:
                break
        return list(found)[:room]

    def _fitted(self) -> Forecast:
        seen = np.concatenate(self._seen) if self._seen else self._table_features[:0]
        return Forecast.fitted(self._features.sd, seen, np.concatenate([np.zeros(0), *self._shortfalls]))

    def _cheaper(
        self,
        rows: Rows,
        mean: FloatArray,
        sd: FloatArray,
        room: int,
        best_usd_per_h: float = math.inf,
        least_frac: float = LEAST_SAVING_FRAC,
    ) -> list[int]:
        """Up to `room` rows of most expected saving: cheaper than the best, and likely to carry the demand."""
        if self.screen.demand_req_s is None or room < 1:
            return []
        if math.isinf(best_usd_per_h):
            best_usd_per_h = min(self.known.best_usd_per_h, self.screen.most_usd_per_h)
        saving = (best_usd_per_h - rows.usd_per_h) * self._chance(rows, mean, sd)
        order = np.argsort(-saving, kind="stable")[:room]
        return [int(row) for row in order[saving[order] > least_frac * best_usd_per_h]]

    def _chance(self, rows: Rows, mean: FloatArray, sd: FloatArray) -> FloatArray:
        """(n,) that these carry the demand; 0 where that is hardly worth a try."""
        demand = self.screen.demand_req_s
        assert demand is not None
        with np.errstate(divide="ignore"):
            chance = ndtr((np.log(rows.bound_req_s) + mean - math.log(demand)) / np.maximum(sd, 1e-9))
        return np.where((rows.bound_req_s * MARGIN >= demand) & (chance >= LEAST_CHANCE), chance, 0.0)

    def _take(self, rows: IntArray, room: int) -> list[Strategy]:
        """The first `room` rows that are in the space, patterns included; others are closed."""
        taken: list[Strategy] = []
        for row in rows.tolist():
            if len(taken) == room:
                break
            strategy = self.screen.strategy(self.screen.table, row)
            self._open[row] = False
            if strategy in self.screen.space and strategy not in self.known:
                taken.append(strategy)
        return taken
