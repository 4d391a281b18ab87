"""The Lightning trainer for the settings of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import CheckpointIO

from fishnet.config import TrainConfig
from fishnet.environment import announce, is_main_process
from fishnet.errors import UsageError
from fishnet.files import atomic_path
from fishnet.models.precision import has_bf16
from fishnet.runs import RunFolder
from fishnet.training.loggers import check_loggers, make_loggers
from fishnet.training.optimizer import Checkpoint
from fishnet.training.progress import ProgressBar

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


PRECISION: dict[str, Precision] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class SafeCheckpointIO(CheckpointIO):
    """Writes checkpoints atomically, and reads them without running code from the file."""

    def save_checkpoint(self, checkpoint: Checkpoint, path: str | Path, storage_options: object = None) -> None:
        """Write a checkpoint; an older file is kept if that fails."""
        with atomic_path(Path(path)) as partial:
            torch.save(checkpoint, partial)

    def load_checkpoint(
        self, path: str | Path, map_location: object = "cpu", weights_only: bool | None = True
    ) -> Checkpoint:
        """Read a checkpoint."""
        return torch.load(path, map_location="cpu", weights_only=True)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def runs_on_cpu(config: TrainConfig) -> bool:
    """Whether the settings select the CPU of this machine."""
    return config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available())


def decide_precision(config: TrainConfig) -> TrainConfig:
    """Return the settings with `auto` replaced by a precision; warn if bf16 is slow on this machine.

    On a GPU, auto means bf16, or fp16 if the GPU lacks bf16; on a CPU, bf16 with bf16 instructions, otherwise fp32.
    """
    on_cpu = runs_on_cpu(config)
    if config.precision == "auto":
        fast = has_bf16() if on_cpu else torch.cuda.is_bf16_supported(including_emulation=False)
        config = replace(config, precision="bf16" if fast else "fp32" if on_cpu else "fp16")
        announce(f"precision {config.precision}: the fastest on this {'CPU' if on_cpu else 'GPU'}")
    elif config.precision == "bf16" and on_cpu and not has_bf16():
        announce(
            "warning: this CPU has no bf16 instructions, and emulates bf16 about 3 times slower than fp32; "
            "use --precision fp32 or auto"
        )
    return config


def check_devices(config: TrainConfig) -> None:
    """Raise UsageError for a precision or number of devices that this machine does not support."""
    on_cpu = runs_on_cpu(config)
    if on_cpu and config.precision == "fp16":
        raise UsageError("--precision fp16 needs a GPU; use fp32 or auto on a CPU")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device is visible; use --device cpu")
    if not on_cpu and config.devices > torch.cuda.device_count():
        raise UsageError(f"--devices {config.devices}: only {torch.cuda.device_count()} GPUs are visible")


def build_trainer(config: TrainConfig, callbacks: list[pl.Callback], run: RunFolder) -> pl.Trainer:
    """Return the Lightning trainer for the settings.

    Raises:
        UsageError: A precision or number of devices that this machine does not support.
    """
    check_devices(config)
    check_loggers(config.loggers)
    # only the main process logs; its run folder exists at this point
    loggers = make_loggers(config, run) if is_main_process() else []
    return pl.Trainer(
        accelerator="cpu" if runs_on_cpu(config) else "gpu",
        devices=config.devices,
        num_nodes=config.nodes,
        strategy="ddp" if config.devices * config.nodes > 1 else "auto",
        precision=PRECISION[config.precision],
        max_epochs=config.epochs,
        max_steps=-1,  # RunKeeper stops: Lightning repeats the end of an epoch if a run with a limit goes on from it
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.optim.clip_grad,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=loggers or False,
        enable_checkpointing=False,
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        enable_model_summary=False,
        log_every_n_steps=config.log_every,
        default_root_dir=str(run.path),
        callbacks=callbacks,
        plugins=[SafeCheckpointIO()],
    )
