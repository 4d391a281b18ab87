"""Worker process of one row: builds the model, then runs passes on request.

It reads a JSON request per line of standard input, and writes a JSON response per line of standard output.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from fishnet.deploy.bench import memory
from fishnet.deploy.bench.cases import Case
from fishnet.deploy.bench.conversion import Wanted, convert
from fishnet.deploy.bench.networks import build, sizes
from fishnet.deploy.bench.peak import PEAK, SHAPES, Shape
from fishnet.deploy.bench.prepare import Conversion, converted
from fishnet.deploy.bench.runtimes import RUNTIMES, Job, Opened
from fishnet.errors import FishnetError
from fishnet.files import Json

_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "alloc_cpu",
    "defaultcpuallocator",
    "bad_alloc",
    "bad allocation",
)


@dataclass(frozen=True)
class Order:
    """Arguments of a worker."""

    case: Case
    threads: int
    folder: str
    """Folder of converted models."""
    calibration: str | None

    def text(self) -> str:
        """Return the arguments as one line of JSON."""
        return json.dumps(asdict(self))


class Worker:
    """Measurement of one row."""

    def __init__(self, order: Order) -> None:
        self.order, self.case = order, order.case
        self.opened: list[Opened] = []

    def open(self) -> Json:
        """Build the model and run it twice; return its sizes, memory and the time that compilation took."""
        torch.set_num_threads(self.order.threads)
        if self.case.model == PEAK:
            self.opened = [self._shape(shape) for shape in SHAPES]
            for one in self.opened:
                one.run()
            return {"shapes": [shape.name for shape in SHAPES], "macs": [shape.macs for shape in SHAPES]}
        params, macs = sizes(build(self.case.model), self.case.size)
        device = torch.device(self.case.device)
        memory.reset_peak()
        before = memory.resident()
        image = (3, self.case.size, self.case.size)
        job = self._job(partial(build, self.case.model), self.case.batch, image, self._converted)
        opened = RUNTIMES[self.case.runtime].open(job)
        memory.reset_peak()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        opened.run()
        begin = time.perf_counter()
        opened.run()
        seconds = time.perf_counter() - begin
        self.opened = [opened]
        found = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory.peak() - before
        return {
            "params": params,
            "macs": macs,
            "memory": max(0, found),
            "compile_seconds": opened.compile_seconds,
            "remark": opened.remark,
            "warm_seconds": seconds,
        }

    def run(self, passes: int) -> Json:
        """Return the seconds of each pass; several shapes are measured one after the other."""
        seconds = []
        for one in self.opened:
            for _ in range(passes):
                begin = time.perf_counter()
                one.run()
                seconds.append(time.perf_counter() - begin)
        return {"seconds": seconds}

    def _job(
        self,
        network: Callable[[], nn.Module],
        batch: int,
        size: tuple[int, ...],
        wanted: Callable[[Wanted], Path],
    ) -> Job:
        case = self.case
        device = torch.device(case.device)
        return Job(network, batch, size, case.precision, case.train, device, self.order.threads, wanted)

    def _converted(self, wanted: Wanted) -> Path:
        order = self.order
        return converted(Conversion(self.case.model, self.case.size, wanted, order.folder, order.calibration))

    def _shape(self, shape: Shape) -> Opened:
        """Open one of the shapes that measure the peak throughput.

        int8 is calibrated on noise, since the time does not depend on the values.
        """

        def wanted(one: Wanted) -> Path:
            file = Path(self.order.folder) / "".join(c if c.isalnum() else "_" for c in shape.name) / one.file_name
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                example = torch.randn(1, *shape.size, generator=torch.Generator().manual_seed(0))
                convert(shape.build(), example, one, file, lambda: [example] * 2)
            return file

        return RUNTIMES[self.case.runtime].open(self._job(shape.build, 1, shape.size, wanted))


def explain(error: Exception) -> str:
    """Return the reason why a row failed, as one line."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or any(sign in text.lower() for sign in _NO_MEMORY):
        return "out of memory"
    if isinstance(error, FishnetError):
        return text
    return f"{type(error).__name__}: {text[:300]}"


def main() -> None:
    """Process requests until the end of standard input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not be mixed with responses
    content = json.loads(sys.argv[1])
    worker = Worker(Order(**{**content, "case": Case.from_json(content["case"])}))
    memory.die_first()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = worker.open() if request["do"] == "open" else worker.run(request["passes"])
        except Exception as error:  # networks and runtimes of other packages may raise any exception
            answer = {"error": explain(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
