"""Loading of weights in any known layout into a model; a mismatch raises an error that lists both sides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import timm
from torch import Tensor, nn

from fishnet.errors import FishnetError, UsageError, did_you_mean
from fishnet.models.checkpoints.files import SUFFIXES, save_state
from fishnet.models.checkpoints.guess import guess_timm_model
from fishnet.models.checkpoints.layouts import (
    CLASSIFIER,
    FIRST_CONV,
    convert_state,
    detect_layout,
    find_layout,
    listing,
    translate,
)
from fishnet.models.checkpoints.states import WRAPPERS, is_network, read_checkpoint, whole_of
from fishnet.models.norms import BATCH_NORMS, apply_norm_policy, note_loaded_norms

__all__ = [
    "LoadReport",
    "classifier_size",
    "convert_state",
    "detect_layout",
    "load_to_train",
    "load_weights",
    "locate_weights",
    "read_checkpoint",
    "recognize_member",
    "save_state",
]

RUN_FILES = ("model.safetensors", "checkpoints/best.ckpt", "checkpoints/last.ckpt")
_CLASSIFIERS = (*CLASSIFIER, "fc", "head", "head.fc")
_COUNTER = ".num_batches_tracked"


@dataclass
class LoadReport:
    """Names of loaded and other tensors: those of the model, for `unexpected` those of the file."""

    layout: str
    """Layout of the file: fishnet, released, pytorchcv, or `as is` for other networks."""
    loaded: list[str] = field(default_factory=list)
    """Tensors loaded from the file."""
    missing: list[str] = field(default_factory=list)
    """Tensors of the model that the file lacks or has in another shape; they are not changed."""
    unexpected: list[str] = field(default_factory=list)
    """Tensors of the file that the model does not have."""
    skipped: list[str] = field(default_factory=list)
    """Tensors of the classifier that were skipped as requested, and of parts that the run does not have."""
    adapted: list[str] = field(default_factory=list)
    """Tensors adapted to another number of image channels; also listed in `loaded`."""
    source: str = ""
    """File that was read."""
    group_norms: bool = False
    """Whether the file has group norms in place of the BatchNorms of the model as it was built."""

    def __str__(self) -> str:
        parts = [f"loaded {len(self.loaded)} tensors from {self.source} (layout {self.layout})"]
        if self.skipped:
            parts.append(f"{len(self.skipped)} not loaded, as expected: {listing(self.skipped)}")
        for title in ("adapted", "missing", "unexpected"):
            if names := getattr(self, title):
                parts.append(f"{title} {len(names)}: {listing(names)}")
        return "; ".join(parts)


def load_weights(
    model: nn.Module,
    source: str | Path,
    strict: bool = True,
    skip_classifier: bool | Literal["resize"] = False,
    prefer_ema: bool = True,
    follow_norms: bool = False,
) -> LoadReport:
    """Load a checkpoint of any known layout into a FishNet, or a matching one into any other model.

    Names are translated to those of the model. The first convolution is adapted to the number of image channels of the
    model, as in timm. If an error is raised, the weights of the model are not changed.

    Args:
        model: Model to load the weights into, on any device; it may be wrapped (compiled, data parallel, timm's feature
            getter).
        source: Checkpoint file, run folder (its `model.safetensors`, else its best or last checkpoint), or a tag of
            published weights such as `osmr_in1k`.
        strict: Whether every tensor needs a counterpart of the same shape. False loads the tensors that fit and reports
            the others.
        skip_classifier: True does not load the classifier; "resize" skips it only if its size differs.
        prefer_ema: If the file contains both, load the moving average instead of the weights of the last step.
        follow_norms: If the file has group norms in place of BatchNorms, first replace the BatchNorms of the model.

    Returns:
        Report of loaded, missing and unexpected tensors.

    Raises:
        UsageError: `source` is neither a file, nor a run folder, nor a tag.
        FishnetError: The file cannot be read, its layout is unknown, or it does not fit the model.
    """
    model = _unwrap(model)
    own = dict(model.state_dict())
    if any(value.is_meta for value in own.values()):
        raise FishnetError("cannot load weights into a model on the meta device; call model.to_empty(device='cpu').")
    if strict:
        _check_tag(source, own)
    path = locate_weights(source)
    state = read_checkpoint(path, prefer_ema)
    cut = is_network(state)
    if cut:  # remove necks and heads; stages that the heads do not need may be missing
        (classifier, *_) = [*_names(model, "classifier", _CLASSIFIERS), CLASSIFIER.fishnet]
        state, _ = whole_of(state, own, classifier)
    layout, state = _to_model_layout(state, own, path)
    report = LoadReport(layout or "as is", source=str(path), group_norms=_has_group_norms(model, state))
    if report.group_norms and follow_norms:
        model = apply_norm_policy(model, "group")
        own = dict(model.state_dict())
    state = _without_classifier(model, state, own, skip_classifier, report)
    state = _fit_first_conv(model, state, own, report)
    _compare(state, own, report)
    if cut and skip_classifier:
        _forgive_absent_parts(state, report)
    differing = [key for key in report.missing if key in state]
    if (strict and (report.missing or report.unexpected)) or not report.loaded:
        raise FishnetError(_explain_mismatch(model, state, own, report, differing))
    model.load_state_dict({key: state[key] for key in report.loaded}, strict=False)
    note_loaded_norms(model, report.loaded)
    return report


def _forgive_absent_parts(state: Mapping[str, Tensor], report: LoadReport) -> None:
    """Count the parts of the model that the trunk of a run does not have as skipped, not as missing."""
    present = {key.partition(".")[0] for key in state}
    absent = [key for key in report.missing if key.partition(".")[0] not in present]
    report.skipped = sorted({*report.skipped, *absent})
    report.missing = [key for key in report.missing if key not in set(absent)]


def load_to_train(
    model: nn.Module, source: str | Path, group_norm: bool, skip_classifier: bool | Literal["resize"]
) -> LoadReport:
    """Load weights to start training from, and print the report.

    If the weights have group norms, the BatchNorms of the model are replaced by group norms; else the model keeps its
    BatchNorms, which the caller can replace. Group norms get the scale and shift of the weights in either case.

    Args:
        model: Model with BatchNorms, to load the weights into.
        source: Checkpoint file, run folder or tag.
        group_norm: Whether the model is to be trained with group norms.
        skip_classifier: See `load_weights`.

    Raises:
        UsageError: The weights have group norms, but the model is to be trained with BatchNorms.
        FishnetError: The weights cannot be read or do not fit.
    """
    report = load_weights(model, source, skip_classifier=skip_classifier, follow_norms=True)
    if report.group_norms and not group_norm:
        raise UsageError(f"{report.source} has group norms in place of BatchNorms: add --norm group")
    print(report)
    return report


def _has_group_norms(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict has scales, but no running statistics, for the BatchNorms of a model."""
    norms = [name for name, module in model.named_modules() if isinstance(module, BATCH_NORMS)]
    scaled = [name for name in norms if f"{name}.weight" in state]
    return bool(scaled) and not any(f"{name}.running_mean" in state for name in scaled)


