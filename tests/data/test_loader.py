from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from fishnet.data.loader import EvalBatches, ResumableLoader, SampleKey, TrainBatches, make_loader
from fishnet.errors import FishnetError


class Numbers(Dataset):
    """Gives back what it was asked for."""

    def __init__(self, length: int, bad: int | None = None):
        self.length, self.bad = length, bad

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: SampleKey) -> dict[str, torch.Tensor]:
        if key.sample == self.bad:
            raise FishnetError("photos/cat.jpg is truncated; mend or delete it")
        return {"key": torch.tensor(key)}


def keys(loader: torch.utils.data.DataLoader) -> list[tuple[int, int]]:
    return [tuple(key) for batch in loader for key in batch["key"].tolist()]


def test_an_epoch_holds_every_sample_at_most_once_and_the_next_is_another_permutation() -> None:
    batches = TrainBatches(103, batch_size=10, seed=3)
    first = [key.sample for batch in batches for key in batch]
    batches.set_epoch(1)
    second = [key.sample for batch in batches for key in batch]
    assert len(first) == len(set(first)) == 100
    assert first != second
    assert len(batches) == 10


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 4), (2, 2)])
def test_processes_and_accumulation_cut_the_same_global_batches(world: int, accumulate: int) -> None:
    whole = [{key.sample for key in batch} for batch in TrainBatches(64, 16, seed=1)]
    parts = [list(TrainBatches(64, 16, accumulate, rank, world, seed=1)) for rank in range(world)]
    for step, expected in enumerate(whole):
        pieces = [
            parts[rank][step * accumulate + part] for rank, part in itertools.product(range(world), range(accumulate))
        ]
        assert {len(piece) for piece in pieces} == {16 // (world * accumulate)}
        assert {key.sample for piece in pieces for key in piece} == expected


def test_a_set_smaller_than_the_batch_is_one_step() -> None:
    assert [len(batch) for batch in TrainBatches(7, batch_size=32)] == [7]
    assert [len(batch) for batch in TrainBatches(7, batch_size=32, accumulate=2)] == [3, 3]


def test_a_batch_that_cannot_be_cut_is_an_error_with_the_multiple() -> None:
    with pytest.raises(FishnetError, match="multiple of 4"):
        TrainBatches(100, batch_size=10, accumulate=2, world=2)


def test_judging_gives_every_sample_to_exactly_one_process() -> None:
    indices = [key.sample for rank in range(3) for batch in EvalBatches(20, 4, rank, 3) for key in batch]
    assert sorted(indices) == list(range(20))
    assert len(EvalBatches(20, 4, 0, 3)) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_resumes_inside_an_epoch_and_goes_on_with_the_next(workers: int) -> None:
    straight = make_loader(Numbers(40), TrainBatches(40, 8, seed=5), workers)
    expected = keys(straight)
    straight.batch_sampler.set_epoch(1)
    expected += keys(straight)

    stopped = make_loader(Numbers(40), TrainBatches(40, 8, seed=5), workers)
    assert isinstance(stopped, ResumableLoader)
    begun = list(itertools.islice(iter(stopped), 2))
    state = stopped.state_dict()
    assert state == {"epoch": 0, "batches": 2}

    resumed = make_loader(Numbers(40), TrainBatches(40, 8, seed=5), workers)
    assert isinstance(resumed, ResumableLoader)
    resumed.load_state_dict(state)
    resumed.batch_sampler.set_epoch(0)  # as Lightning does at the start of the epoch
    rest = keys(resumed)
    resumed.batch_sampler.set_epoch(1)
    rest += keys(resumed)
    assert [tuple(key) for batch in begun for key in batch["key"].tolist()] + rest == expected


def test_the_position_after_the_last_batch_is_the_next_epoch() -> None:
    loader = make_loader(Numbers(16), TrainBatches(16, 8), workers=0)
    assert isinstance(loader, ResumableLoader)
    keys(loader)
    assert loader.state_dict() == {"epoch": 1, "batches": 0}


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_for_the_user_comes_out_of_a_worker_as_one_line(workers: int) -> None:
    loader = make_loader(Numbers(16, bad=3), TrainBatches(16, 8), workers)
    with pytest.raises(FishnetError) as caught:
        keys(loader)
    assert str(caught.value) == "photos/cat.jpg is truncated; mend or delete it"


def test_workers_started_by_spawn_give_the_same_batches() -> None:
    expected = keys(make_loader(Numbers(24), TrainBatches(24, 8, seed=2), workers=0))
    assert keys(make_loader(Numbers(24), TrainBatches(24, 8, seed=2), workers=1, start="spawn")) == expected


def test_batches_of_one_group_hold_every_sample_once() -> None:
    groups = np.arange(103) % 3 == 0
    batches = TrainBatches(103, batch_size=10, seed=3, groups=groups.astype(int))
    for epoch in range(3):
        batches.set_epoch(epoch)
        steps = [[key.sample for key in batch] for batch in batches]
        assert len(steps) == 10
        assert len({sample for step in steps for sample in step}) == 100
        mixed = [step for step in steps if len({bool(groups[sample]) for sample in step}) > 1]
        assert len(mixed) <= 1


@pytest.mark.parametrize(("wide", "tall", "batch_size"), [(100, 10, 16), (50, 30, 32)])
def test_samples_of_a_small_group_are_used_as_often_as_others(wide: int, tall: int, batch_size: int) -> None:
    """The samples that an epoch leaves out come from all groups: those of a group below a batch were never used."""
    groups, length = np.array([0] * wide + [1] * tall), wide + tall
    batches = TrainBatches(length, batch_size, seed=2, groups=groups)
    used = np.zeros(length)
    for epoch in range(300):
        batches.set_epoch(epoch)
        used += np.bincount([key.sample for batch in batches for key in batch], minlength=length)
    share = length // batch_size * batch_size / length
    assert used[groups == 0].mean() / 300 == pytest.approx(share, rel=0.03)
    assert used[groups == 1].mean() / 300 == pytest.approx(share, rel=0.03)


def test_rare_samples_come_more_often_each_time_with_a_number_of_its_own() -> None:
    repeats = np.ones(60)
    repeats[:6] = 2.5
    batches = TrainBatches(60, batch_size=10, seed=1, repeats=repeats)
    assert batches.steps == 6
    counts = np.zeros(60)
    for epoch in range(60):
        batches.set_epoch(epoch)
        numbers = [key.sample for batch in batches for key in batch]
        assert len(set(numbers)) == len(numbers)
        counts += np.bincount(np.array(numbers) % 60, minlength=60)
    assert counts[:6].mean() / counts[6:].mean() == pytest.approx(2.5, rel=0.1)


def test_workers_beside_several_processes_are_not_forked_from_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork beside the threads of a process group may hang for ever; one process keeps the platform's way."""
    batches = TrainBatches(8, batch_size=4)
    alone = make_loader(Numbers(8), batches, workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        together = make_loader(Numbers(8), batches, workers=1)
        spawned = make_loader(Numbers(8), batches, workers=1, start="spawn")
    assert together.multiprocessing_context.get_start_method() == "forkserver"
    assert spawned.multiprocessing_context.get_start_method() == "spawn"
    assert alone.multiprocessing_context is None
    assert keys(together) == keys(make_loader(Numbers(8), batches, workers=0))
