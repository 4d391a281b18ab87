"""Any known checkpoint loads into the model it belongs to, and any other says why not."""

from __future__ import annotations

import copy
import time
import urllib.error
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fishnet.errors import FishnetError, UsageError
from fishnet.models import VARIANTS, FishNet, create_model
from fishnet.models.checkpoints.files import save_state
from fishnet.models.checkpoints.layouts import LAYOUTS, convert_state, detect_layout, find_layout
from fishnet.models.checkpoints.states import read_checkpoint, strip_wrappers
from fishnet.models.checkpoints.weights import classifier_size, load_weights, recognize_member

SIZE = 64


def fresh(name: str = "fishnet_nano", seed: int = 0, **options: Any) -> nn.Module:
    """Build a model with random weights and norm statistics."""
    torch.manual_seed(seed)
    model = create_model(name, **{"num_classes": 10, **options}).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.6, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def nano() -> nn.Module:
    return fresh(seed=1)


def logits(model: nn.Module, channels: int = 3) -> Tensor:
    x = torch.randn(2, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return model(x)


def meta_state(name: str, **options: Any) -> dict[str, Tensor]:
    return FishNet(VARIANTS[name].with_options(**options), num_classes=10, device="meta").state_dict()


# Layouts


@pytest.mark.parametrize("name", VARIANTS)
def test_every_member_converts_in_every_direction(name: str) -> None:
    states: dict[str, dict[str, Tensor]] = {"fishnet": meta_state(name)}
    for layout in LAYOUTS[1:]:
        states[layout] = convert_state(states["fishnet"], layout)
    shapes = {layout: {key: value.shape for key, value in state.items()} for layout, state in states.items()}
    for source in LAYOUTS:
        assert detect_layout(states[source]) == source
        assert recognize_member(states[source]) == name
        assert classifier_size(states[source]) == 10
        for target in LAYOUTS:
            converted = convert_state(states[source], target)
            assert {key: value.shape for key, value in converted.items()} == shapes[target]
    assert len(set.union(*(set(s) for s in shapes.values()))) == 3 * len(shapes["fishnet"])


def test_values_travel_with_their_names(nano: nn.Module) -> None:
    state = nano.state_dict()
    back = convert_state(convert_state(convert_state(state, "released"), "pytorchcv"), "fishnet")
    assert all(torch.equal(back[key], state[key]) for key in state)
    released = convert_state(state, "released")
    assert released["fish.fish.9.4.1.weight"].shape == (10, state["classifier.weight"].shape[1], 1, 1)
    assert released["conv1.0.weight"] is state["stem.conv1.weight"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_networks_of_other_depth_and_without_classifier_convert(layout: str) -> None:
    config = VARIANTS["fishnet_nano"].with_options(tail_depths=(3, 1, 12), transfer_depths=(0, 1, 2, 3, 11, 1))
    state = FishNet(config, num_classes=0, device="meta").state_dict()
    converted = convert_state(state, layout)
    assert detect_layout(converted) == layout
    assert recognize_member(converted) is None
    assert classifier_size(converted) is None
    assert convert_state(converted, "fishnet").keys() == state.keys()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"reduction": "conv1x1"}, r"body\.b1\.blocks\.0|body\.b2\.blocks\.0"),
        ({"downsample": "conv"}, r"\.down\."),
        ({"upsample": "deconv"}, r"\.up\."),
        ({"gate": False}, "gate"),
    ],
)
@pytest.mark.parametrize("layout", ["released", "pytorchcv"])
def test_ablations_that_a_layout_cannot_hold(options: dict[str, Any], part: str, layout: str) -> None:
    state = meta_state("fishnet_nano", **options)
    assert detect_layout(state) == "fishnet"
    assert convert_state(state, "fishnet").keys() == state.keys()
    with pytest.raises(FishnetError, match=rf"(?s)layout {layout}.*({part})"):
        convert_state(state, layout)


def test_unknown_layouts_list_keys_and_what_is_known() -> None:
    state = timm.create_model("test_resnet", num_classes=10).state_dict()
    assert find_layout(state) is None
    with pytest.raises(FishnetError, match=r"conv1\.0\.weight.*more.*fishnet, released, pytorchcv"):
        detect_layout(state)
    with pytest.raises(FishnetError, match="unknown checkpoint layout"):
        convert_state({}, "released")
    with pytest.raises(UsageError, match="Did you mean 'pytorchcv'"):
        convert_state(state, "pytorchcvs")


