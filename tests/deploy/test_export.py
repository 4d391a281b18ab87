"""Exported networks against PyTorch: the same answers on real photos of mixed sizes, and a runner without PyTorch."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fishnet
from fishnet.cards import HeadCard, ModelCard
from fishnet.cli import main
from fishnet.commands.export import read_images
from fishnet.data.augmentation import resized
from fishnet.data.run_lengths import decode
from fishnet.deploy.convert import Format, quiet
from fishnet.deploy.difference import TOLERANCES, Difference, largest
from fishnet.deploy.export import Target, write_graphs
from fishnet.deploy.heads.detectors import compare_objects
from fishnet.deploy.parts import DenseGraph, parts_of
from fishnet.errors import FishnetError, UsageError
from fishnet.predictor import Predictor
from fishnet.runner.graphs import open_graph
from fishnet.runner.head import Arrays, Graph
from tests.deploy.networks import CLASSES, network_of, plans_of, write_model
from tests.processes import run_alone

KINDS = {
    "classifier": ("classification", "", "fishnet_nano"),
    "segmenter": ("segmentation", "", "test_resnet"),
    "mask_rcnn": ("detection", "mask_rcnn", "test_resnet"),
    "faster_rcnn": ("detection", "faster_rcnn", "test_resnet"),
    "keypoint_rcnn": ("detection", "keypoint_rcnn", "test_resnet"),
    "cascade": ("detection", "cascade_mask_rcnn", "test_resnet"),
    "retinanet": ("detection", "retinanet", "test_resnet"),
    "fcos": ("detection", "fcos", "test_resnet"),
    "multitask": ("multitask", "", "fishnet_nano"),
}
EXPORTS = {
    "openvino": ("classifier", "segmenter", "mask_rcnn", "multitask"),
    "onnx": ("classifier", "mask_rcnn", "retinanet", "multitask"),
    "torch": ("segmenter", "faster_rcnn", "keypoint_rcnn", "cascade", "fcos"),
}


@pytest.fixture(scope="module")
def photos(mini: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Photos of pedestrians in mixed sizes.

    Behind scaling their sides are multiples of 32: in the zeros around other images a network of random weights has
    equal scores, which leave the order of objects open. `tests/runner/test_heads.py` has padded batches.
    """
    folder = tmp_path_factory.mktemp("photos")
    files = sorted((mini("pennfudan") / "val").rglob("*.jpg"))[1:5]
    for path, (width, height) in zip(files, [(240, 240), (160, 240), (240, 180), (220, 132)], strict=True):
        with Image.open(path) as image:
            image.crop((0, 0, width, height)).save(folder / path.name)
    with Image.open(files[0]) as image:
        image.resize((64, 48)).save(folder / "small.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def model_of(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}
    shown = [torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) for path in photos[:4]]

    def model(kind: str) -> Path:
        if kind not in made:
            task, plan, backbone = KINDS[kind]
            path = tmp_path_factory.mktemp(kind) / "model.safetensors"
            made[kind] = write_model(path, task, plan, [resized(one.contiguous(), 96, 160) for one in shown], backbone)
        return made[kind]

    return model


