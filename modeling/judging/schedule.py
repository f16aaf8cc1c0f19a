"""Decides which passes to run on which battles: all of them, more for uncertain battles, or as many as time allows.

It does not know how a pass is computed.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from modeling.data.battles import ORIENTATIONS
from modeling.encoding.encoder import CUT_COLUMNS, BattleEncoder
from modeling.judging.loaded import Member
from modeling.judging.predictions import average_passes, sort_by_uncertainty
from modeling.judging.predictor import predict_together
from modeling.judging.time_budget import PLANNED, TimeBudget
from modeling.network.frozen import count_shared_layers
from modeling.runtime.logs import build_logger

logger = build_logger(__name__)


class PassSchedule:
    """Passes over battles, each run at most once, and their results.

    p: Probabilities by label, shape (passes, battles, labels); NaN where a pass was not run.
    lengths: Tokens, and tokens cut from each field, shape (passes, battles, 4).
    """

    def __init__(
        self,
        plan: Sequence[tuple[Member, str]],
        rows: Sequence[Mapping],
        *,
        start_pack: Callable[[int], None] | None = None,
        **options,
    ):
        """
        Args:
            plan: The (member, orientation) pairs from `Judge.plan_passes`, one per pass.
            rows: Battles.
            start_pack: Called before each pack with its number of battles' passes, on the thread that runs it. It may
                let another schedule run in the meantime.
            options: For `predict_together`: tokens_per_batch, num_workers, progress_dir.
        """
        self.plan, self.rows, self.start_pack, self.options = plan, rows, start_pack, options
        self.names = [f"{member.name}_{orientation}" for member, orientation in plan]
        # Keyed by identity: a Member holds dictionaries and so has no hash.
        self.passes = {(id(member), orientation): number for number, (member, orientation) in enumerate(plan)}
        self.encoded = _encode_passes(plan, rows)
        self.p = np.full((len(plan), len(rows), len(plan[0][0].facts.labels)), np.nan)
        columns = ("length", *CUT_COLUMNS)
        self.lengths = np.array([[[battle[name] for name in columns] for battle in each] for each in self.encoded])
        # Without battles the array has lost its last dimensions.
        self.lengths = self.lengths.reshape(len(plan), len(rows), len(columns))

    def run(self, second_reading: float = 1.0, time_budget: TimeBudget | None = None) -> None:
        """Runs each battle's first pass, then all passes of the most uncertain battles.

        Args:
            second_reading: Largest share of the battles that get all passes.
            time_budget: Stops when this is used up; None runs everything.
        """
        everything = np.full(self.p.shape[:2], True)
        if time_budget is not None:
            self._run_in_time(second_reading, time_budget)
        elif second_reading == 1:
            self.read(everything)  # in one go, so that both orders of a battle share their prefix
        else:
            self.read(self.choose_first_passes())
            uncertain = self.rank_by_uncertainty()[: round(second_reading * len(self.rows))]
            self.read(self._select(everything, uncertain))

    def read(self, wanted: np.ndarray, deadline: float | None = None) -> None:
        """Runs the wanted passes that have not run yet. A member's two orders are packed together and share prefixes.

        Args:
            wanted: Boolean, shape (passes, battles).
            deadline: See `predict_together`.
        """
        for members, of_orders in self._group_members(wanted & np.isnan(self.p[..., 0])):
            places = np.argwhere(of_orders)  # (order, row)
            numbers = [[self.passes[id(member), ORIENTATIONS[order]] for order, _ in places] for member in members]
            orders = [ORIENTATIONS[order] for order, _ in places]
            found = predict_together(
                [member.activate() for member in members],
                [self.encoded[number][row] for number, (_, row) in zip(numbers[0], places, strict=True)],
                orders,
                num_shared_layers=_count_shared_layers(members) if len(members) > 1 else 0,
                deadline=deadline,
                name=_name_run(members, orders),
                start_pack=partial(self._start_pack, members),
                **self.options,
            )
            for own, p in zip(numbers, found, strict=True):
                self.p[own, places[:, 1]] = p

    def _start_pack(self, members: Sequence[Member], sequences: int) -> None:
        """Calls `start_pack`, which may have let another schedule activate another member of a shared model."""
        if self.start_pack:
            self.start_pack(sequences * len(members))
            for member in members:
                member.activate()

    def _group_members(self, wanted: np.ndarray) -> list[tuple[list[Member], np.ndarray]]:
        """Members that are run together, and which battles in which order, boolean, shape (orders, battles).

        Members are run together if they share layers and have the same passes to make.
        """
        groups: list[tuple[list[Member], np.ndarray]] = []
        for member in {id(member): member for member, _ in self.plan}.values():
            of_orders = np.full((len(ORIENTATIONS), len(self.rows)), False)
            for number, (other, order) in enumerate(self.plan):
                if other is member:
                    of_orders[ORIENTATIONS.index(order)] = wanted[number]
            for members, of_others in groups:
                shared = _count_shared_layers([*members, member])
                # A member that shares fewer layers than the others do would cost them time.
                is_near = shared and (len(members) == 1 or shared == _count_shared_layers(members))
                if is_near and np.array_equal(of_orders, of_others):
                    members.append(member)
                    break
            else:
                groups.append(([member], of_orders))
        return [group for group in groups if group[1].any()]

    def choose_first_passes(self) -> np.ndarray:
        """The pass that each battle gets before any other, boolean, shape (passes, battles).

        It is one per battle. If the first member reads both orders, it starts with the order that shows the answers
        alphabetically. That does not depend on which answer is called a, so p(A, B) = 1 - p(B, A) holds after one pass
        as well as after two. Two equal answers are the same text in both orders, so both passes are made at once: they
        cost one forward, and give even odds.
        """
        first = np.full(self.p.shape[:2], False)
        places = {order: index for index, (member, order) in enumerate(self.plan) if member is self.plan[0][0]}
        if len(places) < len(ORIENTATIONS):
            first[0] = True
            return first
        for row, battle in enumerate(self.rows):
            first[places["ab" if battle["response_a"] <= battle["response_b"] else "ba"], row] = True
            texts = [self.encoded[index][row]["input_ids"] for index in places.values()]
            if texts[0] == texts[1]:
                first[list(places.values()), row] = True
        return first

    def rank_by_uncertainty(self) -> np.ndarray:
        """Rows with some of their passes, the most uncertain first."""
        order = sort_by_uncertainty(average_passes(self.p))
        missing = np.isnan(self.p[:, order, 0])
        return order[missing.any(axis=0) & ~missing.all(axis=0)]

    def _run_in_time(self, second_reading: float, time_budget: TimeBudget) -> None:
        """First passes over all battles, then the others in the owner's part of the time left."""
        first, everything = self.choose_first_passes(), np.full(self.p.shape[:2], True)
        sizes = np.where(first, self.lengths[..., 0], 0).max(axis=0)
        order = list(range(len(self.rows)))
        done = time_budget.run(
            lambda rows: self.read(self._select(first, rows), time_budget.deadline),
            order,
            sizes,
            lambda: self._announce(time_budget, int(sizes.sum())),
        )
        if missing := int(np.isnan(self.p[..., 0]).all(axis=0).sum()):
            logger.warning(f"Time budget: {missing} of {len(order)} battles were not read in time and get even odds")
        if len(self.plan) == 1:
            return  # there are no other passes
        # Unless every battle got its first pass, there is no time for a second one.
        uncertain = self.rank_by_uncertainty()[: round(second_reading * len(order))] if done == len(order) else []
        rest = time_budget.share(time_budget.parts)
        rest.run(
            lambda rows: self.read(self._select(everything, rows), rest.deadline),
            uncertain,
            self.lengths[..., 0].sum(axis=0) - sizes,
        )
        complete = int((~np.isnan(self.p[..., 0])).all(axis=0).sum())
        logger.info(f"Time budget: {complete} of {len(order)} battles have all {len(self.plan)} passes")

    def _select(self, wanted: np.ndarray, rows: Sequence[int]) -> np.ndarray:
        """The wanted passes of some rows only."""
        selected = np.full(self.p.shape[:2], False)
        selected[:, rows] = wanted[:, rows]
        return selected

    def _announce(self, time_budget: TimeBudget, first_tokens: int) -> None:
        """Logs what the time is expected to be enough for."""
        throughput, left = time_budget.tokens / time_budget.seconds, time_budget.measure_left()
        seconds = time_budget.estimate_seconds(first_tokens)
        message = f"{left:,.0f} s left at {throughput:,.0f} tokens/s; first passes take {seconds:,.0f} s"
        if len(self.plan) > 1:
            others = self.lengths[..., 0].sum() / throughput - seconds
            share = min(1.0, max(0.0, (PLANNED * left - seconds) / others))
            message += f", which leaves time for all passes on {share:.0%} of the battles"
        logger.info(f"Time budget: {message}")


