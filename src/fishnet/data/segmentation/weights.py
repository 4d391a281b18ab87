"""Number of pixels per class, and class weights computed from it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from tqdm import tqdm

from fishnet.data.images import BadImageError
from fishnet.data.segmentation.dataset import SegmentationDataset
from fishnet.errors import FishnetError, quoted


@dataclass
class PixelCounts:
    """Pixels of a split by class; C classes."""

    pixels: np.ndarray
    """int64 (C,): pixels of each class."""
    images: np.ndarray
    """int64 (C,): images in which each class occurs."""
    around: np.ndarray
    """int64 (C,): labeled pixels of the images in which each class occurs."""
    ignored: int = 0
    """Pixels that are ignored."""
    skipped: int = 0
    """Label maps that could not be used."""

    @classmethod
    def empty(cls, classes: int) -> PixelCounts:
        """Return the counts of no images."""
        return cls(np.zeros(classes, np.int64), np.zeros(classes, np.int64), np.zeros(classes, np.int64))

    def add(self, counts: np.ndarray, ignored: int) -> None:
        """Add the numbers of pixels of each class, int (C,), and of ignored pixels of one label map."""
        self.pixels += counts
        self.images += counts > 0
        self.around += np.where(counts > 0, counts.sum(), 0)
        self.ignored += ignored


def count_pixels(dataset: SegmentationDataset, workers: int = 2, progress: bool = True) -> PixelCounts:
    """Count the pixels of each class in all label maps of a data set.

    Args:
        dataset: Data set; unusable files are skipped if it skips bad images.
        workers: Number of threads that read label maps.
        progress: Show a progress bar on a terminal.

    Raises:
        BadImageError: A label map cannot be used, and the data set does not skip bad images.
        FishnetError: No label map has a labeled pixel.
    """
    number = len(dataset.classes)
    total = PixelCounts.empty(number)

    def one(index: int) -> np.ndarray | None:
        try:
            return np.bincount(dataset.label_map(index).ravel(), minlength=dataset.ignore_index + 1)
        except BadImageError:
            if not dataset.skip_bad:
                raise
            return None

    indices = iter(range(len(dataset)))
    bar = tqdm(total=len(dataset), desc="label maps", unit="image", disable=None if progress else True, leave=False)
    with ThreadPoolExecutor(max(1, workers)) as pool, bar:
        while chunk := list(islice(indices, 64 * max(1, workers))):
            for counts in pool.map(one, chunk):
                bar.update()
                if counts is None:
                    total.skipped += 1
                else:
                    total.add(counts[:number], int(counts[dataset.ignore_index]))
    if not total.pixels.any():
        raise FishnetError(
            f"no label map of {dataset.listing.root}, split {dataset.listing.split!r}, has a labeled pixel: all are "
            f"ignored; `fishnet data check segmentation {quoted(dataset.listing.root)}` shows their values"
        )
    return total


def median_frequency(counts: PixelCounts) -> np.ndarray:
    """Return class weights by median frequency balancing, float64 (C,): median frequency / frequency of the class.

    The frequency of a class is its fraction of the labeled pixels of those images in which it occurs (Eigen and Fergus,
    arXiv 1411.4734, section 4.3; SegNet, arXiv 1511.00561). The median is that of the classes that occur; those that do
    not have weight 0, since no pixel could learn from them.
    """
    seen = counts.pixels > 0
    weights = np.zeros(len(counts.pixels))
    if seen.any():
        frequency = counts.pixels[seen] / counts.around[seen]
        weights[seen] = np.median(frequency) / frequency
    return weights


def enet(counts: PixelCounts, offset: float = 1.02) -> np.ndarray:
    """Return class weights 1 / ln(offset + p), float64 (C,), where p is its fraction of all labeled pixels.

    With offset 1.02 the weights lie between 1.4 and 50 (ENet, Paszke et al., arXiv 1606.02147, section 5.2).
    """
    return 1 / np.log(offset + counts.pixels / max(1, counts.pixels.sum()))
