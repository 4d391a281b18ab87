"""How exactly the family equals the released networks and pytorchcv's, and whether its size is the published one.

python benchmarks/exactness.py [--parity ../shared/parity]
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import torch
from record import PROJECT, record
from torch import nn

from fishnet.models import create_model, list_models
from fishnet.models.checkpoints.layouts import convert_state
from fishnet.models.complexity import count

sys.path.insert(0, str(PROJECT))
from tests.models.test_parity import outputs, pytorchcv_model, randomize  # needs the line above


def parity(folder: Path) -> None:
    """Record the largest differences to the reference outputs."""
    reference = runpy.run_path(str(folder / "reference_weights.py"))
    table = []
    for name in ("fishnet99", "fishnet150", "fishnet201"):
        case = reference["load_case"](folder / f"{name}.npz")
        arrays = reference["reference_state"](case["keys"], case["shapes"], case["seed"])
        model = create_model(name).eval()
        model.load_state_dict(
            convert_state({key: torch.from_numpy(np.asarray(v)) for key, v in arrays.items()}, "fishnet")
        )
        batch = torch.from_numpy(reference["reference_input"](case["input_shape"], case["seed"]))
        with torch.inference_mode():
            logits = model(batch).numpy()
            stages = [stage.numpy() for stage in list(model.stages(batch).values())[1:]]
        samples = [stage.ravel()[:: max(1, stage.size // 512)] for stage in stages]
        worst = max(float(np.abs(sample - case[f"stage{i}_sample"]).max()) for i, sample in enumerate(samples))
        shapes = all(list(stage.shape) == list(case[f"stage{i}_shape"]) for i, stage in enumerate(stages))
        difference = float(np.abs(logits - case["logits"]).max())
        table.append({"network": name, "logits": difference, "stage samples": worst, "shapes equal": shapes})
    same = all(row["shapes equal"] for row in table)
    logits_worst, stage_worst = (max(row[key] for row in table) for key in ("logits", "stage samples"))
    record(
        "01_parity",
        "logits and stages against the released networks",
        "logits <= 1e-4, stage samples <= 1e-3, shapes equal",
        f"logits {logits_worst:.1e}, stage samples {stage_worst:.1e}, shapes equal: {same}",
        logits_worst <= 1e-4 and stage_worst <= 1e-3 and same,
        [{key: f"{v:.1e}" if isinstance(v, float) else v for key, v in row.items()} for row in table],
    )


def conversion() -> None:
    """Record the largest differences to pytorchcv's networks after converting weights in both directions."""
    table = []
    for name in ("fishnet99", "fishnet150"):
        for direction in ("from pytorchcv", "to pytorchcv"):
            ours, theirs = create_model(name).eval(), pytorchcv_model(name)
            if direction == "from pytorchcv":
                ours.load_state_dict(convert_state(randomize(theirs, seed=1).state_dict(), "fishnet"))
            else:
                theirs.load_state_dict(convert_state(randomize(ours, seed=2).state_dict(), "pytorchcv"))
            for height, width in ((224, 224), (160, 288)):
                if height == 160:
                    theirs.features.final_pool = nn.AdaptiveAvgPool2d(1)
                difference = float((outputs(ours, height, width) - outputs(theirs, height, width)).abs().max())
                size = f"{height}x{width}"
                table.append({"network": name, "direction": direction, "size": size, "difference": difference})
    worst = max(row["difference"] for row in table)
    rows = [{**row, "difference": f"{row['difference']:.1e}"} for row in table]
    record("02_conversion", "conversion from and to pytorchcv", "<= 1e-5", f"{worst:.1e}", worst <= 1e-5, rows)


def complexity() -> None:
    """Record parameters and multiply-adds of every member, compared with the golden file."""
    golden = json.loads((PROJECT / "tests/models/golden.json").read_text("utf-8"))
    table, same = [], True
    for name in list_models():
        found = count(create_model(name, device="meta"))
        same = same and (found.params, found.macs) == (golden[name]["params"], golden[name]["macs"])
        table.append({"member": name, "parameters": f"{found.params:,}", "multiply-adds at 224": f"{found.macs:,}"})
    measured = "equal" if same else "different"
    record(
        "03_complexity",
        "parameters and multiply-adds of every member",
        "equal to the golden file",
        measured,
        same,
        table,
    )


def main() -> None:
    """Measure all three."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parity", type=Path, default=PROJECT.parent / "shared" / "parity")
    parity(parser.parse_args().parity)
    conversion()
    complexity()


if __name__ == "__main__":
    main()