def _count_shared_layers(members: Sequence[Member]) -> int:
    """Lowest layers that the members share; 0 if they read other tokens, or one model has an adapter for each."""
    if any(m.adapter is not None or m.encoder is not members[0].encoder for m in members):
        return 0
    return count_shared_layers([member.model for member in members])


def _name_run(members: Sequence[Member], orders: Sequence[str]) -> str:
    """What the progress bar shows, and all that decides the numbers: progress under another name is never resumed."""
    models = [
        f"{member.fingerprint} on {member.facts.base_fingerprint} in {member.dtype}"
        f"{', merged' * (not member.adapter)}{', expanded' * member.expanded}"
        for member in members
    ]
    names = " and ".join(member.name for member in members)
    return f"{names} {'read' if len(members) > 1 else 'reads'} {' and '.join(sorted(set(orders)))}@{'; '.join(models)}"


def _encode_passes(plan: Sequence[tuple[Member, str]], rows: Sequence[Mapping]) -> list[list[dict]]:
    """Encoded battles of each pass. Passes with the same encoder and order share one list."""
    encoded: dict[tuple[BattleEncoder, str], list[dict]] = {}
    start = time.perf_counter()
    for encoder in {member.encoder for member, _ in plan}:
        orders = sorted({orientation for member, orientation in plan if member.encoder is encoder})
        found = encoder.encode_orders(encoder.clean_battles(rows), orders)
        encoded |= {(encoder, orientation): battles for orientation, battles in found.items()}
    tokens = sum(battle["length"] for battles in encoded.values() for battle in battles)
    throughput = tokens / (time.perf_counter() - start)
    method = " or ".join(sorted({encoder.template.method for encoder, _ in encoded}))
    logger.info(
        f"Encoded {len(rows)} battles {len(encoded)} times: {tokens:,} tokens, {throughput:,.0f} tokens/s ({method})"
    )
    return [encoded[member.encoder, orientation] for member, orientation in plan]
