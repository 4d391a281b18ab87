"""Results on disk: every benchmark writes one JSON file below docs/results; docs/make_results.py makes the page."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fishnet.environment import describe_hardware, source_commit

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "docs" / "results"


def record(
    name: str,
    title: str,
    target: str,
    measured: str,
    met: bool | None,
    table: list[dict[str, Any]] | None = None,
    note: str = "",
) -> Path:
    """Write one result with its command, machine and date.

    Args:
        name: File name without suffix; results are listed in the order of these.
        title: What was measured.
        target: Target, as text.
        measured: Measured figures, as text.
        met: Whether the target was reached; None if there is none.
        table: Rows with the same keys, shown below the figure.
        note: What else a reader should know.
    """
    hardware = describe_hardware()
    # Where the data lies is a matter of the machine; its name is not.
    arguments = [Path(text).name if Path(text).is_absolute() else text for text in sys.argv[1:]]
    content = {
        "title": title,
        "target": target,
        "measured": measured,
        "met": met,
        "table": table or [],
        "note": note,
        "command": " ".join(["python", Path(sys.argv[0]).resolve().relative_to(PROJECT).as_posix(), *arguments]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{hardware['processor']}, {hardware['cores']} cores"
        + "".join(f", {gpu}" for gpu in hardware["gpus"]),
        "commit": source_commit(),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"{title}: {measured} (target {target}) -> {path.relative_to(PROJECT)}")
    return path
