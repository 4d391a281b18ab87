"""`fishnet evaluate`: metrics of a trained network on a split."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fishnet.files import Json

if TYPE_CHECKING:
    import torch

    from fishnet.runs import RunFolder
    from fishnet.tasks.base import AnyTask, Batch, Evaluation, Runtime, SplitData

FORMAT_VERSION = 1


@dataclass
class EvaluationReport:
    """Result of `evaluate`; `document` is the content of the JSON file."""

    document: Json
    evaluation: Evaluation
    json: Path | None
    pictures: list[Path]
    bad_images: list[str]

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the whole split, by name."""
        return self.evaluation.metrics


def evaluate(
    run: str,
    data: str,
    split: str = "val",
    json: str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
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
    """Evaluate a model on a split: metrics, a table per class, a picture, and a JSON file.

    Args:
        run: Run folder or weights file.
        data: Folder of the data set.
        split: Split to evaluate on.
        json: File for the metrics; by default evaluation_<split>.json in the run folder or in --out.
        device: auto, cpu, cuda, cuda:1, ...
        batch_size: Images per forward pass; the default depends on the task.
        workers: Worker processes that load images.
        precision: Arithmetic; auto uses that of the validation during training.
        bad_images: stop at an image that cannot be read, or skip it and list it.
        size: Input size in pixels instead of that of the model. For a detector it is the shorter side, and the
            maximum of the longer side is scaled with it.
        task: Task of a weights file that does not describe its network.
        model: Backbone of a weights file that does not describe its network.
        classes: Text file with a class name per line, for a weights file without class names.
        out: Folder for the picture and the JSON file; by default the run folder, if RUN is one.
        runtime: Inference backend.
    """
    from fishnet.commands.predict import check_loading, read_names
    from fishnet.loading import load_runtime, resolve_device
    from fishnet.runs import RunFolder
    from fishnet.tasks import get_task, make_task

    check_loading(batch_size, workers)
    names = read_names(classes)
    runner, card = load_runtime(run, runtime, device, precision, task=task, model=model, classes=names, size=size)
    kind = make_task(card)
    dataset = kind.open_split(Path(data), split, bad_images)
    images = get_task(card.task).batch_size if batch_size is None else batch_size
    evaluation, documents, bad = _evaluate(kind, runner, resolve_device(device), dataset, images, workers)
    about = {"format_version": FORMAT_VERSION, "source": str(run), "data": str(data), "split": split}
    document = about | evaluation.to_dict() | _epoch(RunFolder(Path(run)))
    document |= {"bad_images": bad, "card": card.to_dict()}
    print(summary(kind, evaluation, f"{card.model} on {split} of {data}", bad))
    folder = Path(out) if out is not None else Path(run) if Path(run).is_dir() else None
    target = Path(json) if json else folder and RunFolder(folder).evaluation_json(split)
    pictures = _write(kind, evaluation, {target: document}, documents, folder, split)
    return EvaluationReport(document, evaluation, target, pictures, bad)


def _epoch(run: RunFolder) -> Json:
    """Return the epoch of the network of a run, recorded by training; {} if it is unknown."""
    try:
        return {"epoch": int(json_module.loads(run.evaluation_json().read_text("utf-8"))["epoch"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _evaluate(
    task: AnyTask, runtime: Runtime, device: torch.device, dataset: SplitData, batch_size: int, workers: int
) -> tuple[Evaluation, Mapping[str, object], list[str]]:
    """Return the evaluation, the further documents of the evaluator, and the images left out."""
    from tqdm import tqdm

    from fishnet.data.loader import EvalBatches, make_loader, reraise_plainly
    from fishnet.tasks.base import evaluate_network

    batches = EvalBatches(len(dataset), batch_size)
    loader = make_loader(dataset, batches, workers, device.type == "cuda", collate=task.collate)
    bad = dict.fromkeys(dataset.bad_images)
    evaluator = task.evaluator(dataset, device)
    with tqdm(total=len(dataset), desc="evaluating", unit="image", disable=None, leave=False) as bar:

        def watched() -> Iterator[Batch]:
            for batch in reraise_plainly(iter(loader)):
                bad.update(dict.fromkeys(name for name in batch.get("bad", ()) if name))
                yield batch
                bar.update(len(batch["image"]))

        evaluation = evaluate_network(task, runtime, watched(), evaluator)
    return evaluation, task.documents(evaluator), list(bad)


def summary(task: AnyTask, evaluation: Evaluation, title: str, bad: Sequence[str] = ()) -> str:
    """Return the result as text: what was evaluated, the metrics, the images left out."""
    lines = [f"{title}: {evaluation.images} images" + (f", {len(bad)} unreadable left out" if bad else "")]
    lines += task.describe(evaluation)
    lines += [f"skipped unreadable image {name}" for name in bad[:10]]
    if len(bad) > 10:
        lines.append(f"... and {len(bad) - 10} more skipped")
    return "\n".join(lines)


def _write(
    task: AnyTask,
    evaluation: Evaluation,
    main: dict[Path | None, object],
    documents: Mapping[str, object],
    folder: Path | None,
    split: str,
) -> list[Path]:
    """Write JSON and pictures, print their paths, and return those of the pictures."""
    from fishnet.files import write_json

    contents: dict[Path, object] = {path: content for path, content in main.items() if path is not None}
    pictures: list[Path] = []
    if folder is not None:
        contents |= {folder / f"{name}_{split}.json": content for name, content in documents.items()}
    for path, content in contents.items():
        write_json(path, content)
    if folder is not None:
        from fishnet.drawing.style import save_figure

        for name, figure in task.pictures(evaluation).items():
            pictures.append(save_figure(figure, folder / f"{name}_{split}.png"))
    written = [str(path) for path in (*contents, *pictures)]
    print("written: " + ", ".join(written) if written else "nothing written; use --out or --json to save the metrics")
    return pictures
