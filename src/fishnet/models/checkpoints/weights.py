"""Loading weights of any known origin into a model; whatever does not fit is an error that lists both sides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from fishnet.errors import FishnetError, UsageError, did_you_mean
from fishnet.models.checkpoints.files import SUFFIXES, save_state
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
    "recognise_member",
    "save_state",
]

RUN_FILES = ("model.safetensors", "checkpoints/best.ckpt", "checkpoints/last.ckpt")
_CLASSIFIERS = (*CLASSIFIER, "fc", "head", "head.fc")
_COUNTER = ".num_batches_tracked"


@dataclass
class LoadReport:
    """Which tensors went where; names are those of the model, for `unexpected` those of the file."""

    layout: str
    """Layout of the file: fishnet, released, pytorchcv, or `as is` for a network of another family."""
    loaded: list[str] = field(default_factory=list)
    """Tensors that the model now has from the file."""
    missing: list[str] = field(default_factory=list)
    """Tensors that the file lacks, or has in another shape; the model keeps its own."""
    unexpected: list[str] = field(default_factory=list)
    """Tensors that the model has no place for."""
    skipped: list[str] = field(default_factory=list)
    """Tensors of the classifier that were left out because the caller asked for it."""
    adapted: list[str] = field(default_factory=list)
    """Tensors fitted to another number of image channels; part of `loaded`."""
    source: str = ""
    """File that was read."""
    group_norms: bool = False
    """Whether the file has group norms where the model was built with BatchNorms."""

    def __str__(self) -> str:
        parts = [f"loaded {len(self.loaded)} tensors from {self.source} (layout {self.layout})"]
        for title in ("adapted", "skipped", "missing", "unexpected"):
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

    Names are translated to those of the model. The first convolution is fitted to the model's number of image
    channels as timm does it. Nothing is changed when an error is raised.

    Args:
        model: Network to fill, on any device; may be wrapped (compiled, data parallel, timm's feature getter).
        source: Checkpoint file, run folder (its `model.safetensors`, else its best or last checkpoint), or a tag of
            published weights such as `osmr_in1k`.
        strict: Every tensor must have its counterpart of the same shape. False loads what fits and reports the rest.
        skip_classifier: True leaves the classifier as it is; "resize" does so only where its size differs.
        prefer_ema: Where the file holds both, take the moving average rather than the weights of the last step.
        follow_norms: Where the file has group norms in place of BatchNorms, put group norms into the model first.

    Raises:
        UsageError: `source` is neither a file, nor a run folder, nor a tag.
        FishnetError: The file cannot be read, its layout is unknown, or it does not fit; lists both sides.
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
    if cut:  # of necks and heads, and perhaps of stages that its heads do not need
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
    """Take parts of the model of which the trunk of a run has nothing at all for left out, not for missing."""
    present = {key.partition(".")[0] for key in state}
    absent = [key for key in report.missing if key.partition(".")[0] not in present]
    report.skipped = sorted({*report.skipped, *absent})
    report.missing = [key for key in report.missing if key not in set(absent)]


def load_to_train(
    model: nn.Module, source: str | Path, group_norm: bool, skip_classifier: bool | Literal["resize"]
) -> LoadReport:
    """Load weights to start training from, and print what was loaded.

    Group norms take over scale and shift of the weights, whichever norms these have: where the weights have group
    norms, the model has them afterwards; else it keeps its BatchNorms, for the caller to replace.

    Args:
        model: Network with BatchNorms, to fill.
        source: Checkpoint file, run folder or tag.
        group_norm: Whether the network is to be trained with group norms.
        skip_classifier: See `load_weights`.

    Raises:
        UsageError: The weights have group norms, and the network is to be trained with BatchNorms.
        FishnetError: The weights cannot be read or do not fit.
    """
    report = load_weights(model, source, skip_classifier=skip_classifier, follow_norms=True)
    if report.group_norms and not group_norm:
        raise UsageError(f"{report.source} has group norms in place of BatchNorms: add --norm group")
    print(report)
    return report


def _has_group_norms(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has scales, but no statistics, for the BatchNorms of a model."""
    norms = [name for name, module in model.named_modules() if isinstance(module, BATCH_NORMS)]
    scaled = [name for name in norms if f"{name}.weight" in state]
    return bool(scaled) and not any(f"{name}.running_mean" in state for name in scaled)


def locate_weights(source: str | Path) -> Path:
    """Return the checkpoint file that a path, a run folder or a tag stands for, fetching it where needed.

    Raises:
        UsageError: No such file, folder or tag; suggests near ones.
        FishnetError: The folder holds no checkpoint, or the tag cannot be fetched.
    """
    from fishnet.models.checkpoints.pretrained import PRETRAINED, fetch

    path = Path(source).expanduser()
    if path.is_dir():
        for name in RUN_FILES:
            if (path / name).is_file():
                return path / name
        raise FishnetError(f"{path} holds no weights: a run folder has one of {', '.join(RUN_FILES)}.")
    if path.is_file():
        return path
    if str(source) in PRETRAINED:
        return fetch(str(source))
    if path.parent != Path() or path.name.endswith(SUFFIXES):
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(f"there is no file {path}.{did_you_mean(path.name, beside)}")
    raise UsageError(
        f"unknown weights {str(source)!r}: neither a file, nor a run folder, nor one of the tags "
        f"{', '.join(PRETRAINED)}.{did_you_mean(str(source), PRETRAINED)}"
    )