def locate_weights(source: str | Path) -> Path:
    """Return the checkpoint file of a path, a run folder or a tag, whose weights are downloaded if needed.

    Raises:
        UsageError: There is no such file, folder or tag; the message suggests similar ones.
        FishnetError: The folder contains no checkpoint, or the download failed.
    """
    from fishnet.models.checkpoints.pretrained import PRETRAINED, fetch

    path = Path(source).expanduser()
    if path.is_dir():
        for name in RUN_FILES:
            if (path / name).is_file():
                return path / name
        raise FishnetError(f"{path} contains no weights: a run folder has one of {', '.join(RUN_FILES)}.")
    if path.is_file():
        return path
    if str(source) in PRETRAINED:
        return fetch(str(source))
    if path.parent != Path() or path.name.endswith(SUFFIXES):
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(f"there is no file {path}.{did_you_mean(path.name, beside)}")
    raise UsageError(
        f"unknown weights {str(source)!r}: neither a file, nor a run folder, nor one of the tags "
        f"{', '.join(PRETRAINED)}.{did_you_mean(str(source), PRETRAINED)} {_downloads(str(source))}"
    )


def _downloads(source: str) -> str:
    model = f"--model {source} " if timm.is_model(source.partition(".")[0]) else ""
    of = "them" if model else "those of --model"
    return (
        f"Weights that are published are downloaded by name of the model: {model}--weights pretrained downloads {of}."
    )


