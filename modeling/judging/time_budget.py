"""A time budget: when it ends, the throughput measured so far, and how much work still fits.

It knows no models and no battles: work is a function over rows, and its cost is a number of tokens.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import psutil

from modeling.runtime.distributed import call_on_main
from modeling.settings.reading_arguments import parse_duration

FIRST_SLICE = 0.02  # share of all tokens in the first slice, which is run to measure the throughput
SLICES = 8  # a later slice takes at most an eighth of the rows left, so that the throughput is measured often
PLANNED = 0.9  # share of the time left that slices may fill; the rest is for a machine that slows down
WRITING = 1.0  # least seconds kept for writing the results


def find_start() -> float:
    """When this command started, on the clock of `time.monotonic()`.

    Not when its main function began: importing the libraries takes seconds before that, and on a busy machine many.
    Of a launch it is when the launcher started.
    """
    process = psutil.Process()
    created = process.create_time()
    if "ACCELERATE_MIXED_PRECISION" in os.environ:  # set by accelerate launch, and inherited by whatever that starts
        with contextlib.suppress(psutil.Error):
            parent = process.parent()
            if parent and "accelerate" in " ".join(parent.cmdline()):
                created = parent.create_time()
    # psutil adds a boot time in whole seconds to the process's exact age since boot. The same boot time is added to the
    # exact time since boot here, so that its rounding cancels.
    booted = hasattr(time, "CLOCK_BOOTTIME")
    now = psutil.boot_time() + time.clock_gettime(time.CLOCK_BOOTTIME) if booted else time.time()
    return time.monotonic() - max(0.0, now - created)


@dataclass
class TimeBudget:
    """The time until a deadline, and the throughput of the work done in it.

    deadline: On the clock of `time.monotonic()`. No work starts after it.
    parts: Equal parts that the time is split into once the first passes are done; the owner may use one of them.
    tokens, seconds: Work done so far.
    latest: Throughput of the latest slice, tokens/s.
    """

    deadline: float
    parts: int = 1
    tokens: int = 0
    seconds: float = 0.0
    latest: float = math.inf

    @classmethod
    def from_duration(cls, duration: str, start: float) -> "TimeBudget":
        """The budget that --time_budget asks for, less a reserve for writing the results.

        Args:
            duration: Such as "4.75h" or "90s"; see `parse_duration`.
            start: When the command started, on the clock of `time.monotonic()`.

        Raises:
            ValueError: If loading has used up the budget.
        """
        seconds = parse_duration("--time_budget", duration)
        spent, kept = time.monotonic() - start, max(WRITING, 0.01 * seconds)
        if spent + kept >= seconds:
            raise ValueError(
                f"--time_budget {duration}: expected more time than it takes to load battles and judge ({spent:.1f} s "
                f"since the process started) and to write the results ({kept:.1f} s); found {seconds:.1f} s. Give more."
            )
        return cls(start + seconds - kept)

    def share(self, parts: int) -> "TimeBudget":
        """The first of equal parts of the time left, with the throughput measured so far."""
        now = time.monotonic()
        return replace(self, deadline=now + (self.deadline - now) / parts, parts=1)

    def is_over(self) -> bool:
        """Whether the deadline has passed; the main process's clock decides for all processes."""
        return call_on_main(lambda: time.monotonic() >= self.deadline)

    def measure_left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def record(self, tokens: int, seconds: float) -> None:
        """Adds a finished slice to the measured throughput."""
        self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds
        self.latest = tokens / max(seconds, 1e-9)

    def estimate_seconds(self, tokens: float) -> float:
        """Seconds for some tokens, at the lower of the mean and the latest throughput."""
        # The mean alone would overrun on a machine that slows down, and the latest alone on a lucky slice.
        return tokens / min(self.tokens / max(self.seconds, 1e-9), self.latest)

    def run(
        self,
        work: Callable[[Sequence[int]], None],
        order: Sequence[int],
        sizes: np.ndarray,
        announce: Callable[[], None] | None = None,
    ) -> int:
        """Calls `work` on slice after slice of `order`, as long as the next slice is expected to end in time.

        Args:
            work: Does the work of some rows, and starts nothing after the deadline.
            order: Rows, the most important first.
            sizes: Tokens of every row, indexed by row.
            announce: Called once, after the slice that first measured the throughput.

        Returns:
            How many rows of `order` were passed to `work`.
        """
        done = 0
        while done < len(order):
            ahead = np.cumsum(sizes[order[done:]])
            # Clocks differ between processes, and a slice needs all of them: the main process decides.
            count = call_on_main(self._plan_slice, ahead)
            if count == 0:
                break
            is_first, start = self.tokens == 0, time.monotonic()
            work(order[done : done + count])
            self.record(int(ahead[count - 1]), time.monotonic() - start)
            done += count
            if is_first and announce:
                announce()
        return done

    def _plan_slice(self, ahead: np.ndarray) -> int:
        """How many of the rows ahead come next, given the running total of their tokens."""
        if self.tokens == 0:
            # No throughput yet. One row at least, whatever the time left: it is what measures the throughput.
            return max(1, int(np.searchsorted(ahead, FIRST_SLICE * ahead[-1], side="right")))
        affordable = PLANNED * self.measure_left() / max(self.estimate_seconds(1), 1e-12)
        fits = int(np.searchsorted(ahead, affordable, side="right"))
        return min(fits, math.ceil(len(ahead) / SLICES))
