"""The settings of a run as plain typed dataclasses; recipes are YAML files of these and name no class to import.

`TrainConfig` is what `config.yaml` in a run folder holds. Every field can be set from a recipe and overridden from
the command line (`--augment.mixup 0.2`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Interpolation = Literal["nearest", "bilinear", "bicubic"]


@dataclass
class AugmentConfig:
    """How training images are cropped, coloured and mixed."""

    crop: Literal["random_resized", "pad", "resize"] = "random_resized"
    """random_resized: a random part, resized; pad: reflect-pad by `pad`, then a random crop; resize: the whole."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Area of the part that random_resized takes, as shares of the image."""
    ratio: tuple[float, float] = (0.75, 4 / 3)
    """Aspect ratio of the part that random_resized takes."""
    pad: int = 4
    """Pixels added on each side for crop = pad (at the training size)."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    color_jitter: float = 0.0
    """Strength of brightness, contrast and saturation jitter."""
    lighting: float = 0.0
    """Standard deviation of the PCA lighting noise."""
    lighting_released: bool = False
    """Multiply the eigenvectors along the axis that the released recipe used (the wrong one), to reproduce it."""
    rand_augment: str | None = None
    """A timm policy such as `rand-m9-mstd0.5-inc1`, or nothing."""
    random_erasing: float = 0.0
    """Probability of erasing a rectangle."""
    grow_from: int | None = None
    """Side in pixels of the first epochs' images, which then grow to `size`; nothing: all epochs at `size`."""
    grow_share: float = 0.9
    """Share of the epochs after which the images have reached `size`."""
    mixup: float = 0.0
    """Alpha of mixup; 0 turns it off."""
    cutmix: float = 0.0
    """Alpha of cutmix; 0 turns it off."""
    mix_probability: float = 1.0
    """Probability that a batch is mixed at all."""
    mix_off_epochs: int = 0
    """Number of last epochs without mixing."""


@dataclass
class PreprocessConfig:
    """How an image becomes a tensor when a model is judged or used."""

    crop_pct: float = 0.875
    """Share of the resized image that the centre crop keeps; 1 takes all of it."""
    interpolation: Interpolation = "bilinear"
    """Filter used for resizing."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Channel means, for images scaled to 0..1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Channel standard deviations, for images scaled to 0..1."""


@dataclass
class OptimConfig:
    """The optimizer and its schedule."""

    name: Literal["sgd", "adamw", "lamb"] = "sgd"
    """Optimizer."""
    lr: float = 0.1
    """Learning rate per 256 images of global batch; scaled linearly. `--lr` sets the final value instead."""
    momentum: float = 0.9
    """Momentum of SGD, beta1 of the others."""
    nesterov: bool = False
    """Nesterov momentum (SGD)."""
    weight_decay: float = 1e-4
    """Weight decay."""
    decay_all: bool = True
    """Decay every parameter, as the released recipe does; false leaves out norms and biases."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """Course of the learning rate after the warm-up, updated at every optimizer step."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from near zero."""
    final_lr: float = 0.0
    """Share of the base rate at which cosine ends."""
    step_epochs: int = 30
    """Epochs between two drops of `step`."""
    step_at: list[int] = field(default_factory=list)
    """Epochs after which `step` drops, instead of regular ones."""
    step_gamma: float = 0.1
    """Factor of each drop of `step`."""
    layer_decay: float | None = None
    """Factor by which the rate falls per layer group from the classifier down to the stem; nothing: one rate."""
    clip_grad: float | None = None
    """Largest norm of the whole gradient; nothing: no clipping."""


@dataclass
class PyramidConfig:
    """Maps of strides 4 to 32 for region- and pixel-level heads."""

    taps: Literal["head", "body", "tail"] = "head"
    """Stages of a fish that make the pyramid."""
    neck: Literal["fpn", "none"] = "fpn"
    """Feature pyramid network, or 1x1 projections only."""
    norm_relu: bool | None = None
    """BatchNorm and ReLU in front of the neck; nothing: where the maps are raw sums, as a fish's are."""


@dataclass
class HeadsConfig:
    """Sizes of a detector's neck and heads; what is left out comes from the preset."""

    preset: Literal["auto", "nano", "tiny", "small", "base"] = "auto"
    """auto: by the size of the trunk; base: torchvision's sizes."""
    width: int | None = None
    """Channels of the pyramid's maps."""
    box_width: int | None = None
    """Units of the two layers of the box head."""
    mask_width: int | None = None
    """Channels of the mask head's convolutions."""
    mask_layers: int | None = None
    """Convolutions of the mask head before its up-sampling."""
    keypoint_width: int | None = None
    """Channels of the keypoint head's convolutions."""
    tower_layers: int | None = None
    """Convolutions of the towers of RetinaNet and FCOS."""
    proposals: int | None = None
    """Regions per image that the first stage hands on (twice as many in training)."""
    samples: int | None = None
    """Regions per image that the second stage is trained on."""
    anchor_scale: float | None = None
    """Side of a level's anchors in strides of the level."""
    aspect_ratios: list[float] | None = None
    """Height over width of the anchors."""
    score: float | None = None
    """Smallest score of a detection."""
    nms: float | None = None
    """Overlap above which the weaker of two detections of one class falls away."""
    detections: int | None = None
    """Most detections per image."""


