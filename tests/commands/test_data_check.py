from __future__ import annotations

import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fishnet.commands.data_check import data_check
from fishnet.errors import FishnetError, UsageError
from tests.data.makers import class_folders, encode, noise, put, write_shard
from tests.data.test_images import huge_png


def check(root: Path, **options) -> dict[str, list[str]]:
    """Return kind -> paths of what is found."""
    report = data_check("classification", str(root), **options)
    found: dict[str, list[str]] = {}
    for problem in report.problems:
        found.setdefault(problem.kind, []).append(problem.path)
    assert report.exit_code == int(any(problem.severity == "error" for problem in report.problems))
    return found


@pytest.fixture
def clean(tmp_path):
    return class_folders(tmp_path / "data", {"train": {"ant": 4, "bee": 4}, "val": {"ant": 2, "bee": 2}})


def test_real_data_is_clean(mini, capsys):
    for name in ("cifar10", "pets3"):
        assert check(mini(name)) == {}
    printed = capsys.readouterr().out
    assert "train: 2000 images, 10 classes" in printed
    assert printed.count("no problems in") == 2


def test_damage_put_into_real_data_is_found(mini_copy):
    root = mini_copy("cifar10")
    cats = sorted((root / "train" / "cat").iterdir())
    cats[0].write_bytes(cats[0].read_bytes()[:500])
    shutil.copy(cats[1], root / "val" / "cat" / "copy.jpg")
    assert check(root) == {
        "truncated": [f"train/cat/{cats[0].name}"],
        "duplicate across splits": [f"train/cat/{cats[1].name}"],
    }


@pytest.mark.parametrize(
    ("name", "content", "kind", "code"),
    [
        ("a.jpg", b"no image at all", "unreadable", 1),
        ("a.jpg", b"", "unreadable", 1),
        ("a.jpg", encode(noise(99, 300, 300))[:2000], "truncated", 1),
        ("a.png", encode(noise(99, 300, 300), "PNG")[:500], "truncated", 1),
        ("a.jpg", encode(noise(99), "PNG"), "wrong extension", 1),
        ("a.png", encode(noise(99), "WEBP"), "wrong extension", 1),
        ("a.jpg", encode(noise(99, 100, 31)), "small", 1),
        ("a.png", huge_png(30_000, 30_000), "bomb", 1),
        ("a.png", huge_png(9_500, 9_500), "bomb", 1),
        ("a.dat", encode(noise(99)), "overlooked image", 1),
        ("a.jpg", encode(noise(99).convert("CMYK")), "CMYK", 0),
        ("a.png", encode(Image.fromarray(np.full((40, 40), 9999, np.uint16)), "PNG"), "16-bit", 0),
        ("a.png", encode(noise(99).convert("RGBA"), "PNG"), "alpha", 0),
        ("a.gif", encode(noise(99), "GIF", save_all=True, append_images=[noise(98)]), "animated", 0),
        ("a.webp", encode(noise(99), "WEBP", save_all=True, append_images=[noise(98)]), "animated", 0),
        ("notes.txt", b"text", "other file", 0),
    ],
)
def test_one_bad_file(clean, capsys, name, content, kind, code):
    put(clean / "train" / "bee" / name, content)
    report = data_check("classification", str(clean))
    assert [(problem.kind, problem.path) for problem in report.problems] == [(kind, f"train/bee/{name}")]
    assert report.exit_code == code
    assert f"train/bee/{name}" in capsys.readouterr().out


