"""`fishnet data check detection`: findings, and optionally a plot and a corrected annotation file."""

from __future__ import annotations

import shlex
from json import dumps
from pathlib import Path

from fishnet.data.checks import CheckReport
from fishnet.data.detection.checks import check_detection, fix_coco, split_to_fix
from fishnet.data.detection.coco import read_coco
from fishnet.data.detection.dataset import annotation_file
from fishnet.data.folders import image_folder
from fishnet.errors import counted
from fishnet.files import atomic_write


def check_data(
    root: Path,
    workers: int = 2,
    picture: str | Path | None = None,
    fix: str | Path | None = None,
    split: str | None = None,
) -> CheckReport:
    """Check every annotation and decode every image of a COCO data set.

    Args:
        root: Folder of the data set.
        workers: Threads that decode images.
        picture: PNG file to write, with the number of objects per class and their sizes.
        fix: Annotation file to write, corrected where possible.
        split: Split whose annotations are corrected by --fix, if there are several.
    """
    report = check_detection(root, workers)
    if picture is not None and report.summary["splits"]:
        from fishnet.drawing.style import save_figure
        from fishnet.tasks.detection.objects import draw_objects

        files = {name: read_coco(annotation_file(root, name)) for name in report.summary["splits"]}
        print(f"written: {save_figure(draw_objects(files), Path(picture))}")
    if fix is not None:
        chosen = split_to_fix(report, split)
        path = annotation_file(root, chosen)
        images = read_coco(path)
        folder = image_folder(root, chosen, images.file_names)
        mended, changes = fix_coco(path, folder)
        atomic_write(fix, dumps(mended))
        print(f"written: {fix}, {path.name} with " + ("; ".join(changes) or "no corrections"))
        if 2 * len(mended["images"]) < len(images):
            kept = f"{len(mended['images'])} of {counted(len(images), 'image')} are left"
            print(f"note: {kept}; check that {folder} is complete")
        if changes and Path(fix).resolve() != path.resolve():
            print(f"to use it, replace {path} with it: {shlex.join(('mv', str(fix), str(path)))}")
    return report
