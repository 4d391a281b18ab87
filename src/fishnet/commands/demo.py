"""`fishnet demo`: a complete run on data of scikit-learn, from training to predictions."""

from __future__ import annotations

from pathlib import Path

from fishnet.errors import UsageError
from fishnet.files import Json
from fishnet.runs import RunFolder


def demo(out: str = "runs/demo", quick: bool = False) -> RunFolder:
    """Train on handwritten digits, evaluate, predict, and write a report.

    Args:
        out: Folder to write data/, run/ and predictions/ to; an earlier demo in it is replaced.
        quick: Train for two epochs only.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    from fishnet.commands.evaluate import evaluate
    from fishnet.commands.predict import predict
    from fishnet.commands.train import train
    from fishnet.data.digits import write_digits

    root = Path(out)
    taken = [name for name in ("data", "run", "predictions") if (root / name).exists()]
    if taken and not (root / "data" / "digits.txt").exists():
        raise UsageError(f"--out {out} contains {taken[0]}/, which is not from a demo; choose another folder")
    data = write_digits(root / "data")
    settings: Json = {"epochs": 2} if quick else {}
    run = train("classification", recipe="digits", overwrite=True, data=str(data), out=str(root / "run"), **settings)
    evaluate(str(run.path), data=str(data))
    pictures = [str(path) for path in sorted((data / "val").glob("*/*.png"))[::15]]
    predict(str(run.path), pictures, out=str(root / "predictions"), overwrite=True)
    print(f"look at {run.report_html} and {root / 'predictions'}")
    return run
