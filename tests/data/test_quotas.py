from __future__ import annotations

import itertools

import numpy as np
import pytest

from fishnet.data.loader import TrainBatches
from fishnet.data.quotas import Quotas


def levels(*groups: tuple[int, str]) -> np.ndarray:
    """Return which of three levels each sample has; a group is a number of samples and their levels, such as "ip"."""
    return np.array([[letter in text for letter in "irp"] for count, text in groups for _ in range(count)])


def epoch(known: np.ndarray, shares: tuple[float, float, float], batch: int, number: int = 0, **options) -> np.ndarray:
    """Return the samples of each step of an epoch, (steps, batch)."""
    batches = TrainBatches(len(known), batch, quotas=Quotas(known, np.array(shares)), **options)
    batches.set_epoch(number)
    return np.array([[key.sample for key in step] for step in batches])


CASES = [
    (levels((60, "i"), (60, "r"), (60, "p")), (0.25, 0.25, 0.25), 8),
    (levels((300, "i"), (8, "r"), (3, "p")), (0.2, 0.2, 0.2), 10),
    (levels((100, "irp"), (50, "ir"), (7, "p")), (0.3, 0.3, 0.3), 6),
    (levels((90, "i"), (5, "rp"), (5, "ip"), (40, "r")), (0.125, 0.25, 0.5), 16),
    (levels((500, "i"), (1, "r"), (1, "p")), (0.25, 0.25, 0.25), 8),
    (levels((64, "ip"), (64, "rp"), (64, "")), (0.5, 0.25, 0.25), 4),
]


@pytest.mark.parametrize(("known", "shares", "batch"), CASES)
def test_every_step_has_its_share_of_every_level(
    known: np.ndarray, shares: tuple[float, float, float], batch: int
) -> None:
    for number in range(3):
        steps = epoch(known, shares, batch, number)
        assert steps.shape == (len(known) // batch, batch)
        for step in steps:
            counts = known[step % len(known)].sum(0)
            assert (counts >= np.ceil(np.array(shares) * batch)).all()


def test_without_quotas_the_rare_level_is_missing_from_some_steps() -> None:
    known = CASES[1][0]
    steps = [[key.sample for key in step] for step in TrainBatches(len(known), 10)]
    assert not all(known[step].any(0).all() for step in steps)


def test_where_the_data_suffice_no_sample_is_repeated_and_all_are_used() -> None:
    known = levels((40, "i"), (40, "r"), (40, "p"), (40, "irp"))
    steps = epoch(known, (0.25, 0.25, 0.25), 8)
    assert sorted(steps.ravel().tolist()) == list(range(160))


def test_rare_samples_are_repeated_equally_often_each_copy_with_its_own_number() -> None:
    known = levels((300, "i"), (8, "r"), (3, "p"))
    drawn = epoch(known, (0.2, 0.2, 0.2), 10).ravel()
    assert len(set(drawn.tolist())) == len(drawn)
    times = np.bincount(drawn % len(known), minlength=len(known))
    assert np.ptp(times[300:308]) <= 2
    assert np.ptp(times[308:]) <= 2
    assert times[:300].max() == 1
    for sample in (300, 310):
        copies = np.sort(drawn[drawn % len(known) == sample] // len(known))
        assert copies.tolist() == list(range(len(copies)))


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    known, shares, batch = CASES[3]
    assert np.array_equal(epoch(known, shares, batch, 2, seed=5), epoch(known, shares, batch, 2, seed=5))
    for other in ({"number": 1, "seed": 5}, {"number": 2, "seed": 6}):
        assert not np.array_equal(epoch(known, shares, batch, **other), epoch(known, shares, batch, 2, seed=5))


def test_processes_and_accumulation_cut_the_same_steps_into_even_parts() -> None:
    known, shares, batch = levels((60, "i"), (60, "r"), (60, "p")), (0.25, 0.25, 0.25), 12
    whole = epoch(known, shares, batch)
    quotas = Quotas(known, np.array(shares))
    parts = [list(TrainBatches(len(known), batch, 2, rank, 2, quotas=quotas)) for rank in range(2)]
    for step, expected in enumerate(whole):
        pieces = [
            [key.sample for key in parts[rank][2 * step + part]] for part, rank in itertools.product((0, 1), (0, 1))
        ]
        assert list(itertools.chain(*pieces)) == expected.tolist()
        assert all(known[piece].any(0).sum() >= 2 for piece in pieces)


def test_a_level_that_no_image_has_and_a_share_of_0_ask_for_nothing() -> None:
    known = levels((40, "i"), (2, "r"))
    steps = epoch(known, (0.5, 0.0, 0.5), 6)
    assert sorted(steps.ravel().tolist()) == list(range(42))


def test_impossible_quotas_are_met_as_far_as_steps_have_room() -> None:
    known = levels((30, "i"), (30, "r"), (30, "p"))
    steps = epoch(known, (1.0, 1.0, 1.0), 4)
    assert steps.shape == (22, 4)
    assert len(set(steps.ravel().tolist())) == 88


def test_quotas_go_with_repeats_and_groups() -> None:
    known = levels((50, "i"), (10, "r"), (10, "p"))
    options = {"repeats": np.full(70, 1.5), "groups": np.arange(70) % 2}
    steps = epoch(known, (0.2, 0.2, 0.2), 5, **options)
    assert steps.shape == (21, 5)
    assert all(known[step % 70].any(0).all() for step in steps)
    assert len(set(steps.ravel().tolist())) == steps.size
