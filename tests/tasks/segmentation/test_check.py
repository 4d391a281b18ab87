"""The contact sheet of `data check segmentation`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fishnet.errors import UsageError
from fishnet.tasks.segmentation.check import check_data
from tests.data.makers import encode, put


def test_sheets_of_real_data(mini: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("camvid", "pets3"):
        picture = tmp_path / f"{name}.png"
        assert check_data(mini(name), picture=str(picture)).exit_code == 0
        assert capsys.readouterr().out == f"written: {picture}\n"
        with Image.open(picture) as sheet:
            assert sheet.format == "PNG"
            assert min(sheet.size) > 500
    with pytest.raises(UsageError, match=r"must end in \.png or \.jpg"):
        check_data(tmp_path / "missing", picture="sheet.txt")


def test_the_sheet_shows_the_classes_in_their_colors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = {"classes": ["left", "right"], "palette": [[250, 0, 0], [0, 0, 250]], "ignore_color": [0, 0, 0]}
    root = tmp_path / "data"
    colors = np.zeros((240, 320, 3), np.uint8)
    colors[:, :140], colors[:, 140:280] = (250, 0, 0), (0, 0, 250)
    for split, level in (("train", 121), ("val", 122)):
        gray = Image.fromarray(np.full((240, 320), level, np.uint8))
        put(root / split / "images" / "a.png", encode(gray, "PNG"))
        put(root / split / "labels" / "a.png", encode(Image.fromarray(colors), "PNG"))
    put(root / "train" / "images" / "b.png", encode(Image.new("RGB", (9, 9)), "PNG"))  # of another size
    put(root / "train" / "labels" / "b.png", encode(Image.fromarray(colors), "PNG"))
    put(root / "classes.json", json.dumps(document).encode())
    report = check_data(root, picture=str(tmp_path / "sheet.png"))
    assert {problem.kind for problem in report.problems} == {"size mismatch"}
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.array(sheet)
    assert pixels.shape[1] == 2 * (320 + 8) + 8  # the one that does not fit is left out
    tile = pixels[8:248, 8:328].astype(int)
    for columns, color in ((slice(4, 136), (250, 0, 0)), (slice(144, 276), (0, 0, 250))):
        mean = tile[4:-4, columns].reshape(-1, 3).mean(0)
        assert mean == pytest.approx(121 + 0.55 * (np.array(color) - 121), abs=1)
    ignored = tile[4:-4, 284:316].reshape(-1, 3)
    assert np.ptp(ignored, axis=1).max() < 12  # hatched in gray
    assert ignored.std() > 5
    legend = pixels[-40:].reshape(-1, 3).tolist()
    assert all([*color] in legend for color in ((250, 0, 0), (0, 0, 250), (196, 200, 204)))
    for path in (root / "train" / "labels").iterdir():
        path.write_bytes(b"no image")
    for path in (root / "val" / "labels").iterdir():
        path.write_bytes(b"no image")
    check_data(root, picture=str(tmp_path / "none.png"))
    assert "no image can be drawn" in capsys.readouterr().out
    assert not (tmp_path / "none.png").exists()
