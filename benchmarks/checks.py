"""Rows that are a matter of passing: run their tests and record the counts.

python benchmarks/checks.py timm|smp|transformers|resume|detectors|detection_resume|detection_processes
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys

from record import PROJECT, record

PYTEST = (sys.executable, "-m", "pytest", "-q")
CHECKS = {
    "timm": (
        "04_timm",
        "timm's own tests/test_models.py on every registered fish",
        [sys.executable, "tests/timm_conformance.py"],
    ),
    "smp": (
        "05_smp",
        "segmentation_models_pytorch decoders on tu-fishnet_tiny: forward, backward, every gradient finite",
        [
            *PYTEST,
            "tests/models/test_integrations.py",
            "-k",
            "segmentation_models_pytorch or pan_on",
        ],
    ),
    "transformers": (
        "06_transformers",
        "DETR, RT-DETR, Mask2Former, UperNet on fishnet_tiny: forward and backward",
        [*PYTEST, "tests/models/test_integrations.py", "-k", "test_transformers or detr"],
    ),
    "resume": (
        "08_resume",
        "kill -9 at five random steps and --resume against the run that was never killed (RandAugment, mixup, cutmix, "
        "dropped paths, moving average, accumulation 2, 2 workers)",
        [*PYTEST, "-s", "-m", "slow", "tests/training/test_resume.py", "-k", "killed"],
    ),
    "detectors": (
        "22_detectors",
        "seven detectors on fishnet_tiny, fishnet99, resnet18 and resnet50: a step with an empty image, every "
        "gradient finite and not None; answers on three odd sizes",
        [
            *PYTEST,
            "-m",
            "",
            "tests/models/heads/test_detectors.py",
            "-k",
            "trains_and_answers",
        ],
    ),
    "detection_resume": (
        "27a_detection_resume",
        "detection: kill -9 at steps 2 to 6 of 8 and --resume against the run that was never killed (mosaic, "
        "copy-paste, IoU crop, dropped paths, moving average, 2 workers)",
        [
            *PYTEST,
            "-s",
            "-m",
            "slow",
            "tests/training/test_detection_processes.py",
            "-k",
            "killed",
        ],
    ),
    "detection_processes": (
        "27b_detection_processes",
        "detection with --devices 2 on CPU: both processes train; their evaluation equals that of one process",
        [*PYTEST, "tests/training/test_detection_processes.py", "-k", "two_processes"],
    ),
}


def main() -> None:
    """Run one check and record what its last line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("check", choices=CHECKS)
    name, title, command = CHECKS[parser.parse_args().check]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    sys.stdout.write(done.stdout)
    summary = re.findall(r"(\d+) (passed|failed|errors?|skipped)", done.stdout.strip().splitlines()[-1])
    counts = {what.rstrip("s"): int(number) for number, what in summary}
    trials = [{"trial": line} for line in done.stdout.splitlines() if "trial " in line and "killed at" in line]
    measured = ", ".join(f"{number} {what}" for number, what in summary) or "no test ran"
    met = done.returncode == 0 and counts.get("passed", 0) > 0 and not counts.get("skipped", 0)
    record(name, title, "all pass", measured, met, trials)
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
