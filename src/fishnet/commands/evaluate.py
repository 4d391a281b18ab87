"""`fishnet evaluate`: compute the metrics of a trained network on a split."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fishnet.commands.hints import suggest
from fishnet.errors import counted, refuse_options
from fishnet.files import Json, texts
from fishnet.runs import RunFolder

if TYPE_CHECKING:
    import torch

    from fishnet.cards import ModelCard
    from fishnet.drawing.display import Display
    from fishnet.tasks.base import AnyTask, Batch, Evaluation, Runtime, SplitData, TaskKind

FORMAT_VERSION = 1


@dataclass
class EvaluationReport:
    """Result of `evaluate`; `document` is the content of the JSON file."""

    document: Json
    evaluation: Evaluation
    json: Path | None
    pictures: list[Path]
    bad_images: list[str]
    others: list[EvaluationReport] = field(default_factory=list)
    """Results for the folders in `also`."""

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the whole split, by name."""
        return self.evaluation.metrics


def evaluate(
    run: str | Path,
    data: str | Path | None = None,
    split: str = "val",
    json: str | Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int = 2,
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    bad_images: Literal["stop", "skip"] = "stop",
    size: int | None = None,
    task: str | None = None,
    model: str | None = None,
    classes: str | Path | None = None,
    out: str | Path | None = None,
    runtime: Literal["auto", "torch", "onnx", "openvino"] = "auto",
    also: list[str | Path] | str | Path | None = None,
    **options: object,
) -> EvaluationReport:
    """Evaluate a model on a split: metrics, a table per class, a plot, and a JSON file.

    Args:
        run: Run folder, weights file, or a folder that fishnet export wrote.
        data: Folder of the data set; by default that of the run.
        split: Split to evaluate on.
        json: File for the metrics; by default evaluation_<split>.json in the folder of --out.
        device: auto, cpu, cuda, cuda:1, ...
        batch_size: Images per forward pass; the default depends on the task.
        workers: Worker processes that load images.
        precision: Numerical precision; auto uses that of the validation during training.
        bad_images: Unreadable images: stop at the first, or skip and list them.
        size: Input size in pixels instead of that of the model; for a detector it is the shorter side.
        task: Task of a weights file that does not describe its network.
        model: Backbone of a weights file that does not describe its network.
        classes: Text file with a class name per line, for a weights file without class names.
        out: Folder for pictures and JSON files; by default the run folder, if RUN is one.
        runtime: Inference backend; auto selects that of an exported folder, or torch.
        also: Further data folders, each evaluated separately; their names are appended to the file names.
        options: Options of the task that change the metrics, such as `flip` and `scales` of segmentation.
    """
    from fishnet.commands.predict import check_loading, read_names
    from fishnet.loading import load_runtime, resolve_device

    check_loading(batch_size, workers)
    run, names = str(run), read_names(classes)
    runner, card = load_runtime(run, runtime, device, precision, task=task, model=model, classes=names, size=size)
    (kind, evaluated), where = _task_of(card, options), resolve_device(device)
    folders = _folders(run, data, texts(also))
    datasets = [evaluated.open_split(Path(folder), split, bad_images) for folder in folders]
    place = Path(out) if out is not None else Path(run) if Path(run).is_dir() else None
    reports = []
    for folder, dataset, name in zip(folders, datasets, _names(folders), strict=True):
        evaluation, more, bad = _evaluate(evaluated, runner, where, dataset, batch_size or kind.batch_size, workers)
        document = _document(run, folder, split, evaluation, bad, card, options, runner)
        print(summary(evaluated, evaluation, _title(card.model, document), bad))
        stem = _stem(Path(run), place, document, name)
        target = _with_name(Path(json), name) if json else place and RunFolder(place).evaluation_json(stem)
        pictures = _write(evaluated, evaluation, {target: document}, more, place, stem)
        reports.append(EvaluationReport(document, evaluation, target, pictures, bad))
    return _finish(run, folders, reports, kind.display)


def _task_of(card: ModelCard, options: Mapping[str, object]) -> tuple[TaskKind, AnyTask]:
    """Return the kind of task of a card and the task of its network; reject options that its evaluation lacks."""
    from fishnet.tasks import get_task, make_task

    kind = get_task(card.task)
    own = kind.evaluation_options
    refuse_options(options, [option.name for option in fields(own)] if own else [], f"the evaluation of {card.task}")
    return kind, make_task(card, **options)


def _document(
    run: str,
    data: str,
    split: str,
    evaluation: Evaluation,
    bad: list[str],
    card: ModelCard,
    options: Mapping[str, object],
    runner: Runtime,
) -> Json:
    """Return the content of the JSON file."""
    from fishnet.tasks.base import precision_of

    about = {"format_version": FORMAT_VERSION, "source": str(run), "data": str(data), "split": split}
    about["precision"] = precision_of(runner)
    found = about | evaluation.to_dict() | _epoch(RunFolder(Path(run)))
    found |= {"options": dict(options)} if options else {}
    return found | {"bad_images": bad, "card": card.to_dict()}


