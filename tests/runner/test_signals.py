"""OpenVINO does not leave its signal stack to the thread that compiles a model."""

from __future__ import annotations

import ctypes
import gc
import platform
from pathlib import Path

import numpy as np
import pytest

from fishnet.runner.graphs import open_graph
from fishnet.runner.signals import signal_stack_kept

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="the stack is set with Linux's structure")


class Stack(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def stack() -> tuple[int | None, int, int]:
    found = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found)) == 0
    return found.start, found.flags, found.size


def test_the_stack_is_given_back() -> None:
    before, memory = stack(), ctypes.create_string_buffer(1 << 16)
    with signal_stack_kept():
        other = Stack(ctypes.addressof(memory), 0, len(memory))
        assert ctypes.CDLL(None).sigaltstack(ctypes.byref(other), None) == 0
        assert stack() != before
    assert stack() == before


def test_opening_a_graph_leaves_the_stack(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    image = openvino.opset13.parameter([1, 3, 8, 8], np.float32, "images")
    file = tmp_path / "model.xml"
    openvino.save_model(openvino.Model([openvino.opset13.relu(image)], [image]), file)
    before = stack()
    graph = open_graph(file, "openvino", "fp32")
    assert stack() == before
    del graph
    gc.collect()
    assert stack() == before
