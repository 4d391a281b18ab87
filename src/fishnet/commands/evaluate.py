"""`fishnet evaluate`: how good a trained network is on a split it was not trained on."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fishnet.errors import FishnetError, UsageError

if TYPE_CHECKING:
    from fishnet.data.classification import ClassificationDataset
    from fishnet.runs import ModelCard
    from fishnet.tasks.classification_evaluator import Evaluation

FORMAT_VERSION = 1
ROWS = 20
_TITLES = {
    "top1": "top-1",
    "top5": "top-5",
    "macro_accuracy": "macro accuracy",
    "ece": "calibration error",
    "map": "mAP",
    "f1": "F1",
    "loss": "loss",
}


@dataclass
class EvaluationReport:
    """What `evaluate` found and wrote: `document` is the content of the JSON file."""

    document: dict[str, Any]
    evaluation: Evaluation
    json: Path | None
    picture: Path | None
    bad_images: list[str]

    @property
    def metrics(self) -> dict[str, float]:
        """The figures of the whole split, by name."""
        return self.evaluation.metrics


def evaluate(
    run: str,
    data: str,
    split: str = "val",
    json: str | None = None,
    device: str = "auto",
    batch_size: int = 64,
    workers: int = 2,
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    bad_images: Literal["stop", "skip"] = "stop",
    size: int | None = None,
    task: str | None = None,
    model: str | None = None,
    classes: str | None = None,
    out: str | None = None,
    runtime: Literal["torch"] = "torch",
) -> EvaluationReport:
    """Judge a model on a split: metrics, a table per class, a confusion matrix picture, JSON.

    Args:
        run: Run folder or weights file.
        data: Folder of the data set.
        split: Split to judge on.
        json: File for the figures; without it evaluate_<split>.json in the run folder or in `out`.
        device: auto, cpu, cuda, cuda:1, ...
        batch_size: Images per forward pass.
        workers: Processes that read images.
        precision: Arithmetic; auto is what the model was validated with in training, else fp32.
        bad_images: stop at an image that cannot be read, or skip it and list it.
        size: Input size in pixels instead of the one the model was made for.
        task: Task of a weights file that does not say it.
        model: Architecture of a weights file that does not say it.
        classes: Text file with a class name per line, for a weights file that does not hold them.
        out: Folder for the picture and the JSON; the run folder where `run` is one, else nothing is written.
        runtime: What runs the network.
    """
    from fishnet.commands.predict import read_names
    from fishnet.runs import load_model

    if batch_size < 1 or workers < 0:
        raise UsageError("--batch-size must be 1 or more, --workers 0 or more")
    network, card = load_model(run, device, task=task, model=model, classes=read_names(classes), size=size)
    dataset = open_split(Path(data), split, card, bad_images)
    evaluation, bad = _judge(network, card, dataset, batch_size, workers, precision)
    document = {
        "format_version": FORMAT_VERSION,
        "source": str(run),
        "data": str(data),
        "split": split,
        **evaluation.to_dict(),
        "bad_images": bad,
        "card": card.to_dict(),
    }
    print(summary(evaluation, f"{card.model} on {split} of {data}", bad))
    folder = Path(out) if out is not None else Path(run) if Path(run).is_dir() else None
    written, picture = _write(evaluation, document, folder, json, split)
    return EvaluationReport(document, evaluation, written, picture, bad)


def open_split(
    root: Path, split: str, card: ModelCard, bad_images: Literal["stop", "skip"] = "stop"
) -> ClassificationDataset:
    """Return a split whose targets are numbered as the model's outputs, with the model's preprocessing.

    A model whose class names are unknown takes those of the data, where their number fits; `card` then gets them.

    Raises:
        FishnetError: where split or classes do not fit.
    """
    from fishnet.data.classification import open_classification
    from fishnet.predictor import input_transform

    if card.extra.get("unnamed_classes"):
        dataset = open_classification(root, split, bad_images=bad_images)
        if len(dataset.classes) != card.num_classes:
            raise FishnetError(f"{root} has {len(dataset.classes)} classes, the model {card.num_classes}")
        card.classes, card.multi_label = list(dataset.classes), dataset.multi_label
    else:
        dataset = open_classification(root, split, classes=card.classes, bad_images=bad_images)
    if dataset.multi_label != card.multi_label:
        kinds = ("one label", "several labels")
        raise FishnetError(f"{root} has {kinds[dataset.multi_label]} per image, the model {kinds[card.multi_label]}")
    dataset.transform = input_transform(card)
    return dataset


def _judge(
    network: Any, card: ModelCard, dataset: ClassificationDataset, batch_size: int, workers: int, precision: str
) -> tuple[Evaluation, list[str]]:
    """Return what the evaluator found and the images left out."""
    from tqdm import tqdm

    from fishnet.data.loader import EvalBatches, make_loader, reraise_plainly
    from fishnet.tasks.classification_evaluator import ClassificationEvaluator, evaluate_model

    if precision == "auto":
        precision = card.extra.get("precision", "fp32")
    device = next(network.parameters()).device
    loader = make_loader(dataset, EvalBatches(len(dataset), batch_size), workers, device.type == "cuda")
    bad = dict.fromkeys(dataset.bad_images)
    evaluator = ClassificationEvaluator(card.classes, card.multi_label, device=device)
    with tqdm(total=len(dataset), desc="evaluating", unit="image", disable=None, leave=False) as bar:

        def watched() -> Any:
            for batch in reraise_plainly(iter(loader)):
                bad.update(dict.fromkeys(name for name in batch.get("bad", ()) if name))
                yield batch
                bar.update(len(batch["image"]))

        evaluation = evaluate_model(network, watched(), evaluator, device, precision=precision)
    return evaluation, list(bad)


def summary(evaluation: Evaluation, title: str, bad: Sequence[str] = ()) -> str:
    """Return the result as text: the figures, then a row per class (of more than 20 the worst)."""
    lines = [f"{title}: {evaluation.images} images" + (f", {len(bad)} unreadable left out" if bad else "")]
    for name, value in evaluation.metrics.items():
        shown = f"{value:8.4f}" if name in ("loss", "ece") else f"{100 * value:7.2f} %"
        lines.append(f"  {_TITLES.get(name, name):<18}{shown:>9}")
    rows = evaluation.per_class
    measure = "ap" if rows and "ap" in rows[0] else "recall"
    names = ["images", "correct", "recall", "precision", "f1"] + (["ap"] if measure == "ap" else [])
    if len(rows) > ROWS:
        lines.append(f"the {ROWS} worst of {len(rows)} classes by {measure}:")
        judged = [row for row in rows if row[measure] is not None]
        rows = sorted(judged, key=lambda row: (row[measure], -row["images"]))[:ROWS]
    width = min(40, max(len("class"), *(len(row["class"]) for row in rows)))
    lines.append("  " + "class".ljust(width) + "".join(f"{name:>11}" for name in names))
    for row in rows:
        cells = "".join(f"{_cell(row[name]):>11}" for name in names)
        lines.append("  " + row["class"][:width].ljust(width) + cells)
    lines += [f"left out, cannot be read: {name}" for name in bad[:10]]
    if len(bad) > 10:
        lines.append(f"... and {len(bad) - 10} more left out")
    return "\n".join(lines)


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{100 * value:.1f} %"


def _write(
    evaluation: Evaluation, document: dict[str, Any], folder: Path | None, json: str | None, split: str
) -> tuple[Path | None, Path | None]:
    """Write JSON and picture where they are wanted and return their paths."""
    from fishnet.files import atomic_write

    target = Path(json) if json is not None else folder / f"evaluate_{split}.json" if folder is not None else None
    picture = None
    if target is not None:
        atomic_write(target, json_module.dumps(document, ensure_ascii=False, indent=1, allow_nan=False))
    if folder is not None and evaluation.confusion is not None:
        from fishnet.report.confusion import draw_confusion
        from fishnet.report.style import save_figure

        picture = folder / f"confusion_{split}.png"
        save_figure(draw_confusion(evaluation.confusion, [row["class"] for row in evaluation.per_class]), picture)
    written = [str(path) for path in (target, picture) if path is not None]
    print("written: " + ", ".join(written) if written else "nothing written: --out or --json keeps the figures")
    return target, picture
