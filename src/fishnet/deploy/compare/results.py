"""Results of a comparison: metrics of every run, means and standard deviations per model."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from fishnet.deploy.bench.networks import build, sizes
from fishnet.deploy.bench.results import aligned
from fishnet.deploy.compare.plan import Comparison, Run
from fishnet.drawing.display import Display
from fishnet.environment import describe_environment
from fishnet.errors import FishnetError
from fishnet.files import Json
from fishnet.metrics import MetricsFile

FORMAT = 1


def figures_of(run: Run, size: int) -> Json:
    """Return metrics and costs of a finished run.

    Args:
        run: Run.
        size: Image size in pixels for which multiply-adds are counted.

    Raises:
        FishnetError: Files of the run are damaged.
    """
    file = run.folder.evaluation_json()
    try:
        evaluation = json.loads(file.read_text("utf-8"))
        metrics = {name: float(value) for name, value in evaluation["metrics"].items() if value is not None}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FishnetError(f"cannot read {file}: {error}; remove {run.folder.path} to train it again") from error
    params, macs = sizes(build(str(run.folder.path)), size)
    rows = MetricsFile(run.folder.timing_csv).read()
    return {
        **name_of(run),
        "epoch": evaluation.get("epoch"),
        "parameters": params,
        "multiply_adds": macs,
        "minutes": sum(float(row["value"]) for row in rows if row["name"] == "seconds") / 60,
        "metrics": metrics,
        "failed": None,
    }


def name_of(run: Run) -> Json:
    """Return model and seed of a run."""
    return {"model": run.model.label, "seed": run.seed, "folder": str(run.folder.path)}


def document(
    comparison: Comparison,
    runs: Sequence[Json],
    display: Display,
    size: int,
    speeds: Mapping[str, Json],
    complete: bool,
) -> Json:
    """Return the comparison as JSON values.

    Args:
        comparison: Comparison.
        runs: Results of the runs that are finished or failed.
        display: Presentation of metrics.
        size: Image size in pixels for which multiply-adds are counted.
        speeds: Rows of `fishnet bench` by model.
        complete: Whether all runs are finished or failed.
    """
    finished = [run for run in runs if run["failed"] is None]
    names = {name: None for run in finished for name in run["metrics"]}
    primary = display.primary_of(list(names)) if names else None
    return {
        "format_version": FORMAT,
        "complete": complete,
        **comparison.shared(),
        "models": [_of_model(model.label, runs, speeds.get(model.label)) for model in comparison.models],
        "seeds": list(comparison.seeds),
        "size": size,
        "primary": primary,
        "titles": {name: display.title(name) for name in names},
        "details": [name for name in names if display.is_detail(name)],
        "fractions": sorted(display.fractions & names.keys()),
        "smaller_is_better": bool(primary) and display.is_better(primary or "", 0.0, 1.0),
        "environment": describe_environment(),
        "runs": list(runs),
    }


def _of_model(label: str, runs: Sequence[Json], speed: Json | None) -> Json:
    mine = [run for run in runs if run["model"] == label]
    finished = [run for run in mine if run["failed"] is None]
    names = {name: None for run in finished for name in run["metrics"]}
    metrics = {name: _summary([run["metrics"][name] for run in finished if name in run["metrics"]]) for name in names}
    found: Json = {"model": label, "runs": len(finished), "metrics": metrics}
    found["parameters"] = finished[0]["parameters"] if finished else None
    found["multiply_adds"] = finished[0]["multiply_adds"] if finished else None
    found["minutes"] = _summary([run["minutes"] for run in finished]) if finished else None
    found["speed"] = speed
    found["failed"] = [{"seed": run["seed"], "reason": run["failed"]} for run in mine if run["failed"]]
    return found


def _summary(values: Sequence[float]) -> Json:
    """Return mean and sample standard deviation, which is None for a single value."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": deviation, "values": list(values)}


HEAD = ("model", "runs", "parameters", "multiply-adds", "images/s", "minutes")


def cells(content: Json) -> tuple[list[str], list[list[str]]]:
    """Return the titles and the cells of the table of models, the best model first."""
    primary = content["primary"]
    others = [name for name in content["titles"] if name != primary and name not in content["details"]]
    names = ([primary] if primary else []) + others
    rows = []
    for entry in sorted(content["models"], key=lambda entry: _rank(entry, content)):
        speed = entry["speed"]
        fast = "" if not speed or "seconds" not in speed else f"{speed['images_per_second']:.1f}"
        if fast and speed:
            fast += f" ± {speed['images_per_second'] * speed['spread']:.1f}"
        rows.append(
            [
                entry["model"],
                str(entry["runs"]),
                "" if entry["parameters"] is None else f"{entry['parameters'] / 1e6:.3f} M",
                "" if entry["multiply_adds"] is None else f"{entry['multiply_adds'] / 1e6:.1f} M",
                fast,
                "" if entry["minutes"] is None else f"{entry['minutes']['mean']:.1f}",
                *(spelled(entry["metrics"].get(name), name in content["fractions"]) for name in names),
            ]
        )
    return [*HEAD, *(content["titles"][name] for name in names)], rows


def _rank(entry: Json, content: Json) -> tuple[bool, float]:
    found = entry["metrics"].get(content["primary"])
    mean = found["mean"] if found else 0.0
    return found is None, mean if content["smaller_is_better"] else -mean


def spelled(summary: Json | None, is_fraction: bool) -> str:
    """Return mean and standard deviation as text; fractions in percent."""
    if summary is None:
        return "–"
    factor, form = (100, ".2f") if is_fraction else (1, ".4g")
    unit = " %" if is_fraction else ""
    deviation = "" if summary["std"] is None else f" ± {factor * summary['std']:{form}}"
    return f"{factor * summary['mean']:{form}}{deviation}{unit}"


def table(content: Json) -> str:
    """Return the table of models as text, with the runs that failed below it."""
    lines = aligned(*cells(content), left=1)
    for run in content["runs"]:
        if run["failed"]:
            lines.append(f"{run['model']} seed {run['seed']} failed: {run['failed']}")
    if not content["complete"]:
        lines.append("not complete: repeat the command to continue")
    return "\n".join(lines)


def csv_text(content: Json) -> str:
    """Return all runs as CSV, with a row per run."""
    names = list(content["titles"])
    plain = ["model", "seed", "folder", "epoch", "parameters", "multiply_adds", "minutes", "failed"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*plain, *names])
    for run in content["runs"]:
        metrics = run.get("metrics", {})
        writer.writerow([*(run.get(name) for name in plain), *(metrics.get(name) for name in names)])
    return text.getvalue()


def read_document(path: Path) -> Json | None:
    """Return the document of a comparison in a folder, or None if there is none.

    Raises:
        FishnetError: The file is damaged.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise FishnetError(f"{path} is damaged ({error}); choose another --out or --overwrite") from error
    if not isinstance(content, dict):
        raise FishnetError(f"{path} is damaged; choose another --out or --overwrite")
    return content


def listed_folders(path: Path) -> set[Path]:
    """Return the folders of the runs that a document lists; none if it is missing or damaged."""
    try:
        content = read_document(path) or {"runs": []}
        return {Path(run["folder"]) for run in content["runs"]}
    except (FishnetError, KeyError, TypeError):
        return set()
