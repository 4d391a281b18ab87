"""Names of the tensors of a FishNet in public checkpoints, and the translation between them.

Three layouts are known:

- `fishnet`: this library (`body.b2.transfer.0.conv1.weight`).
- `released`: the authors' release (`fish.fish.5.1.0.conv1.weight`). Its list `fish` contains the tail (0-2), the
  bridge (3), the body (4-6) and the head (7-9); inside a stage, 0 is the trunk and 1 the transfer.
- `pytorchcv`: the pytorchcv package. It orders the transfers by their input: `skip1_seq` contains those of the stem,
  t1 and t2 (into b3, b2, b1) and the bridge itself, `skip2_seq` those of the bridge, b1 and b2 (into h3, h2, h1).

The tables below define the layouts: one row per module, one column per layout. Names are translated one by one, so
networks of every depth, width and cardinality can be converted. Tensors are the same in all layouts except that of the
classifier: a 1x1 convolution (classes, 1056, 1, 1) in the public ones, a linear layer (classes, 1056) here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Literal, NamedTuple

from torch import Tensor

from fishnet.errors import FishnetError, UsageError, did_you_mean

Layout = Literal["fishnet", "released", "pytorchcv"]
LAYOUTS: tuple[Layout, ...] = ("fishnet", "released", "pytorchcv")


class Row(NamedTuple):
    """Name of one module in each layout."""

    fishnet: str
    released: str
    pytorchcv: str


# Sequences of residual blocks; {n} counts from 0, {m} from 1.
BLOCKS = (
    Row("tail.t1.blocks.{n}", "fish.fish.0.0.{n}", "features.hg.down1_seq.unit1.blocks.block{m}"),
    Row("tail.t2.blocks.{n}", "fish.fish.1.0.{n}", "features.hg.down1_seq.unit2.blocks.block{m}"),
    Row("tail.t3.blocks.{n}", "fish.fish.2.0.{n}", "features.hg.down1_seq.unit3.blocks.block{m}"),
    Row("bridge.blocks.{n}", "fish.fish.3.2.{n}", "features.hg.skip1_seq.unit4.blocks.block{m}"),
    Row("body.b1.blocks.{n}", "fish.fish.4.0.{n}", "features.hg.up_seq.unit1.blocks.block{m}"),
    Row("body.b2.blocks.{n}", "fish.fish.5.0.{n}", "features.hg.up_seq.unit2.blocks.block{m}"),
    Row("body.b3.blocks.{n}", "fish.fish.6.0.{n}", "features.hg.up_seq.unit3.blocks.block{m}"),
    Row("body.b1.transfer.{n}", "fish.fish.4.1.{n}", "features.hg.skip1_seq.unit3.blocks.block{m}"),
    Row("body.b2.transfer.{n}", "fish.fish.5.1.{n}", "features.hg.skip1_seq.unit2.blocks.block{m}"),
    Row("body.b3.transfer.{n}", "fish.fish.6.1.{n}", "features.hg.skip1_seq.unit1.blocks.block{m}"),
    Row("head.h1.blocks.{n}", "fish.fish.7.0.{n}", "features.hg.down2_seq.unit1.blocks.block{m}"),
    Row("head.h2.blocks.{n}", "fish.fish.8.0.{n}", "features.hg.down2_seq.unit2.blocks.block{m}"),
    Row("head.h3.blocks.{n}", "fish.fish.9.0.{n}", "features.hg.down2_seq.unit3.blocks.block{m}"),
    Row("head.h1.transfer.{n}", "fish.fish.7.1.{n}", "features.hg.skip2_seq.unit3.blocks.block{m}"),
    Row("head.h2.transfer.{n}", "fish.fish.8.1.{n}", "features.hg.skip2_seq.unit2.blocks.block{m}"),
    Row("head.h3.transfer.{n}", "fish.fish.9.1.{n}", "features.hg.skip2_seq.unit1.blocks.block{m}"),
)

# Modules in a residual block.
BLOCK_PARTS = (
    Row("norm1", "bn1", "body.conv1.bn"),
    Row("conv1", "conv1", "body.conv1.conv"),
    Row("norm2", "bn2", "body.conv2.bn"),
    Row("conv2", "conv2", "body.conv2.conv"),
    Row("norm3", "bn3", "body.conv3.bn"),
    Row("conv3", "conv3", "body.conv3.conv"),
    Row("shortcut.norm", "shortcut.0", "identity_conv.bn"),
    Row("shortcut.conv", "shortcut.2", "identity_conv.conv"),
)

# Modules that occur once.
MODULES = (
    Row("stem.conv1", "conv1.0", "features.init_block.conv1.conv"),
    Row("stem.norm1", "conv1.1", "features.init_block.conv1.bn"),
    Row("stem.conv2", "conv2.0", "features.init_block.conv2.conv"),
    Row("stem.norm2", "conv2.1", "features.init_block.conv2.bn"),
    Row("stem.conv3", "conv3.0", "features.init_block.conv3.conv"),
    Row("stem.norm3", "conv3.1", "features.init_block.conv3.bn"),
    Row("bridge.norm1", "fish.fish.3.0.0", "features.hg.skip1_seq.unit4.conv1.bn"),
    Row("bridge.conv1", "fish.fish.3.0.2", "features.hg.skip1_seq.unit4.conv1.conv"),
    Row("bridge.norm2", "fish.fish.3.0.3", "features.hg.skip1_seq.unit4.conv2.bn"),
    Row("bridge.conv2", "fish.fish.3.1", "features.hg.skip1_seq.unit4.conv2.conv"),
    Row("bridge.gate.norm", "fish.fish.3.3.0.0", "features.hg.skip1_seq.unit4.se.bn"),
    Row("bridge.gate.conv1", "fish.fish.3.3.0.3", "features.hg.skip1_seq.unit4.se.conv1"),
    Row("bridge.gate.conv2", "fish.fish.3.3.0.5", "features.hg.skip1_seq.unit4.se.conv2"),
    Row("score.norm1", "fish.fish.9.3.0", "features.final_block.conv1.bn"),
    Row("score.conv", "fish.fish.9.3.2", "features.final_block.conv1.conv"),
    Row("score.norm2", "fish.fish.9.3.3", "features.final_block.preactiv.bn"),
    Row("classifier", "fish.fish.9.4.1", "output.final_conv"),
)
CLASSIFIER = MODULES[-1]
FIRST_CONV = MODULES[0]


def rename(key: str, source: Layout, target: Layout) -> str | None:
    """Translate the name of one tensor, or return None if layout `source` does not have the name."""
    module, _, leaf = key.rpartition(".")
    modules, blocks, parts = _tables(source, target)
    if module in modules:
        return f"{modules[module]}.{leaf}"
    for pattern, template, first in blocks:
        if (match := pattern.fullmatch(module)) and match["part"] in parts:
            n = int(match["n"]) - first
            return f"{template.format(n=n, m=n + 1)}.{parts[match['part']]}.{leaf}"
    return None


@cache
def _tables(source: Layout, target: Layout) -> tuple[dict[str, str], list[tuple[re.Pattern[str], str, int]], dict]:
    """Return names of modules, (pattern, template, number of the first block) of blocks, and names of block parts."""

    def column(rows: Iterable[Row]) -> dict[str, str]:
        return {getattr(row, source): getattr(row, target) for row in rows}

    def pattern(name: str) -> re.Pattern[str]:
        stem = re.escape(re.sub(r"\{[nm]\}", "", name))
        return re.compile(stem + r"(?P<n>\d+)\.(?P<part>.+)")

    blocks = [(pattern(name), template, int("{m}" in name)) for name, template in column(BLOCKS).items()]
    return column(MODULES), blocks, column(BLOCK_PARTS)


def find_layout(keys: Iterable[str]) -> Layout | None:
    """Return the layout that most of the keys belong to, or None if that is not more than half of them."""
    names = list(keys)
    found = {layout: sum(rename(key, layout, layout) is not None for key in names) for layout in LAYOUTS}
    best = max(LAYOUTS, key=lambda layout: found[layout])
    return best if names and 2 * found[best] > len(names) else None


def detect_layout(state: Mapping[str, object]) -> Layout:
    """Return the layout of a state dict.

    Raises:
        FishnetError: The layout is unknown; lists some of the keys and the known layouts.
    """
    layout = find_layout(state)
    if layout is None:
        raise FishnetError(
            f"unknown checkpoint layout: {len(state)} tensors such as {listing(state)}. "
            f"Known layouts of a FishNet: {', '.join(LAYOUTS)}."
        )
    return layout


def convert_state(state: Mapping[str, Tensor], to: str = "fishnet") -> dict[str, Tensor]:
    """Rename the tensors of a FishNet state dict from any known layout to another one.

    Args:
        state: State dict without wrapper prefixes, as `read_checkpoint` returns it.
        to: Layout to write: fishnet, released or pytorchcv.

    Returns:
        A new dict; tensors are shared with `state`, never copied.

    Raises:
        FishnetError: The layout of `state` is unknown, or layout `to` has no name for a tensor (an ablation such as a
            1x1 channel reduction, a strided or transposed convolution), or requires a missing one (the bridge's gate).
        UsageError: The layout `to` is unknown.
    """
    if to not in LAYOUTS:
        raise UsageError(f"unknown layout {to!r}; known are {', '.join(LAYOUTS)}.{did_you_mean(to, LAYOUTS)}")
    source, target = detect_layout(state), LAYOUTS[LAYOUTS.index(to)]
    converted, foreign = translate(state, source, target)
    if foreign and source != target:
        raise FishnetError(
            f"layout {target} has no names for {len(foreign)} tensors of this {source} state dict: {listing(foreign)}. "
            "It supports the released design only; use layout fishnet for this network."
        )
    gate = next(getattr(row, target) for row in MODULES if row.fishnet == "bridge.gate.conv1")
    if target != "fishnet" and f"{gate}.weight" not in converted:
        raise FishnetError(
            f"layout {target} requires the bridge's gate, and this network was built without it (gate=False); "
            "use layout fishnet for this network."
        )
    return converted | foreign


def translate(
    state: Mapping[str, Tensor], source: Layout, target: Layout
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return (renamed tensors, tensors that layout `source` has no name for, with their old names)."""
    converted: dict[str, Tensor] = {}
    foreign: dict[str, Tensor] = {}
    weight = f"{getattr(CLASSIFIER, target)}.weight"
    for key, value in state.items():
        name = rename(key, source, target)
        if name is None:
            foreign[key] = value
        else:
            converted[name] = _as_classifier(value, target) if name == weight else value
    return converted, foreign


def _as_classifier(weight: Tensor, layout: Layout) -> Tensor:
    """Reshape the weight of the classifier for the layout: linear (classes, C) or 1x1 conv (classes, C, 1, 1)."""
    if layout == "fishnet":
        return weight.flatten(1) if weight.ndim == 4 and weight.shape[2:].numel() == 1 else weight
    return weight[:, :, None, None] if weight.ndim == 2 else weight


def listing(names: Iterable[str], most: int = 5) -> str:
    """Join the first `most` names, followed by the number of further ones."""
    names = list(names)
    more = f", ... ({len(names) - most} more)" if len(names) > most else ""
    return ", ".join(names[:most]) + more
