"""Write docs/models.md and the golden numbers of the tests: size, cost and taps of every member, from the models.

python docs/make_models_table.py
"""

from __future__ import annotations

import json
from pathlib import Path

from fishnet.models import VARIANTS, create_model
from fishnet.models.complexity import count

PROJECT = Path(__file__).resolve().parents[1]
GOLDEN = PROJECT / "tests" / "models" / "golden.json"
PAGE = PROJECT / "docs" / "models.md"
SIZE = 224


def measure() -> dict[str, dict[str, int]]:
    """Return parameters and multiply-adds at 224x224 of every member with 1000 classes."""
    numbers = {}
    for name in VARIANTS:
        model = create_model(name, device="meta")
        complexity = count(model, SIZE)
        classifier = sum(p.numel() for p in model.classifier.parameters())
        numbers[name] = {
            "params": complexity.params,
            "params_without_classifier": complexity.params - classifier,
            "macs": complexity.macs,
        }
    return numbers


def page(numbers: dict[str, dict[str, int]]) -> str:
    """Return the table as Markdown."""
    lines = [
        "# Models",
        "",
        "Written by `python docs/make_models_table.py` from the models themselves (`make tables`); a test compares.",
        f"Multiply-adds count convolutions and linear layers for one image of {SIZE}x{SIZE}; classifiers have 1000",
        "classes.",
        "",
        "| model | parameters | without classifier | multiply-adds | tail, bridge, body, head, transfer blocks"
        " | taps at strides 2, 4, 8, 16, 32 |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in numbers.items():
        config = VARIANTS[name]
        depths = [config.tail_depths, config.bridge_depth, config.body_depths, config.head_depths]
        blocks = ", ".join(str(depth).strip("()").replace(", ", "+") for depth in [*depths, config.transfer_depths])
        taps = ", ".join(str(config.channels[stage]) for stage in ("stem_conv", "b3", "h1", "h2", "h3"))
        cells = [f"`{name}`", *(f"{row[key]:,}" for key in ("params", "params_without_classifier", "macs"))]
        lines.append("| " + " | ".join([*cells, blocks, taps]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every member and write both files."""
    numbers = measure()
    GOLDEN.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(numbers), encoding="utf-8")


if __name__ == "__main__":
    main()
