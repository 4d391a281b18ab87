"""Prefetching and background writing, so that the network does not wait for files.

Both use queues of bounded length, so that memory does not grow with the number of images, and both keep the order of
the images.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from queue import Empty, Full, Queue
from types import FrameType
from typing import Generic, Self, TypeVar, cast

from fishnet.errors import FishnetError

JobT = TypeVar("JobT")
"""Job of a loader, such as a path."""
LoadedT = TypeVar("LoadedT")
"""Result of a loader."""
Load = Callable[[JobT], LoadedT]
"""Loader; must be picklable to run in worker processes."""

_POLL = 0.1
"""Interval in seconds at which a blocked side checks whether the other side has stopped."""


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived."""

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


@contextmanager
def stop_signals() -> Iterator[None]:
    """Raise `Stopped` in the main thread at the first SIGINT or SIGTERM; a second one has its previous effect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(signum: int, frame: FrameType | None) -> None:
        restore()
        raise Stopped(signum)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        restore()


class Ahead(Generic[JobT, LoadedT]):
    """Prefetch batches of loaded items in the order of the jobs.

    Args:
        jobs: Jobs; iterated in a separate thread, so that waiting for the next job delays nothing.
        load: Loader of a job; its exceptions are raised in the iteration over the batches.
        batch_size: Jobs per batch.
        workers: Number of processes or threads.
        processes: Load in processes instead of threads.
        patience: Seconds to wait for the next job before an incomplete batch is yielded; None waits for a full batch.
    """

    def __init__(
        self,
        jobs: Iterable[JobT],
        load: Load[JobT, LoadedT],
        batch_size: int,
        workers: int,
        processes: bool = False,
        patience: float | None = None,
    ) -> None:
        self.batch_size, self.patience = batch_size, patience
        self._executor, self._load = _executor(load, workers, processes)
        self._queue: Queue[Future[LoadedT] | Exception | None] = Queue(2 * batch_size + workers)
        self._stop, self._jobs = threading.Event(), iter(jobs)
        self._feeder = threading.Thread(target=self._feed, name="feeder", daemon=True)
        self._feeder.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._feeder.join(timeout=1)  # it may be waiting for a program that lists images

    def __iter__(self) -> Iterator[list[LoadedT]]:
        at_end = False
        while not at_end:
            batch: list[LoadedT] = []
            while len(batch) < self.batch_size and not at_end:
                try:
                    entry = self._queue.get(timeout=self.patience if batch else None)
                except Empty:
                    break
                if isinstance(entry, Exception):
                    raise entry
                at_end = entry is None
                if entry is not None:
                    batch.append(_result(entry))
            if batch:
                yield batch

    def _feed(self) -> None:
        """Submit the jobs, at most as many as fit into the queue."""
        last: Exception | None = None
        try:
            for job in self._jobs:
                if not self._put(self._executor.submit(self._load, job)):
                    return
        except Exception as error:  # raised again in the iteration over the batches
            last = error
        self._put(last)

    def _put(self, entry: Future[LoadedT] | Exception | None) -> bool:
        """Put an entry into the queue as soon as there is space; return False if the consumer has stopped."""
        while not self._stop.is_set():
            try:
                self._queue.put(entry, timeout=_POLL)
            except Full:
                continue
            return True
        return False


def _result(future: Future[LoadedT]) -> LoadedT:
    try:
        return future.result()
    except BrokenProcessPool:
        raise FishnetError(
            "a worker process ended unexpectedly, possibly for lack of memory; use fewer --workers or a smaller "
            "--batch-size"
        ) from None


def _executor(load: Load[JobT, LoadedT], workers: int, processes: bool) -> tuple[Executor, Load[JobT, LoadedT]]:
    """Return an executor and the function to submit. Processes are forked here, before threads are started."""
    if not processes:
        return ThreadPoolExecutor(max(1, workers), "loader"), load
    context = multiprocessing.get_context()
    pool = ProcessPoolExecutor(workers, context, _start_worker, (load,))
    pool.submit(_nothing)
    return pool, cast(Load[JobT, LoadedT], _load_in_worker)


_loads: list[Callable[..., object]] = []
"""The function of this worker process."""


def _start_worker(load: Callable[..., object]) -> None:
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # sent to all processes by the terminal; the main process handles it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _loads[:] = [load]


def _end_with_parent() -> None:
    """End this process if its parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _load_in_worker(job: object) -> object:
    return _loads[0](job)


def _nothing() -> None:
    """Do nothing; a first job that starts the processes."""


class Behind(Generic[LoadedT]):
    """Pass items to a function in a background thread, in order.

    Leaving the context waits until all items are processed. An exception of the function is raised by the next `put`,
    or at the end.

    Args:
        take: Function that writes or draws an item.
        room: Maximum number of queued items.
    """

    def __init__(self, take: Callable[[LoadedT], object], room: int) -> None:
        self._take, self._queue = take, Queue[LoadedT | None](room)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def put(self, item: LoadedT) -> None:
        """Queue an item; blocks while the queue is full."""
        if self._error is not None:
            raise self._error
        self._queue.put(item)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:  # after an error items are dropped, so that `put` does not block
                try:
                    self._take(item)
                except BaseException as error:
                    self._error = error
