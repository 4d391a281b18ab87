"""`fishnet train`: data in, a run folder out."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, Literal

from fishnet.config import TrainConfig
from fishnet.errors import FishnetError, UsageError
from fishnet.files import sweep_partials
from fishnet.runs import RunFolder
from fishnet.settings import describe_preprocessing, differences, read_settings, resolve, save_settings

# Settings that say where and how fast, not what is computed; a resumed run may change them freely.
FREE_TO_CHANGE = {"workers", "worker_start", "cache", "checkpoint_minutes", "tensorboard", "compile", "out"}
# A checkpoint holds tensors that fit these only.
TIED_TO_CHECKPOINT = {"model", "detector", "optim.name"}
RUN_FILES = (
    "config.yaml", "environment.json", "metrics.csv", "timing.csv", "bad_images.txt", "model.safetensors",
    "report.html", "train_batch.png", "predictions.png", "evaluation_val.json",
    "checkpoints/last.ckpt", "checkpoints/best.ckpt",
)  # fmt: skip


def train(
    task: Literal["classification", "detection"],
    recipe: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_changes: bool = False,
    **settings: Any,
) -> RunFolder:
    """Train a network and return its run folder.

    Args:
        task: What is predicted.
        recipe: Name of a built-in recipe or a YAML file; settings override it. Detection without one takes finetune
            where weights are given, else scratch_small.
        resume: Go on with the run in `out`.
        overwrite: Replace the run in `out`.
        allow_changes: Let a resumed run differ from what it was started with.
        settings: Fields of `TrainConfig`; nested ones as dicts (`optim={"lr": 0.2}`).

    Raises:
        UsageError: An unknown setting, a folder that holds a run already, changed settings on resume.
        FishnetError: Bad data or weights, NaN, a full disk.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    out = settings.get("out")
    if not out:
        raise UsageError("--out RUN is missing: the folder that the run is written to")
    run = RunFolder(Path(out))
    saved = read_settings(run.config_yaml) if resume and run.config_yaml.exists() else None
    config = resolve(recipe, settings, base=saved, task=task)
    if not config.data:
        raise UsageError("--data DIR is missing: the folder of the data set")
    if resume:
        check_resume(run, saved, config, allow_changes)
    elif is_main_process():
        refuse_old_run(run, overwrite)
    from fishnet.tasks import make_task
    from fishnet.training.fit import fit

    if is_main_process() and not resume and (line := describe_preprocessing(config, task)):
        print(line, flush=True)
    made = make_task(task, config)
    if is_main_process():
        prepare_folder(run, resume)
        save_settings(run.config_yaml, task, config)
    fit(made, run, resume=resume)
    return run


def is_main_process() -> bool:
    """Whether this is the process that writes: not one that the engine or a cluster started as a helper."""
    return (
        os.environ.get("LOCAL_RANK", "0") == "0"
        and os.environ.get("RANK", "0") == "0"
        and os.environ.get("SLURM_PROCID", "0") == "0"
    )


def check_resume(run: RunFolder, saved: dict[str, Any] | None, config: TrainConfig, allow_changes: bool) -> None:
    """Refuse to resume what is not there, or what would silently become another run."""
    if saved is None:
        raise UsageError(f"--resume: {run.path} holds no run (no config.yaml); start it without --resume")
    changed = differences(saved, dataclasses.asdict(config), ignore=FREE_TO_CHANGE)
    tied = [entry for entry in changed if entry[0] in TIED_TO_CHECKPOINT or (entry[0] == "ema" and None in entry[1:])]
    if tied:
        name, before, now = tied[0]
        raise UsageError(
            f"--resume cannot change {name} from {before} to {now}: the checkpoint does not fit; start a new run "
            f"with --weights {run.path}"
        )
    if changed and not allow_changes:
        listing = ", ".join(f"{name}: {before!r} -> {now!r}" for name, before, now in changed)
        raise UsageError(f"--resume with changed settings ({listing}); add --allow-changes if that is meant")


def refuse_old_run(run: RunFolder, overwrite: bool) -> None:
    """Refuse to mix a new run with an old one."""
    if run.path.exists() and not run.path.is_dir():
        raise UsageError(f"--out {run.path} is a file; name a folder")
    present = [name for name in RUN_FILES if (run.path / name).exists()]
    if present and not overwrite:
        raise UsageError(f"{run.path} holds a run already ({present[0]}); use --resume, --overwrite or another --out")


def prepare_folder(run: RunFolder, resume: bool) -> None:
    """Make the run folder, without the files of an older run; what no run wrote stays."""
    try:
        for name in () if resume else RUN_FILES:
            (run.path / name).unlink(missing_ok=True)
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        for folder in (run.path, run.checkpoints):
            sweep_partials(folder)
    except OSError as error:
        raise FishnetError(f"cannot write to {run.path}: {error.strerror}; choose another --out") from error
