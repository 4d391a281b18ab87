"""Checkpoints at optimizer steps, validation after epochs, and the best network."""

from __future__ import annotations

import shutil
import time

import pytorch_lightning as pl
import torch

from fishnet.cards import save_model
from fishnet.drawing.display import Display
from fishnet.environment import announce
from fishnet.errors import Interrupted
from fishnet.files import atomic_path, atomic_write, write_json
from fishnet.metrics import MetricsFile
from fishnet.models.distributed import largest
from fishnet.runs import RunFolder
from fishnet.tasks.base import Batch
from fishnet.training.module import TrainingModule, share_buffers
from fishnet.training.optimizer import Checkpoint
from fishnet.training.progress import Stopwatch, duration
from fishnet.training.signals import SignalWatch, resume_command


class RunKeeper(pl.Callback):
    """Saves checkpoints, validates after epochs, and keeps the best network.

    `last.ckpt` is written at optimizer steps, at least every `checkpoint_minutes`, and before and after a validation.
    A checkpoint records whether its validation is done; if not, a resumed run starts with the validation.

    Args:
        run: Run folder.
        minutes: Maximum time between two checkpoints.
    """

    def __init__(self, run: RunFolder, minutes: float):
        self.run, self.seconds = run, minutes * 60
        self.signals = SignalWatch(run)
        self.stopwatch = Stopwatch()
        self.timing = MetricsFile(run.timing_csv)
        self.metric: str | None = None  # which decides on the best epoch
        self.best: float | None = None
        self.best_epoch = -1
        self.worse = 0  # number of validations since the best one
        self.validated = True
        self.speed: float | None = None  # images per second of the latest epoch
        self.seconds_per_epoch = 0.0
        self._saved_step = -1
        self._saved_at = time.monotonic()

    def state_dict(self) -> Checkpoint:
        """Return the state to resume from."""
        return {
            "metric": self.metric, "best": self.best, "best_epoch": self.best_epoch, "worse": self.worse,
            "validated": self.validated,
        }  # fmt: skip

    def load_state_dict(self, state_dict: Checkpoint) -> None:
        """Restore the state of an interrupted run."""
        self.metric, self.best, self.best_epoch = (state_dict[name] for name in ("metric", "best", "best_epoch"))
        self.worse, self.validated = state_dict.get("worse", 0), state_dict["validated"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the signal handlers; run the validation that an interrupted run missed."""
        assert isinstance(pl_module, TrainingModule)
        self.signals.install()
        self._follow_metric(trainer, pl_module)
        if not self.validated:
            self._validate(trainer, pl_module, trainer.current_epoch - 1)
        self._stop_early(trainer, pl_module)
        self._stop_at_limit(trainer, pl_module)

    def _follow_metric(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Compare with the best value of the metric that decides now, if another one decided so far.

        That value counts only if the weights of its epoch are kept, which are those of the best epoch so far.
        """
        if self.metric is None:
            return
        earlier = MetricsFile(self.run.metrics_csv).by_epoch("val")
        names = {name for values in earlier.values() for name in values} or {self.metric}
        metric = module.deciding(names)
        if metric == self.metric:
            return
        display = module.display
        found: tuple[int, float] | None = None
        for epoch, values in earlier.items():
            if metric in values and display.is_better(metric, values[metric], found[1] if found else None):
                found = epoch - 1, values[metric]
        line = f"best: {display.title(metric)} decides from here on, not {display.title(self.metric)}; "
        self.metric = metric
        if found is not None and found[0] == self.best_epoch:
            self.best = found[1]
            line += f"best so far {display.text(metric, self.best)} (epoch {self.best_epoch + 1})"
        else:
            kept, self.best, self.best_epoch, self.worse = self.best_epoch, None, -1, 0
            lost = f"those of its best epoch so far ({found[0] + 1}) are not" if found else "none was measured by it"
            line += f"the weights of epoch {kept + 1} are kept, {lost}, so the next validation counts as the best"
        announce(line)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restart the stopwatch."""
        self.stopwatch.restart()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Measure the time spent waiting for data; draw the first batch."""
        assert isinstance(pl_module, TrainingModule)
        self.stopwatch.data_arrived()
        if trainer.global_step == 0 and batch_idx == 0 and trainer.is_global_zero:
            torch.manual_seed(pl_module.config.seed)
            first = {key: value.cpu() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
            with atomic_path(self.run.train_batch_png) as partial:
                pl_module.job.draw_batch(first).save(partial)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        """Save if it is time, at optimizer steps only; stop if a signal was received."""
        assert isinstance(pl_module, TrainingModule)
        self.stopwatch.batch_done()
        at_step = (batch_idx + 1) % pl_module.config.accumulate == 0
        at_limit = at_step and self._stop_at_limit(trainer, pl_module)
        if not at_step or trainer.is_last_batch:
            return
        signum = self._agreed_signal(trainer)
        if signum or at_limit or self._time_to_save(trainer, pl_module):
            self._save(trainer, pl_module)
        if signum:
            raise Interrupted(signum, resume_command(self.run))

    def _stop_at_limit(self, trainer: pl.Trainer, module: TrainingModule) -> bool:
        """End the training if it has the optimizer steps that the settings limit it to; return whether it has."""
        limit = module.config.max_steps
        reached = limit is not None and trainer.global_step >= limit
        trainer.should_stop = trainer.should_stop or reached
        return reached

    def _agreed_signal(self, trainer: pl.Trainer) -> int:
        """Return the signal that any process received, since all processes must stop at the same step."""
        return largest([self.signals.signum], trainer.strategy.root_device)[0]

    def _time_to_save(self, trainer: pl.Trainer, module: TrainingModule) -> bool:
        if trainer.world_size > 1 and trainer.global_step % module.config.log_every:
            return False  # agreement between processes needs communication, so that it is not checked at every step
        return bool(trainer.strategy.broadcast(time.monotonic() - self._saved_at >= self.seconds))

    def _save(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Write last.ckpt, unless the loss of the weights is NaN."""
        module.stop_on_nan()
        trainer.save_checkpoint(self.run.last)
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, validate, save the best network, and save again."""
        assert isinstance(pl_module, TrainingModule)
        cut_short = not trainer.is_last_batch
        self._note_timing(trainer, pl_module)
        if cut_short:  # max_steps inside an epoch
            return
        config, epoch = pl_module.config, trainer.current_epoch
        if config.save_every and (epoch + 1) % config.save_every == 0:
            self._keep_epoch(trainer, pl_module, epoch)
        due = (epoch + 1) % config.validate_every == 0 or epoch + 1 == config.epochs
        self.validated = not due
        self._save(trainer, pl_module)
        if signum := self._agreed_signal(trainer):
            raise Interrupted(signum, resume_command(self.run))
        if not due:
            self._tell_epoch(trainer, pl_module, epoch)
            return
        self._validate(trainer, pl_module, epoch)
        if signum := self._agreed_signal(trainer):
            raise Interrupted(signum, resume_command(self.run))
        self._stop_early(trainer, pl_module)

    def _keep_epoch(self, trainer: pl.Trainer, module: TrainingModule, epoch: int) -> None:
        """Write the weights of an epoch; a resumed run that repeats the end of the epoch writes the same again."""
        share_buffers(module)
        if trainer.is_global_zero:
            save_model(self.run.epoch_file(epoch + 1), module.evaluated_model, module.job.card())

    def _stop_early(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Stop training if `patience` validations have passed without improvement."""
        patience = module.config.patience
        if patience is not None and self.worse >= patience:
            trainer.should_stop = True
            announce(f"early stopping: no improvement since epoch {self.best_epoch + 1} (patience {patience})")

    def _note_timing(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        watch, batches = self.stopwatch, module.trainer.fit_loop.epoch_loop.batch_progress.current.completed
        seconds = max(1e-9, watch.mark - watch.begin)
        images = batches * module.config.batch_size / module.config.accumulate
        self.speed, self.seconds_per_epoch = images / seconds, seconds
        if trainer.is_global_zero:
            values = {"seconds": seconds, "images_per_second": self.speed, "data_wait_share": watch.waited / seconds}
            self.timing.write(trainer.global_step, trainer.current_epoch + 1, "train", values)

    def _validate(self, trainer: pl.Trainer, module: TrainingModule, epoch: int) -> None:
        started = time.perf_counter()
        evaluation = module.evaluate_split(progress=trainer.is_global_zero)
        self.metric = primary = module.deciding(evaluation.metrics)
        value = evaluation.metrics[primary]
        better = module.display.is_better(primary, value, self.best)
        self.worse = 0 if better else self.worse + 1
        if better:
            self.best, self.best_epoch = value, epoch
        if trainer.is_global_zero:
            module.publish(trainer.global_step, epoch + 1, "val", evaluation.metrics)
            self.timing.write(trainer.global_step, epoch + 1, "val", {"seconds": time.perf_counter() - started})
            if better:
                save_model(self.run.model_file, module.evaluated_model, module.job.card())
                content = {"split": "val", "epoch": epoch + 1, **evaluation.to_dict()}
                write_json(self.run.evaluation_json(), content)
            self._list_bad_images(module)
            self._tell(trainer, epoch, evaluation.metrics, module.display, primary)
        self.validated = True
        if not better:
            self._save(trainer, module)
            return
        # best.ckpt first: after a kill in between, last.ckpt is not yet validated, and the resumed run repeats this.
        trainer.save_checkpoint(self.run.best)
        if trainer.is_global_zero:
            with atomic_path(self.run.last) as partial:
                shutil.copyfile(self.run.best, partial)
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()

    def _list_bad_images(self, module: TrainingModule) -> None:
        if module.bad_images:
            known = self.run.bad_images_txt.read_text("utf-8").splitlines() if self.run.bad_images_txt.exists() else []
            atomic_write(self.run.bad_images_txt, "\n".join(sorted({*known, *module.bad_images})) + "\n")

    def _tell(self, trainer: pl.Trainer, epoch: int, metrics: dict[str, float], display: Display, primary: str) -> None:
        assert self.best is not None
        shown = [name for name in display.order(list(metrics)) if name in (primary, "loss")]
        figures = "  ".join(f"{display.title(name)} {display.text(name, metrics[name])}" for name in shown)
        best = f"best {display.text(primary, self.best)} (epoch {self.best_epoch + 1})"
        print(f"epoch {epoch + 1}/{trainer.max_epochs}  {figures}  {best}{self._pace(trainer, epoch)}", flush=True)

    def _tell_epoch(self, trainer: pl.Trainer, module: TrainingModule, epoch: int) -> None:
        """Print a line for an epoch without validation, unless there is a progress bar."""
        if trainer.is_global_zero and trainer.progress_bar_callback is None:
            loss = f"training loss {module.recent_loss():.3f} at the last step"
            print(f"epoch {epoch + 1}/{trainer.max_epochs}  {loss}{self._pace(trainer, epoch)}", flush=True)

    def _pace(self, trainer: pl.Trainer, epoch: int) -> str:
        """Return images per second, and the time that the training of the remaining epochs takes at this pace."""
        if self.speed is None:
            return ""
        remaining = (trainer.max_epochs or 0) - epoch - 1
        left = f"  {duration(remaining * self.seconds_per_epoch)} left" if remaining else ""
        return f"  {self.speed:{'.0f' if self.speed >= 10 else '.1f'}} images/s{left}"

    def finish(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Run a pending validation, and save the network of a run that was stopped by max_steps."""
        if not self.validated:
            self._validate(trainer, module, trainer.current_epoch - 1)
        if trainer.is_global_zero and not self.run.model_file.exists():
            save_model(self.run.model_file, module.evaluated_model, module.job.card())

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the signal handlers."""
        self.signals.restore()
