"""`fishnet bench`: measure the speed of models, per runtime."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fishnet.errors import UsageError
from fishnet.files import Json, texts, write_json

if TYPE_CHECKING:
    from fishnet.deploy.bench.cases import Case, Plan
    from fishnet.deploy.bench.results import Results, Sweep

SWEPT = {"size": (224, 288, 352, 416, 512), "batch": (1, 2, 4, 8, 16)}
"""Default values of a sweep."""


@dataclass
class Bench:
    """Result of `bench`; `document` is what `--json` writes."""

    document: Json
    exit_code: int = 0


def bench(
    models: str | Path | Sequence[str | Path],
    batch_size: list[int] | None = None,
    size: list[int] | None = None,
    precision: list[str] | None = None,
    runtime: list[str] | None = None,
    train: bool = False,
    sweep: Literal["size", "batch", "depth"] | None = None,
    ratio_to: str | None = None,
    calibration: str | Path | None = None,
    rounds: int = 10,
    threads: int | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    peak: bool = True,
    json: str | Path | None = None,
    picture: str | Path | None = None,
) -> Bench:
    """Measure the speed of models for all combinations of model, batch size, image size, precision and runtime.

    Rows are measured in turns, each in its own process; results are medians over the rounds.

    Args:
        models: FishNets, timm models, pytorchcv:NAME, with options as NAME:KEY=VALUE, or run folders, whose networks
            run without decoding. MODEL@RUNTIME and MODEL@RUNTIME/PRECISION are measured only in these.
        batch_size: Batch sizes (default: 1; with --train: 16).
        size: Heights and widths of the images in pixels (default: 224).
        precision: fp32, bf16 (CPUs with bf16 instructions, GPUs), fp16 (GPUs), int8 (openvino) (default: fp32).
        runtime: eager (default layout of PyTorch), channels_last, fused (fishnet.deploy.fuse), compile (torch.compile),
            onnxruntime, openvino (plain conversion), exported (as fishnet export writes it for OpenVINO) (default: the
            first three and, if OpenVINO is installed, the last two; with --train: the first two).
        train: Measure training steps of classifiers: forward, backward, SGD with momentum.
        sweep: Fit the exponents of time and memory as a function of image size, batch size, or multiply-adds (depth).
        ratio_to: Baseline that speeds are divided by: MODEL, MODEL@RUNTIME or MODEL@RUNTIME/PRECISION.
        calibration: Folder of at least 10 photos to calibrate int8 on.
        rounds: Number of rounds; every row is measured once per round.
        threads: Number of compute threads (default: one per core).
        device: Device that the models run on.
        peak: Also measure the peak throughput of the machine with plain matrix products and convolutions, in the same
            rounds.
        json: JSON file to write the results to.
        picture: Plot of the results to write (.png, .svg, .pdf).

    Raises:
        UsageError: An unknown model, runtime or precision, or int8 without photos.
        FishnetError: A package is missing.
    """
    from fishnet.deploy.bench.cases import Plan

    batches = batch_size or (SWEPT["batch"] if sweep == "batch" else (16,) if train else (1,))
    sides = size or (SWEPT["size"] if sweep == "size" else (224,))
    runtimes = runtime or default_runtimes(train, device)
    plan = Plan(texts(models), batches, sides, precision or ("fp32",), runtimes, train, device)
    results, cases = _set_up(plan, sweep, ratio_to, rounds, threads, picture)
    check_calibration(cases, calibration)
    signum = _measure(results, cases, peak, calibration)
    document = results.to_json(not signum)
    _finish(document, json, picture)
    failed = all("seconds" not in row for row in document["rows"])
    return Bench(document, 128 + signum if signum else int(failed))


def _set_up(
    plan: Plan, sweep: Sweep | None, ratio_to: str | None, rounds: int, threads: int | None, picture: str | Path | None
) -> tuple[Results, list[Case]]:
    """Return empty results, and the rows that can be measured."""
    from fishnet.deploy.bench.cases import check_numbers, find_base
    from fishnet.deploy.bench.results import Results
    from fishnet.drawing.style import check_picture
    from fishnet.environment import available_cores

    if picture is not None:
        check_picture(Path(picture))
    check_numbers("--rounds", [rounds])
    check_numbers("--threads", [1 if threads is None else threads])
    cases = plan.cases()
    results = Results(sweep=sweep, threads=threads or available_cores(), rounds=rounds, base_name=ratio_to)
    results.base = find_base(cases, ratio_to) if ratio_to else {}
    results.notes = {case: reason for case in cases if (reason := not_measurable(case))}
    return results, [case for case in cases if case not in results.notes]


def _finish(document: Json, json: str | Path | None, picture: str | Path | None) -> None:
    """Print and write the results."""
    from fishnet.deploy.bench.results import table

    print(table(document), flush=True)
    if json is not None:
        write_json(json, document)
    if picture is not None:
        from fishnet.deploy.bench.picture import draw
        from fishnet.drawing.style import save_figure

        save_figure(draw(document), Path(picture))


def default_runtimes(train: bool, device: str) -> list[str]:
    """Return the runtimes that are measured by default: those of PyTorch, and if it is installed, those of OpenVINO."""
    import importlib.util

    found = ["eager", "channels_last", *([] if train else ["fused"])]
    has_openvino = importlib.util.find_spec("openvino") is not None
    return [*found, "openvino", "exported"] if has_openvino and device == "cpu" and not train else found


def not_measurable(case: Case) -> str | None:
    """Return why a row cannot be measured on this machine, or None."""
    import torch

    from fishnet.models.precision import has_bf16

    if case.device == "cuda":
        if not torch.cuda.is_available():
            return "not measurable: there is no GPU"
        if case.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            return "not measurable: this GPU has no bf16 instructions"
        return None
    if case.precision == "bf16" and not has_bf16():
        return "not measurable: this CPU has no bf16 instructions (AVX-512 bf16 or AMX)"
    return None


def check_calibration(cases: Sequence[Case], calibration: str | Path | None) -> None:
    """Reject int8 without photos: activation ranges of random data differ from those of images.

    Raises:
        UsageError: int8 rows without calibration images.
        BadImageError: A photo cannot be read.
    """
    from fishnet.data.images import read_image
    from fishnet.deploy.bench.calibration import find_photos

    if not any(case.precision == "int8" for case in cases):
        return
    if calibration is None:
        raise UsageError("int8 needs --calibration DIR: a folder of representative photos")
    for photo in find_photos(Path(calibration)):
        read_image(photo)


def _measure(results: Results, cases: Sequence[Case], peak: bool, calibration: str | Path | None) -> int:
    """Fill the results; return the number of the signal that interrupted the measurement, or 0."""
    from fishnet.deploy.bench.cases import with_peaks
    from fishnet.deploy.bench.rounds import Measurement
    from fishnet.prediction.overlap import Stopped, stop_signals

    with stop_signals(), tempfile.TemporaryDirectory(prefix="fishnet_bench_") as folder:
        found = Measurement(
            folder, results.threads, results.rounds, None if calibration is None else str(calibration), _say
        )
        try:
            for row in found.measure(with_peaks(cases) if peak else cases, results.sweep is not None):
                results.rows.append(row)
        except Stopped as stopped:
            return stopped.signum
    return 0


def _say(text: str) -> None:
    print(f"fishnet bench: {text}", file=sys.stderr, flush=True)