# Containers and prefixes


def lightning(model: nn.Module, other: nn.Module) -> dict[str, Any]:
    return {
        "pytorch-lightning_version": "2.6.6",
        "epoch": 3,
        "global_step": 12,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "dirpath": "x"}},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": []}],
        "state_dict": prefix("model.", model) | {"loss.weight": torch.ones(10), "class_weights": torch.ones(10)},
    }


def prefix(text: str, model: nn.Module) -> dict[str, Tensor]:
    return {text + key: value for key, value in model.state_dict().items()}


# name -> (model, another model) -> checkpoint. The first model is what must be found by default.
CONTAINERS: dict[str, Callable[[nn.Module, nn.Module], Any]] = {
    "bare": lambda m, o: m.state_dict(),
    "state_dict": lambda m, o: {"state_dict": m.state_dict(), "epoch": 1},
    "model": lambda m, o: {"model": m.state_dict(), "optimizer": {"state": {}}},
    "model_state_dict": lambda m, o: {"model_state_dict": m.state_dict(), "loss": torch.tensor(1.0)},
    "module": lambda m, o: {"module": m.state_dict(), "epoch": 1},
    "nested": lambda m, o: {"model": {"state_dict": m.state_dict()}, "epoch": 1},
    "data parallel": lambda m, o: {"state_dict": nn.DataParallel(m).state_dict()},
    "compiled": lambda m, o: torch.compile(m).state_dict(),
    "compiled in data parallel": lambda m, o: nn.DataParallel(torch.compile(m)).state_dict(),
    "data parallel in compiled": lambda m, o: torch.compile(nn.DataParallel(m)).state_dict(),
    "compiled part": lambda m, o: {key.replace("body.", "body._orig_mod."): v for key, v in m.state_dict().items()},
    "lightning": lightning,
    "lightning task.model": lambda m, o: lightning(m, o) | {"state_dict": prefix("task.model.", m)},
    "lightning net": lambda m, o: lightning(m, o) | {"state_dict": prefix("net.", m)},
    "lightning, compiled": lambda m, o: lightning(m, o) | {"state_dict": prefix("model._orig_mod.", m)},
    "own run": lambda m, o: lightning(m, o) | {"state_dict": prefix("model.", o) | prefix("ema.module.", m)},
    "timm ema": lambda m, o: {"state_dict": o.state_dict(), "state_dict_ema": m.state_dict()},
    "torchvision ema": lambda m, o: {"model": o.state_dict(), "model_ema": AveragedModel(m).state_dict()},
    "nested ema": lambda m, o: {"model": o.state_dict(), "ema": {"module": m.state_dict(), "updates": 9}},
    "mmengine ema": lambda m, o: {"state_dict": o.state_dict(), "ema_state_dict": prefix("module.", m)},
    "only ema": lambda m, o: {"model_ema": m.state_dict()},
    "averaged": lambda m, o: AveragedModel(m).state_dict(),
    "lightning averaging": lambda m, o: lightning(m, o) | {"current_model_state": prefix("model.", o)},
}
WITH_AVERAGE = {"own run", "timm ema", "torchvision ema", "nested ema", "mmengine ema", "lightning averaging"}


@pytest.mark.parametrize("name", CONTAINERS)
def test_finds_the_network_in_every_container(name: str, nano: nn.Module, tmp_path: Path) -> None:
    other = fresh(seed=2)
    path = tmp_path / "checkpoint.ckpt"
    torch.save(CONTAINERS[name](nano, other), path)
    found = read_checkpoint(path)
    assert found.keys() == nano.state_dict().keys()
    target = fresh(seed=3)
    report = load_weights(target, path)
    assert torch.equal(logits(target), logits(nano))
    assert len(report.loaded) == len(found)
    load_weights(target, path, prefer_ema=False)
    assert torch.equal(logits(target), logits(other if name in WITH_AVERAGE else nano))


def test_a_network_may_use_the_names_of_wrappers() -> None:
    state = {"model.a": torch.ones(1), "head.b": torch.ones(1)}
    assert strip_wrappers(state) == state
    assert strip_wrappers({f"module.{key}": value for key, value in state.items()}) == state
    in_lightning = {f"model.{key}": value for key, value in state.items()} | {"loss.weight": torch.ones(1)}
    assert strip_wrappers(in_lightning, lightning=True) == state


