"""Text of `fishnet info detectors`: the detectors and when to use which."""

from __future__ import annotations

import textwrap

from fishnet.models.build import Architecture, build_network
from fishnet.models.heads.detectors import DETECTORS, RegionPlan

_MODEL = "fishnet_tiny"
_WHEN = {
    "faster_rcnn": "Boxes, in two stages. The default for boxes without outlines.",
    "mask_rcnn": "Boxes and masks, in two stages. The default if most objects have outlines.",
    "keypoint_rcnn": "Boxes and keypoints, in two stages; the categories need keypoints.",
    "retinanet": "Boxes, in one stage with anchors: simple, and fast with few classes.",
    "fcos": "Boxes, in one stage without anchors: no anchor sizes to tune.",
    "cascade_rcnn": "Boxes, refined in three stages: more precise boxes at about 1.3 times the time of faster_rcnn.",
    "cascade_mask_rcnn": "Boxes refined in three stages, and masks: the most precise, and the slowest.",
}


def describe_detectors() -> str:
    """Return a table of the detectors: parameters of neck and head on a small trunk, and when to use which."""
    lines = [f"{'detector':<19}parameters of neck and head ({_MODEL})"]
    for name in DETECTORS:
        plan = RegionPlan(name, num_classes=80, keypoints=17 if name == "keypoint_rcnn" else 0)
        network = build_network(Architecture(_MODEL, {"region": plan}))
        count = sum(p.numel() for part in (network.necks, network.heads) for p in part.parameters())
        lines += [
            f"{name:<19}{count:>10,}",
            *textwrap.wrap(_WHEN[name], 100, initial_indent="  ", subsequent_indent="  "),
        ]
    return "\n".join(
        [*lines, "", "fishnet train detection --detector NAME; auto selects faster_rcnn or mask_rcnn from the data"]
    )
