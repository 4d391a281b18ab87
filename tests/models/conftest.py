"""Networks whose residual branches compute something from the start."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from fishnet.models.config import VARIANTS


@pytest.fixture(scope="module", autouse=True)
def open_branches() -> Iterator[None]:
    """Build members of the family without the zero start.

    A new network consists of its shortcuts, so a fault inside a block would change no output, and gradients would not
    reach the first convolutions of a block.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, config in VARIANTS.items():
            patch.setitem(VARIANTS, name, dataclasses.replace(config, zero_init_last=False))
        yield