@pytest.fixture(scope="module")
def export_of(
    model_of: Callable[[str], Path], photos: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    made: dict[tuple[str, str], Path] = {}

    def exported(kind: str, form: str) -> Path:
        if (kind, form) not in made:
            out = tmp_path_factory.mktemp("exports") / f"{kind}_{form}"
            found = fishnet.export(str(model_of(kind)), str(out), form, images=str(photos[0].parent), verify=3)
            assert found.difference.images == 3
            made[kind, form] = out
        return made[kind, form]

    return exported


def same_objects(ours: dict[str, list], theirs: dict[str, list]) -> None:
    """Boxes within 0.1 px, scores within 1e-3, masks with an IoU of at least 0.99."""
    assert ours["indices"] == theirs["indices"]
    assert np.allclose(ours["scores"], theirs["scores"], atol=1e-3)
    assert np.allclose(np.reshape(ours["boxes"], (-1, 4)), np.reshape(theirs["boxes"], (-1, 4)), atol=0.1)
    for mine, other in zip(ours.get("masks", ()), theirs.get("masks", ()), strict=True):
        one, two = (decode([run], *run["size"])[0].bool() for run in (mine, other))
        assert (one & two).sum() >= 0.99 * (one | two).sum()
    if "keypoints" in theirs:
        assert np.allclose(ours["keypoints"], theirs["keypoints"], atol=0.5)


def same_answers(kind: str, ours: Sequence[dict], theirs: Sequence[dict]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        if kind == "multitask":
            assert mine.keys() == other.keys()
            assert mine["image"]["indices"] == other["image"]["indices"]
            assert np.allclose(mine["image"]["scores"], other["image"]["scores"], atol=1e-3)
            same_objects(mine["region"], other["region"])
            assert (mine["pixel"]["label_map"] == other["pixel"]["label_map"]).mean() > 0.999
        elif kind == "segmenter":
            assert (mine["label_map"] == other["label_map"]).mean() > 0.999
        elif kind == "classifier":
            assert mine["indices"] == other["indices"]
            assert np.allclose(mine["scores"], other["scores"], atol=1e-3)
        else:
            same_objects(mine, other)


@pytest.mark.parametrize(("form", "kind"), [(form, kind) for form, kinds in EXPORTS.items() for kind in kinds])
def test_the_answers_are_those_of_pytorch(
    kind: str, form: str, model_of: Callable[[str], Path], export_of: Callable[[str, str], Path], photos: list[Path]
) -> None:
    options = {} if kind in ("classifier", "segmenter") else {"score": 0.06}
    theirs = Predictor(model_of(kind), device="cpu", **options)(photos)
    ours = Predictor(export_of(kind, form), **options)
    same_answers(kind, ours(photos), theirs)
    same_answers(kind, [ours(path) for path in photos[:2]], theirs[:2])
    found = [answer.get("region", answer) for answer in theirs]
    if "score" in str(options):
        assert sum(len(answer["scores"]) for answer in found) > 20


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_pyramid_pooling_follows_the_size_of_the_image(form: Format, tmp_path: Path) -> None:
    network, architecture = network_of(plans_of("segmentation", "upernet"), "test_resnet", waves((96, 160)))
    card = ModelCard("segmentation", architecture, {"pixel": HeadCard(CLASSES)}, 96)
    paths = write_graphs(parts_of(network, card), Target(form, "fp32"), tmp_path)
    graph = open_graph(paths["dense"], form, "fp32")
    for size in ((192, 256), (224, 320), (32, 96)):
        (image,) = waves(size)
        batch = network.batcher([image])[0].contiguous()
        with torch.no_grad():
            wanted = DenseGraph(network)(batch)["pixel_logits"]
        found = torch.from_numpy(graph({"images": batch.numpy()})["pixel_logits"])
        assert float((found - wanted).abs().max()) < 1e-5 * float(wanted.abs().max()), size


def waves(size: tuple[int, int]) -> list[torch.Tensor]:
    """Return an image whose averages differ from bin to bin."""
    y, x = (torch.arange(side)[:, None] / 40 for side in size)
    return [(128 + 60 * torch.stack([y.sin() + x.T.cos(), (y * x.T).sin() + 1, (y + x.T).cos()])).to(torch.uint8)]


def test_networks_of_random_weights_tell_places_apart(model_of: Callable[[str], Path], photos: list[Path]) -> None:
    """Else the comparisons above would hold for any answer."""
    answer = Predictor(model_of("multitask"), device="cpu")(photos[0])
    assert len(np.unique(answer["pixel"]["label_map"])) > 1
    assert answer["image"]["scores"][0] > 0.34


@pytest.mark.parametrize(("kind", "form"), [("classifier", "onnx"), ("segmenter", "openvino"), ("mask_rcnn", "onnx")])
def test_the_runner_needs_no_pytorch(
    kind: str, form: str, export_of: Callable[[str, str], Path], photos: list[Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(export_of(kind, form), tmp_path / "moved"))
    files = [str(path) for path in photos[:3]]
    own = {"mask_rcnn": ["--score", "0.06"], "segmenter": ["--out", str(tmp_path / "maps")]}
    done = run_alone(folder, *files, *own.get(kind, []), away=tmp_path / "away")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["file"] for line in lines] == files
    options = {"score": 0.06} if kind == "mask_rcnn" else {}
    predictor = Predictor(export_of(kind, form), **options)
    for path, line in zip(photos, lines, strict=False):
        answer = predictor(path)
        wanted = predictor.task.entry(answer)["predictions"]
        assert len(line["predictions"]) == len(wanted) > 0
        for mine, other in zip(line["predictions"], wanted, strict=True):
            assert mine["label"] == other["label"]
            number = "share" if kind == "segmenter" else "score"
            assert mine[number] == pytest.approx(other[number], abs=2e-3)
            if kind == "mask_rcnn":
                assert mine["box"] == pytest.approx(other["box"], abs=0.1)
                assert mine["mask"]["size"] == other["mask"]["size"]
                one, two = (decode([run], *run["size"])[0].bool() for run in (mine["mask"], other["mask"]))
                assert (one & two).sum() >= 0.99 * (one | two).sum()
        if kind == "segmenter":
            with Image.open(line["label_map"]) as image:
                assert (np.asarray(image) == answer["label_map"]).mean() > 0.999


def test_the_export_says_what_was_compared(export_of: Callable[[str, str], Path]) -> None:
    found = json.loads((export_of("mask_rcnn", "openvino") / "export.json").read_text())
    assert found["format_version"] == 1
    assert found["verification"]["images"] == 3
    assert 0 < max(found["verification"]["outputs"].values()) < 1e-3
    assert found["heads"]["region"]["classes"] == ["cat", "dog", "person"]
    assert found["card"]["task"] == "detection"


def test_masks_are_compared_only_if_there_are_any() -> None:
    assert "masks" not in Difference(images=1, objects=2).describe()
    assert "masks 2.0e-03" in Difference(images=1, objects=2, mask=2e-3, has_masks=True).describe()


def test_a_missing_object_counts_even_if_it_is_the_only_one() -> None:
    box = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "labels": torch.tensor([0]), "scores": torch.tensor([0.9])}
    none = {name: value[:0] for name, value in box.items()}
    found = Difference()
    compare_objects(found, box, none, "fp32", least=0.05)
    assert (found.objects, found.matched, found.agreement) == (1, 0, 0)
    # by rounding, an object of nearly the least score may be missing
    compare_objects(found, box, none, "fp32", least=0.899)
    assert (found.objects, found.matched) == (1, 0)


def test_an_extra_object_counts() -> None:
    box = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "labels": torch.tensor([0]), "scores": torch.tensor([0.9])}
    more = {name: torch.cat([value, value]) for name, value in box.items()}
    for boxes in ([[0.0, 0, 9, 9], [0, 0, 9, 9]], [[0.0, 0, 9, 9], [50, 50, 60, 60]]):
        found = Difference()
        compare_objects(found, box, {**more, "boxes": torch.tensor(boxes)}, "fp32", least=0.05)
        assert (found.objects, found.matched, found.agreement) == (2, 1, 0.5)
    # by rounding, PyTorch may have it below the least score
    found = Difference()
    compare_objects(
        found, {**box, "scores": torch.tensor([0.9009])}, {**box, "scores": torch.tensor([0.903])}, "fp32", 0.9
    )
    assert (found.objects, found.matched) == (0, 0)


