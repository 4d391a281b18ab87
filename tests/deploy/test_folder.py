"""Decoders of other packages in the folder of an export."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from fishnet.deploy.folder import write_runner
from fishnet.errors import UsageError
from fishnet.runner.heads import HEADS

SOURCE = """\
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

{imports}
from fishnet.runner.head import Head

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Decoder(Head[float]):
    pass
"""


def write_module(imports: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the module of a decoder to a folder, import it, and register the decoder."""
    (folder / "third_party.py").write_text(SOURCE.format(imports=imports))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "third_party", raising=False)
    monkeypatch.setitem(HEADS, "third", importlib.import_module("third_party").Decoder)


def test_the_module_of_a_decoder_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_module("import numpy as np\nfrom PIL import Image", tmp_path, monkeypatch)
    write_runner(tmp_path, "onnxruntime", ["pixel", "third"])
    names = {path.name for path in (tmp_path / "fishnet_runner").iterdir() if path.name.startswith("decoder_")}
    assert names == {"decoder_third.py"}
    assert "from fishnet_runner.head import Head" in (tmp_path / "fishnet_runner" / "decoder_third.py").read_text()


@pytest.mark.parametrize(
    ("imports", "named"),
    [
        ("import torch.nn.functional as F", r"torch\.nn\.functional"),
        ("from fishnet.files import Json", r"fishnet\.files"),
        ("def f():\n    from .helpers import g", r"\.helpers"),
    ],
)
def test_a_decoder_that_needs_other_modules_is_refused(
    imports: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would fail where the export runs alone."""
    write_module(imports, tmp_path, monkeypatch)
    with pytest.raises(
        UsageError, match=f"decoder Decoder cannot be exported: its module third_party imports {named},"
    ):
        write_runner(tmp_path, "onnxruntime", ["third"])


def test_a_decoder_without_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_module("", tmp_path, monkeypatch)
    (tmp_path / "third_party.py").unlink()
    with pytest.raises(UsageError, match="third_party has no source file"):
        write_runner(tmp_path, "onnxruntime", ["third"])


def test_an_unknown_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no decoder named 'third' is registered; call fishnet"):
        write_runner(tmp_path, "onnxruntime", ["third"])
