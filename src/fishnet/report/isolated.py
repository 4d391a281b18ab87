"""Isolated convolutions: those that no identity path goes round, found on the graph of any network.

The network is traced with torch.fx. A convolution or linear layer weighs 1, every other operation (sums, pools, norms,
concatenations) 0; the convolutions on the lightest path from one stage's output to another's are isolated: every path
between the two crosses at least that many. In a chain of residual blocks with identity shortcuts there are none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from timm.layers import get_notrace_functions, get_notrace_modules
from torch import fx, nn

from fishnet.errors import FishnetError
from fishnet.models.config import STAGES
from fishnet.models.fishnet import MODULES

TRUNK = "trunk"
_FUNCTIONS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear)
_NOT_DATA = {"shape", "size", "dim", "ndim", "numel", "device", "dtype"}


@dataclass(frozen=True)
class Isolated:
    """A convolution without a way round: its module, the part it lies in, and the first stage after it."""

    name: str
    part: str
    stage: str


def stage_modules(model: nn.Module) -> dict[str, str]:
    """Return stage -> module name: the stages of a fish from the stem up, or what a timm backbone publishes.

    Raises:
        FishnetError: if the network publishes no feature stages.
    """
    if hasattr(model, "stage_info"):
        return {name: MODULES[name] for name in STAGES if name != "stem_conv"}
    names = [entry["module"] for entry in features(model)]
    if not names:
        raise FishnetError(f"{type(model).__name__} publishes no feature stages; choose a backbone that timm can tap")
    return {name: name for name in dict.fromkeys(names)}


def features(model: nn.Module) -> list[dict[str, Any]]:
    """Return what timm tells of the feature stages of a network (module, num_chs, reduction) that it can tap."""
    info = getattr(model, "feature_info", None) or []
    entries = info if isinstance(info, list) else info.get_dicts()
    known = {name for name, _ in model.named_modules() if name}
    return [entry for entry in entries if entry.get("module") in known]


def parts(model: nn.Module) -> dict[str, tuple[str, str]]:
    """Return part -> (stage at whose output it begins, stage at whose output it ends)."""
    if hasattr(model, "stage_info"):
        return {"tail": ("stem", "t3"), "bridge": ("t3", "bridge"), TRUNK: ("bridge", "h3")}
    names = list(stage_modules(model))
    return {TRUNK: (names[0], names[-1])}


def isolated_convolutions(model: nn.Module) -> list[Isolated]:
    """List the isolated convolutions of a network, in the order in which data pass them.

    A fish is looked at in three parts: `tail` (output of the stem to t3), `bridge` (t3 to the bridge's output) and
    `trunk` (the bridge's output through b1..h3, where the transfer branches are cut: they are no way round). Any other
    backbone has a `trunk` only, from its first feature stage, behind the stem, to its last.

    Raises:
        FishnetError: if torch.fx cannot trace the network or it publishes no feature stages.
    """
    stages = stage_modules(model)
    tracer, graph = _trace(model)
    missing = [module for module in stages.values() if module not in tracer.outputs]
    if missing:
        raise FishnetError(f"the trace of {type(model).__name__} does not show the output of {', '.join(missing)}")
    nodes = {name: tracer.outputs[module] for name, module in stages.items()}
    heavy = _convolutions(graph, model)
    cut = {node for node in graph.nodes if "transfer" in node.meta["scope"].split(".") or _is_size(node)}
    taps = {node: name for name, node in nodes.items()}
    found: list[Isolated] = []
    for part, (source, sink) in parts(model).items():
        path = _lightest_path(graph, nodes[source], nodes[sink], heavy, cut)
        stage = sink
        crossed = []
        for node in reversed(path[1:]):
            stage = taps.get(node, stage)
            if node in heavy:
                crossed.append(Isolated(heavy[node], part, stage))
        found += reversed(crossed)
    return found


class _Tracer(fx.Tracer):
    """Traces into every module that has submodules; notes each module's output and the module each node lies in.

    Args:
        opaque: classes of modules that are taken as a whole.
    """

    def __init__(self, opaque: Iterable[type[nn.Module]] = ()) -> None:
        functions: tuple[Callable[..., Any], ...] = tuple(get_notrace_functions())
        super().__init__(autowrap_modules=(math,), autowrap_functions=functions)
        self.outputs: dict[str, fx.Node] = {}
        self._opaque = tuple(opaque)
        self._scope = [""]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(True for _ in m.children()) or isinstance(m, self._opaque)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        path = self.path_of_module(m)
        self._scope.append(path)
        try:
            output = super().call_module(m, forward, args, kwargs)
        finally:
            self._scope.pop()
        if isinstance(output, fx.Proxy):
            self.outputs[path] = output.node
        return output

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["scope"] = self._scope[-1]
        return node


def _trace(model: nn.Module) -> tuple[_Tracer, fx.Graph]:
    """Trace into all modules; where that fails, leave those whole that timm marks as hard to trace."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    reason = ""
    try:
        for opaque in ((), get_notrace_modules()):
            tracer = _Tracer(opaque)
            try:
                return tracer, tracer.trace(model)
            except Exception as error:  # whatever the code of a foreign network does with symbolic values
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    finally:
        for module, training in modes.items():
            module.training = training
    raise FishnetError(f"torch.fx cannot trace {type(model).__name__}: {reason}")


def _convolutions(graph: fx.Graph, model: nn.Module) -> dict[fx.Node, str]:
    """Return the nodes that mix channels by a weight (convolutions, linear layers) with their names."""
    found: dict[fx.Node, str] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            if any(parameter.ndim >= 2 for parameter in module.parameters()):
                found[node] = str(node.target)
        elif node.op == "call_function" and node.target in _FUNCTIONS:
            found[node] = f"{node.meta['scope']}:{node.name}"
    return found


def _is_size(node: fx.Node) -> bool:
    """Whether a node is a size and the like: it links two maps in the graph without handing on what is in them."""
    if node.op == "call_method":
        return node.target in _NOT_DATA
    return node.op == "call_function" and node.target is getattr and node.args[1] in _NOT_DATA


def _lightest_path(
    graph: fx.Graph, source: fx.Node, sink: fx.Node, heavy: Collection[fx.Node], cut: Collection[fx.Node]
) -> list[fx.Node]:
    """Return the nodes from source to sink on a path with the fewest heavy ones; nodes in `cut` are no way.

    A graph of torch.fx lists its nodes in an order in which inputs come first, so one pass finds all distances.
    """
    best: dict[fx.Node, tuple[int, fx.Node | None]] = {source: (0, None)}
    for node in graph.nodes:
        before = [known for known in node.all_input_nodes if known in best]
        if node is source or node in cut or not before:
            continue
        nearest = min(before, key=lambda known: best[known][0])
        best[node] = best[nearest][0] + (node in heavy), nearest
    if sink not in best:
        raise FishnetError(f"there is no path from {source.name} to {sink.name}")
    path: list[fx.Node] = []
    step: fx.Node | None = sink
    while step is not None:
        path.append(step)
        step = best[step][1]
    return path[::-1]
