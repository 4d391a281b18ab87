"""`fishnet evaluate`: how good a trained network is on a split it was not trained on."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fishnet.errors import UsageError

if TYPE_CHECKING:
    from fishnet.tasks import Evaluation
    from fishnet.tasks.levels import Level

FORMAT_VERSION = 1


@dataclass
class EvaluationReport:
    """What `evaluate` found and wrote: `document` is the content of the JSON file."""

    document: dict[str, Any]
    evaluation: Evaluation
    json: Path | None
    pictures: list[Path]
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
    """Judge a model on a split: figures, a table per class, a confusion matrix or precision-recall curves, JSON.

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
        size: Input size in pixels instead of the one the model was made for. Of a detector this is the shorter side;
            the bound of the longer side is scaled with it.
        task: Task of a weights file that does not say it.
        model: Architecture of a weights file that does not say it.
        classes: Text file with a class name per line, for a weights file that does not hold them.
        out: Folder for the picture and the JSON; the run folder where `run` is one, else nothing is written.
        runtime: What runs the network.
    """
    from fishnet.commands.predict import read_names
    from fishnet.loading import load_model
    from fishnet.tasks.levels import make_level

    if batch_size < 1 or workers < 0:
        raise UsageError("--batch-size must be 1 or more, --workers 0 or more")
    network, card = load_model(run, device, task=task, model=model, classes=read_names(classes), size=size)
    level = make_level(card)
    dataset = level.open_split(Path(data), split, bad_images)
    evaluation, documents, bad = _judge(network, level, dataset, batch_size, workers, precision)
    document = {
        "format_version": FORMAT_VERSION,
        "source": str(run),
        "data": str(data),
        "split": split,
        **evaluation.to_dict(),
        "bad_images": bad,
        "card": card.to_dict(),
    }
    print(summary(level, evaluation, f"{card.model} on {split} of {data}", bad))
    folder = Path(out) if out is not None else Path(run) if Path(run).is_dir() else None
    target = Path(json) if json is not None else None if folder is None else folder / f"evaluate_{split}.json"
    pictures = _write(level, evaluation, {target: document}, documents, folder, split)
    return EvaluationReport(document, evaluation, target, pictures, bad)


def _judge(
    network: Any, level: Level, dataset: Any, batch_size: int, workers: int, precision: str
) -> tuple[Evaluation, Mapping[str, Any], list[str]]:
    """Return what the evaluator found, what else it has to say, and the images left out."""
    import torch
    from tqdm import tqdm

    from fishnet.data.loader import EvalBatches, make_loader, reraise_plainly
    from fishnet.models.precision import guard_bf16_on_cpu
    from fishnet.tasks.levels import autocast, judge, mover

    if precision == "auto":
        precision = level.card.precision
    device = next(network.parameters()).device
    network.to(memory_format=torch.channels_last)
    if precision == "bf16" and device.type == "cpu":
        network = guard_bf16_on_cpu(network)  # as in training
    batches = EvalBatches(len(dataset), batch_size)
    loader = make_loader(dataset, batches, workers, device.type == "cuda", collate=level.collate)
    bad = dict.fromkeys(dataset.bad_images)
    evaluator = level.evaluator(dataset, device)
    with tqdm(total=len(dataset), desc="evaluating", unit="image", disable=None, leave=False) as bar:

        def watched() -> Any:
            for batch in reraise_plainly(iter(loader)):
                bad.update(dict.fromkeys(name for name in batch.get("bad", ()) if name))
                yield batch
                bar.update(len(batch["image"]))

        arithmetic = autocast(device, precision)
        evaluation = judge(network, watched(), level.evaluate_batch, evaluator, mover(device), arithmetic)
    return evaluation, level.documents(evaluator), list(bad)


def summary(level: Level, evaluation: Evaluation, title: str, bad: Sequence[str] = ()) -> str:
    """Return the result as text: what was judged, the figures, the images left out."""
    lines = [f"{title}: {evaluation.images} images" + (f", {len(bad)} unreadable left out" if bad else "")]
    lines += level.describe(evaluation)
    lines += [f"left out, cannot be read: {name}" for name in bad[:10]]
    if len(bad) > 10:
        lines.append(f"... and {len(bad) - 10} more left out")
    return "\n".join(lines)


def _write(
    level: Level,
    evaluation: Evaluation,
    main: dict[Path | None, Any],
    documents: Mapping[str, Any],
    folder: Path | None,
    split: str,
) -> list[Path]:
    """Write JSON and pictures where they are wanted, say where, and return the paths of the pictures."""
    from fishnet.files import atomic_write

    contents: dict[Path, Any] = {path: content for path, content in main.items() if path is not None}
    pictures: list[Path] = []
    if folder is not None:
        contents |= {folder / f"{name}_{split}.json": content for name, content in documents.items()}
    for path, content in contents.items():
        atomic_write(path, json_module.dumps(content, ensure_ascii=False, indent=1, allow_nan=False))
    if folder is not None:
        from fishnet.drawing.style import save_figure

        for name, figure in level.pictures(evaluation).items():
            pictures.append(save_figure(figure, folder / f"{name}_{split}.png"))
    written = [str(path) for path in (*contents, *pictures)]
    print("written: " + ", ".join(written) if written else "nothing written: --out or --json keeps the figures")
    return pictures
