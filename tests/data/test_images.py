from __future__ import annotations

import pickle
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from fishnet.data.images import BadImageError, read_image
from fishnet.errors import FishnetError
from tests.data.makers import encode, noise, put


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def test_real_photo_equals_what_pillow_decodes(mini):
    path = next((mini("pets3") / "train" / "images").glob("*.jpg"))
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(pixels(read_image(path)), expected)
    assert np.array_equal(pixels(read_image(path.read_bytes())), expected)


def test_the_content_decides_and_not_the_extension(tmp_path):
    image = noise(1)
    path = put(tmp_path / "really_a_png.jpg", encode(image, "PNG"))
    assert np.array_equal(pixels(read_image(path)), pixels(image))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    # where the stored array's corner pixels go, from the definition of the tag in the EXIF standard
    turn = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }[orientation]
    stored = noise(2, 20, 12)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "TIFF"):
        shown = read_image(encode(stored, kind, exif=exif))
        assert np.array_equal(pixels(shown), turn(pixels(stored)))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_lose_the_image():
    stored = noise(3)
    content = encode(stored, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert read_image(content).size == stored.size


def test_alpha_is_composed_on_white():
    rgba = np.zeros((2, 2, 4), dtype=np.uint8)
    rgba[0, 0] = (200, 100, 0, 255)
    rgba[0, 1] = (200, 100, 0, 0)
    rgba[1, 0] = (0, 0, 0, 51)
    shown = pixels(read_image(encode(Image.fromarray(rgba), "PNG")))
    assert shown[0, 0].tolist() == [200, 100, 0]
    assert shown[0, 1].tolist() == [255, 255, 255]
    assert shown[1, 0].tolist() == [204, 204, 204]


def test_transparent_palette_and_gray_with_alpha():
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert pixels(read_image(encode(palette, "PNG")))[0].tolist() == [[10, 20, 30], [40, 50, 60]]
    assert pixels(read_image(encode(palette, "PNG", transparency=1)))[0].tolist() == [[10, 20, 30], [255, 255, 255]]
    gray = Image.fromarray(np.array([[[100, 255], [100, 0]]], dtype=np.uint8), "LA")
    assert pixels(read_image(encode(gray, "PNG")))[0].tolist() == [[100] * 3, [255] * 3]
    keyed = Image.new("RGB", (1, 1), (1, 2, 3))
    assert pixels(read_image(encode(keyed, "PNG", transparency=(1, 2, 3))))[0, 0].tolist() == [255] * 3


def test_gray_and_bilevel_become_three_equal_channels():
    gray = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20)
    shown = pixels(read_image(encode(gray, "PNG")))
    assert (shown == np.asarray(gray)[..., None]).all()
    assert pixels(read_image(encode(Image.new("1", (2, 2), 1), "PNG"))).min() == 255


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_scaled(kind):
    values = np.array([[0, 128, 257, 32768, 65535]], dtype=np.uint16)
    shown = pixels(read_image(encode(Image.fromarray(values), kind)))
    assert shown[0, :, 0].tolist() == np.rint(values[0].astype(float) * 255 / 65535).astype(int).tolist()
    assert (shown == shown[..., :1]).all()


def test_sixteen_bit_netpbm():
    content = b"P5 3 1 65535\n" + struct.pack(">3H", 0, 32768, 65535)
    assert pixels(read_image(content))[0, :, 0].tolist() == [0, 128, 255]


def test_floating_point_is_refused():
    content = encode(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "TIFF")
    with pytest.raises(BadImageError, match="floating-point"):
        read_image(content)


def test_cmyk_jpeg_shows_its_colors():
    image = noise(4)
    shown = pixels(read_image(encode(image.convert("CMYK"), "JPEG", quality=95)))
    assert abs(shown - pixels(image)).mean() < 6


def test_first_frame_of_an_animation():
    frames = [noise(seed) for seed in (5, 6)]
    content = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(pixels(read_image(content)), pixels(frames[0]))
    gif = read_image(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert gif.size == frames[0].size


def bad(message: str):
    return pytest.raises(BadImageError, match=f"(?s){message}.*--bad-images skip")


def test_bad_files_name_path_and_reason(tmp_path):
    whole = encode(noise(7, 200, 200))
    for name, content, reason in [
        ("cut.jpg", whole[: len(whole) // 2], "truncated"),
        ("cut.png", encode(noise(7, 200, 200), "PNG")[:200], "truncated"),
        ("empty.jpg", b"", "empty"),
        ("text.jpg", b"this is no image", "not an image"),
    ]:
        with bad(rf"{name}.*{reason}"):
            read_image(put(tmp_path / name, content))
    with bad("missing.jpg: there is no such file"):
        read_image(tmp_path / "missing.jpg")
    with bad("cannot be read"):
        read_image(tmp_path)


def huge_png(width: int, height: int) -> bytes:
    """Return the header of a PNG of this size, with hardly any content."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_500, 30_000])
@pytest.mark.parametrize("action", ["error", "ignore"])
def test_decompression_bombs_are_refused_before_decoding(tmp_path, side, action):
    path = put(tmp_path / "bomb.png", huge_png(side, side))
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with bad(r"bomb\.png: more than 89,478,485 pixels"):
            read_image(path)


def test_a_large_panorama_is_legal():
    assert read_image(encode(Image.new("L", (20_000, 1_000)), "PNG")).size == (20_000, 1_000)


class _Failing(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Image.Image:
        return read_image(Path("nowhere") / "gone.jpg")


def test_the_message_survives_pickling_and_workers():
    with pytest.raises(FishnetError) as direct:
        _Failing()[0]
    copy = pickle.loads(pickle.dumps(direct.value))
    assert str(copy) == str(direct.value)
    with pytest.raises(FishnetError) as from_worker:
        next(iter(DataLoader(_Failing(), num_workers=1)))
    assert str(from_worker.value) == str(direct.value)
    assert type(from_worker.value) is BadImageError
