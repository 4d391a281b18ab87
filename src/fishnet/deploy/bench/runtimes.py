"""Runtimes by name, and the precisions that they support.

Further runtimes are added as entries of `RUNTIMES`.
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fishnet.deploy.bench import conversion
from fishnet.errors import FishnetError, UsageError, did_you_mean
from fishnet.models.fusing.network import NotFused, fuse
from fishnet.models.precision import autocast, guard_bf16_on_cpu
from fishnet.runner.engine import INPUT
from fishnet.runner.openvino_graph import OpenVINOGraph
from fishnet.runner.signals import signal_stack_kept

Pass = Callable[[], object]
"""One forward pass, or one training step."""


@dataclass(frozen=True)
class Job:
    """Network and inputs to run."""

    network: Callable[[], nn.Module]
    """Builds the network: (N, C, H, W) -> tensors."""
    batch: int
    size: tuple[int, ...]
    """Shape of one image, (C, H, W), or of another input."""
    precision: str
    train: bool
    device: torch.device
    threads: int
    convert: Callable[[conversion.Wanted], Path]
    """Returns the file of a converted network."""

    def images(self) -> Tensor:
        """Return a batch of reproducible noise."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.batch, *self.size, generator=generator).to(self.device)


@dataclass
class Opened:
    """A network in a runtime, ready to run."""

    run: Pass
    compile_seconds: float | None = None
    """Compile time in seconds, if the runtime compiles."""
    remark: str | None = None
    """What it could not do, such as fusing."""


@dataclass(frozen=True)
class Runtime:
    """A way to run networks."""

    open: Callable[[Job], Opened]
    precisions: frozenset[str]
    needs: str = ""
    """Required package, from the extra `deploy`."""
    trains: bool = False
    cuda: bool = False
    """Whether it supports GPUs."""
    peak: str | None = None
    """Runtime with the same kernels that the peak throughput is measured in; None: this one."""

    def has(self, precision: str, train: bool, device: str) -> bool:
        """Whether it supports a precision on a device, for training if `train` is set."""
        known = self.precisions - ({"fp16"} if device == "cpu" else {"int8"})
        return precision in known and (self.trains or not train) and (self.cuda or device == "cpu")


def check_runtime(name: str) -> None:
    """Raise UsageError for an unknown runtime, FishnetError for one whose package is not installed."""
    if name not in RUNTIMES:
        raise UsageError(f"unknown runtime {name!r}.{did_you_mean(name, RUNTIMES)} Runtimes: {', '.join(RUNTIMES)}")
    needs = RUNTIMES[name].needs
    if needs and importlib.util.find_spec(needs) is None:
        raise FishnetError(f"the runtime {name} needs {needs}: pip install 'fishnet-vision[deploy]'")


def _open_torch(job: Job, channels_last: bool = True, fused: bool = False, compiled: bool = False) -> Opened:
    network = job.network().to(job.device)
    images = job.images()
    if channels_last and images.ndim == 4:
        network = network.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    remark = None
    if fused:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", NotFused)
            network = fuse(network, eager=job.device.type == "cpu" and job.precision == "fp32", example=images[:1])
        remark = next((f"not fused: {one.message}" for one in said if issubclass(one.category, NotFused)), None)
    if job.precision == "bf16" and job.device.type == "cpu":
        guard_bf16_on_cpu(network)
    network.train(job.train)
    if compiled:
        network.compile()
    step = _training_step(network, images, job) if job.train else _forward(network, images, job)
    if not compiled:
        return Opened(step, remark=remark)
    begin = time.perf_counter()
    step()
    return Opened(step, time.perf_counter() - begin)


def _forward(network: nn.Module, images: Tensor, job: Job) -> Pass:
    def step() -> None:
        with torch.inference_mode(), autocast(job.device, job.precision):
            network(images)
        _wait(job.device)

    return step


def _training_step(network: nn.Module, images: Tensor, job: Job) -> Pass:
    """Return a step of SGD with momentum on random classes.

    Raises:
        FishnetError: The network is not a classifier.
    """
    with torch.no_grad(), autocast(job.device, job.precision):
        shape = _first(network.eval()(images)).shape
    if len(shape) != 2:
        raise FishnetError(f"training steps are only measured for classifiers; its output has the shape {tuple(shape)}")
    network.train()
    targets = torch.randint(shape[1], (job.batch,), generator=torch.Generator().manual_seed(1)).to(job.device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    scaler = torch.amp.GradScaler(job.device.type, enabled=job.precision == "fp16")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(job.device, job.precision):
            logits = _first(network(images))
        loss = nn.functional.cross_entropy(logits.float(), targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        _wait(job.device)

    return step


def _first(outputs: object) -> Tensor:
    """Return the logits of a model that may return several tensors."""
    while isinstance(outputs, tuple | list):
        outputs = outputs[0]
    assert isinstance(outputs, Tensor)
    return outputs


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _open_openvino(job: Job) -> Opened:
    import openvino

    file = job.convert(conversion.Wanted("openvino", False, job.precision))
    begin = time.perf_counter()
    core = openvino.Core()
    model = core.read_model(file)
    model.reshape([job.batch, *job.size])
    # Layers that int8 leaves in floating point run in the fastest precision of the machine, the default of OpenVINO.
    hint = {"fp32": {"INFERENCE_PRECISION_HINT": "f32"}, "bf16": {"INFERENCE_PRECISION_HINT": "bf16"}}
    config = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(job.threads)}
    with signal_stack_kept():
        request = core.compile_model(model, "CPU", {**config, **hint.get(job.precision, {})}).create_infer_request()
    images = job.images().numpy()
    return Opened(lambda: request.infer([images], share_inputs=True), time.perf_counter() - begin)


def _open_exported(job: Job) -> Opened:
    file = job.convert(conversion.Wanted("openvino", True, job.precision))
    begin = time.perf_counter()
    graph = OpenVINOGraph(file, job.precision, often=1, threads=job.threads)
    inputs = {INPUT: job.images().numpy()}
    graph.compile(inputs[INPUT].shape)
    return Opened(lambda: graph(inputs), time.perf_counter() - begin)


def _open_onnxruntime(job: Job) -> Opened:
    import onnxruntime

    file = job.convert(conversion.Wanted("onnx", False, "fp32"))
    begin = time.perf_counter()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: job.images().numpy()}
    return Opened(lambda: session.run(None, feed), time.perf_counter() - begin)


FLOATS = frozenset({"fp32", "bf16", "fp16"})
_TORCH = "channels_last"
RUNTIMES: dict[str, Runtime] = {
    "eager": Runtime(lambda job: _open_torch(job, False), FLOATS, trains=True, cuda=True, peak=_TORCH),
    "channels_last": Runtime(_open_torch, FLOATS, trains=True, cuda=True),
    "fused": Runtime(lambda job: _open_torch(job, fused=True), FLOATS, cuda=True, peak=_TORCH),
    "compile": Runtime(lambda job: _open_torch(job, compiled=True), FLOATS, trains=True, cuda=True, peak=_TORCH),
    "onnxruntime": Runtime(_open_onnxruntime, frozenset({"fp32"}), "onnxruntime"),
    "openvino": Runtime(_open_openvino, frozenset({"fp32", "bf16", "int8"}), "openvino"),
    "exported": Runtime(_open_exported, frozenset({"fp32", "bf16", "int8"}), "openvino", peak="openvino"),
}
"""Runtimes by name: PyTorch in its default layout, in channels-last memory, after `fishnet.deploy.fuse`, compiled; the
plain conversions; and the graph that `fishnet export` writes for OpenVINO, run as the exported network runs it."""
