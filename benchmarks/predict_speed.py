"""Throughput of `fishnet predict` on photos against that of the bare network on prepared tensors in the same batches.

python benchmarks/predict_speed.py DATA [--images 500] [--rounds 3] [--models CLASSIFIER DETECTOR]

DATA is pets3, unpacked. Without --models, fishnet_tiny as classifier (224 pixels) and as Mask R-CNN (320 pixels), with
random weights; such a detector finds hardly any objects, so a trained one draws more. Both sides take turns, so that a
busy machine slows both: the photos go through the network alone, then through all of `predict` (decoding,
results.json, pictures), and so on.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import torch
from record import record

from fishnet.cards import HeadCard, ModelCard, save_model
from fishnet.commands.predict import predict
from fishnet.config import PreprocessConfig
from fishnet.data.images import read_image
from fishnet.models.build import Architecture, build_network
from fishnet.models.heads.detectors import RegionPlan
from fishnet.models.heads.image import ClassifierPlan
from fishnet.models.heads.types import Answers
from fishnet.models.network import Images
from fishnet.predictor import Predictor
from fishnet.tasks import get_task
from fishnet.tasks.base import Runtime

CLASSES = [f"breed {number}" for number in range(37)]
TARGET = 0.8


def models(folder: Path) -> list[Path]:
    """Write a classifier and a detector, and return their files."""
    torch.manual_seed(0)
    made = []
    for task, head, plan, size in (
        ("classification", "image", ClassifierPlan(num_classes=len(CLASSES)), 224),
        ("detection", "region", RegionPlan(num_classes=len(CLASSES)), 320),
    ):
        architecture = Architecture("fishnet_tiny", {head: plan}, {})
        card = ModelCard(task, architecture, {head: HeadCard(CLASSES)}, size, PreprocessConfig())
        network = build_network(architecture, mean=card.preprocess.mean, std=card.preprocess.std)
        made.append(folder / f"{task}.safetensors")
        save_model(made[-1], network, card)
    return made


class Recorder:
    """A runtime that keeps what it is given, for batches that are equal to those of the command."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.batches = runtime, list[Images]()

    def __call__(self, images: Images) -> Answers:
        """Run the network."""
        self.batches.append(images)
        return self.runtime(images)


def prepared_batches(predictor: Predictor, files: list[Path]) -> list[Images]:
    """Return the tensors that `predict` passes to the network for photos."""
    size, recorder = get_task(predictor.card.task).batch_size, Recorder(predictor.runtime)
    for start in range(0, len(files), size):
        part = [predictor.task.prepare(read_image(file)) for file in files[start : start + size]]
        predictor.task.answer(recorder, part)
    return recorder.batches


def bare_seconds(runtime: Runtime, batches: list[Images]) -> float:
    """Return the time of the network alone for prepared batches."""
    begin = time.perf_counter()
    for batch in batches:
        runtime(batch)
    return time.perf_counter() - begin


def command_seconds(model: Path, files: list[Path], workers: int) -> float:
    """Return the time that `predict` needs for photos, less that of reading the model."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as printed:
        predict(str(model), list(map(str, files)), folder, device="cpu", workers=workers)
    (rate,) = [word for line in printed.getvalue().splitlines() for word in line.split(", ") if "images/s" in word]
    return len(files) / float(rate.split(" ")[0])


def links(photos: list[Path], count: int, folder: Path) -> list[Path]:
    """Return names of photos, repeated until there are enough; a name is predicted on once."""
    found = []
    for number, photo in enumerate(islice(cycle(photos), count)):
        found.append(folder / f"{number:04d}_{photo.name}")
        found[-1].symlink_to(photo.absolute())
    return found


def measure(model: Path, files: list[Path], arguments: argparse.Namespace) -> dict[str, str]:
    """Return a row of the table."""
    predictor = Predictor(model, "cpu")
    batches = prepared_batches(predictor, files)
    pairs = []
    for _ in range(arguments.rounds):
        pairs.append((bare_seconds(predictor.runtime, batches), command_seconds(model, files, arguments.workers)))
        print(predictor.card.task, *(f"{seconds:.2f} s" for seconds in pairs[-1]), flush=True)
    ratios = [bare / command for bare, command in pairs]
    return {
        "task": predictor.card.task,
        "network alone, images/s": f"{len(files) / statistics.median(bare for bare, _ in pairs):.1f}",
        "predict, images/s": f"{len(files) / statistics.median(command for _, command in pairs):.1f}",
        "share": f"{statistics.median(ratios):.2f}",
        "smallest to largest": f"{min(ratios):.2f} to {max(ratios):.2f}",
    }


def main() -> None:
    """Measure both in turns, and record the median of the ratios of neighboring turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--models", type=Path, nargs="+", help="runs to measure in place of random weights")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        files = links(sorted((arguments.data / "val" / "images").glob("*.jpg")), arguments.images, folder)
        table = [measure(model, files, arguments) for model in arguments.models or models(folder)]
    least = min(float(row["share"]) for row in table)
    record(
        "50_predict_speed",
        f"`fishnet predict` on {arguments.images} photos against the bare network on prepared tensors, fishnet_tiny",
        f">= {TARGET} of its throughput",
        f"{least:.2f}",
        least >= TARGET,
        table,
        f"{arguments.threads} threads, {arguments.workers} worker processes; decoding, results.json and pictures "
        "included, reading the model not. Median of neighboring turns.",
    )


if __name__ == "__main__":
    main()
