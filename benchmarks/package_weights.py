"""The weights that the package contains: a classifier of CIFAR-10, rounded to fp16 and evaluated as rounded.

python benchmarks/package_weights.py WEIGHTS CIFAR10

WEIGHTS is the run of benchmarks/cifar10.py for fishnet_nano, or its weights, CIFAR10 the embedded set (`unpack.py DEST
cifar10`). Writes the file that the tag `cifar10` names, and prints its SHA-1 for `PRETRAINED`.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch
from record import record
from timm import get_pretrained_cfg

from fishnet.cards import HeadCard, ModelCard, save_model
from fishnet.commands.evaluate import evaluate
from fishnet.config import PreprocessConfig
from fishnet.models.build import Architecture, build_network
from fishnet.models.checkpoints.pretrained import PACKAGED, PRETRAINED
from fishnet.models.heads.image import ClassifierPlan

TAG, LARGEST = "cifar10", 1.2e6


def main() -> None:
    """Write the file and record its accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("data", type=Path)
    arguments = parser.parse_args()
    entry = PRETRAINED[TAG]
    classes = sorted(folder.name for folder in (arguments.data / "train").iterdir() if folder.is_dir())
    # the stem does not shrink images of 32 pixels as much; a stride has no weights
    plan = ClassifierPlan(num_classes=len(classes))
    architecture = Architecture(entry.model, {"image": plan}, {"stem_stride": 2})
    network = build_network(architecture, weights=str(arguments.weights))
    state = {name: value.half() if value.is_floating_point() else value for name, value in network.state_dict().items()}
    config = get_pretrained_cfg(f"{entry.model}.{TAG}")
    assert config is not None
    details = {"data": "CIFAR-10", "recipe": "cifar10"}
    preprocess = PreprocessConfig(mean=config.mean, std=config.std, crop_pct=config.crop_pct)
    card = ModelCard(
        "classification", architecture, {"image": HeadCard(classes)}, size=32, preprocess=preprocess, details=details
    )
    path = PACKAGED / entry.packaged
    save_model(path, state, card)
    top1 = evaluate(str(path), str(arguments.data), json="runs/packaged.json").metrics["top1"]
    card.details["top1"] = round(top1, 4)
    save_model(path, state, card)
    size = path.stat().st_size
    print(f"SHA-1 {hashlib.sha1(path.read_bytes()).hexdigest()}")
    record(
        "07c_packaged",
        f"the weights in the package: {entry.model} on CIFAR-10, fp16",
        f"at most {LARGEST / 1e6} MB",
        f"{top1:.2%} top-1, {size / 1e6:.2f} MB, {sum(v.numel() for v in state.values()) / 1e6:.2f} M numbers",
        size <= LARGEST,
    )


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
