"""A task of another package: the brightness of a photo, a number between 0 and 1, with data, head and figures of its
own.

It is found through the entry point that `install` writes, as that of an installed package would be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from fishnet.cards import HeadCard, ModelCard
from fishnet.config import NOT_NEGATIVE, Rules, TrainConfig
from fishnet.data.checks import CheckReport
from fishnet.deploy.difference import Difference, largest
from fishnet.deploy.heads.registry import HeadExport, register_export
from fishnet.drawing.display import Display, Score, Section, Table
from fishnet.models.build import Architecture, HeadKind, register_head
from fishnet.models.heads.types import Answers, Frame, Maps, Mean, Means, Raw
from fishnet.models.network import Images, Network
from fishnet.models.pyramid import Pyramid
from fishnet.models.trunk import Trunk
from fishnet.tasks.base import Answer, Batch, DrawnItem, Entry, RecipeChoice, Runtime, TaskKind, TrainOrder
from tests.toy.data import Photos
from tests.toy.decoder import TYPE

HEAD = "light"


@dataclass(frozen=True)
class BrightnessPlan:
    """What builds the head."""

    kind: str = "brightness"
    width: int = 16
    loss: str = "l1"


class BrightnessHead(nn.Module):
    """Finest map -> one number per image."""

    def __init__(self, plan: BrightnessPlan) -> None:
        super().__init__()
        self.plan, self.last = plan, nn.Linear(plan.width, 1)

    def raw(self, features: Maps) -> Raw:
        return {"value": self.last(next(iter(features.values())).mean((2, 3)).float())[:, 0]}

    loss_names = ("loss",)

    def losses(self, raw: Raw, frame: Frame, targets: Tensor) -> Means:
        loss = nn.functional.l1_loss if self.plan.loss == "l1" else nn.functional.mse_loss
        return {"loss": Mean(loss(raw["value"], targets.float()), len(targets))}

    def decode(self, raw: Raw, frame: Frame) -> list[Tensor]:
        return list(raw["value"])


class BrightnessExport(HeadExport[BrightnessHead, Tensor]):
    """One number per image."""

    def spec(self, head: BrightnessHead, classes: list[str]) -> dict[str, Any]:
        return {"type": TYPE}

    def compare(self, found: Difference, wanted: Tensor, got: Tensor, spec: dict[str, Any], precision: str) -> None:
        found.score = largest(found.score, float((wanted - got).abs()))


register_export(BrightnessHead, BrightnessExport())


def build_head(plan: BrightnessPlan, trunk: Trunk) -> tuple[Pyramid, nn.Module]:
    return Pyramid(trunk, plan.width, "none"), BrightnessHead(plan)


register_head("brightness", HeadKind(BrightnessPlan, build_head))


@dataclass
class BrightnessConfig(TrainConfig):
    """Settings of a run that learns the brightness of photos."""

    jitter: float = 0.0
    """Standard deviation of the random change of brightness."""
    loss: Literal["l1", "l2"] = "l1"
    """Loss function."""

    RULES: ClassVar[Rules] = {NOT_NEGATIVE: "jitter"}


@dataclass
class ScaleOptions:
    """Scale of the answers."""

    factor: float = 1.0
    """Factor of every answer."""
    unit: str | None = None
    """Unit behind every answer."""


@dataclass
class BrightnessOptions:
    """How the model answers."""

    digits: int = 3
    """Digits behind the point."""
    scale: ScaleOptions = field(default_factory=ScaleOptions)
    score: bool = False
    """Say how sure the answer is; detection has an option of that name that is a number."""


@dataclass
class BrightnessEvaluation:
    metrics: dict[str, float]
    images: int
    pairs: list[tuple[float, float]]

    def to_dict(self) -> dict[str, Any]:
        return {"metrics": self.metrics, "images": self.images, "pairs": self.pairs}


class BrightnessEvaluator:
    def __init__(self) -> None:
        self.pairs: list[tuple[float, float]] = []

    def compute(self) -> BrightnessEvaluation:
        errors = np.abs([found - true for found, true in self.pairs])
        metrics = {"within": float((errors < 0.1).mean()), "error": float(errors.mean())}
        return BrightnessEvaluation(metrics, len(self.pairs), sorted(self.pairs))


def sections(evaluation: Mapping[str, Any]) -> list[Section]:
    rows = [[found, true] for found, true in evaluation.get("pairs", [])]
    return [Section("Found and true brightness", Table(["found", "true"], ["found", "true"], rows))]


DISPLAY = Display(
    scores={"within": Score("share within 0.1", curve=True), "error": Score("mean error", smaller_is_better=True)},
    primary=("within",),
    fractions=frozenset({"within"}),
    sections=sections,
)


class Swatches:
    """A PNG per image, the answer written on it."""

    patterns: tuple[str, ...] = ("*_swatch.png",)

    def __init__(self, out: Path) -> None:
        self.out = out
        self.written: list[Path] = []
        self.drawn = 0

    def thumbnail(self, image: Image.Image) -> Image.Image:
        return image

    def wants(self, index: int) -> bool:
        return True

    def add(self, item: DrawnItem, answer: Answer) -> None:
        assert item["thumbnail"] is not None
        ImageDraw.Draw(item["thumbnail"]).text((0, 0), str(answer["brightness"]))
        path = self.out / f"{Path(item['file']).stem}_swatch.png"
        item["thumbnail"].save(path)
        self.written.append(path)
        self.drawn += 1

    def frame(self, image: Image.Image, answer: Answer) -> Image.Image:
        ImageDraw.Draw(image).text((0, 0), str(answer["brightness"]))
        return image

    def finish(self) -> None:
        pass


class BrightnessTask:
    collate = None
    metrics = ("within", "error")

    def __init__(self, card: ModelCard, options: BrightnessOptions | None = None) -> None:
        self.card, self.options = card, options or BrightnessOptions()

    def open_split(self, root: Path, split: str, bad_images: str) -> Photos:
        return Photos(root, split)

    def evaluator(self, dataset: Photos, device: torch.device) -> BrightnessEvaluator:
        return BrightnessEvaluator()

    def network_inputs(self, batch: Batch) -> Tensor:
        return batch["image"]

    def run(self, runtime: Runtime, images: Images, batch: Batch) -> Answers:
        return runtime(images)

    def update(self, evaluator: BrightnessEvaluator, answers: Answers, batch: Batch) -> None:
        evaluator.pairs += zip(torch.stack(answers[HEAD]).tolist(), batch["target"].tolist(), strict=True)

    def describe(self, evaluation: BrightnessEvaluation) -> list[str]:
        return [f"  within 0.1: {evaluation.metrics['within']:.1%}"]

    def pictures(self, evaluation: BrightnessEvaluation) -> Mapping[str, Any]:
        return {}

    def documents(self, evaluator: BrightnessEvaluator) -> Mapping[str, Any]:
        return {"pairs": evaluator.pairs}

    about: ClassVar[dict[str, Any]] = {"unit": "fraction of white"}

    def prepare(self, image: Image.Image) -> Tensor:
        return self.transform(image)

    def transform(self, image: Image.Image) -> Tensor:
        size = (self.card.size, self.card.size)
        return torch.from_numpy(np.array(image.resize(size))).permute(2, 0, 1).float() / 255

    def answer(self, runtime: Runtime, prepared: Sequence[Tensor]) -> list[Answer]:
        values = runtime(torch.stack(list(prepared)))[HEAD]
        scale = self.options.scale
        more = ({"unit": scale.unit} if scale.unit else {}) | ({"score": 1.0} if self.options.score else {})
        return [{"brightness": round(scale.factor * float(value), self.options.digits), **more} for value in values]

    def entry(self, answer: Answer) -> Entry:
        return dict(answer)

    def headline(self, entry: Entry) -> str:
        return f"brightness {entry['brightness']}"

    def painter(self, out: Path, images: int) -> Swatches:
        return Swatches(out)

    def draw_examples(self, runtime: Runtime, dataset: Photos) -> Image.Image:
        return Image.new("RGB", (40, 40), "white")


class BrightnessTraining:
    def __init__(self, config: BrightnessConfig) -> None:
        self.config = config
        self.train_data = Photos(Path(config.data), "train", config.seed, config.jitter)
        self.val_data = Photos(Path(config.data), "val")

    @cached_property
    def task(self) -> BrightnessTask:
        return BrightnessTask(self.card())

    def train_order(self) -> TrainOrder:
        return {}

    def architecture(self) -> Architecture:
        plan = BrightnessPlan(loss=self.config.loss)
        return Architecture(self.config.model, {HEAD: plan}, dict(self.config.model_option))

    def card(self) -> ModelCard:
        heads = {HEAD: HeadCard()}
        return ModelCard("brightness", self.architecture(), heads, self.config.size, self.config.preprocess)

    def losses(self, network: Network, batch: Batch, epoch: int) -> dict[str, Tensor]:
        return network(batch["image"], {HEAD: batch["target"]})

    def draw_batch(self, batch: Batch) -> Image.Image:
        return Image.new("RGB", (40, 40), "black")

    def fingerprint(self) -> dict[str, Any]:
        return {"train": [path.name for path in self.train_data.files]}


def choose_recipe(settings: Mapping[str, Any]) -> RecipeChoice:
    return RecipeChoice("bright", "there is no other")


def check_photos(root: Path, darkest: float = 0.0) -> CheckReport:
    """Look for photos that are too dark.

    Args:
        root: Folder of the data.
        darkest: Smallest brightness that is fine.
    """
    report = CheckReport(root, [], kinds={"dark": ("error", "dark photos")})
    for path in sorted(root.glob("*/*.png")):
        if int(path.stem) / 100 < darkest:
            report.add("dark", path.name, "")
    return report


def describe_preprocessing(card: ModelCard) -> dict[str, Any]:
    """Say how `transform` prepares an image; its photos are squares, and it does not normalize them."""
    kind = {"kind": "square", "crop_pct": 1.0, "interpolation": "bicubic"}
    return {**kind, "size": card.size, "mean": [0.0] * 3, "std": [1.0] * 3}


TASK = TaskKind(
    name="brightness",
    summary="how bright a photo is",
    config=BrightnessConfig,
    options=BrightnessOptions,
    make_training=BrightnessTraining,
    make_task=BrightnessTask,
    recipes="tests.toy.recipes",
    choose_recipe=choose_recipe,
    batch_size=4,
    display=DISPLAY,
    check_data=check_photos,
    preprocessing=describe_preprocessing,
)


def install(folder: Path) -> Path:
    """Write the metadata of an installed package with this task; `folder` on the path makes it known."""
    about = folder / "toy_task-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-task\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[fishnet.tasks]\nbrightness = tests.toy.task:TASK\n")
    return folder
