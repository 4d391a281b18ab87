"""`fishnet data check`: what is wrong with a data set."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Literal

from fishnet.data.checks import CheckReport
from fishnet.data.classification.checks import check_classification
from fishnet.errors import UsageError
from fishnet.files import atomic_write


def data_check(
    task: Literal["classification", "detection"],
    directory: str,
    min_size: int = 32,
    workers: int = 2,
    json: str | None = None,
    picture: str | None = None,
    fix: str | None = None,
    split: str | None = None,
) -> CheckReport:
    """Look for damaged, odd and duplicate images and for labels that do not fit; exit code 1 where there are errors.

    Args:
        task: What the data is for.
        directory: Folder of the data set, in any layout.
        min_size: Images with a shorter side than this, in pixels, are reported; 8 x the stem stride of the model
            (classification).
        workers: Threads that decode images.
        json: File for all findings; the printed listing shows the first five of each kind.
        picture: PNG file for the numbers of objects per class and their sizes (detection).
        fix: File for the annotations with everything mended that can be (detection).
        split: Split whose annotations --fix mends, where there are several.
    """
    if min_size < 1 or workers < 1:
        raise UsageError("--min-size and --workers must be 1 or more")
    root = Path(directory)
    if task == "classification":
        if picture is not None or fix is not None or split is not None:
            raise UsageError("--picture, --fix and --split belong to detection")
        report = check_classification(root, min_size=min_size, workers=workers)
    else:
        report = _check_detection(root, workers, picture, fix, split)
    print(report.describe())
    if json is not None:
        atomic_write(json, dumps(report.to_dict(), indent=2) + "\n")
    return report


def _check_detection(root: Path, workers: int, picture: str | None, fix: str | None, split: str | None) -> CheckReport:
    from fishnet.data.detection.checks import check_detection, fix_coco, split_to_fix
    from fishnet.data.detection.coco import read_coco
    from fishnet.data.detection.dataset import annotation_file, image_folder

    report = check_detection(root, workers)
    if picture is not None and report.summary["splits"]:
        from fishnet.drawing.objects import draw_objects
        from fishnet.drawing.style import save_figure

        files = {name: read_coco(annotation_file(root, name)) for name in report.summary["splits"]}
        print(f"written: {save_figure(draw_objects(files), Path(picture))}")
    if fix is not None:
        chosen = split_to_fix(report, split)
        path = annotation_file(root, chosen)
        mended, changes = fix_coco(path, image_folder(root, chosen, read_coco(path).file_names))
        atomic_write(fix, dumps(mended))
        print(f"written: {fix}, {path.name} with " + ("; ".join(changes) or "nothing to mend"))
    return report
