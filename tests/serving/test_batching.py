"""The batching queue: every item gets its own result, in order, in batches no larger than allowed."""

import threading
import time

import pytest

from modeling.serving.batching import BatchingQueue, QueueFullError


class Worker:
    """Doubles numbers while `gate` is open, and notes the batches; it fails on 13."""

    def __init__(self):
        self.gate, self.batches = threading.Event(), []

    def double(self, items: list) -> list:
        """Returns the doubled items."""
        self.batches.append(items)
        assert self.gate.wait(10)
        if 13 in items:
            raise ZeroDivisionError("13")
        return [item * 2 for item in items]


@pytest.fixture
def worker():
    return Worker()


def test_items_that_wait_are_worked_on_together_within_the_size(worker):
    """1 is taken alone; then 2 + 3 + 4 = 9 fit into 10 and 20 is too large for any company."""
    queue = BatchingQueue(worker.double, lambda item: item, 10, max_delay=0)
    futures = queue.submit([1])
    while not worker.batches:
        time.sleep(0.001)
    futures += queue.submit([2, 3, 4, 20, 5])
    worker.gate.set()
    assert [future.result(10) for future in futures] == [2, 4, 6, 8, 40, 10]
    assert worker.batches == [[1], [2, 3, 4], [20], [5]]
    queue.close()


def test_the_first_item_waits_for_company_but_not_longer_than_allowed(worker):
    worker.gate.set()
    queue = BatchingQueue(worker.double, lambda item: 1, 3, max_delay=5)
    start = time.monotonic()
    futures = queue.submit([1]) + queue.submit([2]) + queue.submit([3])
    assert [future.result(10) for future in futures] == [2, 4, 6]
    assert worker.batches == [[1, 2, 3]] and time.monotonic() - start < 4  # full, so not the whole delay
    queue._max_delay = 0.01
    assert queue.submit([4])[0].result(10) == 8
    queue.close()


def test_a_failure_hits_only_the_item_that_causes_it(worker):
    worker.gate.set()
    queue = BatchingQueue(worker.double, lambda item: 1, 10)
    good, bad, other = queue.submit([1, 13, 2])
    assert (good.result(10), other.result(10)) == (2, 4)
    with pytest.raises(ZeroDivisionError):
        bad.result(10)
    assert queue.submit([5])[0].result(10) == 10  # the thread lives on
    queue.close()


def test_cancelled_items_are_dropped(worker):
    queue = BatchingQueue(worker.double, lambda item: 1, 1, max_delay=0)
    first, gone, last = queue.submit([1, 2, 3])
    while not worker.batches:
        time.sleep(0.001)
    assert gone.cancel()
    worker.gate.set()
    assert (first.result(10), last.result(10)) == (2, 6) and worker.batches == [[1], [3]]
    queue.close()


def test_a_full_queue_takes_all_or_none(worker):
    queue = BatchingQueue(worker.double, lambda item: 1, 1, max_delay=0, max_waiting=3)
    queue.submit([1])
    while not worker.batches:
        time.sleep(0.001)
    queue.submit([2, 3])
    with pytest.raises(QueueFullError, match="at most 3 waiting battles; found 2 and 2 new"):
        queue.submit([4, 5])
    assert queue.count_waiting() == 2
    worker.gate.set()
    queue.close()
    assert queue.count_waiting() == 0 and worker.batches == [[1], [2], [3]]
    with pytest.raises(QueueFullError, match="stopping"):
        queue.submit([6])


def test_nothing_is_lost_or_mixed_under_load(worker):
    worker.gate.set()
    queue = BatchingQueue(worker.double, lambda item: 1, 7, max_delay=0.001, max_waiting=10_000)
    found: dict[int, int] = {}

    def ask(first: int) -> None:
        for number in range(first, first + 200):
            found[number] = queue.submit([number * 100])[0].result(10)

    threads = [threading.Thread(target=ask, args=[first * 200]) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: number * 200 for number in range(1600)}
    assert max(map(len, worker.batches)) <= 7 and sum(map(len, worker.batches)) == 1600
    queue.close()