@pytest.mark.filterwarnings("ignore")
def test_reads_what_lightning_itself_writes(nano: nn.Module, tmp_path: Path) -> None:
    import pytorch_lightning as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"lr": 0.1, "options": {"a": [1, 2]}})
            self.model, self.loss = nano, nn.CrossEntropyLoss(weight=torch.ones(10))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

        def training_step(self, batch: Any, index: int) -> Tensor:
            return self.model.classifier.weight.sum()

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_steps=1, accelerator="cpu", default_root_dir=tmp_path, enable_checkpointing=False, **quiet)
    trainer.fit(Module(), torch.utils.data.DataLoader([0]))
    nano.eval()
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    target = fresh(seed=3)
    load_weights(target, tmp_path / "last.ckpt")
    assert torch.equal(logits(target), logits(nano))


# Loading


@pytest.mark.parametrize("layout", LAYOUTS)
def test_loads_every_layout(layout: str, nano: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in convert_state(nano.state_dict(), layout).items()}}, path)
    target = fresh(seed=3)
    report = load_weights(target, path)
    assert torch.equal(logits(target), logits(nano))
    assert report.layout == layout
    assert len(report.loaded) == len(nano.state_dict())
    assert str(report) == f"loaded {len(report.loaded)} tensors from {path} (layout {layout})"


def test_fills_a_pytorchcv_model_from_our_layout(tmp_path: Path) -> None:
    from pytorchcv.models.fishnet import FishNet as TheirFishNet

    widths = {
        "direct": [[64, 128, 256], [256, 192, 128], [160, 416, 800]],
        "skip": [[32, 64, 128, 256], [256, 384, 256, 0]],
    }
    depths = {"direct": [[1, 2, 3], [1, 1, 1], [1, 2, 2]], "skip": [[1, 1, 1, 2], [4, 1, 1, 0]]}
    direct, skip = (
        [[[w] * d for w, d in zip(*rows, strict=True)] for rows in zip(widths[part], depths[part], strict=True)]
        for part in ("direct", "skip")
    )
    theirs = TheirFishNet(direct, skip, init_block_channels=32, num_classes=10).eval()
    theirs.features.final_pool = nn.AdaptiveAvgPool2d(1)
    options = {
        "stem_width": 32,
        "tail_widths": (64, 128, 256),
        "body_widths": (256, 192, 128),
        "tail_depths": (1, 2, 3),
        "transfer_depths": (1, 1, 1, 1, 1, 4),
    }
    ours = fresh("fishnet99", **options)
    gate = {name: tuple(value.shape) for name, value in theirs.state_dict().items() if ".se.conv1.weight" in name}
    assert set(gate.values()) == {tuple(ours.bridge.gate.conv1.weight.shape)}
    save_state(tmp_path / "ours.safetensors", ours.state_dict())
    load_weights(theirs, tmp_path / "ours.safetensors")
    torch.testing.assert_close(logits(theirs), logits(ours), rtol=0, atol=1e-5)


def test_other_precision_and_memory_order(nano: nn.Module, tmp_path: Path) -> None:
    half = {key: value.half() if value.is_floating_point() else value for key, value in nano.state_dict().items()}
    save_state(tmp_path / "half.safetensors", half)
    target = fresh(seed=3).to(memory_format=torch.channels_last)
    load_weights(target, tmp_path / "half.safetensors")
    assert next(target.parameters()).dtype == torch.float32
    assert target.stem.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(logits(target), logits(nano), rtol=1e-2, atol=1e-2)


def test_old_files_without_counters(nano: nn.Module, tmp_path: Path) -> None:
    state = {k: v for k, v in nano.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(convert_state(state, "released"), tmp_path / "old.pth")
    target = fresh(seed=3)
    assert not load_weights(target, tmp_path / "old.pth").missing
    assert torch.equal(logits(target), logits(nano))


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": torch.compile,
    "data parallel": nn.DataParallel,
    "both": lambda model: torch.compile(nn.DataParallel(model)),
}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_fills_wrapped_models(wrap: str, nano: nn.Module, tmp_path: Path) -> None:
    save_state(tmp_path / "nano.safetensors", nano.state_dict())
    target = fresh(seed=3)
    load_weights(WRAPPERS[wrap](target), tmp_path / "nano.safetensors")
    assert torch.equal(logits(target), logits(nano))


