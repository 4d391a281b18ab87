"""Runs of a comparison."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fishnet.errors import UsageError
from fishnet.files import Json
from fishnet.models.specs import PYTORCHCV, ModelSpec, check_spec
from fishnet.runs import RunFolder
from fishnet.schema import flat
from fishnet.settings import comparable


@dataclass(frozen=True)
class Run:
    """One training run."""

    model: ModelSpec
    seed: int
    folder: RunFolder

    @property
    def name(self) -> str:
        """Display name of the run."""
        return f"{self.model.label} seed {self.seed}"

    @property
    def is_finished(self) -> bool:
        """Whether training has finished: the report is the last file that it writes."""
        return self.folder.report_html.is_file() and self.folder.evaluation_json().is_file()


@dataclass(frozen=True)
class Comparison:
    """Models x seeds with equal settings."""

    task: str
    data: str
    models: Sequence[ModelSpec]
    seeds: Sequence[int]
    out: Path
    recipe: str | None = None
    settings: Json = field(default_factory=dict)
    """Settings of `fishnet train` for all runs."""

    def check(self) -> None:
        """Check models, seeds and settings.

        Raises:
            UsageError: No model or seed, duplicates, an unknown model, or a setting that differs between runs.
        """
        for flag, values in (
            ("--models", [model.label for model in self.models]),
            ("--seeds", [*map(str, self.seeds)]),
        ):
            if not values:
                raise UsageError(f"{flag} is missing: give one or more, separated by commas")
            if twice := [value for value in values if values.count(value) > 1]:
                raise UsageError(f"{flag} has {twice[0]} twice")
        for name in ("model", "seed"):
            if name in self.settings:
                raise UsageError(f"--{name} differs between the runs of a comparison: use --{name}s")
        for model in self.models:
            if model.name.startswith(f"{PYTORCHCV}:"):
                raise UsageError(f"--models {model.name}: models of pytorchcv cannot be trained here")
            check_spec(model)

    def runs(self) -> Iterator[Run]:
        """Yield the runs: all models with the first seed, then with the next."""
        folders = self.folders()
        for seed in self.seeds:
            for model in self.models:
                yield Run(model, seed, RunFolder(folders[model.label] / f"seed{seed}"))

    def folders(self) -> dict[str, Path]:
        """Return the folder of every model, by its label."""
        found: dict[str, Path] = {}
        for model in self.models:
            name = re.sub(r"[^A-Za-z0-9._=-]+", "_", model.label).strip("_")
            while self.out / name in found.values():  # labels that differ only in invalid characters
                name += "_"
            found[model.label] = self.out / name
        return found

    def command(self, run: Run) -> list[str]:
        """Return the arguments of `fishnet` that start or resume a run.

        Args:
            run: A run of this comparison.
        """
        go_on = "--resume" if run.folder.last.is_file() else "--overwrite"
        words = ["train", self.task, "--data", self.data, "--out", str(run.folder.path), go_on]
        words += ["--model", run.model.name, "--seed", str(run.seed)]
        if self.recipe is not None and go_on == "--overwrite":
            words += ["--recipe", self.recipe]
        options = {f"model_option.{key}": value for key, value in run.model.options.items()}
        return [*words, *(_option(name, value) for name, value in {**flat(self.settings), **options}.items())]

    def shared(self) -> Json:
        """Return the common settings of all runs, as JSON values."""
        return {"task": self.task, "data": self.data, "recipe": self.recipe, "settings": flat(self.settings)}

    def check_same(self, before: Json) -> None:
        """Check that the folder contains runs of the same comparison.

        Args:
            before: `shared()` of the comparison whose runs are in the folder.

        Raises:
            UsageError: A setting other than models and seeds differs.
        """
        now = self.shared()
        names = [
            name
            for name in now
            if name != "settings" and comparable(name, now[name]) != comparable(name, before.get(name))
        ]
        old, new = before.get("settings", {}), now["settings"]
        changed = [f"{name}: {before.get(name)} -> {now[name]}" for name in names]
        for name in dict.fromkeys([*old, *new]):
            if comparable(name, old.get(name)) != comparable(name, new.get(name)):
                changed.append(f"{name}: {old.get(name)} -> {new.get(name)}")
        if changed:
            raise UsageError(
                f"{self.out} has runs of another comparison ({'; '.join(changed)}); choose another --out or --overwrite"
            )


def _option(name: str, value: object) -> str:
    """Return a setting as an option of the command line."""
    if value is None:
        text = "None"
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, list | tuple):
        inner = ",".join(str(one) for one in value)
        text = f"[{inner}]"
    else:
        text = str(value)
    return f"--{name}={text}"