def _check_tag(source: str | Path, own: Mapping[str, Tensor]) -> None:
    """Refuse published weights of another member before they are downloaded."""
    from fishnet.models.checkpoints.pretrained import PRETRAINED

    entry = PRETRAINED.get(str(source))
    member = recognise_member(own) if entry else None
    if entry and member not in (None, entry.model):
        raise UsageError(f"weights {str(source)!r} belong to {entry.model}, and the model is {member}.")


def recognise_member(state: Mapping[str, Tensor]) -> str | None:
    """Return the member of the family whose tensors have the names and shapes of a state dict of any known layout."""
    from fishnet.models.config import VARIANTS
    from fishnet.models.fishnet import FishNet

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
            continue  # building even an empty network takes a while
        model = FishNet(config, num_classes=0, in_chans=first.shape[1], device="meta")
        if _shapes(model.state_dict()) == shapes:
            return name
    return None


def classifier_size(state: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes of a state dict of a known layout, or None where it has no classifier."""
    weights = (state.get(f"{name}.weight") for name in _CLASSIFIERS)
    return next((weight.shape[0] for weight in weights if weight is not None), None)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor but the classifier's and the counters of batches."""
    drop = f"{CLASSIFIER.fishnet}."
    return {k: tuple(v.shape) for k, v in state.items() if not k.startswith(drop) and not k.endswith(_COUNTER)}


def _unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside torch.compile, DistributedDataParallel, timm's feature getter and the like."""
    while len(children := dict(model.named_children())) == 1 and not list(model.parameters(recurse=False)):
        ((name, child),) = children.items()
        if name not in (*WRAPPERS, "_orig_mod"):
            break
        model = child
    return model


def _to_model_layout(
    state: dict[str, Tensor], own: Mapping[str, Tensor], path: Path
) -> tuple[str | None, dict[str, Tensor]]:
    """Return the file's layout, if it is a known one, and the tensors under the names that the model uses."""
    layout, wanted = find_layout(state), find_layout(own)
    if layout is not None and wanted is not None:
        converted, foreign = translate(state, layout, wanted)
        return layout, converted | foreign
    if not own.keys() & state.keys():
        try:
            layout = detect_layout(state)
        except FishnetError as error:
            raise FishnetError(f"{path}: {error}") from None
        raise FishnetError(f"{path} holds a FishNet (layout {layout}), the model has other tensors: {listing(own)}.")
    return layout, state


def _names(model: nn.Module, entry: str, fallback: Iterable[str]) -> list[str]:
    """Return the modules that timm's description of the model names under `entry`, or those of the usual names."""
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
    """Leave the classifier out where the caller asked for it, and note that in the report."""
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
    """Fit the first convolution to the model's number of image channels, by timm's rule."""
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

    The counters of batches never decide: old files lack them, and they only matter to BatchNorm without momentum.
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
    """Say in one line what differs and how to mend it."""
    prefixes = tuple(f"{name}." for name in _names(model, "classifier", _CLASSIFIERS))
    wrong = [*report.missing, *report.unexpected]
    if wrong and all(key.startswith(prefixes) for key in wrong):
        return f"{report.source} {_explain_classes(state, own, prefixes)}"
    if why := _explain_norms(model, state, report):
        return f"{report.source} {why}"
    theirs, mine = recognise_member(state), recognise_member(own)
    looks = [f"the file looks like {theirs}"] if theirs else []
    looks += [f"the model like {mine}" if looks else f"the model is {mine}"] if mine else []
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
        f"{'; '.join(sides)}. Build the model that the file belongs to, or load what fits with strict=False."
    )


def _explain_norms(model: nn.Module, state: Mapping[str, Tensor], report: LoadReport) -> str | None:
    """Say so where the file and the model have norms of different kinds."""
    if report.group_norms:
        return "has group norms, the model BatchNorms: build the model with group norms (--norm group)."
    groups = [name for name, module in model.named_modules() if isinstance(module, nn.GroupNorm)]
    if groups and all(f"{name}.running_mean" in state for name in groups):
        return "has BatchNorms, the model group norms: load it into the model with BatchNorms, then replace these."
    return None


def _explain_classes(state: Mapping[str, Tensor], own: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> str:
    def count(tensors: Mapping[str, Tensor]) -> str:
        sizes = [value.shape[0] for key, value in tensors.items() if key.startswith(prefixes)]
        return f"{sizes[0]} classes" if sizes else "no classifier"

    return (
        f"has {count(state)}, the model {count(own)}: pass skip_classifier='resize' to keep the model's own classifier "
        "(fishnet train --weights does so by itself)."
    )


def _size(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "scalar"
