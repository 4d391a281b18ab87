"""Training of a run: network, fit, report."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fishnet.data.loader import EvalBatches, make_loader
from fishnet.environment import announce, write_environment
from fishnet.files import atomic_path
from fishnet.loading import load_model
from fishnet.metrics import MetricsFile
from fishnet.models.network import Images
from fishnet.runs import RunFolder
from fishnet.tasks.base import TorchRuntime, Training
from fishnet.training.advice import advice
from fishnet.training.allocator import allocation_for
from fishnet.training.checkpoints import RunKeeper
from fishnet.training.module import TrainingModule
from fishnet.training.position import Position, check_position, describe_position, train_batches
from fishnet.training.progress import progress_bars
from fishnet.training.trainer import build_trainer, check_devices, runs_on_cpu


def build_module(job: Training, run: RunFolder, resume: bool = False) -> TrainingModule:
    """Build the network of a run with its initial weights; nothing is written, so that a failed start leaves no folder.

    Args:
        job: What to train.
        run: Run folder; it need not exist.
        resume: Continue from the last checkpoint, if there is one.

    Raises:
        UsageError: The settings are invalid for the network, this machine, or the position of a resumed run.
        FishnetError: The weights cannot be loaded.
    """
    check_devices(job.config)
    if resume:
        check_position(job, run)
    with quiet_lightning():
        return TrainingModule(job, run, run.last if resume and run.last.exists() else None)


def fit(module: TrainingModule, resume: bool = False) -> None:
    """Train into a run folder, from the beginning or from the last checkpoint.

    Args:
        module: Result of `build_module`.
        resume: Continue from the last checkpoint.

    Raises:
        FishnetError: NaN, unreadable images, a full disk; the last good checkpoint is kept.
        Interrupted: A signal was received; the state is saved.
    """
    job, run, checkpoint = module.job, module.run_folder, module.checkpoint
    config = job.config
    with quiet_lightning():
        keeper = RunKeeper(run, config.checkpoint_minutes)
        trainer = build_trainer(config, [keeper, *progress_bars(config.log_every)], run)
        if trainer.is_global_zero:
            begin_files(job, run, module.position, resume)
        with allocation_for(config.memory, runs_on_cpu(config)):
            trainer.fit(module, ckpt_path=checkpoint)
        keeper.finish(trainer, module)
        if trainer.is_global_zero:
            finish_report(job, run)


def begin_files(job: Training, run: RunFolder, position: Position | None, resume: bool) -> None:
    """Cut the metrics to the position that a run goes on at, record the environment, and say where it starts."""
    config = job.config
    for path in (run.metrics_csv, run.timing_csv):
        MetricsFile(path).cut(position.step if position else 0, position.validated if position else True)
    write_environment(run.environment_json, job.fingerprint(), resume)
    if position is None:
        for line in advice(job):
            announce(line)
        print(f"writing to {run.path}", flush=True)
        return
    print(describe_position(position, config, train_batches(job).steps), flush=True)
    if position.epochs == config.epochs:
        announce(f"all {config.epochs} epochs are trained; continue with --epochs {2 * config.epochs} --allow-changes")
    elif config.max_steps is not None and position.step >= config.max_steps:
        announce(
            f"all {config.max_steps} steps of --max-steps are done; continue with --max-steps None --allow-changes"
        )


def finish_report(job: Training, run: RunFolder) -> None:
    """Draw predictions of the best network, write report.html and print its path."""
    from fishnet.report.html import write_report
    from fishnet.report.insides import draw_insides

    model, _ = load_model(run.path)
    picture = job.task.draw_examples(TorchRuntime(model, torch.device("cpu")), job.val_data)
    with atomic_path(run.predictions_png) as partial:
        picture.save(partial)
    images = _first_images(job)
    insides = draw_insides(model, images) if len(images) else None
    if insides is not None:
        with atomic_path(run.insides_png) as partial:
            insides.save(partial)
    print(f"report: {write_report(run)}", flush=True)


def _first_images(job: Training) -> Images:
    """Return the first image of the validation split that can be read, as a batch for the network."""
    loader = make_loader(job.val_data, EvalBatches(len(job.val_data), 1), 0, collate=job.task.collate)
    batches = (job.task.network_inputs(batch) for batch in loader)
    return next((images for images in batches if len(images)), [])


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence hints of Lightning that do not apply here."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    with warnings.catch_warnings():
        logger.setLevel(max(level, logging.WARNING))
        for message in (
            r".*does not have many workers.*",
            r".*`?isinstance\(treespec, LeafSpec\)`? is deprecated.*",
            r".*[Yy]ou defined a `validation_step` but have no `val_dataloader`.*",
            r".*GPU available but not used.*",
            r".*module\(s\) in eval mode at the start of training.*",
        ):
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            logger.setLevel(level)