def test_sixteen_bit_color_is_seen_though_pillow_reads_eight(clean):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + bytes(range(240)) for _ in range(40))
    header = struct.pack(">IIBBBBB", 40, 40, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    put(clean / "train" / "bee" / "deep.png", png)
    assert check(clean) == {"16-bit": ["train/bee/deep.png"]}


def test_the_smallest_side_can_be_chosen(clean):
    assert check(clean, min_size=36) == {}
    assert len(check(clean, min_size=37)["small"]) == 12


def test_classes_that_do_not_fit(clean):
    (clean / "train" / "cow").mkdir()
    class_folders(clean, {"val": {"dog": 1}}, start=500)
    shutil.rmtree(clean / "val" / "ant")
    report = data_check("classification", str(clean))
    assert sorted((problem.kind, problem.path, problem.detail) for problem in report.problems) == [
        ("empty class", "train", "cow has no images"),
        ("missing class", "val", "ant is only in train"),
        ("missing class", "val", "cow is only in train"),
        ("missing class", "val", "dog is only in val"),
    ]
    assert report.exit_code == 1


def test_duplicates_by_content(clean):
    original = clean / "train" / "ant" / "000.jpg"
    with Image.open(original) as image:
        put(clean / "val" / "ant" / "same_pixels.png", encode(image, "PNG"))
    shutil.copy(clean / "train" / "ant" / "001.jpg", clean / "train" / "bee" / "same.jpg")
    shutil.copy(clean / "train" / "bee" / "000.jpg", clean / "train" / "bee" / "zzz.jpg")
    report = data_check("classification", str(clean))
    assert sorted((problem.kind, problem.path, problem.detail, problem.severity) for problem in report.problems) == [
        ("contradiction", "train/ant/001.jpg", "same as train/bee/same.jpg", "error"),
        ("duplicate", "train/bee/000.jpg", "same as train/bee/zzz.jpg", "note"),
        ("duplicate across splits", "train/ant/000.jpg", "same as val/ant/same_pixels.png", "error"),
    ]


def test_missing_splits(clean, tmp_path):
    shutil.rmtree(clean / "val")
    assert check(clean) == {"missing split": ["val"]}
    (clean / "train").rename(clean / "val")
    report = data_check("classification", str(clean))
    assert [(problem.kind, problem.path, problem.severity) for problem in report.problems] == [
        ("missing split", "train", "note")
    ]
    root = class_folders(tmp_path / "unsplit", {"": {"a": 2, "b": 2}})
    put(root / "a" / "cut.jpg", encode(noise(77))[:300])
    assert check(root) == {"missing split": [""], "truncated": ["a/cut.jpg"]}


def test_label_lists(tmp_path):
    for split, first in (("train", 0), ("val", 10)):
        for number in range(3):
            put(tmp_path / split / f"{number}.jpg", noise(first + number))
        text = "file,labels\n0.jpg,a|b\n1.jpg,a\n"
        (tmp_path / split / "labels.csv").write_text(text if split == "train" else text.replace("|b", ""))
    assert check(tmp_path) == {
        "unlisted": ["train/2.jpg", "val/2.jpg"],
        "missing class": ["val"],
    }
    assert data_check("classification", str(tmp_path)).exit_code == 0
    with (tmp_path / "train" / "labels.csv").open("a") as stream:
        stream.write("gone.jpg,b\n2.jpg,c\n")
    found = check(tmp_path)
    assert found["unreadable"] == ["train/gone.jpg"]
    (tmp_path / "val" / "labels.csv").write_text("nonsense")
    assert check(tmp_path)["layout"] == ["val"]


def test_coco_labels(mini_copy):
    root = mini_copy("pets3")
    path = root / "annotations" / "instances_val.json"
    document = json.loads(path.read_text())
    dropped = document["images"].pop(0)
    document["labels"].append("another")
    path.write_text(json.dumps(document))
    assert check(root) == {
        "unlisted": [f"val/images/{dropped['file_name']}"],
        "empty class": ["val"],
        "missing class": ["val"],
    }
    document["images"] = []
    path.write_text(json.dumps(document))
    assert len(check(root)["empty class"]) == 4
    del document["labels"]
    path.write_text(json.dumps(document))
    assert check(root)["layout"] == ["val"]


def test_shards(tmp_path):
    files = [(f"{n}.{end}", c) for n in range(3) for end, c in (("jpg", encode(noise(n))), ("cls", b"%d" % (n % 2)))]
    write_shard(tmp_path / "train-0.tar", files)
    write_shard(tmp_path / "val-0.tar", [*files[:2], ("x.png", encode(noise(50), "PNG")[:150]), ("x.cls", b"1")])
    assert check(tmp_path) == {
        "duplicate across splits": ["train-0.tar/0.jpg"],
        "truncated": ["val-0.tar/x.png"],
    }


def test_listing_and_json(clean, tmp_path, capsys):
    for number in range(7):
        put(clean / "train" / "bee" / f"cut{number}.jpg", encode(noise(600 + number))[:300])
    put(clean / "val" / "ant" / "note.txt", b"x")
    report = data_check("classification", str(clean), workers=3, json=str(tmp_path / "sub" / "report.json"))
    printed = capsys.readouterr().out
    assert "error: truncated or damaged images: 7" in printed
    assert "cut4.jpg" in printed
    assert "cut5.jpg" not in printed
    assert "... and 2 more" in printed
    assert printed.index("error:") < printed.index("note: files that are not images (ignored): 1")
    assert "7 errors, 1 note " in printed
    document = json.loads((tmp_path / "sub" / "report.json").read_text())
    assert len(document["problems"]) == 8 == len(report.problems)
    assert document["summary"]["splits"]["train"] == {"images": 15, "classes": 2}


def test_bad_usage(tmp_path):
    with pytest.raises(UsageError, match="--fix is not an option of the check of classification data"):
        data_check("classification", str(tmp_path), fix="out.json")
    with pytest.raises(UsageError, match="--min-size"):
        data_check("classification", str(tmp_path), min_size=0)
    with pytest.raises(FishnetError, match="does not exist"):
        data_check("classification", str(tmp_path / "nowhere"))
    put(tmp_path / "data" / "x.txt", b"")
    with pytest.raises(FishnetError, match="no data in a known layout"):
        data_check("classification", str(tmp_path / "data"))
