from __future__ import annotations

import subprocess
import sys

import pytest

from fishnet.cli import COMMANDS, main
from fishnet.cli_tasks import normalize
from fishnet.messages import SYNONYMS
from fishnet.schema import setting_names
from fishnet.tasks import get_task


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, text = outcome(capsys, *name.split(), "--help")
    assert code == 0
    assert f"fishnet {name}" in text
    options = [line.split()[0] for line in text.splitlines() if line.strip().startswith("--")]
    assert not any("_" in option for option in options)
    assert "--progress" not in options  # of functions only, which the command line calls


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], "Did you mean 'train'"),
        (["data", "chekc"], "Did you mean 'data check'"),
        (["train", "classification", "--epoch", "3"], "unknown option --epoch. Did you mean --epochs"),
        (["train", "classification", "--augment.mixpu", "3"], "--augment.mixup"),
        (["train", "classification", "--epochs", "x"], "--epochs"),
        (["train", "clasification", "--data", "x", "--out", "y"], "classification"),
        (["train", "classification", "--out", "y"], "--data DIR is missing"),
        (["predict", "run", "photo.jpg"], "--out is missing; see fishnet predict --help"),
        (
            ["train", "classification", "--data", "y", "--resume"],
            "--out RUN is missing: the run to resume",
        ),
        (["train", "classification", "--data", "y", "--out", "x", "--recipe", "cifar"], "Did you mean 'cifar10'"),
        (["train", "classification", "--data", "y", "--out", "x", "--model-option", "gate"], "model-option"),
        (["predict", "somewhere"], "INPUTS and --out are missing; see fishnet predict --help"),
        (["info", "fishnet98"], "fishnet99"),
    ],
)
def test_bad_usage_is_one_line_with_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    code, text = outcome(capsys, *arguments)
    assert code == 2, text
    assert says in text
    assert len(text.strip().splitlines()) == 1, text


def test_options_as_people_type_them_become_those_of_the_parser() -> None:
    hints = dict.fromkeys(["compile", "optim.nesterov", "channels_last"], bool) | {
        "batch_size": int, "freeze": list[str], "ema": float | None, "scale": tuple[float, float] | None,
        "model_option": dict[str, object] | None,
    }  # fmt: skip
    typed = [
        "--batch-size",
        "8",
        "--compile",
        "--no-channels-last",
        "--model-option",
        "stem_stride=1",
        "--optim.nesterov",
    ]
    assert normalize([*typed, "--out", "my-run"], hints) == [
        "--batch_size=8", "--compile=true", "--channels_last=false", "--model_option.stem_stride=1",
        "--optim.nesterov=true", "--out", "my-run",
    ]  # fmt: skip
    typed = ["--freeze", "stem,tail", "--freeze=[stem]", "--ema", "None", "--scale", "0.5,2", "--scale=none"]
    assert normalize(typed, hints) == [
        "--freeze=[stem,tail]", "--freeze=[stem]", "--ema=null", "--scale=[0.5,2]", "--scale=null",
    ]  # fmt: skip
    typed = ["run", "--data", "image=my photos", "region=boxes", "pixel=maps", "--json", "file", "--data=x", "a=b"]
    assert normalize(typed, {"data": str | None, "json": str | None}) == [
        "run", "--data=image=my photos region=boxes pixel=maps", "--json=file", "--data=x", "a=b",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code"), [(["--help"], 0), (["--version"], 0), (["nonsense"], 2), (["evaluate", "runs/nowhere"], 2)]
)
def test_what_needs_no_network_does_not_wait_for_torch(words: list[str], code: int) -> None:
    found = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fishnet", *words], capture_output=True, text=True
    )
    assert found.returncode == code
    imported = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines() if line.startswith("import time")}
    assert "fishnet.cli" in imported
    assert not imported & {"torch", "timm", "pytorch_lightning"}


def test_importing_the_package_registers_the_family() -> None:
    code = "import fishnet, timm; print(timm.is_model('fishnet99'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_the_command_line_imports_no_torch_before_it_is_needed() -> None:
    code = "import sys; import fishnet.cli as c; c.main(['--version']); print('pytorch_lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_an_unexpected_error_is_one_line_and_debug_shows_where(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import fishnet.commands.info as command

    def broken(model: str | None = None) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(command, "info", broken)
    code, text = outcome(capsys, "info")
    assert code == 1
    assert "Traceback" not in text
    assert "KeyError" in text
    code, text = outcome(capsys, "info", "--debug")
    assert code == 1
    assert "Traceback" in text


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["train", "detection", "--data", "d", "--out", "o", "--imgsz", "640"], "--size"),
        (["train", "classification", "--data", "d", "--out", "o", "--batch", "8"], "--batch-size"),
        (["train", "classification", "--data", "d", "--out", "o", "--optimizer", "adamw"], "--optim.name"),
        (["train", "classification", "--data", "d", "--out", "o", "--accelerator", "cpu"], "--device"),
        (["predict", "run", "x.jpg", "--out", "o", "--conf", "0.3"], "--score"),
    ],
)
def test_options_of_other_tools_point_to_ours(words: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert f"unknown option {words[-2]}. It is called {meant} here." in capsys.readouterr().err


def test_every_synonym_names_an_option() -> None:
    settings = {
        name
        for task in ("classification", "detection", "segmentation")
        for name in setting_names(get_task(task).config)
    }
    answers = {"to", "score", "max_detections", "inputs", "overwrite"}
    assert set(SYNONYMS.values()) <= settings | answers
    assert not set(SYNONYMS) & {"data", "model", "out", "size", "lr", "seed", "device", "score"}


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID"])
def test_started_by_a_launcher_a_run_needs_its_folder(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv(variable, rank)
        assert main(["train", "classification", "--data", "photos"]) == 2
        assert "--out RUN is missing: torchrun and SLURM start several processes" in capsys.readouterr().err


def test_a_warning_of_this_package_is_one_line() -> None:
    code = """
from fishnet.cli import plain_warnings
from fishnet.models.norms import check_norm_policy
with plain_warnings():
    check_norm_policy("train", 2, on_gpu=False)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (line,) = found.stderr.splitlines()
    assert line.startswith("fishnet: warning: BatchNorm trains on 2 images per device")
