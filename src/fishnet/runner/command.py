"""The command line of an exported folder: images -> a line of JSON each."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from .errors import RunnerError
from .head import Json
from .model import Model
from .names import UniqueStems


def main(folder: Path, argv: Sequence[str] | None = None) -> int:
    """Predict on images, print a line of JSON for each, and return the exit code: 1 if an image or folder is unusable.

    Args:
        folder: Exported folder.
        argv: Command line; by default that of the process.
    """
    parser = argparse.ArgumentParser(prog="runner.py", description="Predict on images; prints a line of JSON for each.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--top", type=int, help="number of classes per image")
    parser.add_argument("--threshold", type=float, help="minimum score of a class, for multi-label models")
    parser.add_argument("--score", type=float, help="minimum score of an object")
    parser.add_argument("--max-detections", type=int, help="maximum number of objects per image")
    parser.add_argument("--out", help="folder to write label maps to, as PNG files of class indices")
    parser.add_argument(
        "--allow-fallback", action="store_true", help="compute in fp32 if this machine does not support the precision"
    )
    given = vars(parser.parse_args(argv))
    images, out, fallback = given.pop("images"), given.pop("out"), given.pop("allow_fallback")
    try:
        model = Model(folder, fallback, given)
        if out is not None:
            Path(out).mkdir(parents=True, exist_ok=True)
    except (RunnerError, OSError) as error:
        print(f"runner.py: error: {error}", file=sys.stderr)
        return 1
    failed, names = False, UniqueStems()
    for name in images:
        try:
            _print({"file": name, **_plain(model(name), name, out, names)})
        except (RunnerError, OSError) as error:
            failed = True
            print(f"runner.py: error: {error}", file=sys.stderr)
    return int(failed)


def _print(entry: Json) -> None:
    """Print a line of JSON; characters that the terminal cannot show, and undecodable file names, are escaped."""
    text = json.dumps(entry, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeError:
        text = json.dumps(entry)
    print(text, flush=True)


def _plain(answer: Json, name: str, out: str | None, names: UniqueStems) -> Json:
    """Return a prediction as JSON values; label maps are written to files."""
    found: Json = {}
    for key, value in answer.items():
        if isinstance(value, dict):
            found[key] = _plain(cast(Json, value), name, out, names)
        elif not isinstance(value, np.ndarray):
            found[key] = value
        elif out is not None:
            path = Path(out) / f"{names.of(name)}.png"
            Image.fromarray(value.astype(np.uint8 if value.max() < 256 else np.uint16)).save(path)
            found[key] = str(path)
    return found
