"""Penn-Fudan pedestrians (136 photos, 34 to judge) from scratch: fish against ResNet, and what each choice is worth.

python benchmarks/pennfudan.py members DATA [--seeds 2]
python benchmarks/pennfudan.py ablations DATA --weights RUN [--seed 0] [--jobs 2]

DATA is the embedded set (`unpack.py DEST pennfudan`), RUN the CIFAR-10 run of fishnet_nano (benchmarks/cifar10.py).
Finished runs below --out are taken as they are, so an interrupted comparison goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from record import record
from runs import fishnet, last, parse
from torch import Tensor, nn

from fishnet.loading import load_model
from fishnet.models.complexity import count
from fishnet.models.network import Network

FIGURES = ("box_ap50", "box_ap", "mask_ap50", "mask_ap")
FLOOR = {"box_ap50": 0.70, "mask_ap50": 0.65}
COUNTED_AT = (224, 320)
ABLATIONS: dict[str, list[str]] = {
    "fishnet_tiny: head, fpn, BN-ReLU, Mask R-CNN": [],
    "neck none": ["--pyramid.neck", "none"],
    "taps body": ["--pyramid.taps", "body"],
    "taps tail": ["--pyramid.taps", "tail"],
    "no BN-ReLU in front of the neck": ["--pyramid.norm-relu", "false"],
    "Cascade Mask R-CNN": ["--detector", "cascade_mask_rcnn"],
    "fishnet_nano": ["--model", "fishnet_nano"],
    "fishnet_nano, trunk from CIFAR-10": ["--model", "fishnet_nano", "--weights"],
}


class Levels(nn.Module):
    """Trunk and neck of a network, what runs for every image whatever lies in it."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.trunk, self.neck = network.trunk, network.necks["region"]

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """Return the levels of a batch (N, C, H, W) by name."""
        return self.neck(self.trunk(batch).maps)


def train(data: Path, out: Path, options: list[str], threads: int | None = None) -> dict[str, Any]:
    """Return figures, size and time of a run; one that was finished with the same options is not repeated."""
    done = out / "benchmark.json"
    if done.exists():
        found = json.loads(done.read_text("utf-8"))
        if found["options"] == options:
            return found
    minutes = fishnet("train", "detection", "--data", data, "--out", out, "--overwrite", *options, threads=threads)
    whole, _ = load_model(out)
    found = {
        "options": options,
        "minutes": minutes,
        "params": sum(parameter.numel() for parameter in whole.parameters()),
        "trunk": sum(parameter.numel() for parameter in whole.trunk.parameters()),
        "macs": count(Levels(whole), COUNTED_AT).macs,
        **{name: last(out, name) for name in FIGURES},
    }
    done.write_text(json.dumps(found), "utf-8")
    return found


def row(found: dict[str, Any], **first: Any) -> dict[str, Any]:
    """Return a line of the table."""
    return {
        **first,
        **{name.replace("_", " "): f"{found[name]:.3f}" for name in FIGURES},
        "parameters (trunk)": f"{found['params'] / 1e6:.2f} M ({found['trunk'] / 1e6:.2f} M)",
        "multiply-adds": f"{found['macs'] / 1e9:.2f} G",
        "minutes": f"{found['minutes']:.1f}",
    }


def members(arguments: argparse.Namespace, more: list[str]) -> None:
    """Compare the fish with ResNet-18, the same recipe and seeds for both."""
    options = ["--recipe", "scratch_small", *more]
    runs: dict[str, list[dict[str, Any]]] = {"fishnet_tiny": [], "resnet18": []}
    table = []
    for seed in range(arguments.seeds):
        for model, found in runs.items():
            out = arguments.out / f"{model}_{seed}"
            found.append(train(arguments.data, out, [*options, "--model", model, "--seed", str(seed)]))
            table.append(row(found[-1], model=model, seed=seed))
    mean = {
        model: {name: sum(run[name] for run in found) / len(found) for name in FLOOR} for model, found in runs.items()
    }
    fish, other = mean["fishnet_tiny"], mean["resnet18"]
    longest = max(run["minutes"] for found in runs.values() for run in found)
    record(
        "24_pennfudan",
        "Penn-Fudan from scratch, Mask R-CNN: fishnet_tiny against resnet18, recipe scratch_small",
        "box AP50 >= 0.70, mask AP50 >= 0.65 for the fish, runs of at most 20 minutes",
        f"mean of {arguments.seeds} seeds: box AP50 {fish['box_ap50']:.3f} (resnet18 {other['box_ap50']:.3f}), "
        f"mask AP50 {fish['mask_ap50']:.3f} (resnet18 {other['mask_ap50']:.3f}); longest run {longest:.1f} minutes",
        all(fish[name] >= floor for name, floor in FLOOR.items()) and longest <= 20,
        table,
        note=f"options: {' '.join(options)}; figures of the last epoch; multiply-adds are those of trunk and neck for "
        f"an image of {COUNTED_AT[0]}x{COUNTED_AT[1]} pixels",
    )


def ablations(arguments: argparse.Namespace, more: list[str]) -> None:
    """Change one thing at a time."""
    options = ["--recipe", "scratch_small", "--seed", str(arguments.seed), "--model", "fishnet_tiny", *more]
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs) if arguments.jobs > 1 else None

    def run(name: str) -> dict[str, Any]:
        changes = ABLATIONS[name]
        changes = [*changes, str(arguments.weights)] if changes[-1:] == ["--weights"] else changes
        out = arguments.out / "".join(c if c.isalnum() else "_" for c in name)
        return train(arguments.data, out, [*options, *changes], threads)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        found = dict(zip(ABLATIONS, pool.map(run, ABLATIONS), strict=True))
    table = [row(one, setting=name) for name, one in found.items()]
    first = next(iter(found.values()))
    gains = {name: run["mask_ap"] - first["mask_ap"] for name, run in found.items() if not name.startswith("fishnet_")}
    best, worst = max(gains, key=lambda n: gains[n]), min(gains, key=lambda n: gains[n])
    longest = max(run["minutes"] for run in found.values())
    record(
        "25_ablations",
        "Penn-Fudan from scratch, one choice changed at a time, one seed each",
        "runs of at most 10 minutes",
        f"mask AP {first['mask_ap']:.3f} with the defaults; most gained: {best} ({gains[best]:+.3f}), most lost: "
        f"{worst} ({gains[worst]:+.3f}); longest run {longest:.1f} minutes",
        longest <= 10,
        table,
        note=f"options: {' '.join(options)}; figures of the last epoch; {arguments.jobs} runs at a time",
    )


def main() -> None:
    """Run one of the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("members", "ablations"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, help="classification run whose trunk the last ablation starts from")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/pennfudan"))
    parser.add_argument("--jobs", type=int, default=1, help="ablations that run side by side, the cores shared")
    arguments, more = parse(parser)
    if arguments.what == "ablations" and arguments.weights is None:
        parser.error("ablations need --weights RUN, the CIFAR-10 run of fishnet_nano")
    (members if arguments.what == "members" else ablations)(arguments, more)


if __name__ == "__main__":
    main()
