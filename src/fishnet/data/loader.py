"""Batches in an order that depends on (seed, epoch) only, and a loader that can resume inside an epoch.

The number of workers, the number of processes and interruptions do not change the draws: a sample is requested by
(epoch, index), so its augmentation is a function of (seed, epoch, index), and the order of an epoch is one permutation
that every process computes, and of which it uses its own part.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from fishnet.data.quotas import Quotas, fill, spread
from fishnet.errors import FishnetError

ItemT = TypeVar("ItemT")
BatchT = TypeVar("BatchT")


class SampleKey(NamedTuple):
    """Key of a sample in a data set: its index, and the epoch that determines its augmentation."""

    epoch: int
    sample: int


class TrainBatches(Sampler[list[SampleKey]]):
    """Shuffled batches of one of `world` processes.

    An optimizer step takes `batch_size` samples over all processes and accumulated batches. The incomplete last step of
    an epoch is dropped (other samples in every epoch). A data set smaller than one batch gives one step per epoch.

    Args:
        length: Number of samples in the data set.
        batch_size: Samples per optimizer step, over all processes; a multiple of accumulate x world.
        accumulate: Batches per optimizer step on each process.
        rank: Index of this process.
        world: Number of processes.
        seed: Seed of the permutations.
        groups: Group of each sample; a step takes samples of one group while enough of them are left.
        repeats: Mean number of times that each sample is used per epoch, at least 1; copy c of sample i has the index
            i + c x length and its own augmentation.
        quotas: Minimum fraction of each step that is labeled for a level; see `fishnet.data.quotas`.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        groups: np.ndarray | None = None,
        repeats: np.ndarray | None = None,
        quotas: Quotas | None = None,
    ):
        self.quotas = quotas
        self.samples, self.groups, self.repeats = length, groups, repeats
        if repeats is not None:
            length = int(np.floor(repeats.sum()))
        parts = accumulate * world
        batch_size = min(batch_size, length - length % parts)
        if batch_size < parts or batch_size % parts:
            raise FishnetError(
                f"a batch of {batch_size} from {length} images cannot be split into {accumulate} accumulated batches "
                f"on {world} processes; make --batch-size a multiple of {parts}"
            )
        self.length, self.batch_size, self.accumulate = length, batch_size, accumulate
        self.rank, self.world, self.seed = rank, world, seed
        self.epoch, self.start = 0, 0

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch."""
        return self.length // self.batch_size

    def __len__(self) -> int:
        return self.steps * self.accumulate

    @property
    def sampler(self) -> TrainBatches:
        """This object: Lightning looks for `set_epoch` only on the sampler of a batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Select the permutation of the next pass; does nothing if `epoch` is already set."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, start, self.start = self.epoch, self.start, 0
        order = self._order(np.random.default_rng((self.seed, epoch))).tolist()
        size = self.batch_size // (self.accumulate * self.world)
        for batch in range(start, len(self)):
            step, part = divmod(batch, self.accumulate)
            first = step * self.batch_size + (part * self.world + self.rank) * size
            yield [SampleKey(epoch, index) for index in order[first : first + size]]

    def _order(self, generator: np.random.Generator) -> np.ndarray:
        """Return the indices of an epoch's samples in the order of the steps."""
        if self.repeats is None:
            order = generator.permutation(self.length)
        else:
            whole = np.floor(self.repeats).astype(np.int64)
            copies = whole + (generator.random(self.samples) < self.repeats - whole)
            first = np.repeat(np.arange(self.samples), copies)
            which = np.arange(len(first)) - np.repeat(np.cumsum(copies) - copies, copies)
            order = generator.permutation(first + self.samples * which)
            # the number of drawn copies varies around its mean, but the number of steps must not
            order = np.resize(order, self.length)
        if self.quotas is not None:
            order = spread(order, self.quotas.known, generator)
        if self.groups is not None:
            # samples to drop are chosen before grouping; otherwise they would always be the remainder of a small group
            order = self._grouped(order[: self.steps * self.batch_size], generator)
        return order if self.quotas is None else fill(order, self.batch_size, self.quotas, generator)

    def _grouped(self, order: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Return the samples of whole steps sorted into steps of one group each, and mixed ones of what remains."""
        assert self.groups is not None
        steps: list[np.ndarray] = []
        rest: list[np.ndarray] = []
        of_sample = self.groups[order % self.samples]
        for group in np.unique(of_sample):
            members = order[of_sample == group]
            full = len(members) // self.batch_size * self.batch_size
            steps += np.split(members[:full], full // self.batch_size) if full else []
            rest.append(members[full:])
        left = np.concatenate(rest)
        steps += np.split(left, len(left) // self.batch_size) if len(left) else []
        return np.concatenate([steps[place] for place in generator.permutation(len(steps))])


class EvalBatches(Sampler[list[SampleKey]]):
    """Batches in file order; each sample goes to exactly one process, so the last batches may be smaller.

    Args:
        length: Number of samples in the data set.
        batch_size: Samples per batch.
        rank: Index of this process.
        world: Number of processes.
    """

    def __init__(self, length: int, batch_size: int, rank: int = 0, world: int = 1):
        self.indices = range(rank, length, world)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.indices) / self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for first in range(0, len(self.indices), self.batch_size):
            yield [SampleKey(0, index) for index in self.indices[first : first + self.batch_size]]


class ResumableLoader(DataLoader[ItemT]):
    """DataLoader that saves its position in an epoch in `state_dict` and continues from it.

    The position is the number of batches that were returned, without those that workers have prefetched.
    """

    batch_sampler: TrainBatches

    def __init__(self, dataset: Dataset[ItemT], batches: TrainBatches, **options: Any):
        super().__init__(dataset, batch_sampler=batches, **options)
        self._epoch, self._handed_out = 0, 0

    def __iter__(self) -> Iterator[object]:  # type: ignore[override]  # a generator starts its workers at the first batch
        self._epoch, self._handed_out = self.batch_sampler.epoch, self.batch_sampler.start
        for batch in reraise_plainly(super().__iter__()):
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of its batches that were returned so far."""
        if self._handed_out >= len(self):
            return {"epoch": self._epoch + 1, "batches": 0}
        return {"epoch": self._epoch, "batches": self._handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a position returned by `state_dict`."""
        self.batch_sampler.epoch, self.batch_sampler.start = state["epoch"], state["batches"]
        self._epoch, self._handed_out = state["epoch"], state["batches"]


def reraise_plainly(batches: Iterator[BatchT]) -> Iterator[BatchT]:
    """Yield the batches; a FishnetError from a worker is raised again with its message only, without the traceback."""
    try:
        yield from batches
    except FishnetError as error:
        marker = f"{FishnetError.__name__}: "
        raise FishnetError(str(error).rsplit(marker, 1)[-1].strip()) from None


def _start_method(start: str, dataset: Dataset[object]) -> str | None:
    """Return the name of the start method of worker processes; None for the platform's default."""
    if start != "default":
        return start
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    # Process groups communicate in threads, and a fork beside threads may hang (seen with Python 3.11).
    multiprocessing.set_forkserver_preload([type(dataset).__module__])  # imported once, by the fork server
    return "forkserver"


class SplitData(Protocol):
    """What training and evaluation need of a data set, a map-style `torch.utils.data.Dataset`."""

    @property
    def bad_images(self) -> Sequence[str]:
        """Paths of the images that could not be read so far; only filled if they are skipped."""
        ...

    def __len__(self) -> int:
        """Return the number of samples."""
        ...


def make_loader(
    dataset: Dataset[object] | SplitData,
    batches: TrainBatches | EvalBatches,
    workers: int,
    pin_memory: bool = False,
    start: str = "default",
    collate: Callable[..., object] | None = None,
) -> DataLoader[Any]:
    """Return a loader for the given batches.

    Args:
        dataset: Map-style data set indexed by `SampleKey`.
        batches: Batch sampler; with `TrainBatches` the result is a `ResumableLoader`.
        workers: Number of worker processes; 0 loads in this process.
        pin_memory: Copy batches into page-locked memory, for a GPU.
        start: Start method of the workers: fork, spawn or forkserver; "default" is the platform's default, or
            forkserver in distributed training.
        collate: Function from a list of samples to a batch; None stacks tensors (torch's default).
    """
    dataset = cast(Dataset[Any], dataset)
    options: dict[str, Any] = {"num_workers": workers, "pin_memory": pin_memory, "collate_fn": collate}
    if workers:
        options |= {"persistent_workers": True, "prefetch_factor": 4}
        options["multiprocessing_context"] = _start_method(start, dataset)
    if isinstance(batches, TrainBatches):
        return ResumableLoader(dataset, batches, **options)
    return DataLoader(dataset, batch_sampler=batches, **options)
