"""Loading ahead and writing behind, so that the network does not wait for files.

Both sides are queues of bounded length, so that memory does not grow with the number of images, and both keep the
order of the images.
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
"""What is loaded, such as a path."""
LoadedT = TypeVar("LoadedT")
"""What was loaded."""
Load = Callable[[JobT], LoadedT]
"""Function that loads; must be picklable to run in worker processes."""

_POLL = 0.1
"""Seconds between two looks at whether the other side has stopped."""


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived."""

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


@contextmanager
def stop_signals() -> Iterator[None]:
    """Raise `Stopped` in the main thread at the first SIGINT or SIGTERM; a second one acts as it did before."""
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
    """Batches of what a function loads, in the order of the jobs, loaded while the last batches are in use.

    Args:
        jobs: What to load; read by a thread of its own, so that waiting for the next one delays nothing.
        load: Function from a job to what is loaded; its exceptions are raised where the batches are taken.
        batch_size: Jobs per batch.
        workers: Processes, or threads, that load.
        processes: Load in processes instead of threads.
        patience: Seconds to wait for the next job before a batch is handed out incomplete; None waits for all.
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
        """Submit the jobs, no more than the queue has places."""
        last: Exception | None = None
        try:
            for job in self._jobs:
                if not self._put(self._executor.submit(self._load, job)):
                    return
        except Exception as error:  # raised again where the batches are taken
            last = error
        self._put(last)

    def _put(self, entry: Future[LoadedT] | Exception | None) -> bool:
        """Put an entry into the queue as soon as there is room; return whether it is still wanted."""
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
    """Return what runs jobs, and the function to submit. Processes are forked here, before there are threads."""
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all processes; the first one decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _loads[:] = [load]


def _end_with_parent() -> None:
    """End this process when the first one was killed, since nobody would take its results."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _load_in_worker(job: object) -> object:
    return _loads[0](job)


def _nothing() -> None:
    """Do nothing: a first job starts the processes."""


class Behind(Generic[LoadedT]):
    """Passes items to a function in a thread of its own, in order.

    Leaving the block waits until the function has had all items. What it raises is raised by the next `put`, or at the
    end.

    Args:
        take: Function that writes or draws an item.
        room: Items that may wait.
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
        """Hand over an item; waits while too many are waiting."""
        if self._error is not None:
            raise self._error
        self._queue.put(item)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:  # after an error items are dropped, so that nobody waits for room
                try:
                    self._take(item)
                except BaseException as error:
                    self._error = error
