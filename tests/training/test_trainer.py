"""Precision that fits the machine, and output without a terminal."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from fishnet.config import TrainConfig
from fishnet.training import trainer
from fishnet.training.fit import quiet_lightning
from fishnet.training.progress import progress_bars
from fishnet.training.trainer import decide_precision


@pytest.mark.parametrize(("instructions", "wanted"), [(True, "bf16"), (False, "fp32")])
def test_auto_picks_what_the_processor_computes_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], instructions: bool, wanted: str
) -> None:
    monkeypatch.setattr(trainer, "has_bf16", lambda: instructions)
    assert decide_precision(TrainConfig(precision="auto", device="cpu")).precision == wanted
    assert f"precision {wanted}: the fastest on this CPU" in capsys.readouterr().out


def test_bf16_without_instructions_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig(precision="bf16", device="cpu")
    monkeypatch.setattr(trainer, "has_bf16", lambda: False)
    assert decide_precision(config) == config
    assert "3 times slower than fp32" in capsys.readouterr().out
    monkeypatch.setattr(trainer, "has_bf16", lambda: True)
    assert decide_precision(config) == config
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "found"),
    [("flags : fpu avx512_bf16 sse", True), ("Features : fp bf16", True), ("flags : avx2 f16c", False)],
)
def test_instructions_are_those_of_the_processor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, found: bool
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_: f"processor : 0\n{line}\n")
    assert trainer.has_bf16() is found


def test_on_a_gpu_auto_is_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for supported, wanted in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda supported=supported, **_: supported)
        assert decide_precision(TrainConfig(precision="auto")).precision == wanted


def test_bars_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    assert progress_bars(10) == []
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert len(progress_bars(10)) == 1


def test_the_level_of_lightnings_logger_is_restored() -> None:
    logger = logging.getLogger("pytorch_lightning")
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        with quiet_lightning():
            assert logger.level == logging.WARNING
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(before)