def test_feature_extractors(nano: nn.Module, tmp_path: Path) -> None:
    save_state(tmp_path / "nano.safetensors", nano.state_dict())
    x = torch.randn(1, 3, SIZE, SIZE)
    target = timm.create_model("fishnet_nano", features_only=True).eval()
    with pytest.raises(FishnetError, match="tensors of the file are not in the model"):
        load_weights(target, tmp_path / "nano.safetensors")
    report = load_weights(target, tmp_path / "nano.safetensors", strict=False)
    assert not report.missing
    assert all(key.startswith(("score", "classifier")) for key in report.unexpected)
    with torch.no_grad():
        assert torch.equal(target(x)[-1], nano.stages(x)["h3"])


def test_file_of_another_member_says_so_and_changes_nothing(nano: nn.Module, tmp_path: Path) -> None:
    save_state(tmp_path / "nano.safetensors", nano.state_dict())
    target = fresh("fishnet_tiny", seed=3)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(FishnetError) as caught:
        load_weights(target, tmp_path / "nano.safetensors")
    message = str(caught.value)
    assert "the file matches fishnet_nano, the model is fishnet_tiny" in message
    assert "tensors of the model are not in the file: " in message
    assert "differ in shape: tail.t1.blocks.0.conv1.weight (file 16x32x1x1, model 12x32x1x1)" in message
    assert "more)" in message
    assert "\n" not in message
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


def test_both_sides_are_listed(nano: nn.Module, tmp_path: Path) -> None:
    state = nano.state_dict()
    state["tail.t9.extra"] = state.pop("stem.norm1.weight")
    save_state(tmp_path / "odd.safetensors", state)
    target = fresh(seed=3)
    before = logits(target)
    with pytest.raises(FishnetError, match=r"1 tensors of .*: stem\.norm1\.weight; 1 .*: tail\.t9\.extra"):
        load_weights(target, tmp_path / "odd.safetensors")
    assert torch.equal(logits(target), before)
    report = load_weights(target, tmp_path / "odd.safetensors", strict=False)
    assert report.missing == ["stem.norm1.weight"]
    assert report.unexpected == ["tail.t9.extra"]
    assert "missing 1: stem.norm1.weight; unexpected 1: tail.t9.extra" in str(report)
    assert torch.equal(target.score.conv.weight, nano.score.conv.weight)


