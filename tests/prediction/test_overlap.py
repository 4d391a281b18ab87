"""Loading ahead and writing behind: order, bounds, errors."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from fishnet.errors import FishnetError
from fishnet.prediction.overlap import Ahead, Behind


def slow_square(number: int) -> int:
    time.sleep(0.002 * (number % 5))  # later jobs are ready before earlier ones
    return number * number


def ending(number: int) -> int:
    if number == 3:
        os._exit(9)
    return number


def failing(number: int) -> int:
    if number == 7:
        raise FishnetError("seven is bad")
    return number


@pytest.mark.parametrize(("workers", "processes"), [(0, False), (4, False), (2, True)])
def test_batches_come_in_the_order_of_the_jobs(workers: int, processes: bool) -> None:
    with Ahead(range(23), slow_square, 5, workers, processes) as batches:
        found = list(batches)
    assert [len(batch) for batch in found] == [5, 5, 5, 5, 3]
    assert [value for batch in found for value in batch] == [number * number for number in range(23)]


def test_no_more_is_loaded_than_the_queue_has_places() -> None:
    taken: list[int] = []

    def jobs() -> Iterator[int]:
        for number in range(10_000):
            taken.append(number)
            yield number

    most, used = 0, 0
    with Ahead(jobs(), slow_square, 4, 2) as batches:
        for batch in batches:
            used += len(batch)
            time.sleep(0.01)
            most = max(most, len(taken) - used)
            if used >= 80:
                break
    assert 8 <= most <= 2 * 4 + 2 + 2


def test_a_slow_list_does_not_hold_up_what_is_there() -> None:
    more = threading.Event()

    def jobs() -> Iterator[int]:
        yield from (1, 2)
        more.wait(20)
        yield 3

    with Ahead(jobs(), slow_square, 32, 1, patience=0.05) as batches:
        stream = iter(batches)
        assert next(stream) == [1, 4]
        more.set()
        assert list(stream) == [[9]]


@pytest.mark.parametrize("processes", [False, True])
def test_an_error_is_raised_where_the_batches_are_taken(processes: bool) -> None:
    with Ahead(range(20), failing, 3, 2, processes) as batches:
        stream = iter(batches)
        assert [next(stream), next(stream)] == [[0, 1, 2], [3, 4, 5]]
        with pytest.raises(FishnetError, match="seven is bad"):
            next(stream)

    def broken() -> Iterator[int]:
        yield 1
        raise FishnetError("no more jobs")

    with Ahead(broken(), failing, 1, 1) as batches, pytest.raises(FishnetError, match="no more jobs"):
        list(batches)


def test_a_worker_that_dies_is_an_error_and_not_a_wait() -> None:
    message = r"worker process ended.*--workers"
    with Ahead(range(20), ending, 2, 2, processes=True) as batches, pytest.raises(FishnetError, match=message):
        list(batches)


def test_writing_behind_keeps_the_order_and_waits_for_the_end() -> None:
    taken: list[int] = []

    def take(number: int) -> None:
        time.sleep(0.001 * (number % 3))
        taken.append(number)

    with Behind(take, room=4) as writer:
        for number in range(50):
            writer.put(number)
    assert taken == list(range(50))


def test_what_cannot_be_written_stops_the_work() -> None:
    def take(number: int) -> None:
        if number == 2:
            raise FishnetError("the disk is full")

    def hand_over(count: int, room: int) -> None:
        with Behind(take, room) as writer:
            for number in range(count):
                writer.put(number)
                handed.append(number)
                time.sleep(0.001)

    handed: list[int] = []
    with pytest.raises(FishnetError, match="the disk is full"):
        hand_over(1000, room=2)
    assert len(handed) < 900
    with pytest.raises(FishnetError, match="the disk is full"):
        hand_over(3, room=9)  # found at the end only
