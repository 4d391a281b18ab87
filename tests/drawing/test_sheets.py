"""Pictures of batches and predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fishnet.config import PreprocessConfig
from fishnet.drawing import style
from fishnet.drawing.sheets import contact_sheet, draw_batch, titled_row
from fishnet.errors import FishnetError

PREPROCESS = PreprocessConfig()


def normalized(pixels: np.ndarray) -> torch.Tensor:
    """Return (N, H, W, 3) bytes as the network would get them."""
    mean, std = np.array(PREPROCESS.mean), np.array(PREPROCESS.std)
    return torch.from_numpy(((pixels / 255 - mean) / std).transpose(0, 3, 1, 2)).float()


def colors(image: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(pixel) for pixel in np.asarray(image.convert("RGB")).reshape(-1, 3)}


def test_batch_shows_the_original_pixels_enlarged() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3))
    sheet = np.asarray(draw_batch(normalized(pixels), ["a", "b", "c"], PREPROCESS))
    for number in range(3):
        left = 8 + number * 168
        tile = sheet[8:168, left : left + 160]
        np.testing.assert_array_equal(tile[::20, ::20], pixels[number])
        np.testing.assert_array_equal(tile[19::20, 19::20], pixels[number])


def test_batch_is_cut_at_32_images() -> None:
    images = torch.zeros(40, 3, 16, 16)
    sheet = draw_batch(images, [""] * 40, PREPROCESS)
    alike = draw_batch(images[:32], [""] * 32, PREPROCESS)
    assert sheet.size == alike.size
    assert sheet.size[0] > sheet.size[1]


@pytest.mark.parametrize("shape", [(1, 1, 20, 30), (2, 4, 9, 9), (2, 2, 9, 9), (1, 3, 300, 500)])
def test_batch_takes_any_channels_and_sizes(shape: tuple[int, ...]) -> None:
    images = torch.randn(shape)
    images[0, 0, 0, 0] = float("nan")
    draw_batch(images, ["caption " * 40] * shape[0], PREPROCESS)


def test_batch_refuses_what_does_not_fit() -> None:
    with pytest.raises(FishnetError, match="1 captions"):
        draw_batch(torch.zeros(2, 3, 8, 8), ["a"], PREPROCESS)
    with pytest.raises(FishnetError, match="shape"):
        draw_batch(torch.zeros(0, 3, 8, 8), [], PREPROCESS)


def entry(target: object = None, **changes: object) -> dict[str, object]:
    lines = [("cat", 0.7), ("dog", 0.2), ("fish", 0.1)]
    return {"image": Image.new("RGB", (40, 30), "gray"), "title": "a.jpg", "lines": lines, "target": target, **changes}


def test_sheet_tells_right_from_wrong_by_color_and_text() -> None:
    green, red = (tuple(bytes.fromhex(color[1:])) for color in (style.GREEN, style.VERMILION))
    unknown, right, wrong = (contact_sheet([entry(target)]) for target in (None, "cat", "dog"))
    assert not {green, red} & colors(unknown)
    assert green in colors(right)
    assert red not in colors(right)
    assert red in colors(wrong)
    assert green in colors(contact_sheet([entry(["dog", "cat"])]))


def test_score_bars_are_as_long_as_the_scores() -> None:
    sheet = np.asarray(contact_sheet([entry(lines=[("a", 0.5), ("b", 0.25), ("c", float("nan")), ("d", 1.5)])]))
    bar = tuple(bytes.fromhex(style.SKY[1:]))
    lengths = [int(n) for n in (sheet == bar).all(-1).sum(1) if n]
    assert {126, 63, 251} >= set(lengths)
    assert {126, 63} <= set(lengths)


def test_sheet_arranges_entries_in_columns() -> None:
    one = contact_sheet([entry()])
    row = contact_sheet([entry()] * 3, columns=3)
    block = contact_sheet([entry()] * 4, columns=3)
    assert row.width > 2 * one.width
    assert row.height == one.height
    assert block.width == row.width
    assert block.height > row.height
    with pytest.raises(FishnetError, match="no images"):
        contact_sheet([])


@pytest.mark.parametrize("text", ["日本 имя Ünï \N{FISH}", "bad\udc80", "a\nb\tc\x00", "x" * 5000, "", "ملف"])
def test_any_text_can_be_drawn(text: str) -> None:
    wide = contact_sheet([entry(title=text, lines=[(text, 0.5)], target=text)])
    assert wide.size[0] == contact_sheet([entry("cat")]).size[0]


@pytest.mark.parametrize(("mode", "size"), [("L", (3, 900)), ("RGBA", (900, 3)), ("P", (1, 1)), ("CMYK", (64, 64))])
def test_any_image_fits_on_its_card(mode: str, size: tuple[int, int]) -> None:
    assert contact_sheet([entry(image=Image.new(mode, size))]).size == contact_sheet([entry()]).size


def test_long_names_keep_their_ends() -> None:
    face = style.font(13)
    name = "holiday_in_the_south_of_france_0001.jpg"
    short = style.shorten(name, 120, face)
    assert face.getlength(short) <= 120
    assert short.startswith("holiday")
    assert short.endswith(".jpg")
    assert style.shorten("a.jpg", 120, face) == "a.jpg"
    assert style.middle(name, 11) == "holid…1.jpg"


def test_pictures_side_by_side_have_their_titles_above() -> None:
    row = np.asarray(
        titled_row([("image", Image.new("RGB", (40, 30), "red")), ("", Image.new("RGB", (40, 30), "blue"))])
    )
    assert (row[-30:, 8:48] == (255, 0, 0)).all()
    assert (row[-30:, 56:96] == (0, 0, 255)).all()
    assert np.ptp(row[:-30, 8:48].astype(int), axis=(0, 1)).max() > 100
    assert np.ptp(row[:-30, 56:].astype(int), axis=(0, 1)).max() == 0
