"""Freed memory stays with a process that trains on a CPU, and goes back to the system afterwards."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import sys

import torch

from fishnet.training.allocator import freed_memory_kept

def faults(wanted):
    with freed_memory_kept(wanted):
        torch.ones(16 << 20)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            torch.ones(16 << 20)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(False), faults(True), faults(False))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an allocator of its own")
@pytest.mark.parametrize("adjusted", [False, True])
def test_large_tensors_are_not_mapped_again(adjusted: bool) -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    own |= {"MALLOC_ARENA_MAX": "2"} if adjusted else {}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=own, capture_output=True, text=True, check=True)
    before, kept, after = map(int, run.stdout.split())
    assert before > 1000, run.stdout
    assert kept > before / 2 if adjusted else kept < before / 2, run.stdout
    assert after > before / 2, run.stdout
