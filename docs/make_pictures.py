"""Make the pictures of README.md: run the demo, and copy what came out.

`make pictures` runs the demo first; `python docs/make_pictures.py RUN_OF_A_DEMO` takes one that has been run.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

from fishnet.commands.demo import demo

FIGURES = Path(__file__).resolve().parent / "figures"
SHOWN, WIDTH = 3, 900


def stacked(pictures: list[Image.Image]) -> Image.Image:
    """Return pictures below each other, all of one width."""
    scaled = [one.resize((WIDTH, round(one.height * WIDTH / one.width)), Image.Resampling.LANCZOS) for one in pictures]
    page = Image.new("RGB", (WIDTH, sum(one.height for one in scaled)), "white")
    top = 0
    for one in scaled:
        page.paste(one, (0, top))
        top += one.height
    return page


def draw(root: Path) -> None:
    """Write the figures from the folder of a demo."""
    found = sorted((root / "predictions" / "pictures").glob("*.jpg"))[:SHOWN]
    picture = stacked([Image.open(path).convert("RGB") for path in found])
    save(picture, FIGURES / "predictions_multitask.jpg", quality=88)
    picture = Image.open(root / "run" / "insides.png").convert("RGB").quantize(160, dither=Image.Dither.NONE)
    save(picture, FIGURES / "insides.png")


def save(picture: Image.Image, path: Path, **options: int) -> None:
    """Write a figure."""
    picture.save(path, optimize=True, **options)
    print(f"written: {path}")


def main() -> None:
    """Run the demo if none is named, and draw."""
    if len(sys.argv) > 1:
        draw(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        demo(out=folder)
        draw(Path(folder))


if __name__ == "__main__":
    main()
