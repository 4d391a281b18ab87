"""Batches in an order that depends on (seed, epoch) only, from a loader that can resume inside an epoch.

Workers, processes and interruptions do not change what is drawn: a sample is asked for by (epoch, index), so its
augmentation is a function of (seed, epoch, index), and the order of an epoch is one permutation that every process
computes and takes its own part of.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from fishnet.errors import FishnetError


class SampleKey(NamedTuple):
    """What a dataset is asked for: the index of a sample and the epoch whose augmentation it gets."""

    epoch: int
    sample: int


class TrainBatches(Sampler[list[SampleKey]]):
    """Shuffled batches of one process out of `world`.

    One optimizer step takes `batch_size` samples over all processes and accumulated batches; what is left of an epoch
    after the last full step is dropped (another part in every epoch). A set smaller than one batch is one step.

    Args:
        length: Number of samples in the data set.
        batch_size: Samples per optimizer step, over all processes; a multiple of accumulate x world.
        accumulate: Batches per optimizer step and process.
        rank: Number of this process.
        world: Number of processes.
        seed: Seed of the permutations.
        groups: Group of every sample; a step takes samples of one group only, where enough are left.
        repeats: How often every sample is shown per epoch on average, 1 or more; copy c of sample i has the number
            i + c x length, and an augmentation of its own.
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
    ):
        self.samples, self.groups, self.repeats = length, groups, repeats
        if repeats is not None:
            length = int(np.floor(repeats.sum()))
        parts = accumulate * world
        batch_size = min(batch_size, length - length % parts)
        if batch_size < parts or batch_size % parts:
            raise FishnetError(
                f"a batch of {batch_size} images out of {length} cannot be cut into {accumulate} accumulated batches "
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
        """This object: Lightning looks for `set_epoch` at the sampler of a batch sampler, and nowhere else."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next pass; asking for the epoch that is set already changes nothing."""
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
        """Return the numbers of an epoch's samples in the order in which steps take them."""
        if self.repeats is None:
            order = generator.permutation(self.length)
        else:
            whole = np.floor(self.repeats).astype(np.int64)
            copies = whole + (generator.random(self.samples) < self.repeats - whole)
            first = np.repeat(np.arange(self.samples), copies)
            which = np.arange(len(first)) - np.repeat(np.cumsum(copies) - copies, copies)
            order = generator.permutation(first + self.samples * which)
            # the draw varies around its mean; the number of steps must not
            order = np.resize(order, self.length)
        return order if self.groups is None else self._grouped(order, generator)

    def _grouped(self, order: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Return the samples sorted into steps of one group each; what is left of the groups makes the last steps."""
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
        mixed = len(left) // self.batch_size * self.batch_size
        steps += np.split(left[:mixed], mixed // self.batch_size) if mixed else []
        shuffled = [steps[place] for place in generator.permutation(len(steps))]
        return np.concatenate([*shuffled, left[mixed:]])


class EvalBatches(Sampler[list[SampleKey]]):
    """Batches in file order; every sample goes to exactly one process, so the last ones may be shorter.

    Args:
        length: Number of samples in the data set.
        batch_size: Samples per batch.
        rank: Number of this process.
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


class ResumableLoader(DataLoader[Any]):
    """A DataLoader whose `state_dict` says how far the consumer got, and which goes on from there.

    The position counts batches that were handed out, not those that workers hold ready.
    """

    batch_sampler: TrainBatches

    def __init__(self, dataset: Dataset[Any], batches: TrainBatches, **options: Any):
        super().__init__(dataset, batch_sampler=batches, **options)
        self._epoch, self._handed_out = 0, 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator starts its workers at the first batch
        self._epoch, self._handed_out = self.batch_sampler.epoch, self.batch_sampler.start
        for batch in reraise_plainly(super().__iter__()):
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of its batches that were handed out."""
        if self._handed_out >= len(self):
            return {"epoch": self._epoch + 1, "batches": 0}
        return {"epoch": self._epoch, "batches": self._handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a position that `state_dict` returned."""
        self.batch_sampler.epoch, self.batch_sampler.start = state["epoch"], state["batches"]
        self._epoch, self._handed_out = state["epoch"], state["batches"]


def reraise_plainly(batches: Iterator[Any]) -> Iterator[Any]:
    """Hand batches on; an error that a worker raised for the user comes out as its one line, without the traceback."""
    try:
        yield from batches
    except FishnetError as error:
        marker = f"{FishnetError.__name__}: "
        raise FishnetError(str(error).rsplit(marker, 1)[-1].strip()) from None


def _start_method(start: str, dataset: Dataset[Any]) -> str | None:
    """Return the start method of worker processes by name; None is the platform's own."""
    if start != "default":
        return start
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    # The communication between processes runs in threads, and a fork beside them may hang (seen with Python 3.11).
    multiprocessing.set_forkserver_preload([type(dataset).__module__])  # imported once, by the server
    return "forkserver"


def make_loader(
    dataset: Dataset[Any],
    batches: TrainBatches | EvalBatches,
    workers: int,
    pin_memory: bool = False,
    start: str = "default",
    collate: Callable[[list[Any]], Any] | None = None,
) -> DataLoader[Any]:
    """Return a loader of the given batches.

    Args:
        dataset: Map-style data set that takes a `SampleKey`.
        batches: Which samples make a batch; `TrainBatches` gives a `ResumableLoader`.
        workers: Processes that load; 0 loads in this one.
        pin_memory: Keep batches in page-locked memory, for a GPU.
        start: How worker processes start: fork, spawn or forkserver; "default" is the platform's way, and forkserver
            where several processes train together.
        collate: List of samples -> batch; nothing stacks tensors.
    """
    options: dict[str, Any] = {"num_workers": workers, "pin_memory": pin_memory, "collate_fn": collate}
    if workers:
        options |= {"persistent_workers": True, "prefetch_factor": 4}
        options["multiprocessing_context"] = _start_method(start, dataset)
    if isinstance(batches, TrainBatches):
        return ResumableLoader(dataset, batches, **options)
    return DataLoader(dataset, batch_sampler=batches, **options)
