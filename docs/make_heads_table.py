"""Write the table of pixel decoders in docs/architecture.md: size and cost, from the models.

python docs/make_heads_table.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fishnet.models.build import Architecture, build_network
from fishnet.models.complexity import count
from fishnet.models.heads.pixel import PixelPlan
from fishnet.models.heads.pixel_decoders import DECODERS
from fishnet.models.network import Network

PAGE = Path(__file__).resolve().parent / "architecture.md"
START, END = "<!-- decoders -->\n", "<!-- end of decoders -->\n"
MODEL, CLASSES = "fishnet_tiny", 11
PADDED = (192, 256)
"""Height and width of the batch that an image of 240x180 pixels (width x height) is padded to."""


class _Raw(nn.Module):
    """Raw outputs of a network for a normalized batch."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Tensor) -> Tensor:
        return self.network.raw(batch)["pixel"]["logits"]


def table() -> str:
    """Return the table as Markdown."""
    lines = [
        "| decoder | width | parameters | multiply-adds | share of the network |",
        "|---|---|---|---|---|",
    ]
    for decoder in DECODERS:
        with torch.device("meta"):
            plan = PixelPlan(num_classes=CLASSES, decoder=decoder)
            network = build_network(Architecture(MODEL, {"pixel": plan}))
        whole = count(_Raw(network), PADDED).macs
        head = network.heads["pixel"]
        params = sum(parameter.numel() for parameter in head.parameters())
        network.heads["pixel"] = _Nothing()
        macs = whole - count(_Raw(network), PADDED).macs
        width = head.decoder.out_channels
        lines.append(f"| `{decoder}` | {width} | {params:,} | {macs:,} | {macs / whole:.0%} |")
    return "\n".join(lines) + "\n"


class _Nothing(nn.Module):
    """A head without layers."""

    def raw(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": maps["0"]}


def updated(page: str) -> str:
    """Return the page with the table in its place."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return before + START + "\n" + table() + "\n" + END + after


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text("utf-8")), "utf-8")
