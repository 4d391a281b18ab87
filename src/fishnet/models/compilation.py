"""torch.compile for networks: trunk, necks and heads are compiled, decoding and losses are not."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Collection
from types import MethodType
from typing import Protocol

import torch
from torch import Tensor, fx

from fishnet.errors import FishnetError, UsageError
from fishnet.models.heads.types import Raw
from fishnet.models.network import Network

Say = Callable[[str], object]
"""Function that prints a line of text for the user."""


class CompiledGraph(Protocol):
    """What a backend makes of a graph."""

    def __call__(self, *inputs: Tensor) -> object:
        """Run it."""
        ...


class CompiledRaw:
    """`Network.raw`, compiled at its first call, and again for inputs of another kind; copies are not compiled.

    Args:
        network: Network whose method it replaces.
        say: Called with a line about the time of each compilation.
        backend: Backend of torch.compile.
    """

    def __init__(self, network: Network, say: Say, backend: str = "inductor") -> None:
        self.network, self.say, self.seconds = network, say, 0.0
        self._backend, self.graphs = backend, 0
        self._compiled = torch.compile(MethodType(Network.raw, network), backend=self._compile_graph)

    def _compile_graph(self, graph: fx.GraphModule, inputs: list[Tensor]) -> CompiledGraph:
        from torch._dynamo import lookup_backend

        self.graphs += 1
        return lookup_backend(self._backend)(graph, inputs)

    def __call__(self, batch: Tensor, heads: Collection[str] | None = None) -> dict[str, Raw]:
        """Return the outputs of `Network.raw`.

        Raises:
            FishnetError: The network cannot be compiled here.
        """
        before, begin = self.graphs, time.perf_counter()
        try:
            found = self._compiled(batch, heads)
        except Exception as error:
            if self.graphs == before:  # not from the compiler, such as too little memory
                raise
            inner = getattr(error, "inner_exception", error)
            detail = next((line for line in str(inner).splitlines() if line.strip()), type(inner).__name__)
            raise FishnetError(f"torch.compile failed: {detail}; leave --compile out") from error
        if self.graphs > before:
            seconds = time.perf_counter() - begin
            self.seconds += seconds
            size = " x ".join(map(str, batch.shape))
            self.say(f"compiled the network in {seconds:.1f} s, for a batch of {size}")
        return found

    def __deepcopy__(self, memo: dict[int, object]) -> object:
        """Return the method of the network's copy."""
        return MethodType(Network.raw, memo.get(id(self.network), self.network))


def compile_network(network: Network, device: torch.device, say: Say, backend: str = "inductor") -> None:
    """Compile a network in place; the names of its weights are unchanged.

    Compilation happens at the first batch. A batch of another size is compiled once more, for all sizes.

    Args:
        network: Network on its device.
        device: That device.
        say: Called with a line about the time of each compilation, such as `print`.
        backend: Backend of torch.compile.

    Raises:
        UsageError: There is no C++ compiler, which torch.compile needs for a CPU.
    """
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if backend == "inductor" and device.type == "cpu" and sys.platform != "win32" and not shutil.which(compiler):
        raise UsageError(
            f"--compile needs a C++ compiler, and there is no {compiler}: install one, name another in the environment "
            "variable CXX, or leave --compile out"
        )
    network.raw = CompiledRaw(network, say, backend)  # type: ignore[method-assign]
