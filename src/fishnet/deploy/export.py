"""Export of a trained network to a folder with its graphs, their description, and a standalone runner."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image
from torch import nn

from fishnet.cards import ModelCard
from fishnet.deploy import convert, folder
from fishnet.deploy.convert import HALF, Format, Precision
from fishnet.deploy.difference import TOLERANCES, Difference
from fishnet.deploy.heads.registry import Part
from fishnet.deploy.parts import fused_for, head_specs, parts_of
from fishnet.deploy.quantize import Accuracy, AccuracyControl, quantize
from fishnet.deploy.verify import compare
from fishnet.errors import FishnetError, UsageError
from fishnet.exported import open_exported
from fishnet.files import Json
from fishnet.models.network import Network
from fishnet.runner.engine import FORMAT_VERSION, Engine
from fishnet.runner.graphs import PACKAGES, SUFFIXES, lacking
from fishnet.runner.head import Graph, Thresholds
from fishnet.runner.heads import head_of
from fishnet.runner.prepare import Preparation
from fishnet.tasks import get_task
from fishnet.tasks.base import AnyTask
from fishnet.version import __version__


@dataclass(frozen=True)
class Target:
    """Target of an export."""

    form: Format
    """torch, onnx or openvino."""
    precision: Precision
    """Numerical precision: fp32, fp16, bf16 or int8."""
    fallback: bool = False
    """Whether to compute in fp32 on machines that do not support the precision."""

    def check(self) -> str | None:
        """Return the reason why the precision is replaced by fp32 on this machine; None if it is not.

        Raises:
            UsageError: The combination does not exist, a package is missing, or this machine does not support the
                precision and `fallback` is false.
        """
        if self.precision == "int8" and self.form != "openvino":
            raise UsageError(f"--precision int8 is for --format openvino, not for {self.form}")
        convert.check_packages(self.form, self.precision)
        reason = lacking(self.form, self.precision)
        if reason is not None and not self.fallback:
            raise UsageError(f"{reason}; choose another --precision, or use --allow-fallback to compute in fp32")
        return reason


def export_network(
    network: Network,
    card: ModelCard,
    task: AnyTask,
    target: Target,
    out: Path,
    images: Sequence[Image.Image],
    calibration: Sequence[Image.Image] = (),
    control: AccuracyControl | None = None,
) -> tuple[Difference, Json]:
    """Export a network and compare the result with it.

    Args:
        network: Network in eval mode, on the CPU.
        card: Card of the network.
        task: Task of the network.
        target: Format and precision.
        out: Folder to write; it must not exist, or be an exported folder.
        images: RGB images to compare on.
        calibration: RGB images to calibrate int8 on.
        control: Accuracy control of int8.

    Returns:
        The differences, and the content of export.json.

    Raises:
        FishnetError: The network cannot be exported, or the result differs from it; nothing is written in this case.
    """
    if not images:
        raise UsageError("an export is compared with PyTorch on real images: give a folder of them with --images")
    parts = parts_of(fused_for(network, target.form, target.precision), card)
    with staging(out) as staged:
        content = description(network, card, target)
        decoders = [spec["type"] for spec in content["heads"].values()]
        folder.write_runner(staged, PACKAGES[target.form], decoders)
        if target.precision == "int8":
            paths, accuracy = write_int8(parts, content, staged, calibration, control)
            content["accuracy"] = None if accuracy is None else asdict(accuracy)
        else:
            paths = write_graphs(parts, target, staged)
        content["graphs"] = {name: folder.describe_graph(path) for name, path in paths.items()}
        return finish(staged, out, content, network, task, images), content


def finish(
    staged: Path, out: Path, content: Json, network: Network, task: AnyTask, images: Sequence[Image.Image]
) -> Difference:
    """Verify the graphs in a folder, add the differences to its description, and rename it to its final name."""
    precision = str(content["precision"])
    folder.write_description(staged, content)
    found = compare(network, open_exported(staged), open_exported(staged, often=1), task, images, precision)
    found.check(TOLERANCES[precision])
    content["verification"] = found.to_dict()
    folder.write_description(staged, content)
    folder.move_into_place(staged, out)
    return found


def write_graphs(parts: Mapping[str, Part], target: Target, staged: Path) -> dict[str, Path]:
    """Write the graphs of a network and return their files by name.

    A network in half precision stores its weights in it; without support of the machine, it computes in fp32.
    """
    paths: dict[str, Path] = {}
    half = target.precision in HALF and target.form != "openvino" and lacking(target.form, target.precision) is None
    for name, part in parts.items():
        if half:
            part.module.to(HALF[target.precision])
        program = convert.trace(part)
        path = paths[name] = staged / f"{name}{SUFFIXES[target.form]}"
        if target.form == "torch":
            convert.save_torch(program, path)
        elif target.form == "onnx":
            convert.save_onnx(program, part, path)
        else:
            convert.save_openvino(convert.to_openvino(program, part), path, target.precision == "fp16")
    return paths


def write_int8(
    parts: Mapping[str, Part],
    content: Json,
    staged: Path,
    calibration: Sequence[Image.Image],
    control: AccuracyControl | None,
) -> tuple[dict[str, Path], Accuracy | None]:
    """Quantize the graphs of a network and write them; see `write_graphs` and `quantize`."""
    models = {name: convert.to_openvino(convert.trace(part), part) for name, part in parts.items()}
    preparation = Preparation(**content["preprocessing"])
    heads = {name: head_of(spec) for name, spec in content["heads"].items()}

    def engine_of(graphs: Mapping[str, Graph]) -> Engine:
        return Engine(preparation, heads, graphs)

    found, accuracy = quantize(models, engine_of, [preparation(image) for image in calibration], control)
    paths = {name: staged / f"{name}{SUFFIXES['openvino']}" for name in found}
    for name, model in found.items():
        convert.save_openvino(model, paths[name], half=False)
    return paths, accuracy


def description(network: Network, card: ModelCard, target: Target) -> Json:
    """Return the content of export.json, without graphs and verification."""
    return {
        "format_version": FORMAT_VERSION,
        "fishnet": __version__,
        "task": card.task,
        "model": card.model,
        "format": target.form,
        "precision": target.precision,
        "fallback": target.fallback,
        "preprocessing": _preprocessing(network, card),
        "heads": head_specs(network, card),
        "thresholds": asdict(Thresholds()),
        "card": card.to_dict(),
    }


def _preprocessing(network: Network, card: ModelCard) -> Json:
    describe = get_task(card.task).preprocessing
    if describe is None:
        raise UsageError(f"networks of the task {card.task} cannot be exported: their preprocessing is not supported")
    batcher = network.batcher
    return {"mean": list(batcher.mean), "std": list(batcher.std), "multiple": batcher.stride, **describe(card)}


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside another one; it is removed unless it was moved.

    Raises:
        FishnetError: The folder cannot be created.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise FishnetError(f"cannot write {out}: {error.strerror}") from error
    try:
        staged.chmod(0o755)
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def smallest_side(network: nn.Module) -> int:
    """Return the minimum height and width in pixels of a network's input; 1 if unknown."""
    found = getattr(getattr(network, "trunk", None), "min_size", 1)
    return int(found)