def test_nothing_in_common_is_an_error_even_when_not_strict(nano: nn.Module, tmp_path: Path) -> None:
    resnet = timm.create_model("test_resnet", num_classes=10)
    save_state(tmp_path / "resnet.safetensors", resnet.state_dict())
    save_state(tmp_path / "nano.safetensors", nano.state_dict())
    for strict in (True, False):
        with pytest.raises(FishnetError, match=r"resnet\.safetensors: unknown checkpoint layout"):
            load_weights(nano, tmp_path / "resnet.safetensors", strict=strict)
        with pytest.raises(FishnetError, match=r"contains a FishNet \(layout fishnet\)"):
            load_weights(resnet, tmp_path / "nano.safetensors", strict=strict)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_class_count(layout: str, nano: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "ten.pth"
    torch.save(convert_state(nano.state_dict(), layout), path)
    target = fresh(seed=3, num_classes=3)
    with pytest.raises(FishnetError, match=r"has 10 classes, but the model has 3 classes: pass skip_classifier"):
        load_weights(target, path)
    kept = target.classifier.weight.clone()
    report = load_weights(target, path, skip_classifier="resize")
    assert report.skipped == ["classifier.bias", "classifier.weight"]
    assert torch.equal(target.classifier.weight, kept)
    assert torch.equal(target.score.conv.weight, nano.score.conv.weight)
    assert "2 not loaded, as expected: classifier.bias, classifier.weight" in str(report)


def test_skip_classifier_of_the_same_size(nano: nn.Module, tmp_path: Path) -> None:
    save_state(tmp_path / "nano.safetensors", nano.state_dict())
    target = fresh(seed=3)
    kept = target.classifier.weight.clone()
    assert load_weights(target, tmp_path / "nano.safetensors", skip_classifier=True).skipped
    assert torch.equal(target.classifier.weight, kept)
    assert not load_weights(target, tmp_path / "nano.safetensors", skip_classifier="resize").skipped
    assert torch.equal(logits(target), logits(nano))


def test_no_classifier_on_one_side(nano: nn.Module, tmp_path: Path) -> None:
    save_state(tmp_path / "with.safetensors", nano.state_dict())
    save_state(tmp_path / "without.safetensors", fresh(num_classes=0).state_dict())
    for name, classes in (("with", 0), ("without", 10)):
        target = fresh(seed=3, num_classes=classes)
        with pytest.raises(FishnetError, match="no classifier"):
            load_weights(target, tmp_path / f"{name}.safetensors")
        report = load_weights(target, tmp_path / f"{name}.safetensors", skip_classifier="resize")
        assert report.skipped == ["classifier.bias", "classifier.weight"]


def test_image_channels_are_adapted(nano: nn.Module, tmp_path: Path) -> None:
    save_state(tmp_path / "rgb.safetensors", nano.state_dict())
    gray, six = fresh(seed=3, in_chans=1), fresh(seed=4, in_chans=6)
    report = load_weights(gray, tmp_path / "rgb.safetensors")
    assert report.adapted == ["stem.conv1.weight"]
    assert "adapted 1: stem.conv1.weight" in str(report)
    load_weights(six, tmp_path / "rgb.safetensors")
    x = torch.randn(2, 1, SIZE, SIZE)
    rgb = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(gray(x), nano(x.repeat(1, 3, 1, 1)), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(six(rgb.repeat(1, 2, 1, 1)), nano(rgb), rtol=1e-3, atol=1e-4)
    save_state(tmp_path / "gray.safetensors", gray.state_dict())
    back = fresh(seed=5)
    load_weights(back, tmp_path / "gray.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(back(x.repeat(1, 3, 1, 1)), gray(x), rtol=1e-3, atol=1e-4)


def test_meta_models_are_refused(nano: nn.Module, tmp_path: Path) -> None:
    save_state(tmp_path / "nano.safetensors", nano.state_dict())
    target = FishNet(VARIANTS["fishnet_nano"], num_classes=10, device="meta")
    with pytest.raises(FishnetError, match="to_empty"):
        load_weights(target, tmp_path / "nano.safetensors")
    load_weights(target.to_empty(device="cpu").eval(), tmp_path / "nano.safetensors")
    assert torch.equal(logits(target), logits(nano))


# Other families


def test_any_timm_model(tmp_path: Path) -> None:
    source, path = timm.create_model("test_resnet", num_classes=10).eval(), tmp_path / "resnet.safetensors"
    save_state(path, source.state_dict())
    same_model = timm.create_model("test_resnet", num_classes=10).eval()
    report = load_weights(same_model, path)
    assert report.layout == "as is"
    assert torch.equal(logits(same_model), logits(source))
    small = timm.create_model("test_resnet", num_classes=3, in_chans=1).eval()
    with pytest.raises(FishnetError, match="has 10 classes, but the model has 3 classes"):
        load_weights(small, path)
    load_weights(small, path, skip_classifier="resize")
    overlay = {"file": str(path), "num_classes": 10}
    by_timm = timm.create_model(
        "test_resnet", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3, in_chans=1
    ).eval()
    with torch.no_grad():
        x = torch.randn(1, 1, SIZE, SIZE)
        assert torch.equal(small.forward_features(x), by_timm.forward_features(x))
    with pytest.raises(FishnetError, match="does not fit the model"):
        load_weights(timm.create_model("test_resnet", num_classes=10, layers=(2, 1, 1, 1)), path)


# Sources


def test_run_folder(nano: nn.Module, tmp_path: Path) -> None:
    other, last = fresh(seed=2), fresh(seed=4)
    target = fresh(seed=3)
    with pytest.raises(FishnetError, match=r"contains no weights.*model\.safetensors"):
        load_weights(target, tmp_path)
    (tmp_path / "checkpoints").mkdir()
    torch.save(lightning(last, last), tmp_path / "checkpoints" / "last.ckpt")
    load_weights(target, tmp_path)
    assert torch.equal(logits(target), logits(last))
    torch.save(lightning(other, other), tmp_path / "checkpoints" / "best.ckpt")
    load_weights(target, tmp_path)
    assert torch.equal(logits(target), logits(other))
    save_state(tmp_path / "model.safetensors", nano.state_dict())
    load_weights(target, str(tmp_path))
    assert torch.equal(logits(target), logits(nano))


def test_unknown_sources_suggest_near_ones(nano: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "best_model.pth").touch()
    with pytest.raises(UsageError, match=r"no file .*best_modle\.pth\. Did you mean 'best_model\.pth'"):
        load_weights(nano, tmp_path / "best_modle.pth")
    with pytest.raises(UsageError, match=r"no file .*absent"):
        load_weights(nano, tmp_path / "absent" / "model.pth")
    with pytest.raises(UsageError, match=r"unknown weights 'osmr_1k'.*Did you mean 'osmr_in1k'"):
        load_weights(nano, "osmr_1k")


def test_tag_of_another_member_is_refused_before_the_download(nano: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    from fishnet.models.checkpoints import pretrained

    monkeypatch.setattr(pretrained, "fetch", lambda tag: pytest.fail("downloaded"))
    with pytest.raises(UsageError, match="belong to fishnet150, but the model is fishnet_nano"):
        load_weights(nano, "osmr_in1k")


def test_create_model_loads_weights(nano: nn.Module, tmp_path: Path) -> None:
    torch.save(convert_state(nano.state_dict(), "pytorchcv"), tmp_path / "nano.pth")
    model = create_model("fishnet_nano", weights=tmp_path / "nano.pth", num_classes=10).eval()
    assert torch.equal(logits(model), logits(nano))


def test_weights_of_another_model_say_whose_they_are(tmp_path: Path) -> None:
    path = tmp_path / "r18.pth"
    torch.save(timm.create_model("resnet18", num_classes=7).state_dict(), path)
    with pytest.raises(FishnetError, match="These tensors are those of resnet18: use --model resnet18"):
        load_weights(create_model("fishnet_nano"), path)
    with pytest.raises(FishnetError, match="use --model resnet18"):
        load_weights(timm.create_model("resnet50"), path, skip_classifier=True)
    fish = tmp_path / "fish.pth"
    torch.save(create_model("fishnet_nano").state_dict(), fish)
    with pytest.raises(FishnetError, match=r"\(--model fishnet_nano\)"):
        load_weights(create_model("fishnet_tiny"), fish)


def test_every_candidate_is_recognized_as_itself() -> None:
    from fishnet.models.checkpoints.guess import CANDIDATES, guess_timm_model

    for name in CANDIDATES[::6]:
        with torch.device("meta"):
            state = timm.create_model(name, num_classes=11).state_dict()
        assert guess_timm_model(state) == name
    assert guess_timm_model({"a.weight": torch.zeros(3)}) is None


@pytest.mark.parametrize(
    ("given", "says"),
    [("imagenet", "--weights pretrained downloads those of --model"), ("resnet18", "--model resnet18 --weights pretr")],
)
def test_names_that_are_no_weights_lead_to_the_published_ones(given: str, says: str) -> None:
    with pytest.raises(UsageError, match=f"unknown weights '{given}'.*{says}"):
        load_weights(create_model("fishnet_nano"), given)


@pytest.mark.parametrize("model", ["resnet18", "resnet18.fb_swsl_ig1b_ft_in1k", "convnext_atto"])
def test_published_weights_out_of_reach_are_one_line_in_seconds(
    model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("fishnet.models.checkpoints.hub.try_to_load_from_cache", lambda *names: None)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    begin = time.perf_counter()
    with pytest.raises(FishnetError, match=rf"weights of {model} from https://.*Name or service.*--weights FILE"):
        create_model(model, "pretrained")
    assert time.perf_counter() - begin < 10


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fishnet.models.checkpoints.hub.SECONDS", 0.2)
    monkeypatch.setattr("urllib.request.urlopen", lambda *arguments, **options: nullcontext(time.sleep(1)))
    monkeypatch.setattr("fishnet.models.checkpoints.hub.try_to_load_from_cache", lambda *names: None)
    with pytest.raises(FishnetError, match=r"no answer within 0\.2 seconds"):
        create_model("resnet18", "pretrained")
    time.sleep(1)  # the thread ends before its stand-ins do
