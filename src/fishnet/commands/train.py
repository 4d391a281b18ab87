"""`fishnet train`: train a model and write a run folder."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, overload

from fishnet.commands.hints import suggest
from fishnet.config import TrainConfig
from fishnet.environment import announce, is_main_process
from fishnet.errors import FishnetError, UsageError, counted, did_you_mean, quoted
from fishnet.files import sweep_partials
from fishnet.models.build import takes_vector
from fishnet.models.checkpoints.pretrained import packaged_weights
from fishnet.preprocessing import model_of_weights
from fishnet.runs import RunFolder
from fishnet.schema import Tree, plain_paths
from fishnet.settings import (
    commented_settings,
    describe_preprocessing,
    differences,
    read_settings,
    refuse_inside_data,
    resolve,
    save_settings,
)
from fishnet.tasks import get_task
from fishnet.tasks.base import RecipeChoice, TaskKind, Training

# Settings that affect where and how fast a run computes, but not its result; a resumed run may change them.
FREE_TO_CHANGE = {"workers", "worker_start", "checkpoint_minutes", "save_every", "loggers", "compile", "memory", "out"}
LOGS = (".log", ".out", ".err", ".txt")
"""Suffixes of files that may be in the folder of a new run, such as the output of the command itself."""
OUT = "FISHNET_OUT"
"""Environment variable with the run folder that the main process has chosen."""
# Settings that the tensors of a checkpoint depend on, besides those that the task adds.
TIED_TO_CHECKPOINT = {"model", "optim.name"}


@overload
def train(
    task: str,
    recipe: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_changes: bool = False,
    print_config: Literal[False] = False,
    **settings: Any,
) -> RunFolder: ...
@overload
def train(task: str, recipe: str | Path | None = None, *, print_config: Literal[True], **settings: Any) -> None: ...
def train(
    task: str,
    recipe: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_changes: bool = False,
    print_config: bool = False,
    **settings: Any,
) -> RunFolder | None:
    """Train a model. The recipe may override the defaults below.

    Args:
        task: What to predict, such as classification or detection.
        recipe: Name of a built-in recipe, or a YAML file; other settings take precedence over it. By default the
            task chooses a recipe and prints its name.
        resume: Continue the run in --out.
        overwrite: Replace the run in --out.
        allow_changes: Allow the settings of a resumed run to differ from those it was started with.
        print_config: Print all settings as commented YAML, usable as a recipe, and exit without training.
        settings: Settings of the task, see `fishnet train TASK --help`; groups as dicts (`optim={"lr": 0.2}`).

    Raises:
        UsageError: An unknown setting, a folder that contains a run already, changed settings on resume.
        FishnetError: Bad data or weights, NaN, a full disk.
    """
    from fishnet.training.fit import build_module, fit
    from fishnet.training.loggers import check_loggers
    from fishnet.training.optimizer import check_optimizer
    from fishnet.training.trainer import decide_precision

    kind, settings, recipe = get_task(task), plain_paths(settings), None if recipe is None else str(recipe)
    if print_config:
        recipe = recipe or kind.choose_recipe(settings).name
        print(commented_settings(kind.name, recipe, resolve(kind, recipe, settings)), end="")
        return None
    settings = {**settings, "out": settings.get("out") or _next_out(resume)}
    run, saved = _open_run(kind, settings["out"], resume, overwrite)
    if not (settings.get("data") or (saved or {}).get("data")):
        raise UsageError("--data DIR is missing: the folder of the data set")
    choice = kind.choose_recipe(settings) if recipe is None and saved is None else None
    config = decide_precision(resolve(kind, choice.name if choice else recipe, settings, base=saved))
    check_optimizer(config.optim.name)
    check_loggers(config.loggers)
    job = kind.make_training(config)
    if not resume:  # printed after the data is checked, so that an error message is not preceded by other lines
        refuse_inside_data(run.path, job.config.data)
        _say_choices(job, choice, settings)
    check_best(job)
    fit_batch_size(job)
    if saved is not None:
        check_resume(kind, run, saved, job.config, allow_changes)
        check_data(job, run, allow_changes)
    module = build_module(job, run, resume)  # the last step that can fail before anything is written
    if is_main_process():
        prepare_folder(run, resume)
        save_settings(run.config_yaml, task, job.config)
    fit(module, resume)
    if is_main_process():
        _say_result(kind, run, job.config)
    return run


def _say_choices(job: Training, choice: RecipeChoice | None, settings: Mapping[str, object]) -> None:
    """Print the chosen recipe, and the model and preprocessing that the initial weights determine."""
    config = job.config
    if choice:
        announce(f"recipe {choice.name}: {choice.reason}")
    if hint := packaged_hint(job):
        announce(hint)
    if line := describe_preprocessing(config):
        announce(line)
    if "model" not in settings and config.model == model_of_weights(config.weights):
        announce(f"model {config.model}: taken from the weights")


def packaged_hint(job: Training) -> str | None:
    """Return a hint about weights in this package that a run from random weights could start from, or None."""
    tags = packaged_weights(job.config.model.partition(".")[0])
    on_maps = any(not takes_vector(plan) for plan in job.architecture().heads.values())
    if job.config.weights or not tags or not on_maps:
        return None
    packaged = f"this package includes small pretrained ones: --weights {tags[0]}"
    return f"{job.config.model} starts from random weights; {packaged}"


def _say_result(kind: TaskKind, run: RunFolder, config: TrainConfig) -> None:
    """Print the best score, the weights file, and the next command."""
    if run.evaluation_json().exists():
        found = json.loads(run.evaluation_json().read_text("utf-8"))
        named = config.best or kind.display.primary_of(found["metrics"])
        score = f"{kind.display.title(named)} {kind.display.text(named, found['metrics'][named])}"
        print(f"best epoch {found['epoch']}: {score}; weights: {run.model_file}", flush=True)
    elif config.max_steps is not None:
        print(f"stopped by --max-steps before a validation; weights: {run.model_file}", flush=True)
    if run.model_file.exists():
        suggest("evaluate", run.path, "--data", config.data)
        suggest("predict", run.path, "IMAGES", "--out", "predictions")


def _next_out(resume: bool) -> str:
    """Return the first of runs/train, runs/train2, ... without a run; the processes of a run get the same."""
    if resume:
        raise UsageError("--out RUN is missing: the run to resume")
    if "RANK" in os.environ or "SLURM_PROCID" in os.environ:
        raise UsageError("--out RUN is missing: torchrun and SLURM start several processes, which need the same folder")
    if not is_main_process():  # the main process chose it before it started this one
        return os.environ[OUT]
    numbers = itertools.count(2)
    out = Path("runs", "train")
    while out.exists() and (RunFolder(out).has_begun or not RunFolder(out).config_yaml.exists()):
        out = Path("runs", f"train{next(numbers)}")
    os.environ[OUT] = str(out)
    return str(out)


def _open_run(kind: TaskKind, out: str, resume: bool, overwrite: bool) -> tuple[RunFolder, Tree | None]:
    """Return the run folder, and the settings of the run in it that is resumed."""
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    run = RunFolder(Path(out))
    if not resume:
        if is_main_process():
            refuse_old_run(run, overwrite)
        return run, None
    if not run.config_yaml.exists():
        raise UsageError(f"--resume: {run.path} does not contain a run (no config.yaml); start it without --resume")
    return run, read_settings(run.config_yaml, kind.config)


def check_best(job: Training) -> None:
    """Check that the validation computes the metric that selects the best epoch."""
    named, known = job.config.best, job.task.metrics
    if named is not None and named not in known:
        raise UsageError(
            f"best: the validation does not compute {named!r}.{did_you_mean(named, known)} Metrics: {', '.join(known)}"
        )


def fit_batch_size(job: Training) -> None:
    """Reduce a batch size that is larger than the training split to the size of the split, and print it.

    A learning rate per 256 images is scaled with it.
    """
    config, images = job.config, len(job.train_data)
    parts = config.accumulate * config.devices * config.nodes
    if config.batch_size > images >= parts:
        batch = images - images % parts
        found = counted(images, "image")
        announce(f"batch size {config.batch_size} reduced to {batch}: the training split has {found}")
        config.batch_size = batch


def check_resume(kind: TaskKind, run: RunFolder, saved: Tree, config: TrainConfig, allow_changes: bool) -> None:
    """Reject settings that would silently turn a resumed run into another one.

    Args:
        kind: Task.
        run: Run folder.
        saved: Settings that the run was started with.
        config: Settings now.
        allow_changes: Whether settings that the checkpoint does not depend on may differ.
    """
    changed = differences(saved, config, ignore=FREE_TO_CHANGE | kind.free)
    fixed = TIED_TO_CHECKPOINT | kind.tied
    tied = [entry for entry in changed if entry[0] in fixed or (entry[0] == "ema" and None in entry[1:])]
    if tied:
        name, before, now = tied[0]
        raise UsageError(
            f"--resume cannot change {name} from {before} to {now}: the checkpoint does not fit; start a new run "
            f"with --weights {quoted(run.path)}"
        )
    if changed and not allow_changes:
        listing = ", ".join(f"{name}: {before!r} -> {now!r}" for name, before, now in changed)
        raise UsageError(f"--resume with changed settings ({listing}); add --allow-changes if that is intended")


def check_data(job: Training, run: RunFolder, allow_changes: bool) -> None:
    """Refuse to resume with other data than that of the last start, unless changes are allowed."""
    if allow_changes or not run.environment_json.exists():
        return
    before = json.loads(run.environment_json.read_text("utf-8")).get("data", {})
    now = json.loads(json.dumps(job.fingerprint()))  # as it is read again
    changed = [_describe_change(name, before.get(name), now.get(name)) for name in {**before, **now}]
    if listing := ", ".join(filter(None, changed)):
        raise UsageError(f"--resume with changed data ({listing}); add --allow-changes if that is intended")


def _describe_change(name: str, before: object, now: object) -> str:
    """Return the change of one entry of the data fingerprint as text; empty if it is equal."""
    if before == now:
        return ""
    if isinstance(before, int) and isinstance(now, int):
        return f"{name}: {before} -> {now}"
    images = [part.get("images") if isinstance(part, dict) else None for part in (before, now)]
    return f"{name}: {images[0]} -> {images[1]} images" if images[0] != images[1] else f"{name}: other files or labels"


def refuse_old_run(run: RunFolder, overwrite: bool) -> None:
    """Check that a new run does not overwrite an old one."""
    if run.path.exists() and not run.path.is_dir():
        raise UsageError(f"--out {run.path} is a file; give a folder")
    present = [path for path in run.files if path.exists()]
    if run.has_begun and not overwrite:  # a failed start leaves only the settings
        raise UsageError(f"{run.path} contains a run ({present[0].name}); use --resume, --overwrite or another --out")
    if not present and (foreign := _foreign_files(run)):
        raise UsageError(f"--out {run.path} is not a run folder: it contains {foreign[0].name}; choose another folder")


def _foreign_files(run: RunFolder) -> list[Path]:
    """Return the content of a folder without hidden files and the logs of shells and schedulers."""
    visible = [path for path in run.path.glob("*") if not path.name.startswith(".") and path != run.checkpoints]
    return sorted(path for path in visible if path.is_dir() or path.suffix not in LOGS)


def prepare_folder(run: RunFolder, resume: bool) -> None:
    """Create the run folder without the files of an older run; other files in it are kept."""
    try:
        for path in () if resume else run.files:
            path.unlink(missing_ok=True)
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        for folder in (run.path, run.checkpoints):
            sweep_partials(folder)
    except OSError as error:
        raise FishnetError(f"cannot write to {run.path}: {error.strerror}; choose another --out") from error
