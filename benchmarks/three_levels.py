"""Photos of pets with a class, a box, an outline and a label map each, from scratch: one network against three.

python benchmarks/three_levels.py run PETS3 [--jobs 2] [--only TEXT] [train options]
python benchmarks/three_levels.py tables

PETS3 is the embedded set (`unpack.py DEST pets3`: 300 photos to train on, 298 to evaluate on). The networks for one
level are trained by the same command as that for three, with `--levels`, so that data and schedule are the same. In the
partial data two thirds of the labels of each level are removed at random, and every photo keeps one. Finished runs are
kept in docs/results/runs/three_levels.json, interrupted ones are resumed. `tables` measures the cost with the networks
in --out; without them it writes the table of the partial data only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from record import RESULTS, record
from runs import parse
from trials import Trial, Trials, cost_of

from fishnet.loading import load_model
from fishnet.models.complexity import count
from fishnet.models.network import Network

FIGURES = {"image": "top1", "region": "mask_ap50", "pixel": "miou"}
LEVELS = ("all", *FIGURES)
DATA = ("full", "partial")
SEEDS = (0, 1)
SIZE = (160, 240)
RUNS = Trials(RESULTS / "runs" / "three_levels.json", (), "multitask", SIZE)
COMMON = "--recipe scratch_small --model fishnet_nano --workers 1 --heads.preset nano --size 160 --longest 240"
EPOCHS = 30
MATCHED = {"image": 69, "region": 74, "pixel": 85}
"""Epochs in which a network for one level takes as many steps on its part of the partial data as that for three does in
`EPOCHS` on all photos: 1,110, against 480, 450 and 390."""


def key(data: str, level: str, seed: int, matched: bool = False) -> str:
    """Return the name of a run in the file of all runs."""
    return f"{data} labels, {level}, {'as many steps, ' * matched}seed {seed}"


def trials(more: list[str]) -> Iterator[tuple[str, Trial]]:
    """Yield all runs with the data that they are for."""

    def trial(data: str, level: str, seed: int, matched: bool = False) -> tuple[str, Trial]:
        epochs = str(MATCHED[level] if matched else EPOCHS)
        options = [*COMMON.split(), "--epochs", epochs, "--validate-every", epochs, "--seed", str(seed)]
        levels = [] if level == "all" else ["--levels", level]
        return data, Trial(key(data, level, seed, matched), [*options, *levels, *more])

    for data in DATA:
        for seed in SEEDS:
            yield from (trial(data, level, seed) for level in LEVELS)
    for seed in SEEDS:
        yield from (trial("partial", level, seed, matched=True) for level in FIGURES)


def partial(source: Path, folder: Path) -> Path:
    """Write a copy of a multitask folder, with links to its files, in which two thirds of the train labels are gone."""
    generator = np.random.default_rng(0)
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "train" / "labels").mkdir(parents=True, exist_ok=True)
    document = json.loads((source / "annotations" / "instances_train.json").read_text("utf-8"))
    for image in document["images"]:
        kept = generator.random(3) < 1 / 3
        if not kept.any():
            kept[generator.integers(3)] = True
        if not kept[0]:
            image.pop("label", None)
        if not kept[1]:
            image["annotated_category_ids"] = []
        name = f"{Path(image['file_name']).stem}.png"
        target = folder / "train" / "labels" / name
        if kept[2] and not target.exists():
            target.symlink_to((source / "train" / "labels" / name).resolve())
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(document), "utf-8")
    for name in ("annotations/instances_val.json", "classes.json", "val", "train/images"):
        if not (folder / name).exists():
            (folder / name).symlink_to((source / name).resolve())
    return folder


def run(arguments: argparse.Namespace, more: list[str]) -> None:
    """Train the missing runs."""
    for data in DATA:
        folder = arguments.data if data == "full" else partial(arguments.data, arguments.out / "partial")
        chosen = [one for name, one in trials(more) if name == data and arguments.only in one.key]
        RUNS.train(chosen, folder, arguments.out, None, arguments.jobs)


class Maps(torch.nn.Module):
    """Everything in a network but the second stage of a detector, whose work depends on what an image shows."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
        """Return the raw outputs of all heads."""
        return self.network.raw(batch)


def folders_of(out: Path) -> dict[str, Path]:
    """Return the run folders by level, with all labels and the first seed."""
    return {level: out / "".join(c if c.isalnum() else "_" for c in key("full", level, 0)) for level in LEVELS}


