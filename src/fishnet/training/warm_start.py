"""Loading of necks and heads from an earlier run; `build_network` loads the trunk."""

from __future__ import annotations

from pathlib import Path

from fishnet.cards import ModelCard, read_card
from fishnet.environment import announce
from fishnet.models.build import CLASSIFIER
from fishnet.models.checkpoints.pretrained import PRETRAINED
from fishnet.models.checkpoints.weights import locate_weights, read_checkpoint
from fishnet.models.create import PUBLISHED
from fishnet.models.network import Network
from fishnet.models.norms import note_loaded_norms
from fishnet.runs import describing_file


def start_heads(network: Network, weights: str | None, card: ModelCard) -> None:
    """Load matching necks and heads from the model file or a checkpoint of a run, and print which.

    A neck is loaded if its shapes match; a head also needs the same kind and the same classes in the same order. The
    last layer of a classifier is loaded with the trunk.

    Args:
        network: Network with the trunk of the weights.
        weights: Weights to start from, as in the settings.
        card: Card of the network.
    """
    path = _file_of_run(weights)
    earlier = read_card(describing_file(path)) if path is not None else None
    if path is None or earlier is None:
        return
    state, own = read_checkpoint(path), network.state_dict()
    for name, plan in card.architecture.heads.items():
        before = earlier.architecture.heads.get(name)
        if before is None or CLASSIFIER in (plan.kind, before.kind):
            continue
        fits = {
            part: (keys := [key for key in own if key.startswith(prefix)])
            and all(key in state and state[key].shape == own[key].shape for key in keys)
            for part, prefix in (("neck", f"necks.{name}."), ("head", f"heads.{name}."))
        }
        reason = "" if fits["head"] else ": its shapes differ"
        if plan.kind != before.kind:
            fits["head"], reason = False, f": it is a {before.kind}"
        elif earlier.heads[name].classes != card.heads[name].classes:
            fits["head"], reason = False, ": its classes differ"
        taken = tuple(f"{part}s.{name}." for part, fit in fits.items() if fit)
        network.load_state_dict({key: value for key, value in state.items() if key.startswith(taken)}, strict=False)
        if fits["neck"]:
            note_loaded_norms(network.necks[name])
        parts = ["trunk", *(part for part, fit in fits.items() if fit)]
        rest = "" if fits["head"] else f"; the head is initialized randomly{reason}"
        announce(f"{name}: {' and '.join(parts)} from {path}{rest}")


def _file_of_run(weights: str | None) -> Path | None:
    """Return the model file or a checkpoint of a run, or None for weights of another kind."""
    if weights is None or weights == PUBLISHED or weights in PRETRAINED:
        return None
    path = locate_weights(weights)
    described = describing_file(path)
    return path if described.suffix == ".safetensors" and described.is_file() else None
