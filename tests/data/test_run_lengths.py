"""Run lengths: every way into them and out of them agrees with the masks."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from fishnet.data import run_lengths

SOURCE = Path(__file__).resolve().parents[2] / "src" / "fishnet"


def test_masks_survive_the_way_there_and_back() -> None:
    masks = torch.rand(3, 7, 5, generator=torch.Generator().manual_seed(0)) > 0.5
    runs = run_lengths.encode(masks)
    assert torch.equal(run_lengths.decode(runs, 7, 5).bool(), masks)
    # as read from results.json
    texts = [run_lengths.RunLengths(size=[7, 5], counts=run_lengths.counts_text(run)) for run in runs]
    assert torch.equal(run_lengths.decode(texts, 7, 5).bool(), masks)
    assert run_lengths.decode([], 7, 5).shape == (0, 7, 5)


def test_polygons_counts_and_boxes_become_run_lengths() -> None:
    expected = torch.zeros(1, 6, 8, dtype=torch.uint8)
    expected[:, 1:4, 2:7] = 1
    square = [2.0, 1.0, 7.0, 1.0, 7.0, 4.0, 2.0, 4.0]
    from_box = run_lengths.of_box([2.0, 1.0, 5.0, 3.0], 6, 8)
    for run in (run_lengths.of_polygons([square], 6, 8), from_box):
        assert torch.equal(run_lengths.decode([run], 6, 8), expected)
    columns = expected[0].T.flatten()
    edges = torch.where(columns.diff() != 0)[0] + 1
    counts = torch.diff(edges, prepend=torch.tensor([0]), append=torch.tensor([len(columns)])).tolist()
    run = run_lengths.of_counts(counts, 6, 8)
    assert torch.equal(run_lengths.decode([run], 6, 8), expected)
    assert run_lengths.bounding_boxes([run, from_box]).tolist() == [[2, 1, 5, 3]] * 2


def test_one_module_knows_the_codec() -> None:
    knowing = [
        path.name for path in SOURCE.rglob("*.py") if re.search(r"faster_coco_eval\.core", path.read_text("utf-8"))
    ]
    assert knowing == ["run_lengths.py"]
