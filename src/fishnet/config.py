"""Settings that all training runs share, as typed dataclasses.

A task adds its own settings in a subclass of `TrainConfig`. Recipes are YAML files of these fields and name no class to
import; every field can be overridden from the command line (`--optim.lr 0.2`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from fishnet.errors import UsageError

Interpolation = Literal["nearest", "bilinear", "bicubic"]
Keywords = dict[str, Any]
"""Keyword arguments of a network or one of its parts, by name."""


class Rule(NamedTuple):
    """Constraint on a number, or on every number of a list."""

    text: str
    """End of the error message "it ..."."""
    holds: Callable[[float], bool]


Rules = Mapping[Rule, str]
"""Rules of a dataclass, with the names of the fields that each applies to, separated by spaces."""
AT_LEAST_1 = Rule("must be at least 1", lambda value: value >= 1)
NOT_NEGATIVE = Rule("must not be negative", lambda value: value >= 0)
POSITIVE = Rule("must be positive", lambda value: value > 0)
PROBABILITY = Rule("must be between 0 and 1", lambda value: 0 <= value <= 1)
BELOW_1 = Rule("must be at least 0 and below 1", lambda value: 0 <= value < 1)
DECAY = Rule("must be between 0 and 1, such as 0.999", lambda value: 0 < value < 1)


@dataclass
class NormalizeConfig:
    """Channel statistics that images are normalized with."""

    mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN
    """Channel means, for images in 0..1."""
    std: tuple[float, float, float] = IMAGENET_DEFAULT_STD
    """Channel standard deviations, for images in 0..1."""


@dataclass
class PreprocessConfig(NormalizeConfig):
    """Preprocessing of images in evaluation and prediction: resize, then a square center crop."""

    crop_pct: float = 0.875
    """Fraction of the resized image that the center crop keeps; 1 keeps all of it."""
    interpolation: Interpolation = "bilinear"
    """Interpolation of the resize."""


@dataclass
class PyramidConfig:
    """Feature pyramid with strides 4 to 32, for heads that take maps."""

    taps: Literal["head", "body", "tail"] = "head"
    """Part of a FishNet that the maps are taken from."""
    neck: Literal["fpn", "none"] = "fpn"
    """fpn: feature pyramid network; none: 1x1 projections only."""
    norm_relu: bool | None = None
    """BatchNorm and ReLU before the neck; None: only if the maps are raw sums, as those of a FishNet."""


@dataclass
class OptimConfig:
    """The optimizer and its schedule."""

    name: str = "sgd"
    """Optimizer to train with: sgd, adamw, lamb, or any of timm's (fishnet info optimizers)."""
    lr: float = 0.1
    """Learning rate for a batch of 256 images, scaled linearly with the batch size; --lr sets the final rate
    instead."""
    momentum: float = 0.9
    """Momentum of the optimizer, such as SGD; beta1 of optimizers of the Adam family."""
    nesterov: bool = False
    """Nesterov momentum (SGD)."""
    weight_decay: float = 1e-4
    """Weight decay."""
    decay_all: bool = True
    """Apply weight decay to norms and biases too, as the released recipe does."""
    schedule: Literal["cosine", "step", "poly", "constant"] = "cosine"
    """Learning rate schedule after the warm-up, updated at every optimizer step."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from near zero."""
    final_lr: float = 0.0
    """Final learning rate of cosine and poly, as a fraction of the base rate."""
    power: float = 0.9
    """Exponent of the poly schedule."""
    step_epochs: int = 30
    """Epochs between two decays of the step schedule."""
    step_at: list[int] = field(default_factory=list)
    """Epochs after which the step schedule decays, instead of every step_epochs."""
    step_gamma: float = 0.1
    """Factor of each decay of the step schedule."""
    layer_decay: float | None = None
    """Layer-wise learning rate decay: factor per layer group, from the last layer to the stem; None disables it."""
    part_lr: list[str] = field(default_factory=list)
    """Factors of the learning rates of parts of the model, such as trunk=0.1 or heads.region=0.25; of nested parts, the
    inner one counts."""
    clip_grad: float | None = None
    """Maximum norm of the gradient; None disables clipping."""

    RULES: ClassVar[Rules] = {
        AT_LEAST_1: "step_epochs step_at",
        NOT_NEGATIVE: "weight_decay warmup_epochs final_lr",
        POSITIVE: "lr power step_gamma layer_decay clip_grad",
        BELOW_1: "momentum",
    }


