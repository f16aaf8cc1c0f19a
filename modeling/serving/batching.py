"""Collects what many callers submit and hands it, in batches, to one function on one thread.

It must not know what the items are.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress


class QueueFullError(RuntimeError):
    """As many items wait as may wait, or the queue is closed. Try again later."""


class BatchingQueue:
    """A first-in, first-out queue whose items are worked on together.

    An item that is alone waits `max_delay` for company; while a batch is worked on, the next one gathers. Every item
    has its own future, so results cannot be mixed up, and an item whose future was cancelled is dropped unread.

    Example: `BatchingQueue(lambda items: [item * 2 for item in items], len, 100).submit(["a"])[0].result()` is "aa".

    Args:
        work: Returns one result per item, in order. If it raises, each item of the batch is tried again alone, so that
            one bad item fails by itself.
        measure: Size of an item.
        max_size: Largest sum of the sizes in a batch. A larger item gets a batch of its own.
        max_delay: Seconds that the first item of a batch waits for others.
        max_waiting: Most items that may wait.
    """

    def __init__(
        self,
        work: Callable[[list], Sequence],
        measure: Callable[[object], int],
        max_size: int,
        *,
        max_delay: float = 0.02,
        max_waiting: int = 100,
    ):
        self._work, self._measure, self._max_size = work, measure, max_size
        self._max_delay, self.max_waiting = max_delay, max_waiting
        self._waiting: deque[tuple[object, Future]] = deque()
        self._changed = threading.Condition()
        self.is_closed = False
        self._thread = threading.Thread(target=self._run, name="batching", daemon=True)
        self._thread.start()

    def submit(self, items: Sequence) -> list[Future]:
        """Adds items to the queue, all or none, and returns a future for each.

        Raises:
            QueueFullError: If they do not fit in, or the queue is closed.
        """
        futures: list[Future] = [Future() for _ in items]
        with self._changed:
            if self.is_closed:
                raise QueueFullError("The server is stopping. Try again in a minute.")
            if len(self._waiting) + len(items) > self.max_waiting:
                raise QueueFullError(
                    f"Expected at most {self.max_waiting} waiting battles; found {len(self._waiting)} and "
                    f"{len(items)} new. Try again in some seconds."
                )
            self._waiting.extend(zip(items, futures, strict=True))
            self._changed.notify()
        return futures

    def count_waiting(self) -> int:
        """Returns the number of items that no batch has taken yet."""
        return len(self._waiting)

    def close(self) -> None:
        """Accepts nothing more, and returns once everything that waits is done."""
        with self._changed:
            self.is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        """Works on one batch after another until the queue is closed and empty."""
        while batch := self._take_batch():
            self._work_on(batch)

    def _take_batch(self) -> list[tuple[object, Future]]:
        """Waits for items and returns those of the next batch; none once the queue is closed and empty."""
        batch: list[tuple[object, Future]] = []
        with self._changed:
            while not batch:
                self._changed.wait_for(lambda: self._waiting or self.is_closed)
                if not self._waiting:
                    return []
                until = time.monotonic() + self._max_delay
                self._changed.wait_for(self._has_full_batch, until - time.monotonic())
                room = self._max_size
                while self._waiting and (not batch or self._measure(self._waiting[0][0]) <= room):
                    item, future = self._waiting.popleft()
                    if future.set_running_or_notify_cancel():
                        batch.append((item, future))
                        room -= self._measure(item)
        return batch

    def _has_full_batch(self) -> bool:
        """Whether waiting longer could not make the next batch larger."""
        return self.is_closed or sum(self._measure(item) for item, _ in self._waiting) >= self._max_size

    def _work_on(self, batch: list[tuple[object, Future]]) -> None:
        """Sets the results of a batch, or the error of each item that fails alone."""
        with suppress(Exception):  # whatever it was, it shows again below, at the item that causes it
            for (_, future), result in zip(batch, self._work([item for item, _ in batch]), strict=True):
                future.set_result(result)
        for item, future in batch:
            if not future.done():
                try:
                    future.set_result(self._work([item])[0])
                except Exception as error:  # the caller's to handle: this thread must live on
                    future.set_exception(error)
