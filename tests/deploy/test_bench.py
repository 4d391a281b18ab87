"""`fishnet bench`: which rows there are, that they take turns and survive failures of others, what the figures are."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fishnet.commands import bench as command
from fishnet.commands.bench import bench
from fishnet.deploy.bench import rounds
from fishnet.deploy.bench.cases import Case, Plan, find_base, with_peaks
from fishnet.deploy.bench.conversion import Wanted, convert
from fishnet.deploy.bench.peak import PEAK, SHAPES
from fishnet.deploy.bench.picture import draw
from fishnet.deploy.bench.process import Process, RowFailed
from fishnet.deploy.bench.results import Results, table
from fishnet.deploy.bench.rounds import Row
from fishnet.deploy.bench.runtimes import RUNTIMES, Job, check_runtime
from fishnet.deploy.bench.statistics import fit_power, spread
from fishnet.deploy.bench.worker import Order, Worker
from fishnet.errors import FishnetError, UsageError
from fishnet.models.complexity import count
from fishnet.models.fishnet import FishNet
from fishnet.models.specs import parse_spec
from fishnet.runner.signals import signal_stack_kept


def case(model: str = "fishnet_nano", batch: int = 1, size: int = 32, runtime: str = "eager") -> Case:
    return Case(model, batch, size, "fp32", runtime)


def test_rows_are_all_combinations_but_those_that_no_runtime_has() -> None:
    plan = Plan(
        ["fishnet_nano", "resnet18@eager", "resnet10t@openvino/int8"], (1, 8), (64,), ("fp32", "int8"), ("fused",)
    )
    assert [found.path for found in plan.cases()] == 2 * [
        "fishnet_nano@fused/fp32", "resnet18@eager/fp32", "resnet10t@openvino/int8",
    ]  # fmt: skip
    assert [found.batch for found in plan.cases()] == [1, 1, 1, 8, 8, 8]


def test_folders_of_runs_may_have_an_at_sign(tmp_path: Path) -> None:
    folder = tmp_path / "me@host" / "run"
    folder.mkdir(parents=True)
    cases = Plan([str(folder), f"{folder}@fused/bf16"]).cases()
    assert [(case.model, case.runtime, case.precision) for case in cases] == [
        (str(folder), "eager", "fp32"), (str(folder), "fused", "bf16"),
    ]  # fmt: skip
    assert find_base(cases, f"{folder}@fused") == {(1, 224): cases[1]}


def test_training_steps_need_a_classifier() -> None:
    network = nn.Conv2d(3, 2, 1)
    job = Job(lambda: network, 1, (3, 8, 8), "fp32", True, torch.device("cpu"), 1, lambda wanted: Path())
    with pytest.raises(FishnetError, match=r"only measured for classifiers; its output has the shape \(1, 2, 8, 8\)"):
        RUNTIMES["eager"].open(job)


def test_training_steps_are_those_of_pytorch() -> None:
    plan = Plan(["fishnet_nano"], runtime=("eager", "openvino", "fused"), train=True)
    assert [found.runtime for found in plan.cases()] == ["eager"]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(["fishnet_nan"]), "Did you mean 'fishnet_nano'"),
        (Plan(["fishnet_nano"], runtime=("openvin",)), "Did you mean 'openvino'"),
        (Plan(["fishnet_nano"], precision=("fp8",)), "precisions are fp32, bf16, fp16, int8"),
        (Plan(["fishnet_nano"], batch=(0,)), "--batch-size must be at least 1"),
        (Plan(["fishnet_nano"], precision=("int8",)), "no runtime of eager has passes in int8 on cpu"),
    ],
)
def test_unknown_names_are_refused(plan: Plan, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan.cases()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FishnetError, match=r"openvino needs openvino: pip install 'fishnet-vision\[deploy\]'"):
        check_runtime("openvino")


def test_the_base_row_is_one_of_every_batch_and_size() -> None:
    cases = [case(model, batch) for model in ("a", "b") for batch in (1, 8)]
    assert find_base(cases, "b") == {(1, 32): cases[2], (8, 32): cases[3]}
    with pytest.raises(UsageError, match="is not a row; rows are a@eager/fp32, b@eager/fp32"):
        find_base(cases, "b@fused")
    with pytest.raises(UsageError, match="matches b@eager/fp32 and b@fused/fp32"):
        find_base([*cases, case("b", runtime="fused")], "b")


def test_the_machine_is_measured_at_every_precision_in_the_runtimes_whose_kernels_are_used() -> None:
    cases = [case(runtime="fused"), Case("resnet18", 1, 32, "int8", "exported")]
    peaks = [found for found in with_peaks(cases) if found.model == PEAK]
    assert [(found.runtime, found.precision) for found in peaks] == [("channels_last", "fp32"), ("openvino", "int8")]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_shapes_have_the_multiply_adds_that_they_are_counted_for(shape: object) -> None:
    network = shape.build()  # type: ignore[attr-defined]
    with torch.device("meta"):
        found = network.to("meta")(torch.empty(1, *shape.size))  # type: ignore[attr-defined]
    layers = [layer for layer in network if isinstance(layer, nn.Conv2d | nn.Linear)]
    positions = found.shape[-1] * found.shape[-2] if isinstance(layers[0], nn.Conv2d) else found.shape[1]
    assert shape.macs == sum(layer.weight.numel() for layer in layers) * positions  # type: ignore[attr-defined]


def test_exponents_are_those_of_power_laws() -> None:
    x = [1.0, 2.0, 4.0, 8.0]
    found = fit_power(x, [3 * one**1.5 for one in x])
    assert found is not None
    assert found.exponent == pytest.approx(1.5)
    assert found.factor == pytest.approx(3)
    assert found.fit == pytest.approx(1)
    assert fit_power([1.0, 1.0], [1.0, 2.0]) is None
    assert fit_power(x, [0.0, 1.0, 1.0, 1.0]) is None


def test_spread_is_half_the_distance_between_the_quartiles() -> None:
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((4 - 2) / 2 / 3)


def row(one: Case, turns: list[float], memory: int = 10**6) -> Row:
    return Row(one, turns, list(turns), params=10, macs=1000, memory=memory)


def test_ratios_are_those_of_neighboring_turns() -> None:
    """The machine becomes four times slower half way: ratios of the medians would say otherwise."""
    fast, slow = case("a"), case("b")
    rows = [row(fast, [1.0, 1.0, 4.0]), row(slow, [2.0, 2.0, 8.0])]
    found = Results(rows, base={(1, 32): slow}, base_name="b").to_json(True)["rows"]
    assert [entry["ratio"] for entry in found] == [2.0, 1.0]
    assert found[0]["images_per_second"] == 1.0
    assert found[0]["multiply_adds_per_second"] == 1000


def test_the_share_of_the_peak_is_that_of_the_fastest_turn_at_the_same_precision() -> None:
    shapes = {"small": [900.0, 1000.0], "large": [1500.0, 2000.0, 500.0]}
    rows = [row(case(), [1.0]), Row(Case(PEAK, 1, 32, "fp32", "eager"), shapes=shapes)]
    rows.append(Row(Case(PEAK, 1, 32, "int8", "openvino"), shapes={"large": [8000.0]}))
    found = Results(rows).to_json(True)
    assert found["peak"]["fp32"] == {"multiply_adds_per_second": 2000.0, "where": "large, eager"}
    assert found["rows"][0]["share_of_peak"] == 0.5


def test_the_share_of_the_peak_is_also_that_of_the_same_turn() -> None:
    row = Row(case(), turns=[1.0, 2.0, 1.0], seconds=[1.0], macs=100)
    results = Results(
        rows=[row, Row(case(PEAK, runtime="channels_last"), shapes={"a": [50, 40, 200], "b": [200, 100, 50]})]
    )
    (entry,) = results.to_json(True)["rows"]
    assert entry["share_of_peak"] == pytest.approx(0.5)
    assert entry["share_of_turn_peak"] == pytest.approx(0.5)
    row.turns[:] = [1.0, 2.0, 2.0]
    (entry,) = results.to_json(True)["rows"]
    assert entry["share_of_peak"] == pytest.approx(0.25)
    assert entry["share_of_turn_peak"] == pytest.approx(0.5)


def test_a_training_step_costs_three_forward_passes() -> None:
    rows = [row(Case("a", 2, 32, "fp32", "eager", train=True), [1.0])]
    assert Results(rows).to_json(True)["rows"][0]["multiply_adds_per_second"] == 3 * 2 * 1000


def test_every_row_has_a_bar_even_if_shortened_names_are_equal() -> None:
    names = [f"runs/{'a' * 40}/{number}/{'b' * 40}" for number in range(3)]
    figure = draw(Results([row(case(name), [1.0]) for name in names]).to_json(True))
    (axes,) = figure.axes
    assert len({bar.get_y() for bar in axes.patches}) == len(axes.get_yticklabels()) == 3


def test_a_sweep_has_the_exponents_of_time_and_memory() -> None:
    rows = [row(case(size=side), [side**4 * 1e-6], side**2 * 100) for side in (32, 64, 128)]
    content = Results(rows, sweep="size").to_json(True)
    (fit,) = content["fits"]
    assert (fit["against"], fit["points"]) == ("pixels", 3)
    assert fit["time"]["exponent"] == pytest.approx(2)
    assert fit["memory"]["exponent"] == pytest.approx(1)
    assert "time ~ (pixels)^2.00" in table(content)


def test_rows_are_measured_and_a_failing_one_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    found = bench(
        ["fishnet_nano", "fishnet_nano:stem_stride=3@eager"], size=[32], runtime=["fused"], rounds=3, threads=1,
        peak=False, json=str(written), picture=str(picture),
    )  # fmt: skip
    assert found.exit_code == 0
    content = json.loads(written.read_text("utf-8"))
    first, second = content["rows"]
    expected = count(parse_spec("fishnet_nano", "").build(), 32)
    assert (first["parameters"], first["multiply_adds"]) == (expected.params, expected.macs)
    assert first["rounds"] == 3
    assert first["seconds"] == sorted(first["turn_seconds"])[1]
    assert first["passes"] >= 3
    assert first["p50"] <= first["p95"]
    assert first["memory"] > 4 * expected.params
    assert second["failed"]
    assert "stem_stride" in second["failed"]
    assert content["complete"]
    assert content["environment"]["hardware"]["processor"] in capsys.readouterr().out
    with Image.open(picture) as image:
        assert image.width > 300


def test_a_row_without_memory_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    found = bench(["fishnet_nano"], size=[32], batch_size=[10**9], runtime=["eager"], rounds=1, peak=False)
    assert found.exit_code == 1
    assert found.document["rows"][0]["failed"] == "out of memory"
    assert "out of memory" in capsys.readouterr().out


def test_a_killed_process_is_a_failed_row(tmp_path: Path) -> None:
    process = Process(Order(case(), 1, str(tmp_path), None))
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(RowFailed, match="out of memory: the system ended its process"):
        process.ask(do="open")
    process.close()


def test_a_network_that_cannot_be_fused_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("fishnet.models.fusing.network._difference", lambda before, after: 1.0)
    worker = Worker(Order(case(runtime="fused"), 1, str(tmp_path), None))
    assert worker.open()["remark"] == "not fused: the fused network differs by 1.0e+00: it is not used"
    assert Worker(Order(case(), 1, str(tmp_path), None)).open()["remark"] is None


def test_training_steps_are_measured(tmp_path: Path) -> None:
    found = bench(
        ["fishnet_nano:num_classes=5"], [2], [32], runtime=["channels_last"], train=True, rounds=1, peak=False
    )
    (entry,) = found.document["rows"]
    assert entry["train"]
    assert entry["memory"] > 2 * 4 * entry["parameters"]  # weights, gradients, momentum and activations


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_what_was_measured(
    signum: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    take = rounds._Turns.take

    def interrupted(self: rounds._Turns) -> None:
        if len(self.row.turns) == 2:
            signal.raise_signal(signum)
        take(self)

    monkeypatch.setattr(rounds._Turns, "take", interrupted)
    found = bench(["fishnet_nano"], size=[32], runtime=["eager"], rounds=9, peak=False, json=str(tmp_path / "b.json"))
    assert found.exit_code == 128 + signum
    content = json.loads((tmp_path / "b.json").read_text("utf-8"))
    assert not content["complete"]
    assert content["rows"][0]["rounds"] == 2
    assert "interrupted" in capsys.readouterr().out


def test_precisions_that_the_processor_lacks_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fishnet.models.precision.has_bf16", lambda: False)
    found = command.not_measurable(Case("fishnet_nano", 1, 32, "bf16", "eager"))
    assert found == "not measurable: this CPU has no bf16 instructions (AVX-512 bf16 or AMX)"
    assert command.not_measurable(case()) is None


def photos(folder: Path, number: int) -> Path:
    folder.mkdir()
    for place in range(number):
        pixels = np.random.default_rng(place).integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{place}.png")
    return folder


def test_int8_needs_photos(tmp_path: Path) -> None:
    options = {"size": [32], "precision": ["int8"], "runtime": ["openvino"], "rounds": 1}
    with pytest.raises(UsageError, match="int8 needs --calibration DIR"):
        bench(["fishnet_nano"], **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="has 3 images; int8 needs at least 10"):
        bench(["fishnet_nano"], calibration=str(photos(tmp_path / "few", 3)), **options)  # type: ignore[arg-type]
    bad = photos(tmp_path / "bad", 12)
    (bad / "5.png").write_bytes(b"no image")
    with pytest.raises(FishnetError, match=r"5\.png"):
        bench(["fishnet_nano"], calibration=str(bad), **options)  # type: ignore[arg-type]


def randomized(network: nn.Module) -> nn.Module:
    """Statistics of norms and zeros at the start are what a wrong conversion would not notice."""
    generator = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.running_mean.normal_(0, 0.2, generator=generator)  # type: ignore[union-attr]
    return network.eval()


@pytest.mark.parametrize(
    "wanted",
    [Wanted("openvino", False, "fp32"), Wanted("openvino", True, "fp32"), Wanted("openvino", True, "bf16")],
    ids=str,
)
def test_converted_networks_compute_the_same_for_any_batch(wanted: Wanted, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    network = randomized(parse_spec("fishnet_nano:num_classes=6:stem_stride=2", "").build())
    assert isinstance(network, FishNet)
    convert(network, torch.randn(1, 3, 32, 32), wanted, tmp_path / wanted.file_name, list)
    images = torch.randn(3, 3, 32, 32)
    with signal_stack_kept():
        compiled = openvino.compile_model(tmp_path / wanted.file_name, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(compiled(images.numpy())[0]), network(images), rtol=1e-3, atol=1e-4)


def test_onnx_networks_compute_the_same_for_any_batch(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = randomized(parse_spec("fishnet_nano:num_classes=6:stem_stride=2", "").build())
    convert(network, torch.randn(1, 3, 32, 32), Wanted("onnx", False, "fp32"), tmp_path / "network.onnx", list)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    images = torch.randn(3, 3, 32, 32)
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), network(images), rtol=1e-3, atol=1e-4)


def test_int8_networks_are_quantized_on_the_images(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    network = randomized(parse_spec("fishnet_nano:num_classes=6:stem_stride=2", "").build())
    images = torch.randn(12, 3, 32, 32)
    file = tmp_path / "network.xml"
    convert(network, images[:1], Wanted("openvino", False, "int8"), file, lambda: list(images[:, None]))
    assert any(op.get_type_name() == "FakeQuantize" for op in openvino.Core().read_model(file).get_ops())
    with signal_stack_kept():
        compiled = openvino.compile_model(file, "CPU")
    found = torch.from_numpy(compiled(images.numpy())[0])
    with torch.no_grad():
        expected = network(images)
    assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1] > 0.95


def test_runtimes_say_what_they_have() -> None:
    assert RUNTIMES["openvino"].has("int8", train=False, device="cpu")
    assert not RUNTIMES["openvino"].has("fp32", train=True, device="cpu")
    assert not RUNTIMES["openvino"].has("fp32", train=False, device="cuda")
    assert RUNTIMES["eager"].has("fp16", train=True, device="cuda")
    assert not RUNTIMES["eager"].has("fp16", train=False, device="cpu")
