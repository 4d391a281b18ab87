"""How strongly each head of a network pulls at the trunk that they share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from fishnet.models.network import Network
from fishnet.models.trunk import Features


class TrunkGradients:
    """Gradients of the losses of every head with respect to what the trunk gives, as the heads see it.

    A map of a trunk may be computed from another one. Each is counted for what heads and necks make of it, and not for
    what the trunk itself makes of it too: these are the gradients that enter the trunk.

    Args:
        network: Network with several heads.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self._features: list[Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep what the trunk gives in a forward pass inside of the context."""

        def keep(module: torch.nn.Module, inputs: object, features: Features) -> Features:
            # heads take views; the trunk has computed its later maps from the tensors themselves
            maps = [one.view_as(one) for one in features.maps]
            vector = None if features.vector is None else features.vector.view_as(features.vector)
            found = [*maps, *([] if vector is None else [vector])]
            self._features = [one for one in found if one.requires_grad]
            return Features(maps, vector)

        handle = self.network.trunk.register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    def squares(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the squared norm of the gradient of the losses of each head by all values of maps and features, as
        `grad_norm_HEAD`; the graph is kept for the backward pass.

        Each process has its own features, so squares add up over processes; `norm_over_processes` makes norms of them.

        Args:
            losses: Losses by name, with that of their head in front.
        """
        found: dict[str, Tensor] = {}
        for head in self.network.heads:
            own = [loss for name, loss in losses.items() if name.startswith(f"{head}_") and loss.requires_grad]
            if own and self._features:
                total = torch.stack(own).sum()
                grads = torch.autograd.grad(total, self._features, retain_graph=True, allow_unused=True)
                known = [grad.float().square().sum() for grad in grads if grad is not None]
                found[f"grad_norm_{head}"] = torch.stack(known).sum() if known else total.detach() * 0
        self._features = []
        return found


def norm_over_processes(mean_square: Tensor, processes: int) -> Tensor:
    """Return the norm of a gradient by the features of all processes, whose loss is the mean over the processes.

    Args:
        mean_square: Mean over the processes of the squared norm of the gradient of a process's own loss.
        processes: Number of processes.
    """
    return (mean_square / processes).sqrt()