@dataclass
class TrainConfig:
    """Settings of every training run."""

    data: str = ""
    """Folder of the data set."""
    model: str = "fishnet99"
    """Backbone: a member of the FishNet family or any timm model."""
    out: str = ""
    """Run folder to write; by default the next of runs/train, runs/train2, ..."""
    model_option: Keywords = field(default_factory=dict)
    """Keyword arguments of the backbone, such as stem_stride=1 or drop_path_rate=0.1."""
    weights: str | None = None
    """Weights to start from: a run folder, a checkpoint, a tag such as osmr_in1k, or "pretrained" to download those
    that timm or this library publishes for --model. Heads that do not fit are
    initialized randomly."""
    freeze: list[str] = field(default_factory=list)
    """Parts of the model that are not trained, such as stem, tail or heads.region."""
    epochs: int = 100
    """Number of training epochs."""
    batch_size: int = 256
    """Images per optimizer step, over all devices and accumulated batches."""
    accumulate: int = 1
    """Batches per optimizer step on every device; gradients are accumulated."""
    lr: float | None = None
    """Peak learning rate; overrides optim.lr and its scaling with the batch size."""
    size: int = 224
    """Size of the training images in pixels."""
    seed: int = 0
    """Seed of all random numbers."""
    devices: int = 1
    """Processes (CPU) or GPUs per node."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Hardware to train on; auto uses CUDA GPUs if there are any."""
    nodes: int = 1
    """Number of machines; torchrun or SLURM starts the command on each."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """Numerical precision of the forward and backward pass; weights stay in fp32. auto selects the fastest on this
    machine."""
    compile: bool = False
    """Compile the network with torch.compile at the first batch, which takes minutes; losses are not compiled."""
    channels_last: bool = True
    """Keep images and weights in NHWC memory format."""
    memory: Literal["fast", "balanced", "saver"] = "fast"
    """Activations that the trunk keeps for the backward pass: all (fast), those that are expensive to recompute
    (balanced), or only the inputs of its stages (saver: least memory, 25 to 50 percent slower)."""
    workers: int = 2
    """Worker processes that load images, per device."""
    worker_start: Literal["default", "fork", "spawn", "forkserver"] = "default"
    """How worker processes are started."""
    bad_images: Literal["stop", "skip"] = "stop"
    """Unreadable images: stop at the first, or skip them and list them in bad_images.txt."""
    ema: float | None = None
    """EMA decay of the weights per optimizer step, such as 0.999; None disables it. It is warmed up: at step n, counted
    from 0, it is at most 1 - n^(-2/3), and 0 at the first two."""
    norm: Literal["train", "frozen", "sync", "group"] = "train"
    """BatchNorm layers: train them; freeze those with loaded weights; synchronize them across GPUs; or replace them by
    GroupNorm."""
    checkpoint_minutes: float = 5.0
    """Maximum time between two checkpoints, in minutes."""
    log_every: int = 10
    """Optimizer steps between two rows of training metrics."""
    validate_every: int = 1
    """Epochs between two validations; the last epoch is always validated."""
    best: str | None = None
    """Validation metric used to select the best epoch, such as loss or box_ap50; None: the main one of the task, such
    as top1 or mask_ap."""
    patience: int | None = None
    """Early stopping: number of validations without improvement; None trains all epochs."""
    max_steps: int | None = None
    """Stop after this number of optimizer steps, for short trials; None trains all epochs."""
    save_every: int | None = None
    """Save the weights of every N-th epoch to RUN/checkpoints/epoch_NNN.safetensors; None keeps only the best."""
    loggers: list[Literal["tensorboard", "wandb", "mlflow"]] = field(default_factory=list)
    """Tools that metrics are logged to besides metrics.csv; each needs the extra of its name."""
    preprocess: NormalizeConfig = field(default_factory=NormalizeConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    RULES: ClassVar[Rules] = {
        AT_LEAST_1: "epochs batch_size accumulate size devices nodes log_every validate_every save_every max_steps "
        "patience",
        NOT_NEGATIVE: "workers checkpoint_minutes",
        POSITIVE: "lr",
        DECAY: "ema",
    }


SETTING_GROUPS = {
    "Common settings": (
        "data", "model", "out", "weights", "epochs", "batch_size", "lr", "size", "seed", "device", "devices",
        "precision",
    ),
    "Training": ("model_option", "freeze", "norm", "ema", "accumulate", "max_steps"),
    "Validation and logging": (
        "best", "patience", "validate_every", "log_every", "checkpoint_minutes", "save_every", "loggers",
    ),
    "Hardware and data loading": (
        "nodes", "compile", "channels_last", "memory", "workers", "worker_start", "bad_images",
    ),
}  # fmt: skip
"""How `fishnet train TASK --help` groups the fields of `TrainConfig`."""


def named_numbers(setting: str, texts: Sequence[str], default: float | None = None) -> dict[str, float]:
    """Return the numbers of a setting whose entries are texts of the form NAME=NUMBER.

    Args:
        setting: Name of the setting, for messages.
        texts: Entries.
        default: Number of entries that are only a name; None refuses them.

    Raises:
        UsageError: An entry has no number, or a name occurs twice.
    """
    numbers: dict[str, float] = {}
    for text in texts:
        name, equals, number = text.partition("=")
        name = name.strip()
        if name in numbers:
            raise UsageError(f"{setting} names {name} twice")
        try:
            numbers[name] = default if default is not None and not equals else float(number)
        except ValueError:
            raise UsageError(f"{setting}: {text!r} must be NAME=NUMBER, such as {name or 'NAME'}=0.5") from None
    return numbers
