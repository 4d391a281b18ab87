"""Photos of one color each: DIR/{train,val}/<brightness>.png, the brightness in percent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from fishnet.data.loader import SampleKey
from fishnet.data.seeding import sample_seed
from fishnet.errors import FishnetError


def write(root: Path, train: int = 24, val: int = 8, size: int = 32) -> Path:
    for split, count in (("train", train), ("val", val)):
        (root / split).mkdir(parents=True)
        for number in range(count):
            level = round(100 * number / (count - 1))
            noise = np.random.default_rng(number).integers(0, 20, (size, size, 3))
            pixels = np.clip(2.35 * level + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / split / f"{level:03d}.png")
    return root


class Photos(Dataset[dict[str, Any]]):
    def __init__(self, root: Path, split: str, seed: int = 0, jitter: float = 0.0) -> None:
        self.files = sorted((root / split).glob("*.png"))
        if not self.files:
            raise FishnetError(f"{root / split} has no photos")
        self.seed, self.jitter = seed, jitter
        self.bad_images: list[str] = []

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: SampleKey | int) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        pixels = torch.from_numpy(np.array(Image.open(self.files[index])))
        image = pixels.permute(2, 0, 1).float() / 255
        with sample_seed(self.seed, epoch, index):
            image = image + self.jitter * torch.randn(())
        return {"image": image, "target": int(self.files[index].stem) / 100, "index": index, "bad": ""}
