"""Which of a judge's readings are made of which battles, and when: all at once, a second one for doubtful battles, or
as many as there is time for. What a reading computes is not known here.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from accelerate.logging import get_logger

from modeling.data.battles import LABELS, ORIENTATIONS
from modeling.encoding.encoder import CUT_COLUMNS, BattleEncoder
from modeling.judging.loading import Member
from modeling.judging.predictions import average_passes
from modeling.judging.predictor import predict_battles
from modeling.runtime.distributed import call_on_main

logger = get_logger(__name__)

FIRST_SLICE = 0.02  # of all tokens, read to see how fast this machine is
SLICES = 8  # of what is left: as often the speed is measured anew
SPENT = 0.9  # of the time left that is planned for; the rest is for a machine that slows down


class PassSchedule:
    """The readings of battles by a plan of members and orders: NaN in `p` where one was not made.

    p: Probabilities by label, shape (readings, battles, labels).
    lengths: Tokens and tokens cut of each field, shape (readings, battles, 4).
    """

    def __init__(self, plan: Sequence[tuple[Member, str]], rows: Sequence[Mapping], **options):
        """
        Args:
            plan: What `Judge.plan_passes` returned.
            options: Of `predict_battles`: tokens_per_batch, num_workers, progress_dir.
        """
        self.plan, self.rows, self.options = plan, rows, options
        self.names = [f"{member.name}_{orientation}" for member, orientation in plan]
        self.encoded = _encode_passes(plan, rows)
        self.p = np.full((len(plan), len(rows), len(LABELS)), np.nan)
        columns = ("length", *CUT_COLUMNS)
        self.lengths = np.array([[[battle[name] for name in columns] for battle in each] for each in self.encoded])
        self.lengths = self.lengths.reshape(len(plan), len(rows), len(columns))

    def read(self, wanted: np.ndarray, deadline: float | None = None) -> None:
        """Makes readings; both orders of a member are read together and share what they have in common.

        Args:
            wanted: Which, shape (readings, battles).
            deadline: See `predict_battles`.
        """
        members = {id(member): member for member, _ in self.plan}
        for key, member in members.items():
            own = np.array([id(other) == key for other, _ in self.plan])
            places = np.argwhere(wanted & own[:, None] & np.isnan(self.p[..., 0]))
            if not len(places):
                continue
            orders = [self.plan[reading][1] for reading, _ in places]
            model = f"{member.fingerprint} on {member.facts.base_fingerprint} in {member.dtype}"
            merged = ", merged" * (member.adapter is None)
            found = predict_battles(
                member.activate(),
                [self.encoded[reading][row] for reading, row in places],
                orders,
                deadline=deadline,
                name=f"{member.name} reads {' and '.join(sorted(set(orders)))}@{model}{merged}",
                **self.options,
            )
            self.p[places[:, 0], places[:, 1]] = found

    def read_selected(self, second_reading: float, deadline: float | None, later_judges: int = 0) -> None:
        """Makes each battle's first reading, and the others of the share in most doubt, as far as time allows.

        Args:
            second_reading: Share of the battles, at most, that get all readings.
            deadline: Of `time.monotonic()`; None: there is time for all.
            later_judges: Each of them is left as much time as the others than the first reading get here.
        """
        first, rest = self.choose_first_passes(), np.full(self.p.shape[:2], True)
        if deadline is None:
            self.read(first)
            self.read(self._select(rest, self.rank_by_uncertainty()[: round(second_reading * len(self.rows))]))
            return
        pace = Pace()
        sizes = np.where(first, self.lengths[..., 0], 0).sum(axis=0)
        order = list(range(len(self.rows)))
        done = pace.read_in_time(
            lambda rows: self.read(self._select(first, rows), deadline), order, sizes, deadline, self._announce
        )
        if missing := int(np.isnan(self.p[..., 0]).all(axis=0).sum()):
            logger.warning(f"Time budget: {missing} of {len(order)} battles could not be read in time: even odds")
        if len(self.plan) == 1:
            return  # there is no other reading to make
        doubtful = self.rank_by_uncertainty()[: round(second_reading * len(order))] if done == len(order) else []
        sizes, now = self.lengths[..., 0].sum(axis=0) - sizes, time.monotonic()
        deadline = now + (deadline - now) / (1 + later_judges)
        pace.read_in_time(lambda rows: self.read(self._select(rest, rows), deadline), doubtful, sizes, deadline)
        again = int((~np.isnan(self.p[..., 0])).all(axis=0).sum())
        logger.info(f"Time budget: {again} of {len(order)} battles have all {len(self.plan)} readings")

    def choose_first_passes(self) -> np.ndarray:
        """The reading that each battle gets before any other, shape (readings, battles); exactly one of a battle.

        A member that reads both orders begins with the one in which the answers stand in alphabetical order: which of
        them is called a does not matter then, and p(A, B) = 1 - p(B, A) holds after one reading as after two.
        """
        first = np.full(self.p.shape[:2], False)
        places = {order: n for n, (member, order) in enumerate(self.plan) if member is self.plan[0][0]}
        if len(places) < len(ORIENTATIONS):
            first[0] = True
            return first
        for row, battle in enumerate(self.rows):
            first[places["ab" if battle["response_a"] <= battle["response_b"] else "ba"], row] = True
        return first

    def rank_by_uncertainty(self) -> np.ndarray:
        """Rows of the battles that were read, those whose p is nearest 1/2 first."""
        p_a = average_passes(self.p)[:, 0]
        # Rounded: of readings in other packs the last bits differ, which must not decide.
        order = np.argsort(np.abs(p_a - 0.5).round(6), kind="stable")
        return order[~np.isnan(self.p[:, order, 0]).all(axis=0)]

    def _select(self, wanted: np.ndarray, rows: Sequence[int]) -> np.ndarray:
        chosen = np.full(self.p.shape[:2], False)
        chosen[:, rows] = wanted[:, rows]
        return chosen

    def _announce(self, speed: float, seconds: float, left: float) -> None:
        """Says, after the first slice, what the time will do for."""
        said = f"{left:,.0f} s left at {speed:,.0f} tokens/s; a first reading of all takes {seconds:,.0f} s"
        if len(self.plan) > 1:
            others = self.lengths[..., 0].sum() / speed - seconds
            share = min(1.0, max(0.0, (SPENT * left - seconds) / others))
            said += f", which leaves time to read {share:.0%} again"
        logger.info(f"Time budget: {said}")


class Pace:
    """How fast readings are made, measured over and over, so that they end in time."""

    def __init__(self):
        self.tokens, self.seconds, self.latest = 0, 0.0, math.inf

    def estimate(self, tokens: float) -> float:
        """Seconds for so many tokens, at the slower of the mean and the latest speed, which is in tokens/s."""
        return tokens / min(self.tokens / max(self.seconds, 1e-9), self.latest)

    def add(self, tokens: int, seconds: float) -> None:
        """Takes a slice into account."""
        self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds
        self.latest = tokens / max(seconds, 1e-9)

    def read_in_time(
        self,
        read: Callable[[Sequence[int]], None],
        order: Sequence[int],
        sizes: np.ndarray,
        deadline: float,
        announce: Callable[[float, float, float], None] | None = None,
    ) -> int:
        """Calls `read` on slice after slice of `order` while the next one can be expected to end in time.

        Args:
            read: Reads the battles of some rows, and begins nothing after the deadline.
            order: Rows, those first that matter most.
            sizes: Tokens of each row's battle.
            deadline: Of `time.monotonic()`.
            announce: Told after the first slice of all: tokens/s, seconds for all of `order`, seconds left.

        Returns:
            How many of `order` were tried.
        """
        done = 0
        while done < len(order):
            ahead = np.cumsum(sizes[order[done:]])
            # One process decides for all, as their clocks are not the same.
            count = call_on_main(self._plan_slice, ahead, deadline)
            if count == 0:
                break
            start = time.monotonic()
            read(order[done : done + count])
            first = self.tokens == 0
            self.add(int(ahead[count - 1]), time.monotonic() - start)
            done += count
            if first and announce:
                total = self.estimate(sizes[order].sum())
                announce(self.tokens / self.seconds, total, deadline - time.monotonic())
        return done

    def _plan_slice(self, ahead: np.ndarray, deadline: float) -> int:
        """How many of the rows ahead, whose tokens are summed up in order, come next."""
        if self.tokens == 0:
            return max(1, int(np.searchsorted(ahead, FIRST_SLICE * ahead[-1], side="right")))
        left = deadline - time.monotonic()
        fits = int(np.searchsorted(ahead, SPENT * left / max(self.estimate(1), 1e-12), side="right"))
        return min(fits, math.ceil(len(ahead) / SLICES))


def _encode_passes(plan: Sequence[tuple[Member, str]], rows: Sequence[Mapping]) -> list[list[dict]]:
    """Encoded battles of each reading; both orders of an encoder share its work."""
    encoded: dict[tuple[BattleEncoder, str], list[dict]] = {}
    start = time.perf_counter()
    for encoder in {member.encoder for member, _ in plan}:
        orders = sorted({orientation for member, orientation in plan if member.encoder is encoder})
        found = encoder.encode_orders(encoder.clean_battles(rows), orders)
        encoded |= {(encoder, orientation): reading for orientation, reading in found.items()}
    tokens = sum(battle["length"] for reading in encoded.values() for battle in reading)
    speed = tokens / (time.perf_counter() - start)
    method = " or ".join(sorted({encoder.template.method for encoder, _ in encoded}))
    logger.info(
        f"Encoded {len(rows)} battles, {len(encoded)} readings: {tokens:,} tokens, {speed:,.0f} tokens/s ({method})"
    )
    return [encoded[member.encoder, orientation] for member, orientation in plan]
