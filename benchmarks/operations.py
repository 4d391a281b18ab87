"""Time of each type of operation in exported networks, as OpenVINO's profile tells it.

python benchmarks/operations.py [MODEL ...] [--precision int8] [--calibration PHOTOS] [--batch-size 1] [--rounds 20]

MODEL are names as of `fishnet bench`; by default fishnet150 and resnet101. Networks take turns. PHOTOS is a folder of
photos for int8. The kernels are listed with their times, to see which operations run without a fast one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from record import record
from rounds import machine

from fishnet.deploy.bench.conversion import Wanted
from fishnet.deploy.bench.networks import build, sizes
from fishnet.deploy.bench.prepare import Conversion, converted
from fishnet.runner.openvino_graph import openvino_settings
from fishnet.runner.signals import signal_stack_kept

SIZE = 224
Times = dict[tuple[str, str], float]
"""Milliseconds by type of operation and kernel."""


def opened(file: Path, precision: str, batch: int, threads: int) -> openvino.InferRequest:
    """Return a request of a network that measures its operations."""
    core = openvino.Core()
    model = core.read_model(file)
    model.reshape([batch, 3, SIZE, SIZE])
    settings = {**openvino_settings(precision), "PERF_COUNT": "YES", "NUM_STREAMS": "1"}
    with signal_stack_kept():
        compiled = core.compile_model(model, "CPU", {**settings, "INFERENCE_NUM_THREADS": str(threads)})
    return compiled.create_infer_request()


def times(request: openvino.InferRequest, images: np.ndarray) -> Times:
    """Run a batch and return the time of each type of operation and kernel."""
    request.infer([images])
    found: Times = defaultdict(float)
    for one in request.get_profiling_info():
        if one.status == openvino.ProfilingInfo.Status.EXECUTED:
            found[one.node_type, one.exec_type] += one.real_time.total_seconds() * 1e3
    return found


def table(name: str, turns: list[Times], macs: float) -> list[dict[str, Any]]:
    """Return a row per type of operation and kernel that takes at least a hundredth of the time."""
    keys = {key for turn in turns for key in turn}
    medians = {key: statistics.median(turn.get(key, 0.0) for turn in turns) for key in keys}
    whole = sum(medians.values())
    rows = []
    for (kind, kernel), spent in sorted(medians.items(), key=lambda pair: -pair[1]):
        if spent >= whole / 100:
            row = {"model": name, "operation": kind, "kernel": kernel, "ms": f"{spent:.2f}"}
            rows.append({**row, "share": f"{100 * spent / whole:.0f} %"})
    convolutions = sum(spent for (kind, _), spent in medians.items() if kind == "Convolution")
    rate = f"convolutions {macs / convolutions / 1e6:.0f} G multiply-adds/s"
    return [{"model": name, "operation": "all", "kernel": rate, "ms": f"{whole:.2f}", "share": "100 %"}, *rows]


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["fishnet150", "resnet101"])
    parser.add_argument("--precision", default="int8", choices=("fp32", "bf16", "int8"))
    parser.add_argument("--calibration", type=Path)
    for name, default in (("batch-size", 1), ("rounds", 20), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    photos = str(arguments.calibration) if arguments.calibration else None
    if arguments.precision == "int8" and photos is None:
        parser.error("int8 needs --calibration PHOTOS")
    images = np.random.default_rng(0).standard_normal((arguments.batch_size, 3, SIZE, SIZE), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        wanted = Wanted("openvino", True, arguments.precision)
        requests = {}
        for name in arguments.models:
            file = converted(Conversion(name, SIZE, wanted, folder, photos))
            requests[name] = opened(file, arguments.precision, arguments.batch_size, arguments.threads)
        turns: dict[str, list[Times]] = {name: [] for name in requests}
        for turn in range(arguments.rounds + 1):
            for name, request in requests.items():
                found = times(request, images)
                if turn:
                    turns[name].append(found)
    rows, words = [], []
    for name, measured in turns.items():
        own = table(name, measured, sizes(build(name), SIZE)[1] * arguments.batch_size)
        rows += own
        share = sum(float(row["ms"]) for row in own if row["operation"] == "Convolution") / float(own[0]["ms"])
        words.append(f"{name} {own[0]['ms']} ms, of which convolutions {100 * share:.0f} %")
    record(
        f"44c_operations_{arguments.precision}_{arguments.batch_size}",
        f"operations of exported networks in OpenVINO, {arguments.precision}, batch {arguments.batch_size}",
        "",
        "; ".join(words),
        None,
        rows,
        f"{machine()}; medians of {arguments.rounds} rounds in turns; kernels that take at least 1 % of the time",
    )


if __name__ == "__main__":
    main()
