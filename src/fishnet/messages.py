"""Error messages about options: plain sentences instead of those of the parser, and names that other tools use."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from fishnet.errors import did_you_mean

SYNONYMS = {
    "imgsz": "size", "img_size": "size", "img": "size", "image_size": "size", "input_size": "size",
    "resolution": "size",
    "batch": "batch_size", "b": "batch_size", "bs": "batch_size", "optimizer": "optim.name", "opt": "optim.name",
    "lr0": "lr", "learning_rate": "lr", "weight_decay": "optim.weight_decay", "wd": "optim.weight_decay",
    "momentum": "optim.momentum", "sched": "optim.schedule", "warmup_epochs": "optim.warmup_epochs",
    "clip_grad": "optim.clip_grad", "conf": "score", "max_det": "max_detections", "accelerator": "device",
    "gpus": "devices", "project": "out", "output": "out", "output_dir": "out", "name": "out", "save_dir": "out",
    "checkpoint": "weights", "initial_checkpoint": "weights", "ckpt": "weights",
    "arch": "model", "backbone": "model", "amp": "precision", "half": "precision", "fp16": "precision",
    "j": "workers", "num_workers": "workers", "exist_ok": "overwrite", "early_stopping": "patience",
    "monitor": "best", "eval_metric": "best", "model_ema": "ema", "model_ema_decay": "ema",
    "mixup": "augment.mixup", "cutmix": "augment.cutmix", "flip": "augment.flip", "fliplr": "augment.flip",
    "smoothing": "label_smoothing", "drop": "drop_rate", "grad_accum_steps": "accumulate", "loss": "pixel.losses",
    "format": "to",
}  # fmt: skip
"""Options of ultralytics, timm and rf-detr, and the equivalent options of this library."""

HINTS = {
    "num_classes": "The classes are those of the data set: its folders, or its annotation file.",
    "nc": "The classes are those of the data set: its folders, or its annotation file.",
    "pretrained": "Published weights are downloaded by --weights pretrained.",
    "loss": "The losses are those of the task and the model.",
    "test": "A test split is evaluated after the training: fishnet evaluate RUN --split test.",
    "source": "Inputs are given without an option: fishnet predict RUN photos --out DIR.",
    "aa": "Augmentation is set by the options --augment.NAME of the task, see --help.",
    "auto_augment": "Augmentation is set by the options --augment.NAME of the task, see --help.",
}
"""Options of other tools that have no equivalent, and what is done instead."""

_KINDS = {
    "int": "an integer", "float": "a number", "str": "text", "bool": "true or false", "Path": "a path",
    "NoneType": "None", "None": "None", "list": "a list", "tuple": "a list", "dict": "KEY=VALUE",
}  # fmt: skip
_EXPECTED = re.compile(
    r'Parser key "(?P<key>[\w.]+)":.*?'
    r"(?:Subtypes: \[(?P<several>.*?)\] Errors|Expected an? (?P<one>.*?)(?=\. Got value))"
    r".*(?:Got|Given) value: (?P<value>.*)$"
)


def plainly(message: str, shown: Callable[[str], str]) -> str:
    """Return a message of the parser about the value of an option as a sentence; other messages are only shortened.

    Args:
        message: Message of jsonargparse, in one line.
        shown: Name of a setting -> how it is written, such as `--batch-size` for batch_size.
    """
    line = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", message).replace("typing.", "")
    found = _EXPECTED.search(line)
    kinds = _kinds(found["several"] or found["one"]) if found else []
    if found is None or not kinds:
        return re.sub(r'Parser key "([\w.]+)":', lambda m: f"{shown(m[1])}:", line)
    name, value = shown(found["key"]), found["value"]
    choices = [kind for kind in kinds if kind not in _KINDS.values()]
    advice = did_you_mean(value, choices) if choices else ""
    if found["key"] == "device" and value.isdigit():
        advice = f" Use cuda; CUDA_VISIBLE_DEVICES={value} selects that GPU."
    *others, last = kinds
    wanted = f"{', '.join(others)} or {last}" if others else last
    return f"{name} must be {wanted}, not {value}.{advice}".removesuffix(".")


def _kinds(text: str) -> list[str]:
    """Return the types or choices that the parser lists, in words; an empty list if one of them is unknown."""
    found: list[str] = []
    for literal, plain in re.findall(r"Literal\[(.*?)\]|((?:\w+\.)*\w+(?:\[.*?\])?)", text):
        if literal:
            found += [choice.strip(" '\"") for choice in literal.split(",")]
        else:
            found.append(_KINDS.get(plain.partition("[")[0].rpartition(".")[2], ""))
    return list(dict.fromkeys(found)) if all(found) else []


def advice_on(option: str, known: Collection[str], shown: Callable[[str], str]) -> str:
    """Return a sentence on an unknown option: its name here, what is done instead, or the nearest options.

    Args:
        option: Name that was given, without dashes.
        known: Names of the options.
        shown: Name of an option -> how it is written.
    """
    name = option.lower().replace("-", "_")
    if (meant := SYNONYMS.get(name, "")) in known:
        return f" It is called {shown(meant)} here."
    if name in HINTS:
        return f" {HINTS[name]}"
    names = {shown(one): one for one in known if one.isidentifier() or "." in one}
    near = did_you_mean(option, names.values())
    return re.sub(r"'([\w.]+)'", lambda m: shown(m[1]), near)
