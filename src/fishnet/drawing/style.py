"""Common style of all figures, using matplotlib's object interface instead of pyplot and its global state.

The colors are those of Okabe and Ito ("Color Universal Design", 2008), which are distinguishable with the common kinds
of color blindness.
"""

from __future__ import annotations

import base64
import io
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import matplotlib
from cycler import cycler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageFont

from fishnet.errors import UsageError
from fishnet.files import atomic_path, check_picture_name

BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
VERMILION = "#D55E00"
SKY = "#56B4E9"
PURPLE = "#CC79A7"
INK = "#1f2933"
MUTED = "#6b7785"
RULE = "#d9dee4"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, INK)

_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": RULE,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": "#e9edf1",
    "grid.linewidth": 0.8,
    "legend.fontsize": 9,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "lines.linewidth": 1.8,
    "svg.fonttype": "path",
    "svg.hashsalt": "fishnet",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}
_PICTURES = (".png", ".svg", ".pdf")


@contextmanager
def styled() -> Iterator[None]:
    """Apply the style while a figure is drawn or saved; missing glyphs are drawn as boxes without a warning."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def new_figure(width: float, height: float, layout: Literal["constrained", "none"] = "constrained") -> Figure:
    """Return an empty figure of width x height inches on an Agg canvas; to be called inside `styled()`."""
    figure = Figure(figsize=(width, height), layout=layout)  # type: ignore[arg-type]  # the stubs lack "none"
    FigureCanvasAgg(figure)
    return figure


def check_picture(path: Path) -> None:
    """Raise UsageError if the suffix of a path is not a supported picture format."""
    if path.suffix.lower() not in _PICTURES:
        raise UsageError(f"cannot write a figure to {path}: the name must end in {', '.join(_PICTURES)}")


def save_figure(figure: Figure, path: Path, dpi: int = 150) -> Path:
    """Save a figure in the format of the suffix (.png, .svg, .pdf); equal figures give equal bytes.

    Raises:
        UsageError: The suffix is not supported.
        FishnetError: The file cannot be written.
    """
    path = Path(path)
    check_picture(path)
    content = figure_bytes(figure, path.suffix[1:].lower(), dpi)
    with atomic_path(path) as partial:
        partial.write_bytes(content)
    return path


def save_picture(picture: Image.Image, path: Path, quality: int = 92) -> Path:
    """Save a picture as PNG or JPEG, depending on the suffix.

    Raises:
        UsageError: The suffix is none of .png, .jpg and .jpeg.
        FishnetError: The file cannot be written.
    """
    check_picture_name(path)
    with atomic_path(path) as partial:
        if path.suffix.lower() == ".png":
            picture.save(partial, "PNG")
        else:
            picture.convert("RGB").save(partial, "JPEG", quality=quality)
    return path


def figure_bytes(figure: Figure, kind: str, dpi: int = 150) -> bytes:
    """Return a figure as the bytes of a png, svg or pdf file, without a date."""
    buffer = io.BytesIO()
    date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with styled():
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=date)
    return buffer.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    """Return `content` as a data URI with the media type `kind`, such as image/png."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def jpeg_uri(image: Image.Image, quality: int = 88) -> str:
    """Return a picture as a JPEG data URI."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
    return data_uri(buffer.getvalue(), "image/jpeg")


@lru_cache(maxsize=32)
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return a PIL font of `size` pixels: matplotlib's DejaVu Sans (many scripts) if present, else PIL's default."""
    path = font_file(bold)
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)


def font_file(bold: bool = False) -> str | None:
    """Return the path of the DejaVu Sans font of matplotlib; None if it is missing."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return str(path) if path.is_file() else None


def printable(text: str) -> str:
    """Return `text` on one line, without control characters and lone surrogates (from undecodable file names)."""
    shown = (" " if c.isspace() else "\N{REPLACEMENT CHARACTER}" if _unprintable(c) else c for c in str(text))
    return "".join(shown)


def _unprintable(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Co", "Cn")


def middle(text: str, length: int) -> str:
    """Return `text` on one line, shortened in the middle to at most `length` characters."""
    text = printable(text)
    if len(text) <= length:
        return text
    kept = max(length - 1, 0)
    return text[: (kept + 1) // 2] + "…" + text[len(text) - kept // 2 :]


def shorten(text: str, width: float, face: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return `text` on one line, shortened in the middle to at most `width` pixels in the font `face`."""
    text = middle(text, 400)
    short, length = text, len(text)
    while length > 1 and face.getlength(short) > width:
        length -= 1
        short = middle(text, length)
    return short


PARTS = {"stem": "#5f7d95", "tail": "#0072b2", "bridge": "#a8487f", "body": "#00805d", "head": "#bf5b00"}
"""Colors of the parts of a FishNet, dark enough for white text."""


def part_of(stage: str) -> str:
    """Return the part of a FishNet that contains a stage: tail for t1, body for b1, head for h1, else the stage."""
    return {"t": "tail", "b": "body", "h": "head"}.get(stage[0], stage) if stage[1:].isdigit() else stage
