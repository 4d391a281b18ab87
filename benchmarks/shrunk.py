"""CIFAR-10: fishnet_nano against ResNet, ResNeXt and DenseNet of at least its parameters and multiply-adds.

python benchmarks/shrunk.py run CIFAR10 [--jobs 1] [--epochs 6] [-- more options of fishnet train]
python benchmarks/shrunk.py table

CIFAR10 is the embedded set (`unpack.py DEST cifar10`). All networks are trained by `fishnet compare` with the recipe
cifar10, on the photos enlarged to 64x64, so that each keeps its stem of stride 4 and none has finer maps than another.
The others are timm's with fewer channels, in blocks and number of blocks as published, or the nearest that is not
smaller; their stems are three 3x3 convolutions, as that of the fish. An interrupted comparison goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from record import RESULTS, record
from runs import fishnet, parse

from fishnet.deploy.compare.results import cells
from fishnet.models.complexity import count
from fishnet.models.specs import parse_specs

FISH = "fishnet_nano:stem_stride=4"
PEERS = (
    "resnet18:channels=[40,48,64,88]:stem_type=deep:stem_width=8",
    "resnet50:channels=[28,32,44,52]:stem_type=deep:stem_width=8",
    "resnext50_32x4d:channels=[24,32,40,48]:stem_type=deep:stem_width=8:cardinality=8:base_width=16",
    "densenet121:growth_rate=10:block_config=[6,12,20,10]",
)
SEEDS = (0, 1, 2)
SIZE = 64
KEPT = RESULTS / "performance" / "compare_cifar10.json"


def check_sizes() -> None:
    """Refuse a peer that is smaller than the fish."""
    least = None
    for spec in parse_specs(",".join((FISH, *PEERS)), "PEERS"):
        spec.options["num_classes"] = 10
        found = count(spec.build(), SIZE)
        print(f"{spec.label}: {found.params / 1e6:.3f} M parameters, {found.macs / 1e6:.1f} M multiply-adds")
        least = least or found
        assert found.params >= least.params, f"{spec.label} has fewer parameters than the fish"
        assert found.macs >= least.macs, f"{spec.label} has fewer multiply-adds than the fish"


def table() -> None:
    """Write the result."""
    content = json.loads(KEPT.read_text("utf-8"))["compare"]
    head, rows = cells(content)
    means = {entry["model"]: entry["metrics"]["top1"] for entry in content["models"] if entry["runs"]}
    fish = next(found for name, found in means.items() if name.startswith("fishnet"))
    peers = {name.split()[0]: found for name, found in means.items() if not name.startswith("fishnet")}
    ahead = [name for name, found in peers.items() if fish["mean"] > found["mean"]]
    record(
        "49_compare_cifar10",
        "fishnet_nano on CIFAR-10 against ResNet, ResNeXt and DenseNet of at least its parameters and multiply-adds",
        "ahead of more than one",
        f"{100 * fish['mean']:.2f} ± {100 * (fish['std'] or 0):.2f} % top-1; ahead of {', '.join(ahead) or 'none'}, "
        + ", ".join(
            f"{name} {100 * found['mean']:.2f} ± {100 * (found['std'] or 0):.2f} %" for name, found in peers.items()
        ),
        len(ahead) > 1,
        [dict(zip(head, row, strict=True)) for row in rows],
        f"fishnet compare, recipe cifar10 at {SIZE}x{SIZE}, {content['settings'].get('epochs')} epochs, seeds "
        f"{', '.join(map(str, content['seeds']))}; mean ± standard deviation",
    )


def main() -> None:
    """Train the missing runs, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "sizes", "table"))
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, default=Path("runs/shrunk"))
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, which share the cores")
    parser.add_argument("--epochs", type=int, default=6)
    arguments, more = parse(parser)
    if arguments.what == "table":
        table()
        return
    check_sizes()
    if arguments.what == "run" and arguments.data is None:
        parser.error("run needs CIFAR10")
    if arguments.what == "run":
        models, seeds = ",".join((FISH, *PEERS)), ",".join(map(str, SEEDS))
        options = ["--size", str(SIZE), "--augment.pad", str(SIZE // 8), "--epochs", str(arguments.epochs)]
        where = ["--data", arguments.data, "--out", arguments.out, "--jobs", str(arguments.jobs)]
        options += ["--recipe", "cifar10", "--validate-every", str(arguments.epochs), *more]
        fishnet("compare", "classification", *where, "--models", models, "--seeds", seeds, *options)
        content = json.loads((arguments.out / "compare.json").read_text("utf-8"))
        for run in content["runs"]:  # where they are is a matter of the machine
            run["folder"] = Path(run["folder"]).relative_to(arguments.out).as_posix()
        content["data"] = Path(content["data"]).name
        content["environment"].pop("command", None)
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        kept = {"title": "CIFAR-10: models of equal cost", "compare": content}
        KEPT.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
        shutil.copy(arguments.out / "compare.png", RESULTS.parent / "figures" / "compare_cifar10.png")
        table()


if __name__ == "__main__":
    main()
