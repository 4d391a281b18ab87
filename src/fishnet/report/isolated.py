"""Find isolated convolutions, those without a parallel identity path (FishNet, arXiv 1901.03495), in any network.

The network is traced with torch.fx. A convolution or linear layer has weight 1, any other operation (sum, pooling,
norm, concatenation) has weight 0. The convolutions on the path of least weight from the output of one stage to that of
another are isolated: every path between the two crosses at least as many. A chain of residual blocks with identity
shortcuts has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, TypedDict

import torch.nn.functional as F
from timm.layers import get_notrace_functions, get_notrace_modules
from torch import fx, nn

from fishnet.errors import FishnetError
from fishnet.models.config import STAGES
from fishnet.models.fishnet import MODULES

TRUNK = "trunk"
_FUNCTIONS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear)
_NOT_DATA = {"shape", "size", "dim", "ndim", "numel", "device", "dtype"}


class Feature(TypedDict):
    """Feature stage of a timm backbone, as `feature_info` describes it."""

    module: str
    num_chs: int
    reduction: int


@dataclass(frozen=True)
class Isolated:
    """Isolated convolution: its module name, the part that contains it, and the next stage after it."""

    name: str
    part: str
    stage: str


def stage_modules(model: nn.Module) -> dict[str, str]:
    """Return stage -> module name: the stages of a FishNet from the stem on, or the feature stages of a timm backbone.

    Raises:
        FishnetError: The network has no feature stages.
    """
    if hasattr(model, "stage_info"):
        return {name: MODULES[name] for name in STAGES if name != "stem_conv"}
    names = [entry["module"] for entry in features(model)]
    if not names:
        raise FishnetError(f"{type(model).__name__} has no feature stages; choose a timm backbone with `feature_info`")
    return {name: name for name in dict.fromkeys(names)}


def features(model: nn.Module) -> list[Feature]:
    """Return the feature stages of a network whose modules exist in it, from timm's `feature_info`."""
    info = getattr(model, "feature_info", None) or []
    entries = info if isinstance(info, list) else info.get_dicts()
    known = {name for name, _ in model.named_modules() if name}
    return [entry for entry in entries if entry.get("module") in known]


def parts(model: nn.Module) -> dict[str, tuple[str, str]]:
    """Return part -> (stage at whose output the part begins, stage at whose output it ends)."""
    if hasattr(model, "stage_info"):
        return {"tail": ("stem", "t3"), "bridge": ("t3", "bridge"), TRUNK: ("bridge", "h3")}
    names = list(stage_modules(model))
    return {TRUNK: (names[0], names[-1])}


def isolated_convolutions(model: nn.Module) -> list[Isolated]:
    """Return the isolated convolutions of a network in forward order.

    A FishNet has three parts: `tail` (output of the stem to t3), `bridge` (t3 to the output of the bridge) and `trunk`
    (output of the bridge through b1..h3; transfer branches are excluded, since they do not bypass the trunk). Other
    backbones have only a `trunk`, from the output of the first feature stage to that of the last.

    Raises:
        FishnetError: torch.fx cannot trace the network, or it has no feature stages.
    """
    stages = stage_modules(model)
    tracer, graph = _trace(model)
    missing = [module for module in stages.values() if module not in tracer.outputs]
    if missing:
        raise FishnetError(
            f"the torch.fx trace of {type(model).__name__} does not contain the output of {', '.join(missing)}"
        )
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
    """Tracer that enters all modules with submodules; records the output of each module and the module of each node.

    Args:
        opaque: Module classes that are not entered.
    """

    def __init__(self, opaque: Iterable[type[nn.Module]] = ()) -> None:
        functions: tuple[Callable[..., object], ...] = tuple(get_notrace_functions())
        super().__init__(autowrap_modules=(math,), autowrap_functions=functions)
        self.outputs: dict[str, fx.Node] = {}
        self._opaque = tuple(opaque)
        self._scope = [""]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(True for _ in m.children()) or isinstance(m, self._opaque)

    def call_module(
        self, m: nn.Module, forward: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
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
    """Trace a network; if that fails, do not enter the modules that timm marks as untraceable."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    reason = ""
    try:
        for opaque in ((), get_notrace_modules()):
            tracer = _Tracer(opaque)
            try:
                return tracer, tracer.trace(model)
            except Exception as error:  # code of other libraries may raise anything on symbolic values
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    finally:
        for module, training in modes.items():
            module.training = training
    raise FishnetError(f"torch.fx cannot trace {type(model).__name__}: {reason}")


def _convolutions(graph: fx.Graph, model: nn.Module) -> dict[fx.Node, str]:
    """Return the nodes that mix channels by weights (convolutions, linear layers) with their names."""
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
    """Return whether a node is a shape or size, which connects two maps in the graph without passing on values."""
    if node.op == "call_method":
        return node.target in _NOT_DATA
    return node.op == "call_function" and node.target is getattr and node.args[1] in _NOT_DATA


def _lightest_path(
    graph: fx.Graph, source: fx.Node, sink: fx.Node, heavy: Collection[fx.Node], cut: Collection[fx.Node]
) -> list[fx.Node]:
    """Return the nodes of a path from source to sink with the fewest heavy nodes, without the nodes in `cut`.

    The nodes of a torch.fx graph are in topological order, so one pass finds all distances.
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