def _title(model: str, document: Json) -> str:
    """Return what was evaluated, from the name of the model and the content of the JSON file."""
    half = f" in {document['precision']}" if document["precision"] in ("bf16", "fp16") else ""
    return f"{model} on {document['split']} of {document['data']}{half}"


def _folders(run: str, data: str | Path | None, also: Sequence[str]) -> list[str]:
    """Return the data folders to evaluate on, without duplicates; the first is by default that of the run."""
    from fishnet.settings import data_of

    return list(dict.fromkeys([str(data or data_of(run)), *also]))


def _names(folders: Sequence[str]) -> list[str]:
    """Return the suffix of the file names of each folder: "" for the first, then "_" and a unique name."""
    names = [""]
    for folder in folders[1:]:
        plain = name = f"_{Path(folder).resolve().name}"
        number = 1
        while name in names:
            number += 1
            name = f"{plain}{number}"
        names.append(name)
    return names


def _with_name(path: Path, name: str) -> Path:
    return path.with_name(f"{path.stem}{name}{path.suffix}")


def _stem(run: Path, place: Path | None, document: Json, name: str) -> str:
    """Return the split of an evaluation and a suffix for its file names.

    In the run folder, evaluation_<split>.json is that of the run: an evaluation on other data, or with another size,
    precision or options, gets the first number that is free or has the same ones.

    Args:
        run: What was evaluated.
        place: Folder to write to.
        document: Content of the JSON file.
        name: Suffix of a further data folder.
    """
    plain = stem = f"{document['split']}{name}"
    if place is None or place.resolve() != run.resolve():
        return stem
    folder, number = RunFolder(place), 1
    if name or not _is_of_the_run(folder, document):
        while _is_taken(folder, stem, document, reserved=stem == plain and not name):
            number += 1
            stem = f"{plain}_{number}"
    if number > 1:
        print(f"this evaluation differs from that in {folder.evaluation_json(plain).name}, which is kept")
    return stem


def _is_taken(folder: RunFolder, stem: str, document: Json, reserved: bool) -> bool:
    """Return whether a name is that of another evaluation; `reserved` is the name of that of the run."""
    file = folder.evaluation_json(stem)
    if not file.is_file():
        return reserved and folder.config_yaml.is_file()
    try:
        return _inputs_of(json_module.loads(file.read_text("utf-8"))) != _inputs_of(document)
    except (ValueError, LookupError, TypeError):  # damaged, or written by the training
        return True


def _inputs_of(document: Json) -> tuple[object, ...]:
    """Return what determines the metrics of a network on a split."""
    size = document["card"]["preprocessing"]["size"]
    return str(Path(document["data"]).resolve()), size, document["precision"], document.get("options", {})


def _is_of_the_run(folder: RunFolder, document: Json) -> bool:
    """Return whether an evaluation repeats that of the training: its data, size and precision, without options."""
    from fishnet.cards import read_card
    from fishnet.settings import comparable, data_of

    if not folder.config_yaml.is_file() or not folder.model_file.is_file():
        return False
    card = read_card(folder.model_file)
    same_data = comparable("data", data_of(folder.path)) == comparable("data", document["data"])
    return same_data and card is not None and _inputs_of(document)[1:] == (card.size, card.precision, {})


def _finish(
    run: str, folders: Sequence[str], reports: Sequence[EvaluationReport], display: Display
) -> EvaluationReport:
    """Attach the further reports to the first and return it; print the main metrics of several folders, and the next
    command."""
    reports[0].others = [*reports[1:]]
    if len(reports) > 1:
        print(_side_by_side(folders, reports, display))
    suggest("predict", run, "IMAGES", "--out", "predictions")
    return reports[0]


def _side_by_side(folders: Sequence[str], reports: Sequence[EvaluationReport], display: Display) -> str:
    """Return the main metrics of several folders as a table."""
    shown = [name for name in display.order(list(reports[0].metrics)) if not display.is_detail(name)][:6]
    width = max(map(len, folders)) + 2
    lines = [" " * width + "".join(f"{display.title(name):>16}" for name in shown)]
    for folder, report in zip(folders, reports, strict=True):
        values = "".join(f"{display.text(name, report.metrics.get(name)):>16}" for name in shown)
        lines.append(f"{folder:<{width}}{values}")
    return "\n".join(lines)


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
    lines = [f"{title}: {counted(evaluation.images, 'image')}" + (f", {len(bad)} unreadable left out" if bad else "")]
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