def cost(out: Path) -> dict[str, float]:
    """Return parameters, multiply-adds and milliseconds of one network for all levels, each as a share of three's."""
    networks = {level: load_model(folder)[0].eval() for level, folder in folders_of(out).items()}
    image = torch.rand(3, *SIZE)
    times: dict[str, list[float]] = {level: [] for level in LEVELS}
    with torch.inference_mode():
        for turn in range(24):
            for level, network in networks.items():
                begin = time.perf_counter()
                network([image])
                if turn >= 4:
                    times[level].append(1000 * (time.perf_counter() - begin))
    sizes = {
        level: {
            "parameters": float(sum(p.numel() for p in network.parameters())),
            "multiply-adds": float(count(Maps(network), SIZE).macs),
            "milliseconds": statistics.median(times[level]),
        }
        for level, network in networks.items()
    }
    return {name: sizes["all"][name] / sum(sizes[level][name] for level in FIGURES) for name in sizes["all"]}


def table(data: str) -> tuple[list[dict[str, str]], dict[str, float], dict[str, float], dict[str, float]]:
    """Return the rows of a table, and the mean of the seeds per level of one network, of three, and of three with as
    many steps as the one."""
    done, lines = RUNS.done(), []
    one: dict[str, float] = {}
    three: dict[str, float] = {}
    matched: dict[str, float] = {}
    for level, figure in FIGURES.items():
        kinds = (
            ("one network", one, "all", False),
            ("three networks", three, level, False),
            ("three networks, as many steps", matched, level, True),
        )
        for name, means, source, longer in kinds:
            found = [done[own] for seed in SEEDS if (own := key(data, source, seed, longer)) in done]
            if found:
                means[level] = statistics.fmean(run[figure] for run in found)
                shown = " / ".join(f"{run[figure]:.3f}" for run in found)
                title = f"{level}: {figure.replace('_', ' ')}"
                lines.append({"labels": data, "figure": title, "networks": name, "seeds": shown, **cost_of(found)})
    return lines, one, three, matched


def tables(out: Path) -> None:
    """Write the results."""
    note = (
        f"options: {COMMON} --epochs {EPOCHS}; seeds {' / '.join(map(str, SEEDS))}; two runs side by side on two cores"
    )
    lines, one, three, _ = table("full")
    if not all(folder.is_dir() for folder in folders_of(out).values()):
        print(f"{out} lacks the networks for all labels: their table stays as it is")
    elif len(three) == len(FIGURES) == len(one):
        shares = cost(out)
        differences = {level: one[level] - three[level] for level in FIGURES}
        said = ", ".join(f"{level} {value:+.3f}" for level, value in differences.items())
        costs = ", ".join(f"{name} {value:.2f}" for name, value in shares.items())
        record(
            "34_three_levels",
            "One network for three levels against three networks",
            "each level within 0.03 of its own network; one pass in at most 0.6 of the time of three",
            f"{said}; cost as a share of three: {costs}",
            min(differences.values()) >= -0.03 and shares["milliseconds"] <= 0.6,
            lines,
            note=f"{note}; multiply-adds and times for an image of {SIZE[0]}x{SIZE[1]} pixels, interleaved",
        )
    lines, one, three, matched = table("partial")
    if len(matched) == len(three) == len(FIGURES) == len(one):
        ours, theirs, longer = (statistics.fmean(means.values()) for means in (one, three, matched))
        record(
            "35_partial_labels",
            "The same with a third of the labels of each level",
            "the mean over the levels ahead of that of three networks on the same labels",
            f"mean over the levels {ours:.3f} against {theirs:.3f}, and {longer:.3f} with as many steps",
            ours > max(theirs, longer),
            lines,
            note=f"{note}; a network for one level sees the photos with a label of its level only, and so takes fewer "
            "steps in as many epochs; as many steps: " + ", ".join(f"{n} {e} epochs" for n, e in MATCHED.items()),
        )


def main() -> None:
    """Train, or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "tables"))
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, default=Path("runs/three_levels"))
    parser.add_argument("--only", default="", help="train only runs whose name contains this")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, which share the cores")
    arguments, more = parse(parser)
    if arguments.what == "tables":
        tables(arguments.out)
    elif arguments.data is None:
        parser.error("run needs PETS3")
    else:
        run(arguments, more)


if __name__ == "__main__":
    main()
