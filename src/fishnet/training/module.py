"""Lightning module of a training: network, loss, optimizer, precision, processes, exact resume.

Runs are reproducible: before every batch, the generators are seeded from (seed, epoch, batch, process), so that drop
path and mixing do not depend on earlier batches, and a resumed run is identical to an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from fishnet.data.loader import EvalBatches, ResumableLoader, TrainBatches, make_loader, reraise_plainly
from fishnet.drawing.display import Display
from fishnet.errors import FishnetError, UsageError
from fishnet.metrics import MetricsFile
from fishnet.models.build import build_network
from fishnet.models.compilation import compile_network
from fishnet.models.network import Network
from fishnet.models.norms import (
    apply_norm_policy,
    check_norm_policy,
    has_batch_norms,
    hold_norms,
    loaded_modules,
    mark_loaded_modules,
)
from fishnet.models.precision import guard_bf16_on_cpu
from fishnet.runs import RunFolder
from fishnet.tasks import get_task
from fishnet.tasks.base import Batch, Evaluation, TorchRuntime, Training, evaluate_network, evaluation_mode
from fishnet.training.gradients import TrunkGradients, norm_over_processes
from fishnet.training.optimizer import (
    PARAMETERS,
    Checkpoint,
    build_optimizer,
    follow_settings,
    lr_share,
    parameter_names,
)
from fishnet.training.parts import freeze, part_rates
from fishnet.training.position import (
    DIVISION,
    Position,
    division_of,
    follow_accumulation,
    position_of,
    train_batches,
)
from fishnet.training.progress import with_progress
from fishnet.training.trainer import runs_on_cpu
from fishnet.training.warm_start import start_heads

LOADED = "modules_with_loaded_weights"
"""Entry of a checkpoint: names of the modules whose norm layers were loaded from the initial weights."""


class TrainingModule(pl.LightningModule):
    """Network, losses, optimizer and EMA of a training as a LightningModule.

    Args:
        job: What to train.
        run: Run folder for metrics.
        checkpoint: Checkpoint to resume from; its weights replace the initial weights, which need not exist any more.
    """

    def __init__(self, job: Training, run: RunFolder, checkpoint: Path | None = None):
        super().__init__()
        self.job, self.config, self.run_folder, self.checkpoint = job, job.config, run, checkpoint
        self.model = build_model(job, fresh=checkpoint is not None)
        self.position: Position | None = None
        if checkpoint is not None:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
            self.position = position_of(state)
            mark_loaded_modules(self.model, state.get(LOADED, ()))
        self._prepare_model()
        self.ema = ModelEmaV3(self.model, decay=self.config.ema, use_warmup=True) if self.config.ema else None
        if self.ema is not None:
            self.ema.requires_grad_(False)  # otherwise DDP waits for gradients that are never computed
        self.log_file = MetricsFile(run.metrics_csv)
        self.bad_images: set[str] = set()
        self._val_loader: DataLoader[Batch] | None = None
        self._losses: list[dict[str, Tensor]] = []
        self._unchecked: tuple[int, Tensor] | None = None
        self._pulls: dict[str, Tensor] = {}
        self._frozen_norms: list[nn.Module] | None = None
        self._steps = 1

    def _prepare_model(self) -> None:
        config = self.config
        freeze(self.model, config.freeze)
        part_rates(self.model, config.optim)  # fails before anything is written
        if config.norm in ("frozen", "sync"):  # group norm is part of the architecture
            apply_norm_policy(self.model, config.norm)
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise UsageError("freeze: all parameters are frozen; at least one must be trained")
        self.model.set_memory(config.memory)
        if config.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        if config.precision == "bf16" and runs_on_cpu(config):
            guard_bf16_on_cpu(self.model)

    @property
    def evaluated_model(self) -> nn.Module:
        """Network that is validated and saved: the EMA, if enabled."""
        return self.ema.module if self.ema is not None else self.model

    def train_dataloader(self) -> ResumableLoader:
        """Return the training loader of this process."""
        config, data = self.config, self.job.train_data
        collate = self.job.task.collate
        loader = make_loader(data, self.batches(), config.workers, self.on_gpu, config.worker_start, collate)
        assert isinstance(loader, ResumableLoader)
        return loader

    def batches(self) -> TrainBatches:
        """Return the batches of the training split for this process."""
        return train_batches(self.job, self.trainer.global_rank, self.trainer.world_size)

    @property
    def on_gpu(self) -> bool:
        """Whether this process trains on a CUDA device."""
        return self.trainer.strategy.root_device.type == "cuda"

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and its schedule, which is updated at every optimizer step."""
        optimizer = build_optimizer(self.model, self.config)
        schedule = LambdaLR(optimizer, self._make_schedule())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _make_schedule(self) -> Callable[[int], float]:
        """Return the factor of the base learning rate as a function of the optimizer step.

        A resumed run continues at the epoch that it reached, even if earlier epochs had another number of steps.
        """
        steps = self._steps = self.batches().steps
        epochs, optim = self.config.epochs, self.config.optim
        offset = self.position.offset(steps) if self.position is not None else 0
        return lambda step: lr_share(optim, step + offset, steps, epochs)

    def on_save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Save the names of the parameters in the order of the optimizer state, those of modules with loaded weights,
        and how epochs are divided into steps."""
        checkpoint[PARAMETERS] = parameter_names(self.trainer.optimizers[0], self.model)
        checkpoint[LOADED] = loaded_modules(self.model)
        checkpoint[DIVISION] = division_of(self.batches())

    def on_load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Apply the settings of a resumed run, which may differ from those of the checkpoint."""
        follow_accumulation(checkpoint, self.config.accumulate)
        share = self._make_schedule()(checkpoint["lr_schedulers"][0]["last_epoch"])
        follow_settings(checkpoint, build_optimizer(self.model, self.config), self.model, share)

    def on_fit_start(self) -> None:
        """Check the BatchNorm policy; compile in place, which keeps the names of the weights."""
        config = self.config
        # norms that are trained beside frozen ones share their statistics over all processes
        devices = 1 if config.norm == "frozen" else self.trainer.world_size
        images = config.batch_size // (config.accumulate * devices)
        check_norm_policy(config.norm, images, self.on_gpu, has_batch_norms(self.model))
        if self.config.compile:
            say = print if self.trainer.is_global_zero else str
            compile_network(self.model, self.trainer.strategy.root_device, say)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set training mode, except for frozen BatchNorms.

        The modes are checked before each batch, since Lightning skips `on_train_epoch_start` when it resumes inside an
        epoch, but set only where they have changed: that of every module takes milliseconds.
        """
        if self._frozen_norms is None or not self.model.training or any(norm.training for norm in self._frozen_norms):
            self.model.train()
            self._frozen_norms = hold_norms(self.model)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch to the device, with images in the memory format of the network."""
        batch = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return self.in_memory_order(batch)

    def in_memory_order(self, batch: Batch) -> Batch:
        """Convert the images to NHWC memory format if `channels_last` is set."""
        image = batch.get("image")
        if self.config.channels_last and isinstance(image, Tensor) and image.ndim == 4:
            batch["image"] = image.contiguous(memory_format=torch.channels_last)
        return batch

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return the loss of one batch."""
        seed = np.random.SeedSequence([self.config.seed, self.current_epoch, batch_index, self.global_rank])
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))
        self.bad_images.update(name for name in batch.get("bad", ()) if name)
        first = batch_index % self.config.accumulate == 0
        losses = self._losses_of(batch, first and self.logs_now())
        loss = torch.stack(list(losses.values())).sum()
        if first:
            self._losses.clear()
        parts = {name: value.detach() for name, value in losses.items()} if len(losses) > 1 else {}
        self._losses.append(parts | {"loss": loss.detach()})
        return loss

    def _losses_of(self, batch: Batch, watch: bool) -> dict[str, Tensor]:
        """Return the losses of a batch; with `watch`, record the gradient norm of each head at the trunk."""
        if not watch or len(self.model.heads) < 2 or self.config.compile:
            return self.job.losses(self.model, batch, self.current_epoch)
        gradients = TrunkGradients(self.model)
        with gradients.watching():
            losses = self.job.losses(self.model, batch, self.current_epoch)
        self._pulls = gradients.squares(losses)
        return losses

    def logs_now(self) -> bool:
        """Whether metrics of the current optimizer step are logged.

        If an epoch is shorter than `log_every`, its last step is logged.
        """
        step, every = self.global_step + 1, self.config.log_every
        return step == 1 or step % every == 0 or (self._steps < every and step % self._steps == 0)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log loss, gradient norm and learning rate; gradients are accumulated and not yet clipped here."""
        step = self.global_step + 1
        losses = mean_losses(self._losses)
        self._check_loss(step, losses["loss"])
        if not self.logs_now():
            return
        losses |= self._pulls
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        if self.trainer.world_size > 1:
            losses = {n: self.trainer.strategy.reduce(v.clone(), reduce_op="mean") for n, v in losses.items()}
        losses |= {n: norm_over_processes(losses[n], self.trainer.world_size) for n in self._pulls}
        if self.trainer.is_global_zero:
            rate = max(group["lr"] for group in optimizer.param_groups)
            values = {name: float(value) for name, value in losses.items()}
            self.publish(step, self.current_epoch + 1, "train", {**values, "lr": rate, "grad_norm": float(norm)})

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the norm of all gradients; Lightning's own refuses fused optimizers under autocast, in bf16 too."""
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), gradient_clip_val)

    def publish(self, step: int, epoch: int, split: str, values: dict[str, float]) -> None:
        """Write metrics to metrics.csv and to the loggers of the settings; epochs in files count from 1."""
        self.log_file.write(step, epoch, split, values)
        for logger in self.trainer.loggers:
            logger.log_metrics({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def _check_loss(self, step: int, loss: Tensor) -> None:
        """Stop if the loss is not finite. On a GPU the previous step is checked, to avoid waiting for the current
        one."""
        late, self._unchecked = self._unchecked, (step, loss)
        self.stop_on_nan(late if self.on_gpu else self._unchecked)

    def stop_on_nan(self, entry: tuple[int, Tensor] | None = None) -> None:
        """Raise if the loss of a step is not finite; by default that of the latest step.

        Raises:
            FishnetError: The loss is not finite; checkpoints of earlier steps are kept.
        """
        entry = entry or self._unchecked
        if entry is not None and not bool(torch.isfinite(entry[1])):
            raise FishnetError(
                f"loss is {float(entry[1])} at step {entry[0]} (epoch {self.current_epoch + 1}); checkpoints hold an "
                f"earlier state. Try a lower --lr, --optim.clip-grad 1, or --precision bf16 or fp32"
            )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Run the optimizer step and update the EMA."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model, step=self.trainer.global_step)

    def recent_loss(self) -> float:
        """Return the mean loss of the optimizer step in progress."""
        losses = [part["loss"] for part in self._losses]
        return float(torch.stack(losses).mean()) if losses else math.nan

    def _make_val_loader(self) -> DataLoader[Batch]:
        """Return the validation loader of this process; its workers are kept for the next validation."""
        config, world = self.config, self.trainer.world_size
        length = len(self.job.val_data)
        batches = EvalBatches(length, max(1, config.batch_size // world), self.trainer.global_rank, world)
        collate = self.job.task.collate
        return make_loader(self.job.val_data, batches, config.workers, self.on_gpu, config.worker_start, collate)

    @property
    def display(self) -> Display:
        """Presentation of evaluations in reports, and the metric that selects the best epoch."""
        return get_task(self.job.task.card.task).display

    def deciding(self, metrics: Collection[str]) -> str:
        """Return the name of the metric that selects the best epoch.

        Args:
            metrics: Names of the metrics of an evaluation.

        Raises:
            FishnetError: The evaluation lacks the metric that the settings name.
        """
        best = self.config.best
        if best is not None and best not in metrics:  # such as mask_ap on a split without outlines
            raise FishnetError(f"best: {best!r} cannot be computed on the validation split; choose another metric")
        return best or self.display.primary_of(metrics)

    def evaluate_split(self, progress: bool = True) -> Evaluation:
        """Evaluate the network on the validation split, over all processes, in the precision of training."""
        task = self.job.task
        share_buffers(self)
        loader = self._val_loader = self._val_loader or self._make_val_loader()
        evaluator = task.evaluator(self.job.val_data, self.device)

        def batches() -> Iterator[Batch]:
            for batch in with_progress(reraise_plainly(iter(loader)), len(loader), "validating", progress):
                self.bad_images.update(name for name in batch.get("bad", ()) if name)
                yield batch

        network = self.evaluated_model
        with evaluation_mode(network):
            runtime = TorchRuntime(network, self.device, self.config.precision)
            return evaluate_network(task, runtime, batches(), evaluator)


def mean_losses(batches: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of each loss over the accumulated batches that have it.

    A batch lacks the losses of a head if none of its images is labeled for the head.
    """
    names = dict.fromkeys(name for losses in batches for name in losses)
    return {name: torch.stack([losses[name] for losses in batches if name in losses]).mean() for name in names}


def build_model(job: Training, fresh: bool = False) -> Network:
    """Return the network of a training, on the CPU, with its initial weights.

    Args:
        job: What to train.
        fresh: Whether to skip loading the initial weights.
    """
    config = job.config
    torch.manual_seed(config.seed)
    weights = None if fresh else config.weights
    network = build_network(job.architecture(), weights, config.preprocess.mean, config.preprocess.std)
    start_heads(network, weights, job.card())
    return network


def share_buffers(module: nn.Module) -> None:
    """Broadcast the buffers (BatchNorm statistics and counters) of the first process.

    Each process updates its own buffers from its part of a batch, and the EMA follows them. DDP overwrites them with
    those of the first process before every forward pass, so that those of the first process are the running statistics
    of the run, and the only ones in a checkpoint. Broadcasting makes the evaluated network identical to the saved one
    without changing the training; averaging over processes would change it.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, src=0)
