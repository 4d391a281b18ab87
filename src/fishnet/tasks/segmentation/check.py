"""`fishnet data check segmentation`: findings, and optionally a picture of images with their label maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fishnet.data.checks import CheckReport
from fishnet.data.images import BadImageError
from fishnet.data.segmentation.checks import check_segmentation
from fishnet.data.segmentation.coding import LabelError
from fishnet.data.segmentation.dataset import matching_image, read_raw_labels
from fishnet.data.segmentation.layouts import Listing, list_split
from fishnet.files import check_picture_name

if TYPE_CHECKING:  # a check without a picture does not need matplotlib
    from fishnet.drawing.label_maps import LabeledPhoto

_ON_SHEET = 12


def check_data(root: Path, workers: int = 2, picture: str | Path | None = None) -> CheckReport:
    """Check all label maps and decode all images of a segmentation data set in any layout.

    Args:
        root: Data folder.
        workers: Number of decoding threads.
        picture: PNG or JPEG file to write: some images with their label maps drawn on them.

    Raises:
        FishnetError: The folder is missing, empty or has an unknown layout; other problems are in the report.
        UsageError: `picture` has another suffix.
    """
    if picture is not None:
        check_picture_name(Path(picture))
    report = check_segmentation(root, workers)
    if picture is not None:
        print(_draw(Path(root), list(report.summary["splits"]), Path(picture)))
    return report


def _draw(root: Path, splits: list[str], path: Path) -> str:
    """Write a contact sheet of images from all splits, evenly spaced in their lists; return what was written."""
    from fishnet.drawing.label_maps import class_colors, label_map_sheet
    from fishnet.drawing.style import save_picture

    listings = [list_split(root, split) for split in splits]
    photos: list[LabeledPhoto] = []
    for number, listing in enumerate(listings):
        photos += _photos(listing, _ON_SHEET // len(listings) + (number < _ON_SHEET % len(listings)))
    if not photos:
        return f"no image can be drawn, so {path} is not written"
    coding = listings[0].coding
    colors = class_colors(len(coding.classes), coding.palette)
    save_picture(label_map_sheet(photos, coding.classes, colors), path)
    return f"written: {path}"


def _photos(listing: Listing, wanted: int) -> list[LabeledPhoto]:
    """Return images with label maps, evenly spaced in the list of a split; unusable ones are replaced by the next."""
    from fishnet.drawing.label_maps import LabeledPhoto

    found: list[LabeledPhoto] = []
    starts = np.linspace(0, len(listing.pairs), min(wanted, len(listing.pairs)), endpoint=False).astype(int).tolist()
    for start, stop in zip(starts, [*starts[1:], len(listing.pairs)], strict=True):
        for pair in listing.pairs[start:stop]:
            label = listing.root / pair.label
            try:
                labels = listing.coding.decode(read_raw_labels(label, listing.coding.has_colors))
                image = matching_image(listing.root / pair.image, (labels.shape[1], labels.shape[0]), label)
            except (BadImageError, LabelError):  # already in the report
                continue
            found.append(LabeledPhoto(image, labels, pair.image))
            break
    return found