def test_keypoints_that_moved_are_no_success() -> None:
    objects = {
        "boxes": torch.tensor([[0.0, 0, 40, 40]]),
        "scores": torch.tensor([0.9]),
        "labels": torch.tensor([1]),
        "keypoints": torch.rand(1, 40, 3) * 40,
    }
    # ties between two maxima of a heatmap may be broken differently
    for moved, fits in ((0, True), (2, True), (3, False)):
        other = {name: value.clone() for name, value in objects.items()}
        other["keypoints"][0, :moved, 0] += 5
        found = Difference(images=1)
        compare_objects(found, objects, other, "fp32", least=0.05)
        assert (found.keypoints, found.near) == (40, 40 - moved)
        assert f"{100 - 2.5 * moved:.2f} % of keypoints within 1 px" in found.describe()
        with nullcontext() if fits else pytest.raises(FishnetError, match=r"keypoints that moved 0\.075"):
            found.check(TOLERANCES["fp32"])


def test_images_to_compare_on_are_spaced_evenly(tmp_path: Path) -> None:
    for number in range(15):
        Image.new("L", (4, 4), 10 * number).save(tmp_path / f"{number:02}.png")
    shown = [image.getpixel((0, 0))[0] // 10 for image in read_images(tmp_path, 8)]
    assert shown == [0, 1, 3, 5, 7, 9, 11, 13]
    assert len(read_images(tmp_path, 99)) == 15
    with pytest.raises(UsageError, match="missing is not a folder: give a folder of real images with --images"):
        read_images(tmp_path / "missing", 8)


def test_exporters_are_silenced_without_changing_the_settings_of_logging() -> None:
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with quiet():
            pass
        assert logging.root.manager.disable == logging.ERROR
    finally:
        logging.disable(before)


def test_a_network_that_differs_is_not_exported(
    model_of: Callable[[str], Path], photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fishnet.deploy.export as module

    plain = module.fused_for

    def broken(network: torch.nn.Module, form: str, precision: str) -> torch.nn.Module:
        copy = plain(network, form, precision)
        for parameter in copy.parameters():
            parameter.data.mul_(1.01)
        return copy

    monkeypatch.setattr(module, "fused_for", broken)
    with pytest.raises(FishnetError, match="differs from PyTorch's"):
        fishnet.export(str(model_of("classifier")), str(tmp_path / "out"), "torch", images=str(photos[0].parent))
    assert not list(tmp_path.iterdir())


def test_a_network_whose_answers_depend_on_the_rest_of_the_batch_is_not_exported(
    model_of: Callable[[str], Path], photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mixing(path: Path, form: str, precision: str, often: int | None) -> Graph:
        graph = open_graph(path, form, precision, often)
        return lambda inputs: {name: value + 0.1 * (value - value.mean(0)) for name, value in graph(inputs).items()}

    monkeypatch.setattr("fishnet.runner.engine.open_graph", mixing)
    with pytest.raises(FishnetError, match=r"depend on the other images of a batch: they change by 0\.0"):
        fishnet.export(str(model_of("segmenter")), str(tmp_path / "out"), "torch", images=str(photos[0].parent))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cause", ["the smallest size", "another size"])
def test_a_network_whose_answers_depend_on_earlier_images_is_not_exported(
    cause: str, model_of: Callable[[str], Path], photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remembering(path: Path, form: str, precision: str, often: int | None) -> Graph:
        graph = open_graph(path, form, precision, often)
        seen: set[tuple[int, ...]] = set()

        def run(inputs: Arrays) -> Arrays:
            seen.add(inputs["images"].shape[2:])
            changed = (32, 32) in seen if cause == "the smallest size" else len(seen - {(32, 32)}) > 1
            return {name: value * (1.01 if changed else 1) for name, value in graph(inputs).items()}

        return run

    monkeypatch.setattr("fishnet.runner.engine.open_graph", remembering)
    changed = r"depend on previously processed images: they change by 0\.01, .*--format onnx"
    with pytest.raises(FishnetError, match=changed):
        fishnet.export(str(model_of("segmenter")), str(tmp_path / "out"), "torch", images=str(photos[0].parent))
    assert not list(tmp_path.iterdir())


def test_evaluate_takes_an_export(mini: Callable[[str], Path], tmp_path: Path, photos: list[Path]) -> None:
    shown = [torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) for path in photos[:2]]
    path = write_model(tmp_path / "one.safetensors", "detection", "retinanet", shown, "test_resnet", ["person"])
    fishnet.export(str(path), str(tmp_path / "exported"), "torch", images=str(photos[0].parent), verify=2)
    theirs = fishnet.evaluate(str(path), str(mini("pennfudan")), workers=0, device="cpu")
    ours = fishnet.evaluate(str(tmp_path / "exported"), str(mini("pennfudan")), workers=0)
    assert theirs.metrics.keys() == ours.metrics.keys()
    for name, value in theirs.metrics.items():
        assert ours.metrics[name] == pytest.approx(value, abs=5e-3)


def test_values_that_are_not_finite_are_out_of_tolerance() -> None:
    """NaN of any image counts, whatever the others give."""
    found = Difference(outputs={"pixel_logits": largest(largest(0.0, float("nan")), 1e-6)})
    with pytest.raises(FishnetError, match="differs from PyTorch's: outputs nan"):
        found.check(TOLERANCES["fp32"])
    Difference(outputs={"pixel_logits": largest(0.0, 1e-6)}).check(TOLERANCES["fp32"])


class TestBadInput:
    def test_an_unfinished_run(self, tmp_path: Path, model_of: Callable[[str], Path], photos: list[Path]) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.yaml").write_text("task: classification\n")
        shutil.copy(model_of("classifier"), tmp_path / "run" / "model.safetensors")
        with pytest.raises(FishnetError, match="is not finished: continue with"):
            fishnet.export(str(tmp_path / "run"), str(tmp_path / "out"), images=str(photos[0].parent))

    def test_no_images(self, model_of: Callable[[str], Path], tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="give a folder of them with --images"):
            fishnet.export(str(model_of("classifier")), str(tmp_path / "out"))
        (tmp_path / "empty").mkdir()
        with pytest.raises(UsageError, match="contains no images"):
            fishnet.export(str(model_of("classifier")), str(tmp_path / "out"), images=str(tmp_path / "empty"))

    def test_a_size_below_the_smallest(
        self, model_of: Callable[[str], Path], photos: list[Path], tmp_path: Path
    ) -> None:
        with pytest.raises(UsageError, match="at least 32 pixels"):
            fishnet.export(str(model_of("classifier")), str(tmp_path / "out"), images=str(photos[0].parent), size=16)

    def test_an_unknown_format(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert main(["export", "x", "--format", "tflite", "--out", str(tmp_path / "out")]) == 2
        assert "tflite" in capsys.readouterr().err

    def test_a_missing_package(
        self, model_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import importlib.util

        plain = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else plain(name))
        with pytest.raises(UsageError, match=r"onnxscript: pip install 'fishnet-vision\[deploy\]'"):
            fishnet.export(str(model_of("classifier")), str(tmp_path / "out"), "onnx")

    def test_a_precision_that_the_machine_lacks(
        self, model_of: Callable[[str], Path], photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = str(model_of("classifier")), str(tmp_path / "out"), "onnx", "fp16"
        images = str(photos[0].parent)
        with pytest.raises(UsageError, match=r"does not support fp16.*--allow-fallback"):
            fishnet.export(*arguments, images=images)
        fishnet.export(*arguments, images=images, verify=2, allow_fallback=True)
        assert "computes in fp32 here" in capsys.readouterr().out
        Predictor(tmp_path / "out")(photos[0])

    def test_an_occupied_folder(self, model_of: Callable[[str], Path], photos: list[Path], tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(UsageError, match="is not an export"):
            fishnet.export(str(model_of("classifier")), str(tmp_path), images=str(photos[0].parent))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"runtime": "openvino"}, "was exported for onnx"),
            ({"size": 64}, "size= cannot change"),
            ({"device": "cuda"}, "runs on the CPU"),
            ({"compile": True}, "compile= cannot change"),
        ],
    )
    def test_options_that_an_export_cannot_have(
        self, options: dict, message: str, export_of: Callable[[str, str], Path]
    ) -> None:
        with pytest.raises(UsageError, match=message):
            Predictor(export_of("classifier", "onnx"), **options)

    def test_a_run_on_another_runtime(self, model_of: Callable[[str], Path]) -> None:
        with pytest.raises(UsageError, match="fishnet export"):
            Predictor(model_of("classifier"), runtime="onnx")

    def test_another_models_folder(
        self, export_of: Callable[[str, str], Path], tmp_path: Path, photos: list[Path]
    ) -> None:
        folder = Path(shutil.copytree(export_of("classifier", "onnx"), tmp_path / "mixed"))
        shutil.copy(export_of("mask_rcnn", "onnx") / "dense.onnx", folder / "dense.onnx")
        with pytest.raises(FishnetError, match=r"does not belong to export\.json"):
            Predictor(folder)
        done = run_alone(folder, str(photos[0]), away=tmp_path / "away")
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "does not belong" in done.stderr

    def test_images_that_cannot_be_used(
        self, export_of: Callable[[str, str], Path], tmp_path: Path, photos: list[Path]
    ) -> None:
        whole = photos[0].read_bytes()
        (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 3])
        (tmp_path / "text.jpg").write_text("no image")
        Image.new("RGB", (1, 1), (200, 10, 10)).save(tmp_path / "pixel.png")
        names = [str(tmp_path / name) for name in ("cut.jpg", "text.jpg", "absent.jpg", "pixel.png")]
        for kind in ("classifier", "mask_rcnn"):
            done = run_alone(export_of(kind, "onnx"), *names, away=tmp_path / "away")
            assert done.returncode == 1
            errors = done.stderr.splitlines()
            assert [("truncated" in errors[0]), ("not an image" in errors[1]), ("no such file" in errors[2])] == [
                True
            ] * 3
            assert len(errors) == 3
            assert json.loads(done.stdout)["file"] == names[3]

    def test_a_damaged_description(self, export_of: Callable[[str, str], Path], tmp_path: Path) -> None:
        folder = Path(shutil.copytree(export_of("classifier", "onnx"), tmp_path / "damaged"))
        (folder / "export.json").write_text("{")
        with pytest.raises(FishnetError, match="is damaged"):
            Predictor(folder)
        (folder / "export.json").write_text('{"format_version": 99}')
        with pytest.raises(FishnetError, match="use a newer one"):
            Predictor(folder)
