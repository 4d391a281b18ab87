"""Models of OpenVINO for static shapes, and batches in parts, against one request of any shape."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fishnet.runner import openvino_graph
from fishnet.runner.errors import RunnerError
from fishnet.runner.openvino_graph import OpenVINOGraph, default_threads

openvino = pytest.importorskip("openvino")


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """A convolution with two outputs, for any batch and size."""
    ops = openvino.opset13
    image = ops.parameter([-1, 3, -1, -1], np.float32)
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    maps = ops.convolution(image, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    outputs = {"maps": ops.relu(maps), "mean": ops.reduce_mean(maps, np.array([2, 3]))}
    model = openvino.Model(list(outputs.values()), [image])
    model.inputs[0].get_tensor().set_names({"images"})
    for output, name in zip(model.outputs, outputs, strict=True):
        output.get_tensor().set_names({name})
    file = tmp_path / "model.xml"
    openvino.save_model(model, file, compress_to_fp16=False)
    return file


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...] | None, int]]:
    """Shapes and streams of the models that are compiled."""
    found: list[tuple[tuple[int, ...] | None, int]] = []
    before = OpenVINOGraph._compiled

    def recording(graph: OpenVINOGraph, shape: tuple[int, ...] | None, streams: int) -> object:
        found.append((shape, streams))
        return before(graph, shape, streams)

    monkeypatch.setattr(OpenVINOGraph, "_compiled", recording)
    return found


def images(count: int, height: int = 8, width: int = 12) -> dict[str, np.ndarray]:
    return {"images": np.random.default_rng(count).normal(size=(count, 3, height, width)).astype(np.float32)}


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_static_shapes_and_streams_give_the_same_answers(
    threads: int, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_graph, "MOST", 100)
    plain, static = OpenVINOGraph(model_file, "fp32"), OpenVINOGraph(model_file, "fp32", often=1, threads=threads)
    for count in (1, 2, 3, 6, 8):
        for height, width in ((8, 12), (16, 4)):
            batch = images(count, height, width)
            wanted, found = plain(batch), static(batch)
            assert found.keys() == wanted.keys() == {"maps", "mean"}
            for name, value in wanted.items():
                assert found[name].dtype == value.dtype
                np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)
    assert len(static._static) == 10


def test_answers_outlive_the_next_batch(model_file: Path) -> None:
    graph = OpenVINOGraph(model_file, "fp32", often=1, threads=2)
    for count in (1, 4):
        first = graph(images(count))
        kept = {name: value.copy() for name, value in first.items()}
        graph({"images": images(count)["images"] + 1})
        gc.collect()
        assert all((first[name] == value).all() for name, value in kept.items())


def test_streams_have_equal_work(model_file: Path, compiled: list[object]) -> None:
    graph = OpenVINOGraph(model_file, "fp32", often=1, threads=4)
    for count in (3, 6, 8):
        graph(images(count))
    assert compiled == [((3, 3, 8, 12), 1), ((3, 3, 8, 12), 2), ((2, 3, 8, 12), 4)]


def test_only_frequent_shapes_get_a_model(model_file: Path, compiled: list[object]) -> None:
    graph = OpenVINOGraph(model_file, "fp32", often=3, threads=1)
    for width in range(1, 9):
        graph(images(1, width=width))
    assert compiled == [(None, 1)]
    for _ in range(4):
        graph(images(1, width=3))
    assert compiled == [(None, 1), ((1, 3, 8, 3), 1)]


def test_only_the_first_shapes_get_a_model(model_file: Path, compiled: list[object]) -> None:
    graph = OpenVINOGraph(model_file, "fp32", often=1, threads=1)
    for width in (1, 2, 3, 1, 4, 4, 5, 3):
        graph(images(1, width=width))
    assert compiled == [*(((1, 3, 8, width), 1) for width in (1, 2, 3)), (None, 1)]


def test_the_file_is_read_once(model_file: Path) -> None:
    graph = OpenVINOGraph(model_file, "fp32", often=2)
    batch = images(4)
    wanted = graph(batch)
    model_file.write_bytes(b"another model")
    model_file.with_suffix(".bin").unlink()
    for found in (graph(batch), graph(batch)):
        np.testing.assert_allclose(found["maps"], wanted["maps"], rtol=1e-5, atol=1e-6)


def test_a_shape_that_cannot_be_compiled_uses_the_dynamic_model(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = OpenVINOGraph._compiled

    def failing(graph: OpenVINOGraph, shape: tuple[int, ...] | None, streams: int) -> object:
        if shape is not None:
            raise RuntimeError("no kernel")
        return before(graph, shape, streams)

    monkeypatch.setattr(OpenVINOGraph, "_compiled", failing)
    graph = OpenVINOGraph(model_file, "fp32", often=1)
    assert graph(images(2))["maps"].shape == (2, 4, 8, 12)


def test_threads_may_share_a_graph(model_file: Path) -> None:
    graph = OpenVINOGraph(model_file, "fp32", often=1, threads=2)
    batches = [images(4, height=64, width=64), {"images": np.ones((4, 3, 64, 64), np.float32)}]
    wanted = [graph(batch)["maps"] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda place: graph(batches[place % 2])["maps"], range(80)))
    assert all((value == wanted[place % 2]).all() for place, value in enumerate(found))


def test_a_batch_that_fails_does_not_block_the_next_one(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = OpenVINOGraph(model_file, "fp32", often=1, threads=2)
    batch = images(4, height=256, width=256)
    wanted = graph(batch)["maps"]
    with pytest.raises(Exception, match="no such input"):
        graph({"no such input": batch["images"]})
    assert (graph(batch)["maps"] == wanted).all()


def test_threads_are_those_of_openvino() -> None:
    assert 1 <= default_threads() <= 4096


def test_a_model_that_cannot_be_compiled_is_named(model_file: Path) -> None:
    graph = OpenVINOGraph(model_file, "fp32")
    graph._settings["INFERENCE_PRECISION_HINT"] = "no precision"
    with pytest.raises(RunnerError, match=r"OpenVINO cannot compile .*model\.xml: "):
        graph(images(1))