@dataclass
class RegionAugmentConfig:
    """How training images with boxes are cropped, scaled, coloured and mixed."""

    flip: float = 0.5
    """Probability of a horizontal flip."""
    short_edges: list[int] = field(default_factory=list)
    """Lengths of the shorter side of which one is drawn; none: always `size`."""
    scale_jitter: tuple[float, float] | None = None
    """Range of scales, such as [0.1, 2.0], of images then cut or padded to a square of side `size`."""
    photometric: bool = False
    """Random brightness, contrast, saturation and hue."""
    iou_crop: bool = False
    """Random part of the image that keeps some object."""
    copy_paste: float = 0.0
    """Probability of pasting objects of another image (needs masks)."""
    mosaic: float = 0.0
    """Probability of a square of four images."""
    mix_off_epochs: int = 0
    """Number of last epochs without mosaic and copy-paste."""
    repeat_threshold: float = 0.0
    """Classes in fewer than this share of the images are shown more often; 0: all images once per epoch."""
    group_by_aspect: bool = True
    """Batches of images that are all wide or all tall, so that little of a batch is padding."""


@dataclass
class TrainConfig:
    """Everything that repeats a training run."""

    data: str = ""
    """Folder of the data set."""
    model: str = "fishnet99"
    """A member of the fish family or any timm backbone."""
    out: str = ""
    """Run folder to write."""
    model_option: dict[str, Any] = field(default_factory=dict)
    """Keywords of the model, such as stem_stride=1 or drop_path_rate=0.1."""
    weights: str | None = None
    """Checkpoint, run folder or tag (osmr_in1k) to start from, or pretrained for the published weights of the model; a
    classifier of another size is left out."""
    freeze: list[str] = field(default_factory=list)
    """Parts of the model that stay as they are, by name from the stem up, such as stem, tail, bridge."""
    epochs: int = 100
    """Passes over the training split."""
    batch_size: int = 256
    """Images per optimizer step, over all devices and accumulated batches."""
    accumulate: int = 1
    """Batches that one optimizer step is cut into, on every device."""
    lr: float | None = None
    """Final learning rate; overrides optim.lr and its scaling with the batch size."""
    size: int = 224
    """Side of the training images in pixels."""
    seed: int = 0
    """Seed of every random draw."""
    devices: int = 1
    """Processes (CPU) or GPUs per node."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to run."""
    nodes: int = 1
    """Machines, when started by torchrun or SLURM on each."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of forward and backward; weights stay in fp32."""
    compile: bool = False
    """Compile the model with torch.compile."""
    channels_last: bool = True
    """Keep images and weights in NHWC memory order."""
    checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    workers: int = 2
    """Processes that load images, per device."""
    worker_start: Literal["default", "fork", "spawn", "forkserver"] = "default"
    """How these processes start; default is the platform's way."""
    cache: bool = False
    """Keep decoded images in memory, per loading process; for small data sets."""
    bad_images: Literal["stop", "skip"] = "stop"
    """What to do with an image that cannot be read: stop with its path, or leave it out and list it."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weigh each class by the inverse of its frequency."""
    drop_rate: float = 0.0
    """Dropout before the classifier."""
    ema: float | None = None
    """Decay of the moving average of the weights, per optimizer step; nothing: none kept."""
    norm: Literal["train", "frozen", "sync", "group"] = "train"
    """BatchNorms: train; freeze those that came with weights; share statistics over GPUs; group norms instead."""
    detector: Literal[
        "faster_rcnn", "mask_rcnn", "keypoint_rcnn", "retinanet", "fcos", "cascade_rcnn", "cascade_mask_rcnn"
    ] = "mask_rcnn"
    """What is built on the backbone for detection."""
    longest: int = 1333
    """Bound of the longer side of an image in pixels (detection; `size` is the shorter side)."""
    checkpoint_minutes: float = 5.0
    """Longest time between two checkpoints."""
    log_every: int = 10
    """Optimizer steps between two rows of training metrics."""
    validate_every: int = 1
    """Epochs between two validations; the last epoch always gets one."""
    max_steps: int | None = None
    """Stop after this many optimizer steps, for trials."""
    tensorboard: bool = False
    """Also write TensorBoard events into the run folder."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    pyramid: PyramidConfig = field(default_factory=PyramidConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    region: RegionAugmentConfig = field(default_factory=RegionAugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
