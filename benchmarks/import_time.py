"""How long `import fishnet` takes, as a ratio to `import timm`, and whether it brings Lightning along."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from record import record

ROUNDS = 7


def seconds(statement: str) -> float:
    """Return the time of a fresh interpreter that runs one statement."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - begin


def main() -> None:
    """Measure both in turns and record the ratio of the medians."""
    times: dict[str, list[float]] = {"import timm": [], "import fishnet": []}
    for statement in times:
        seconds(statement)
    for _ in range(ROUNDS):
        for statement, taken in times.items():
            taken.append(seconds(statement))
    ratio = statistics.median(times["import fishnet"]) / statistics.median(times["import timm"])
    probe = "import fishnet, sys; print('pytorch_lightning' in sys.modules)"
    lightning = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True).stdout.strip()
    record(
        "12_import_time",
        "time of `import fishnet` against `import timm`",
        "no Lightning import; under 1.5x",
        f"{ratio:.2f}x; Lightning imported: {'yes' if lightning == 'True' else 'no'}",
        ratio < 1.5 and lightning == "False",
        [{"statement": key, "median seconds": round(statistics.median(value), 2)} for key, value in times.items()],
    )


if __name__ == "__main__":
    main()