def _check_tag(source: str | Path, own: Mapping[str, Tensor]) -> None:
    """Refuse published weights of another FishNet before they are downloaded."""
    from fishnet.models.checkpoints.pretrained import PRETRAINED

    entry = PRETRAINED.get(str(source))
    member = recognize_member(own) if entry else None
    if entry and member not in (None, entry.model):
        raise UsageError(f"weights {str(source)!r} belong to {entry.model}, but the model is {member}.")


def recognize_member(state: Mapping[str, Tensor]) -> str | None:
    """Return the name of the FishNet that a state dict of any known layout belongs to, by names and shapes, or None."""
    import timm

    from fishnet.models.config import VARIANTS

    layout = find_layout(state)
    if layout is None:
        return None
    converted, foreign = translate(state, layout, "fishnet")
    first = converted.get(f"{FIRST_CONV.fishnet}.weight")
    if foreign or first is None or first.ndim != 4:
        return None
    shapes = _shapes(converted)
    blocks = sum(key.endswith(".conv1.weight") and (".blocks." in key or ".transfer." in key) for key in shapes)
    for name, config in VARIANTS.items():
        depths = (*config.tail_depths, config.bridge_depth, *config.body_depths, *config.head_depths)
        if blocks != sum(depths) + sum(config.transfer_depths):
            continue  # building a network takes long, even on the meta device
        # by its name: the network itself imports this module
        model = timm.create_model(name, num_classes=0, in_chans=first.shape[1], device="meta")
        if _shapes(model.state_dict()) == shapes:
            return name
    return None


