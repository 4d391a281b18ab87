"""What stands for the classes in label files: values, palettes, colors."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from fishnet.data.segmentation.checks import check_segmentation
from fishnet.data.segmentation.coding import LabelCoding, LabelError, parse_coding, raw_labels, read_coding
from fishnet.data.segmentation.dataset import open_segmentation, read_raw_labels
from fishnet.errors import FishnetError
from tests.data.makers import encode
from tests.data.segmentation.makers import label_map, paletted

PALETTE = [[70, 130, 180], [128, 64, 128], [0, 0, 142]]
COLORED = {"classes": ["sky", "road", "car"], "palette": PALETTE, "ignore_color": [0, 0, 0]}
MASK = {"values": {"0": "background", "255": "object"}}


def decoded(coding: LabelCoding, image: Image.Image, kind: str = "PNG", **options: object) -> np.ndarray:
    """Return what is read back from the image as a file."""
    return coding.decode(read_raw_labels(encode(image, kind, **options), coding.has_colors))


def in_colors(labels: np.ndarray) -> Image.Image:
    table = np.zeros((256, 3), np.uint8)
    table[:3] = PALETTE
    return Image.fromarray(table[labels])


def test_every_kind_of_file_gives_the_same_label_map() -> None:
    labels = label_map(3)
    plain, colored = parse_coding(["sky", "road", "car"], "x"), parse_coding(COLORED, "x")
    gray = Image.fromarray(labels)
    opaque = in_colors(labels).convert("RGBA")
    for name, found in {
        "gray": decoded(plain, gray),
        "palette": decoded(plain, paletted(labels)),
        "palette with transparency": decoded(plain, paletted(labels), transparency=1),
        "16 bits": decoded(plain, Image.fromarray(labels.astype(np.uint16))),
        "equal channels": decoded(plain, gray.convert("RGB")),
        "gray with opaque alpha": decoded(plain, gray.convert("LA")),
        "TIFF of 32 bits": decoded(plain, Image.fromarray(labels.astype(np.int32)), "TIFF"),
        "colors": decoded(colored, in_colors(labels)),
        "colors with opaque alpha": decoded(colored, opaque),
        "indices although there is a palette": decoded(colored, paletted(labels)),
    }.items():
        assert found.dtype == np.uint8, name
        assert np.array_equal(found, labels), name


def test_masks_of_0_and_255() -> None:
    coding = parse_coding(MASK, "x")
    mask = np.array([[0, 255, 255], [0, 0, 255]], np.uint8)
    wanted = (mask > 0).astype(np.uint8)
    assert coding.classes == ["background", "object"]
    assert coding.ignored == ()
    assert np.array_equal(decoded(coding, Image.fromarray(mask)), wanted)
    assert np.array_equal(decoded(coding, Image.fromarray(mask).convert("1")), wanted)
    assert np.array_equal(
        decoded(parse_coding(["background", "object"], "x"), Image.fromarray(mask).convert("1")), wanted
    )


def test_values_of_16_bits_are_not_scaled_and_many_classes_are_possible() -> None:
    coding = parse_coding({"classes": [f"c{n}" for n in range(400)]}, "x")
    labels = np.array([[0, 255], [399, 65535]], np.uint16)
    found = decoded(coding, Image.fromarray(labels))
    assert coding.ignore_index == 65535
    assert found.dtype == np.int64
    assert np.array_equal(found, labels)
    assert np.array_equal(np.array(coding.encode(found)), labels)
    with pytest.raises(LabelError, match=r"the value 400 \(1 pixels\)"):
        coding.decode(raw_labels(Image.fromarray(labels + np.uint16(1))))


@pytest.mark.parametrize("document", [["a", "b", "c"], COLORED, {"values": {"7": "a", "9": "b", "8": "b", "200": "c"}}])
def test_what_is_encoded_is_read_back(document: object) -> None:
    coding = parse_coding(document, "x")
    labels = label_map(5)
    image = coding.encode(labels)
    assert np.array_equal(decoded(coding, image), labels)
    assert parse_coding(json.loads(json.dumps(coding.to_dict())), "x") == coding
    if isinstance(document, dict) and "palette" in document:
        assert np.array_equal(np.array(image), np.array(in_colors(labels)))
        assert np.array_equal(np.array(coding.encode(labels, colors=False)), labels)


def test_gray_colors_of_a_palette_are_no_values(tmp_path) -> None:
    """A tile of black roofs has three equal channels; it must not become class 0, nor a white one be ignored."""
    document = {
        "classes": ["water", "road", "roof"],
        "palette": [[0, 0, 255], [255, 255, 255], [0, 0, 0]],
        "ignore_color": [128, 128, 128],
    }
    maps = [[[2, 2]], [[1, 1]], [[2, 1]], [[255, 255]], [[0, 1]]]
    for name in ("images", "labels"):
        (tmp_path / "train" / name).mkdir(parents=True)
    (tmp_path / "classes.json").write_text(json.dumps(document), "utf-8")
    coding = parse_coding(document, "x")
    for number, wanted in enumerate(maps):
        Image.new("RGB", (2, 1)).save(tmp_path / "train" / "images" / f"{number}.png")
        coding.encode(np.array(wanted)).save(tmp_path / "train" / "labels" / f"{number}.png")
    dataset = open_segmentation(tmp_path, "train")
    assert [dataset.label_map(number).tolist() for number in range(5)] == maps
    pixels = check_segmentation(tmp_path, progress=False).summary["pixels"]["train"]
    assert pixels == {"water": 1, "road": 4, "roof": 3}


def test_ignored_pixels_need_a_value_to_be_written() -> None:
    coding = parse_coding(MASK, "x")
    assert np.array(coding.encode(np.array([[1, 0]]))).tolist() == [[255, 0]]
    with pytest.raises(ValueError, match="no value is defined for them"):
        coding.encode(np.array([[255]]))


def test_values_outside_the_classes_are_counted() -> None:
    coding = parse_coding(["a", "b"], "x")
    values = np.array([[0, 1, 7, 7, 255, 9]], np.uint8)
    with pytest.raises(LabelError) as caught:
        coding.decode(raw_labels(Image.fromarray(values)))
    assert caught.value.unknown == {7: 2, 9: 1}
    assert str(caught.value) == "the values 7 (2 pixels), 9 (1 pixels) of the label map are not classes"
    with pytest.raises(LabelError, match=r"the color \[1, 2, 3\] \(1 pixels\) of the label map is not a class"):
        parse_coding(COLORED, "x").decode(raw_labels(Image.new("RGB", (1, 1), (1, 2, 3))))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("RGB", (4, 4), (9, 8, 7)), "it has colors (RGB), but classes.json has no `palette`"),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 9)), "it has transparent pixels; save it without alpha channel"),
        (Image.new("LA", (4, 4), (1, 0)), "it has transparent pixels"),
    ],
)
def test_files_that_are_no_label_maps(image: Image.Image, message: str) -> None:
    with pytest.raises(LabelError) as caught:
        decoded(parse_coding(["a", "b"], "x"), image)
    assert message in str(caught.value)


@pytest.mark.parametrize("mode", ["F", "CMYK"])
def test_modes_without_classes(mode: str) -> None:
    with pytest.raises(LabelError, match="neither classes nor RGB colors"):
        decoded(parse_coding(["a", "b"], "x"), Image.new(mode, (4, 4)), "TIFF")


def test_damaged_files(tmp_path) -> None:
    content = encode(Image.fromarray(np.random.default_rng(0).integers(0, 99, (99, 99), np.uint8)), "PNG")
    for bad, message in ((b"", "the file is empty"), (b"no image", "not an image"), (content[:900], "truncated")):
        with pytest.raises(LabelError, match=message):
            read_raw_labels(bad)
    with pytest.raises(LabelError, match="there is no such file"):
        read_raw_labels(tmp_path / "absent.png")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (3, "must be {"),
        ({"classes": []}, "`classes` must be a non-empty list of names"),
        ({"classes": "ab"}, "`classes` must be a non-empty list of names"),
        ({"classes": ["a", "b", "a"]}, "lists the same class twice: a"),
        ({"classes": ["road"]}, "lists one class only ('road')"),
        ({"classes": ["a", "b"], "ignore_index": 1}, "`ignore_index` 1 is also a class"),
        ({"classes": ["a", "b"], "ignore_index": -1}, "`ignore_index` must be a value from 0 to 65535"),
        ({"classes": ["a", "b"], "ignore_index": "255"}, "`ignore_index` must be a value from 0 to 65535"),
        ({"classes": ["a", "b"], "values": {"x": "a"}}, "`values` must give the name of a class to values"),
        ({"classes": ["a", "b"], "values": ["a", "b"]}, "`values` must give the name of a class to values"),
        ({"classes": ["road", "b"], "values": {"0": "raod", "1": "b"}}, "Did you mean 'road'?"),
        ({"classes": ["a", "b"], "values": {"0": "a"}}, "no value for the class 'b'"),
        ({"values": {"0": "a", "255": "b"}, "ignore_index": 255}, "`ignore_index` 255 is also a class"),
        ({"classes": ["a", "b"], "palette": [[0, 0, 0]]}, "2 classes, 1 colors"),
        ({"classes": ["a", "b"], "palette": [[0, 0, 0], [0, 0, 256]]}, "three numbers from 0 to 255"),
        ({"classes": ["a", "b"], "palette": [[0, 0, 9], [0, 0, 9]]}, "'a' and 'b' have the same color [0, 0, 9]"),
        ({"classes": ["a", "b"], "palette": [[0, 0, 9], [0, 0, 8]], "ignore_color": [0, 0, 8]}, "color of 'b'"),
    ],
)
def test_classes_files_that_cannot_be_used(document: object, message: str, tmp_path) -> None:
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(document))
    with pytest.raises(FishnetError) as caught:
        read_coding(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_damaged_classes_file(tmp_path) -> None:
    with pytest.raises(FishnetError, match=r'classes.json is missing; write .*"classes": \["background", "cat"\]'):
        read_coding(tmp_path / "classes.json")
    (tmp_path / "classes.json").write_text("{")
    with pytest.raises(FishnetError, match="is not valid JSON"):
        read_coding(tmp_path / "classes.json")


def test_indices_of_a_palette_are_those_in_the_file() -> None:
    """Pillow's own conversion to RGB shows the colors; the indices are the bytes that were stored."""
    labels = label_map(1)
    content = encode(paletted(labels), "PNG")
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode == "P"
        assert not np.array_equal(np.array(image.convert("L")), labels)
    assert read_raw_labels(content).palette
    assert np.array_equal(read_raw_labels(content).values, labels)
