"""`fishnet demo`: train and evaluate a multitask network on built-in data, and predict with it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fishnet.errors import UsageError
from fishnet.runs import RunFolder

SCENES, PREDICTED = (2000, 160), 24
"""Numbers of training and validation scenes, and of validation scenes to predict on."""
QUICK_SCENES, QUICK_PREDICTED = (48, 16), 6


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, which is faster than several threads for maps as small as those of the scenes."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def demo(out: str | Path = "runs/demo", quick: bool = False) -> RunFolder:
    """Generate scenes of handwritten digits on photographs, train a small FishNet on classes, objects and label maps at
    once, evaluate, predict, and write a report.

    Args:
        out: Folder to write data/, run/ and predictions/ to; an earlier demo in it is replaced.
        quick: Use few scenes and one epoch: a smoke test that takes less than a minute.

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
    print(write_scenes(data, *(QUICK_SCENES if quick else SCENES)).describe())
    print("2/4: training one network on classes, objects and label maps", flush=True)
    start = partial(train, "multitask", recipe="scenes", data=str(data), out=str(root / "run"), overwrite=True)
    with one_thread():
        run = start(epochs=1, log_every=1) if quick else start()
    print("3/4: evaluating it", flush=True)
    evaluate(str(run.path), data=str(data))
    print("4/4: predicting class, objects, label map and panoptic map of validation scenes", flush=True)
    pictures = sorted((data / "val" / "images").iterdir())[: QUICK_PREDICTED if quick else PREDICTED]
    predict(str(run.path), [str(path) for path in pictures], out=str(root / "predictions"), overwrite=True)
    minutes = (time.perf_counter() - begin) / 60
    print(f"{minutes:.1f} minutes. Open {run.report_html}; pictures of the predictions are in {root / 'predictions'}")
    return run
