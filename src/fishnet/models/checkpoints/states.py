"""Find the state dict of the network in a checkpoint, among everything else that training saves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from fishnet.errors import FishnetError
from fishnet.models.checkpoints.files import open_checkpoint
from fishnet.models.checkpoints.layouts import listing

# Entries of a checkpoint that contain a moving average of the weights, and those that contain the weights.
EMA_ENTRIES = ("ema", "state_dict_ema", "model_ema", "ema_state_dict", "ema_model")
PLAIN_ENTRIES = ("state_dict", "model_state_dict", "model", "module", "net", "network", "params", "weights")
# Lightning's weight averaging keeps the average in `state_dict` and the weights of the last step here.
LAST_STEP_ENTRIES = ("current_model_state",)

# Names of modules that wrap a network; they precede the names of all its tensors.
EMA_WRAPPERS = ("ema", "ema_model", "model_ema")
WRAPPERS = ("module", "model", "net", "network", "task", "_forward_module", *EMA_WRAPPERS)
# These may occur anywhere in a name: wrappers of compiled, recomputed and sharded parts of a network.
_INNER_WRAPPERS = re.compile(r"(^|\.)(?:(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.)+")


def read_checkpoint(path: str | Path, prefer_ema: bool = True) -> dict[str, Tensor]:
    """Return the network's state dict from any known kind of checkpoint, tensors on the CPU.

    Searches the containers of common trainers (`state_dict`, `model`, Lightning, EMA entries of timm and torchvision,
    ...) and removes the prefixes of wrappers (`module.`, `_orig_mod.`, `model.`, `task.model.`, ...). The layout is
    not changed: see `convert_state`.

    Args:
        path: .safetensors, .pth, .pt, .tar, .ckpt or .pth.zip file; the format is detected from its content.
        prefer_ema: If the file contains both, return the moving average of the weights (as in `model.safetensors` of a
            run) instead of the weights of the last step.

    Raises:
        FishnetError: The file cannot be read, is not a checkpoint, is damaged or hostile, or contains no state dict.
    """
    loaded = open_checkpoint(path)
    if not isinstance(loaded, Mapping):
        raise FishnetError(f"{path} contains a {type(loaded).__name__}, not a state dict; save model.state_dict().")
    found = _find(loaded, prefer_ema)
    if found is None:
        keys = listing(str(key) for key in loaded) or "nothing"
        raise FishnetError(f"{path} contains no state dict (found: {keys}); save the weights as `state_dict`.")
    return strip_wrappers(found, prefer_ema, lightning="pytorch-lightning_version" in loaded)


def _find(loaded: Mapping[object, object], prefer_ema: bool) -> dict[str, Tensor] | None:
    if prefer_ema:
        entries = EMA_ENTRIES + PLAIN_ENTRIES + LAST_STEP_ENTRIES
    else:
        entries = LAST_STEP_ENTRIES + PLAIN_ENTRIES + EMA_ENTRIES
    for entry in entries:
        if isinstance(inner := loaded.get(entry), Mapping) and (found := _find(inner, prefer_ema)):
            return found
    tensors = {key: value for key, value in loaded.items() if isinstance(key, str) and isinstance(value, Tensor)}
    # A container may have a few tensors of its own (a loss, a random state); a state dict is mostly tensors.
    return {key: value.detach() for key, value in tensors.items()} if 2 * len(tensors) > len(loaded) else None


def is_network(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict is that of a `Network`: trunk, necks and heads."""
    return any(key.startswith("trunk.") for key in state)


def whole_of(state: Mapping[str, Tensor], own: Iterable[str], classifier: str) -> tuple[dict[str, Tensor], list[str]]:
    """Return the trunk of a `Network` with the names of a whole classifier, and the names of the tensors left out.

    Args:
        state: State dict of a `Network`: `trunk.`, `necks.`, `heads.`.
        own: Names of the tensors of the classifier.
        classifier: Name of the last layer of the classifier.
    """
    # timm's feature networks wrap a network, or flatten the dots of its containers
    flattened = {key.replace(".", "_"): key for key in own}
    found: dict[str, Tensor] = {}
    left_out: list[str] = []
    for key, value in state.items():
        if key.startswith(_LAST_LAYER):
            found[f"{classifier}.{key.removeprefix(_LAST_LAYER)}"] = value
        elif key.startswith("trunk."):
            name = _TRUNK.sub("", key)
            found[flattened.get(name.replace(".", "_"), name)] = value
        else:
            left_out.append(key)
    return found, left_out


_LAST_LAYER = "heads.image.classifier."
_TRUNK = re.compile(r"^trunk\.(?:network\.(?:model\.|body\.)?)?")


def strip_wrappers(state: Mapping[str, Tensor], prefer_ema: bool = True, lightning: bool = False) -> dict[str, Tensor]:
    """Remove the prefixes of wrappers from the names of a state dict.

    A prefix is removed if every name has it. If there are names with the prefix of a moving average (`ema.`) and of the
    weights (`model.`), one set is kept and all other tensors are dropped. Of a Lightning checkpoint, the network is
    kept and the tensors of losses and metrics are dropped.

    Args:
        state: State dict with wrapper prefixes.
        prefer_ema: Whether to keep the moving average rather than the weights, if there are both.
        lightning: Whether the state dict is from a Lightning checkpoint.
    """
    state = {_INNER_WRAPPERS.sub(r"\1", key): value for key, value in state.items()}
    while True:
        if len(state) > 1:
            state.pop("n_averaged", None)  # torch's AveragedModel counts its updates
        wrapper = _wrapper({key.partition(".")[0] for key in state}, prefer_ema, lightning)
        inside = {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{wrapper}.")}
        if wrapper is None or not inside:
            return state
        # Inside the network there are no losses to drop, only its own modules, whatever their names.
        state, lightning = inside, lightning and wrapper == "task"


def _wrapper(heads: set[str], prefer_ema: bool, lightning: bool) -> str | None:
    """Return which of the first parts of the names is a wrapper to remove, if any."""
    averages = [name for name in EMA_WRAPPERS if name in heads]
    plain = [name for name in WRAPPERS if name in heads and name not in EMA_WRAPPERS]
    if len(heads) > 1 and not lightning and not (averages and plain):
        return None
    candidates = averages + plain if prefer_ema else plain + averages
    return candidates[0] if candidates else None
