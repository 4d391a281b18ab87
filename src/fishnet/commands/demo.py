"""`fishnet demo`: a network for three levels, trained on built-in data, from training to predictions."""

from __future__ import annotations

import time
from pathlib import Path

from fishnet.errors import UsageError
from fishnet.files import Json
from fishnet.runs import RunFolder

QUICK: Json = {"epochs": 1, "log_every": 1}
"""Settings of a demo that only shows that everything works."""


def demo(out: str = "runs/demo", quick: bool = False) -> RunFolder:
    """Generate scenes of handwritten digits on photographs, train a small FishNet on classes, objects and label maps at
    once, evaluate, predict, and write a report.

    Args:
        out: Folder to write data/, run/ and predictions/ to; an earlier demo in it is replaced.
        quick: Take few scenes and one epoch: shows that everything works, in less than a minute.

    Raises:
        UsageError: scikit-learn is not installed, or the folder contains something else.
    """
    from fishnet.commands.evaluate import evaluate
    from fishnet.commands.predict import predict
    from fishnet.commands.train import train
    from fishnet.data.scenes import MARKER, write_scenes

    begin, root = time.perf_counter(), Path(out)
    taken = [name for name in ("data", "run", "predictions") if (root / name).exists()]
    if taken and not (root / "data" / MARKER).exists():
        raise UsageError(f"--out {out} contains {taken[0]}/, which is not from a demo; choose another folder")
    data = root / "data"
    print("1/4: generating scenes of handwritten digits on photographs", flush=True)
    print(write_scenes(data, *((40, 12) if quick else (640, 96))).describe())
    print("2/4: training one network on classes, objects and label maps", flush=True)
    settings = QUICK if quick else {}
    run = train("multitask", recipe="scenes", overwrite=True, data=str(data), out=str(root / "run"), **settings)
    print("3/4: evaluating it", flush=True)
    evaluate(str(run.path), data=str(data))
    print("4/4: predicting class, objects, label map and panoptic map of new scenes", flush=True)
    pictures = sorted((data / "val" / "images").iterdir())[: 6 if quick else 24]
    predict(str(run.path), [str(path) for path in pictures], out=str(root / "predictions"), overwrite=True)
    minutes = (time.perf_counter() - begin) / 60
    print(f"{minutes:.1f} minutes. Open {run.report_html}; pictures of the predictions are in {root / 'predictions'}")
    return run