def classifier_size(state: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes of a state dict of a known layout, or None if it has no classifier."""
    weights = (state.get(f"{name}.weight") for name in _CLASSIFIERS)
    return next((weight.shape[0] for weight in weights if weight is not None), None)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors except the classifier and the batch counters of BatchNorms."""
    drop = f"{CLASSIFIER.fishnet}."
    return {k: tuple(v.shape) for k, v in state.items() if not k.startswith(drop) and not k.endswith(_COUNTER)}


def _unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside wrappers such as torch.compile, DistributedDataParallel or timm's feature getter."""
    while len(children := dict(model.named_children())) == 1 and not list(model.parameters(recurse=False)):
        ((name, child),) = children.items()
        if name not in (*WRAPPERS, "_orig_mod"):
            break
        model = child
    return model


def _to_model_layout(
    state: dict[str, Tensor], own: Mapping[str, Tensor], path: Path
) -> tuple[str | None, dict[str, Tensor]]:
    """Return the layout of the file (None if unknown) and its tensors with the names of the model."""
    layout, wanted = find_layout(state), find_layout(own)
    if layout is not None and wanted is not None:
        converted, foreign = translate(state, layout, wanted)
        return layout, converted | foreign
    if not own.keys() & state.keys():
        try:
            layout = detect_layout(state)
        except FishnetError as error:
            raise FishnetError(f"{path}: {error}{_whose(state)}") from None
        raise FishnetError(
            f"{path} contains a FishNet (layout {layout}), but the model has other tensors: {listing(own)}."
        )
    return layout, state


def _names(model: nn.Module, entry: str, fallback: Iterable[str]) -> list[str]:
    """Return the module names under `entry` of the model's timm configuration, or else the usual names."""
    config = getattr(model, "pretrained_cfg", None)
    value = config.get(entry) if isinstance(config, Mapping) else None
    names = [value] if isinstance(value, str) else list(value or fallback)
    return [name for name in names if name]


def _without_classifier(
    model: nn.Module,
    state: dict[str, Tensor],
    own: Mapping[str, Tensor],
    skip: bool | Literal["resize"],
    report: LoadReport,
) -> dict[str, Tensor]:
    """Remove the classifier from `state` if requested, and add its tensors to the report."""
    if not skip:
        return state
    prefixes = tuple(f"{name}." for name in _names(model, "classifier", _CLASSIFIERS))
    mine = {key: own[key].shape for key in own if key.startswith(prefixes)}
    theirs = {key: state[key].shape for key in state if key.startswith(prefixes)}
    if skip == "resize" and mine == theirs:
        return state
    report.skipped = sorted(mine.keys() | theirs.keys())
    return {key: value for key, value in state.items() if key not in theirs}


def _fit_first_conv(
    model: nn.Module, state: dict[str, Tensor], own: Mapping[str, Tensor], report: LoadReport
) -> dict[str, Tensor]:
    """Adapt the first convolution to the number of image channels of the model, as in timm."""
    from timm.models import adapt_input_conv

    for name in _names(model, "first_conv", FIRST_CONV):
        key = f"{name}.weight"
        if key not in state or key not in own:
            continue
        theirs, mine = state[key].shape, own[key].shape
        if len(theirs) == len(mine) == 4 and theirs[1] != mine[1] and theirs[0] == mine[0] and theirs[2:] == mine[2:]:
            state = {**state, key: adapt_input_conv(mine[1], state[key].clone(), base_chans=theirs[1])}
            report.adapted.append(key)
    return state


def _compare(state: Mapping[str, Tensor], own: Mapping[str, Tensor], report: LoadReport) -> None:
    """Sort the names into loaded, missing and unexpected.

    Batch counters of BatchNorms may be missing: old files lack them, and only BatchNorm without momentum uses them.
    """
    skipped = set(report.skipped)
    for key, mine in own.items():
        if key in state and state[key].shape == mine.shape:
            report.loaded.append(key)
        elif key not in skipped and not key.endswith(_COUNTER):
            report.missing.append(key)
    report.unexpected = [key for key in state if key not in own and not key.endswith(_COUNTER)]


def _explain_mismatch(
    model: nn.Module, state: Mapping[str, Tensor], own: Mapping[str, Tensor], report: LoadReport, differing: list[str]
) -> str:
    """Return one line that describes the differences and how to resolve them."""
    prefixes = tuple(f"{name}." for name in _names(model, "classifier", _CLASSIFIERS))
    wrong = [*report.missing, *report.unexpected]
    if wrong and all(key.startswith(prefixes) for key in wrong):
        return f"{report.source} {_explain_classes(state, own, prefixes)}"
    if why := _explain_norms(model, state, report):
        return f"{report.source} {why}"
    theirs, mine = recognize_member(state), recognize_member(own)
    looks = [f"the file matches {theirs}"] if theirs else []
    looks += [f"the model is {mine}"] if mine else []
    absent = [key for key in report.missing if key not in state]
    sides = []
    if absent:
        sides.append(f"{len(absent)} tensors of the model are not in the file: {listing(absent)}")
    if report.unexpected:
        sides.append(f"{len(report.unexpected)} tensors of the file are not in the model: {listing(report.unexpected)}")
    if differing:
        shapes = [f"{key} (file {_size(state[key])}, model {_size(own[key])})" for key in differing]
        sides.append(f"{len(differing)} differ in shape: {listing(shapes)}")
    return (
        f"{report.source} (layout {report.layout}) does not fit the model{': ' if looks else ''}{', '.join(looks)}. "
        f"{'; '.join(sides)}. Build the model that the file belongs to{f' (--model {theirs})' if theirs else ''}, or "
        f"load what fits with strict=False.{'' if theirs else _whose(state)}"
    )


def _whose(state: Mapping[str, Tensor]) -> str:
    """Return which model a state dict belongs to, as a sentence; empty if that is not known."""
    name = guess_timm_model(state)
    return f" These tensors are those of {name}: use --model {name}." if name else ""


def _explain_norms(model: nn.Module, state: Mapping[str, Tensor], report: LoadReport) -> str | None:
    """Return a message if the file and the model have norms of different kinds, else None."""
    if report.group_norms:
        return "has group norms, but the model has BatchNorms: build the model with group norms (--norm group)."
    groups = [name for name, module in model.named_modules() if isinstance(module, nn.GroupNorm)]
    if groups and all(f"{name}.running_mean" in state for name in groups):
        return (
            "has BatchNorms, but the model has group norms: load it into a model with BatchNorms, then replace these."
        )
    return None


def _explain_classes(state: Mapping[str, Tensor], own: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> str:
    def count(tensors: Mapping[str, Tensor]) -> str:
        sizes = [value.shape[0] for key, value in tensors.items() if key.startswith(prefixes)]
        return f"{sizes[0]} classes" if sizes else "no classifier"

    return (
        f"has {count(state)}, but the model has {count(own)}: pass skip_classifier='resize' to keep the classifier of "
        "the model (fishnet train --weights does this automatically)."
    )


def _size(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "scalar"
