"""Write docs/trunks.md: which of timm's families can be the trunk of a detector, tried on the meta device.

python docs/make_trunks_table.py    (a few minutes: every network of timm is built once, without memory)
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import timm
import torch

from fishnet.errors import UsageError
from fishnet.models.build_trunk import build_trunk
from fishnet.models.trunk import STRIDES

PAGE = Path(__file__).resolve().parent / "trunks.md"
HEAD = f"""# Trunks

Written by `python docs/make_trunks_table.py` (`make trunks`)
with timm {timm.__version__}; tests build and train what it lists.
One network per family of timm that has maps of strides 4, 8, 16 and 32: the smallest. A trunk must take images of any
size, so each is tried with 96x160 and 224x288 pixels, and refused with the reason given here where its maps are not as
promised. Where the smallest is refused and a larger one of the family works, the smallest of these is named.

| family | network | parameters of the trunk | as a trunk |
|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """One family: its smallest network and what comes of it."""

    family: str
    network: str
    parameters: int
    refusal: str | None
    instead: str | None

    def __str__(self) -> str:
        result = "works" if self.refusal is None else f"refused: {self.refusal}"
        if self.instead:
            result += f"; `{self.instead}` works"
        return f"| {self.family} | `{self.network}` | {self.parameters:,} | {result} |"


def sizes(family: str) -> list[tuple[int, str]]:
    """Return the networks of a family that have the four strides, the smallest first."""
    found = []
    for name in timm.list_models(module=family):
        try:
            with torch.device("meta"):
                network = timm.create_model(name, features_only=True)
        except (RuntimeError, TypeError, AttributeError, KeyError, NotImplementedError):
            continue  # no maps at all
        info = network.feature_info
        if set(STRIDES) <= set(info.reduction(list(range(len(info))))):
            found.append((sum(p.numel() for p in network.parameters()), name))
    return sorted(found)


def refusal_of(name: str) -> str | None:
    """Return why a network is no trunk, or None where it is one."""
    try:
        with torch.device("meta"):
            build_trunk(name)
    except UsageError as error:
        return str(error).removeprefix(name).split("; choose", 1)[0].strip()
    return None


def row_of(family: str) -> Row | None:
    """Return the row of a family, or None where no network of it has the four strides."""
    members = sizes(family)
    if not members:
        return None
    (parameters, name), *larger = members
    refusal = refusal_of(name)
    instead = None
    if refusal is not None:
        instead = next((other for _, other in larger if refusal_of(other) is None), None)
    return Row(family, name, parameters, refusal, instead)


def main() -> None:
    """Try every family and write the page."""
    warnings.filterwarnings("ignore")
    rows, without = [], []
    for family in timm.list_modules():
        if family == "fishnet" or not timm.list_models(module=family):
            continue
        row = row_of(family)
        print(row or f"{family}: no maps of the four strides", flush=True)
        if row is None:
            without.append(family)
        else:
            rows.append(row)
    tail = f"\nFamilies without the four strides: {', '.join(without)}.\n"
    PAGE.write_text(HEAD + "\n".join(map(str, rows)) + "\n" + tail, encoding="utf-8")


if __name__ == "__main__":
    main()
