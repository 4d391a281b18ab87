"""`fishnet compare`: train and compare several models and seeds with one recipe."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fishnet.errors import FishnetError, Interrupted, UsageError, counted
from fishnet.files import Json, atomic_write, write_json

if TYPE_CHECKING:
    from fishnet.deploy.compare.plan import Comparison, Run


@dataclass
class Compared:
    """Result of `compare`; `document` is the content of compare.json."""

    document: Json
    exit_code: int = 0


def compare(
    task: str,
    models: str,
    out: str | Path,
    data: str | Path = "",
    seeds: list[int] | None = None,
    recipe: str | Path | None = None,
    overwrite: bool = False,
    jobs: int = 1,
    speed: bool = True,
    **settings: object,
) -> Compared:
    """Train several models with the same settings and several seeds, and compare their metrics, parameters,
    multiply-adds and speed.

    Each run is a run folder, OUT/MODEL/seedN. Repeat the command to continue an interrupted comparison; models and
    seeds may be added. Writes compare.json, compare.csv, compare.png and compare.html.

    Args:
        task: What to predict, such as classification or detection.
        models: Models, separated by commas, with options as NAME:KEY=VALUE: fishnet_nano,resnet18:zero_init_last=false.
        out: Folder of the comparison.
        data: Folder of the data set.
        seeds: Seeds; each model is trained once with each (default: 0,1,2).
        recipe: Name of a built-in recipe, or a YAML file, for all runs; by default the task
            chooses one.
        overwrite: Remove the runs of an earlier comparison in --out.
        jobs: Number of runs in parallel; they share the CPU cores.
        speed: Also measure the speed of the trained networks (fused, batch size 1), as `fishnet bench` does.
        settings: Settings of the task, see `fishnet train TASK --help`; groups as dicts (`optim={"lr": 0.2}`).

    Raises:
        UsageError: An unknown model or setting, or --out contains runs with other settings.
        Interrupted: A signal was received; the state of the runs is saved.
    """
    from fishnet.deploy.compare.plan import Comparison
    from fishnet.models.specs import parse_specs
    from fishnet.schema import plain_paths

    if jobs < 1:
        raise UsageError(f"--jobs must be at least 1, not {jobs}")
    if not data:
        raise UsageError("--data DIR is missing: the folder of the data set")
    wanted = (0, 1, 2) if seeds is None else seeds
    named = None if recipe is None else str(recipe)
    specs = parse_specs(models, "--models")
    comparison = Comparison(task, str(data), specs, wanted, Path(out), named, plain_paths(settings))
    return _State(comparison, overwrite).fill(jobs, speed)


@dataclass
class _State:
    """State of a comparison: its runs, their failures and speeds."""

    comparison: Comparison
    overwrite: bool
    failed: dict[str, str] = field(default_factory=dict)
    """Reasons of failed runs, by name."""
    speeds: dict[str, Json] = field(default_factory=dict)
    _figures: dict[str, Json] = field(default_factory=dict)

    def fill(self, jobs: int, speed: bool) -> Compared:
        """Run the missing trainings, and write all result files."""
        from fishnet.deploy.compare.training import Trainer

        self._open()
        runs = list(self.comparison.runs())
        missing = [run for run in runs if not run.is_finished]
        if len(missing) < len(runs):
            print(f"fishnet compare: {len(runs) - len(missing)} of {len(runs)} runs are finished", flush=True)
        models, seeds = counted(len(self.comparison.models), "model"), counted(len(self.comparison.seeds), "seed")
        steps = "each run is trained, and evaluated on the validation split"
        steps += "; then the speed of each model is measured" if speed else ""
        print(f"fishnet compare: {models} x {seeds}: {steps}", flush=True)
        try:
            Trainer(self.comparison, jobs, self._note).train(missing)
        except Interrupted:
            self._write(complete=False, all_files=True)
            raise
        if speed:
            print(f"fishnet compare: measuring the speed of {models}", flush=True)
            self.speeds = _measure_speeds([run for run in runs if run.is_finished], self._size())
        document = self._write(complete=True, all_files=True)
        from fishnet.deploy.compare.results import table

        print(table(document), flush=True)
        print(f"written: {self.comparison.out}/compare.json, .csv, .png, .html", flush=True)
        return Compared(document, int(bool(self.failed)))

    def _open(self) -> None:
        from fishnet.deploy.compare.results import listed_folders, read_document
        from fishnet.tasks import get_task

        get_task(self.comparison.task)
        self.comparison.check()
        out = self.comparison.out
        if out.exists() and not out.is_dir():
            raise UsageError(f"--out {out} is a file; give a folder")
        runs = {run.folder.path for run in self.comparison.runs()}
        if self.overwrite:
            for folder in runs | listed_folders(out / "compare.json"):
                if out.resolve() in folder.resolve().parents:
                    shutil.rmtree(folder, ignore_errors=True)
        elif (before := read_document(out / "compare.json")) is not None:
            self.comparison.check_same(before)
        elif present := sorted(path for path in runs if path.exists()):
            raise UsageError(
                f"{out} has runs, such as {present[0]}, but no compare.json with their settings; choose another --out "
                "or --overwrite"
            )
        self._write(complete=False)

    def _note(self, run: Run, reason: str | None) -> None:
        if reason is not None:
            self.failed[run.name] = reason
            print(f"fishnet compare: {run.name} failed: {reason}", file=sys.stderr, flush=True)
        self._write(complete=False)

    def _size(self) -> int:
        """Return the size of the images of the runs in pixels, from the settings of any of them."""
        from fishnet.settings import read_settings
        from fishnet.tasks import get_task

        kind = get_task(self.comparison.task)
        for run in self.comparison.runs():
            if run.folder.config_yaml.is_file():
                return int(read_settings(run.folder.config_yaml, kind.config).get("size", kind.config().size))
        return kind.config().size

    def _write(self, complete: bool, all_files: bool = False) -> Json:
        """Write the results so far, and return them."""
        from fishnet.deploy.compare.picture import draw, page
        from fishnet.deploy.compare.results import csv_text, document
        from fishnet.drawing.style import save_figure
        from fishnet.tasks import get_task

        display = get_task(self.comparison.task).display
        content = document(self.comparison, self._runs(), display, self._size(), self.speeds, complete)
        out = self.comparison.out
        write_json(out / "compare.json", content)
        atomic_write(out / "compare.csv", csv_text(content))
        if all_files:
            save_figure(draw(content), out / "compare.png")
            atomic_write(out / "compare.html", page(content, out))
        return content

    def _runs(self) -> list[Json]:
        from fishnet.deploy.compare.results import figures_of, name_of

        size = self._size()
        for run in self.comparison.runs():
            if run.name in self.failed:
                self._figures[run.name] = {**name_of(run), "failed": self.failed[run.name]}
            elif run.name not in self._figures and run.is_finished:
                try:
                    self._figures[run.name] = figures_of(run, size)
                except FishnetError as error:
                    self.failed[run.name] = str(error)
                    self._figures[run.name] = {**name_of(run), "failed": str(error)}
        return [self._figures[run.name] for run in self.comparison.runs() if run.name in self._figures]


def _measure_speeds(runs: Sequence[Run], size: int) -> dict[str, Json]:
    """Measure the network of the first run of each model, in turns; return rows of `fishnet bench` by model."""
    from fishnet.deploy.bench.cases import Case
    from fishnet.deploy.bench.results import Results
    from fishnet.deploy.bench.rounds import Measurement
    from fishnet.environment import available_cores

    first: dict[str, Case] = {}
    for run in runs:
        first.setdefault(run.model.label, Case(str(run.folder.path), 1, size, "fp32", "fused"))
    if not first:
        return {}
    cores = available_cores()
    results = Results(threads=cores, rounds=10)
    with tempfile.TemporaryDirectory(prefix="fishnet_compare_") as folder:
        measurement = Measurement(folder, cores, results.rounds, None, lambda text: None)
        results.rows += measurement.measure(list(first.values()))
    rows = {row.pop("model"): row for row in results.to_json(True)["rows"]}
    return {label: {**rows[case.model], "label": label} for label, case in first.items()}
