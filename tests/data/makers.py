"""Small data sets made on the spot, with every picture different."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def noise(seed: int, width: int = 40, height: int = 36) -> Image.Image:
    """Return a picture of large colored blocks that survives JPEG well enough to be told from others."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def put(path: Path, content: bytes | Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else encode(content))
    return path


def class_folders(root: Path, counts: dict[str, dict[str, int]], start: int = 0) -> Path:
    """Write root/<split>/<class>/<n>.jpg; `counts` is split -> class -> number of images; split "" has no folder."""
    seed = start
    for split, classes in counts.items():
        for name, count in classes.items():
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                put(root / split / name / f"{number:03d}.jpg", noise(seed))
                seed += 1
    return root


def write_shard(path: Path, files: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path
