"""`fishnet info`: describe the family, or one model: stages, complexity, figure and gradient flow."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fishnet.errors import UsageError, did_you_mean
from fishnet.files import Json, json_text

if TYPE_CHECKING:
    from torch import nn

    from fishnet.report.gradient_flow import GradientFlow

_PARTS = ("trunk", "tail", "bridge")


@dataclass
class Info:
    """Result of `info`; `document` is what `--json` prints."""

    document: Json


def info(
    model: str | None = None,
    name: str | None = None,
    json: bool = False,
    gradient_flow: str | Path | None = None,
    compare: str | None = None,
    figure: str | Path | None = None,
    size: int = 224,
    weights: str | Path | None = None,
    model_option: Json | None = None,
) -> Info:
    """Describe the family, one model, the recipes of all tasks (recipes), one of them (recipe NAME), the optimizers, or
    a topic of a task, such as detectors.

    Args:
        model: Member of the FishNet family, any timm model, or a topic (recipes, optimizers, detectors); by default the
            family is listed.
        name: Name of the recipe, after the word recipe.
        json: Print JSON instead of tables.
        gradient_flow: Plot of the gradient norm of every stage to write (.png, .svg, .pdf); also lists isolated
            convolutions.
        compare: Further models for that plot, separated by commas, with options after colons, such as
            resnet50,resnet50:zero_init_last=false.
        figure: Figure of the architecture to write (.png, .svg, .pdf).
        size: Size of the images in pixels.
        weights: Checkpoint, run folder or tag to load before gradients are measured; by default weights are random.
        model_option: Keyword arguments of the model, such as reduction=conv1x1 or stem_stride=1.
    """
    if model is not None and (document := _topic(model, name)) is not None:
        print(json_text(document) if json else document["text"])
        return Info(document)
    _check(model, gradient_flow, compare, figure, size, weights, model_option)
    if model is None:
        document = {"size": size, "models": family(size)}
        print(json_text(document) if json else _family_text(document))
        return Info(document)
    from fishnet.models.specs import parse_specs

    options = dict(model_option or {})
    network = _build(model, weights, options)
    document = {"model": model, "model_option": options, **describe(network, size)}
    if figure is not None:
        _draw_figure(network, model, Path(figure))
        document["figure"] = str(figure)
    if gradient_flow is not None:
        specs = parse_specs(compare or "", "--compare")
        others = [(spec.label, _build(spec.name, None, spec.options)) for spec in specs]
        label = " ".join([model, *(f"{key}={value}" for key, value in options.items())])
        flows = _draw_gradient_flow([(label, network), *others], size, Path(gradient_flow))
        document["gradient_flow"] = [_flow_document(flow) for flow in flows]
        document["gradient_flow_figure"] = str(gradient_flow)
    print(json_text(document) if json else _model_text(document))
    return Info(document)


def _topic(topic: str, name: str | None) -> Json | None:
    """Return the document of a topic, with its `text`; None if the word is not a topic."""
    from fishnet.tasks import loaded_tasks

    topics = {word: about for kind in loaded_tasks() for word, about in kind.topics.items()}
    if topic == "recipes":
        found = list_all_recipes()
        lines = [f"  {one['name']:<22}{one['task']:<16}{one['summary']}" for one in found]
        head = "recipes (fishnet info recipe NAME shows one, fishnet train TASK --recipe NAME uses it)"
        return {"recipes": found, "text": "\n".join([head, "", *lines])}
    if topic == "recipe":
        return _one_recipe(name)
    if topic == "optimizers":
        from fishnet.training.optimizer import describe_optimizers, optimizer_names

        return {"optimizers": optimizer_names(), "text": describe_optimizers()}
    if name is not None:
        raise UsageError(f"unexpected argument {name!r}: a name is only allowed after the word recipe")
    return None if topic not in topics else {topic: topics[topic](), "text": topics[topic]()}


def list_all_recipes() -> list[Json]:
    """Return name, task and summary of the built-in recipes of all tasks."""
    from fishnet.recipes import list_recipes, recipe_text
    from fishnet.tasks import loaded_tasks

    return [
        {"name": name, "task": kind.name, "summary": recipe_text(kind, name).splitlines()[0].lstrip("# ")}
        for kind in loaded_tasks()
        for name in list_recipes(kind)
    ]


def _one_recipe(name: str | None) -> Json:
    from fishnet.recipes import recipe_text
    from fishnet.tasks import get_task

    found = [one for one in list_all_recipes() if one["name"] == name]
    if not found:
        known = dict.fromkeys(one["name"] for one in list_all_recipes())
        near = did_you_mean(name, known) if name else ""
        raise UsageError(
            f"{f'unknown recipe {name!r}' if name else 'RECIPE is missing'}.{near} Known: {', '.join(known)}"
        )
    texts = [f"# task: {one['task']}\n{recipe_text(get_task(one['task']), one['name'])}" for one in found]
    return {"recipe": name, "text": "\n".join(texts).rstrip()}


def family(size: int = 224) -> list[Json]:
    """Return name, parameters, multiply-adds, features and smallest input of every member of the family.

    Raises:
        UsageError: A member does not support images of this size.
    """
    from fishnet.models import create_model, list_models
    from fishnet.report.isolated import features

    rows = []
    for name in list_models():
        network = create_model(name, device="meta")
        taps = features(network)
        rows.append(
            {
                "name": name,
                **_complexity(network, size),
                "min_size": network.min_size,
                "strides": [entry["reduction"] for entry in taps],
                "channels": [entry["num_chs"] for entry in taps],
            }
        )
    return rows


def describe(network: nn.Module, size: int = 224) -> Json:
    """Return parameters, multiply-adds, smallest input (None if the model does not define it) and stages of a network.

    A stage is a dictionary of its name, stride, channels, height and width of its output, the number of its residual
    blocks and of those on its transfer branch (None where it has none), and its own parameters.

    Raises:
        UsageError: The network does not support images of this size.
    """
    numbers = _complexity(network, size)
    return {
        **numbers,
        "size": size,
        "min_size": getattr(network, "min_size", None),
        "stages": _stages(network, size),
    }


def _check(
    model: str | None,
    gradient_flow: str | Path | None,
    compare: str | None,
    figure: str | Path | None,
    size: int,
    weights: str | Path | None,
    model_option: Json | None,
) -> None:
    from fishnet.drawing.style import check_picture

    if size < 1:
        raise UsageError(f"--size must be at least 1 pixel, not {size}")
    alone = {"--gradient-flow": gradient_flow, "--figure": figure, "--weights": weights, "--model-option": model_option}
    for flag, value in alone.items():
        if value and model is None:
            raise UsageError(f"{flag} needs a model: fishnet info MODEL {flag} ...")
    if compare is not None and gradient_flow is None:
        raise UsageError("--compare needs --gradient-flow FILE.png")
    for picture in (gradient_flow, figure):
        if picture is not None:
            check_picture(Path(picture))


def _build(name: str, weights: str | Path | None = None, options: Json | None = None) -> nn.Module:
    """Build a model with reproducible random weights; the global random state is kept."""
    import torch

    from fishnet.models import create_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_model(name, weights=weights, **(options or {}))


def _complexity(network: nn.Module, size: int) -> dict[str, int]:
    from fishnet.models.complexity import count

    try:
        found = count(network, size)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise UsageError(f"--size {size} does not fit: {' '.join(str(error).split())}") from error
    return {"parameters": found.params, "multiply_adds": found.macs}


def _stages(network: nn.Module, size: int) -> list[Json]:
    from fishnet.models.fishnet import MODULES, FishNet
    from fishnet.report.isolated import features

    if isinstance(network, FishNet):
        rows = [(name, MODULES[name], stride, channels) for name, (stride, channels) in network.stage_info.items()]
    else:
        rows = [(entry["module"], entry["module"], entry["reduction"], entry["num_chs"]) for entry in features(network)]
    sides = _output_sides(network, [module for _, module, _, _ in rows], size)
    stages = []
    for name, module, stride, channels in rows:
        height, width = sides[module]
        owner = network.get_submodule("stem" if name == "stem" and isinstance(network, FishNet) else module)
        stages.append(
            {
                "name": name,
                "stride": stride,
                "channels": channels,
                "height": height,
                "width": width,
                "blocks": _length(getattr(owner, "blocks", owner)),
                "transfer_blocks": _length(getattr(owner, "transfer", None)),
                "parameters": sum(p.numel() for p in owner.parameters()),
            }
        )
    return stages


def _length(blocks: object) -> int | None:
    from torch import nn

    return len(blocks) if isinstance(blocks, nn.Sequential | nn.ModuleList) else None


def _output_sides(network: nn.Module, modules: list[str], size: int) -> dict[str, tuple[int | None, int | None]]:
    """Return the height and width of the outputs of modules (None where an output is not a map), without computing."""
    import torch

    sides: dict[str, tuple[int | None, int | None]] = dict.fromkeys(modules, (None, None))
    shadow = copy.deepcopy(network).to("meta").eval()

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, torch.Tensor) and output.ndim == 4:
                sides[name] = output.shape[2], output.shape[3]

        return hook

    for name in modules:
        shadow.get_submodule(name).register_forward_hook(note(name))
    channels = getattr(network, "in_chans", None) or 3
    with torch.no_grad():
        shadow(torch.empty(1, channels, size, size, device="meta"))
    return sides


def _draw_figure(network: nn.Module, name: str, path: Path) -> None:
    from fishnet.drawing.style import save_figure
    from fishnet.report.architecture import draw_fish

    save_figure(draw_fish(network, name), path, dpi=130)


def _draw_gradient_flow(networks: Sequence[tuple[str, nn.Module]], size: int, path: Path) -> list[GradientFlow]:
    """Measure the gradient flow of labeled models, and plot it."""
    from fishnet.drawing.style import save_figure
    from fishnet.report.gradient_flow import draw_gradient_flow, gradient_flow

    flows = [gradient_flow(network, label, size) for label, network in networks]
    save_figure(draw_gradient_flow(flows), path, dpi=130)
    return flows


def _flow_document(flow: GradientFlow) -> Json:
    isolated = None if flow.isolated is None else {part: flow.crossed(part) for part in _PARTS}
    stages = [{key: value for key, value in asdict(stage).items() if key != "shape"} for stage in flow.stages]
    return {"model": flow.model, "trunk": list(flow.trunk), "stages": stages, "isolated": isolated}


def _family_text(document: Json) -> str:
    head = ["model", "parameters", f"multiply-adds at {document['size']}", "strides", "feature channels"]
    rows = [
        [
            row["name"],
            f"{row['parameters']:,}",
            f"{row['multiply_adds']:,}",
            " ".join(map(str, row["strides"])),
            " ".join(map(str, row["channels"])),
        ]
        for row in document["models"]
    ]
    return _table(head, rows) + "\n\n`fishnet info MODEL` describes one model; MODEL may also be any timm backbone."


def _model_text(document: Json) -> str:
    size = document["size"]
    options = " ".join(f"{key}={value}" for key, value in document["model_option"].items())
    lines = [
        f"{document['model']} {options}".strip(),
        f"  parameters      {document['parameters']:,}",
        f"  multiply-adds   {document['multiply_adds']:,} (convolutions and linear layers, {size}x{size})",
    ]
    if document["min_size"]:
        lines.append(f"  smallest input  {document['min_size']}x{document['min_size']}")
    if document["stages"]:
        lines += ["", _stages_text(document["stages"])]
    for flow in document.get("gradient_flow", ()):
        lines += ["", *_flow_text(flow, size)]
    written = [document[key] for key in ("figure", "gradient_flow_figure") if key in document]
    if written:
        lines += ["", f"written: {', '.join(written)}"]
    return "\n".join(lines)


def _stages_text(stages: list[Json]) -> str:
    rows = []
    for stage in stages:
        blocks = "" if stage["blocks"] is None else str(stage["blocks"])
        if stage["transfer_blocks"]:
            blocks += f" + {stage['transfer_blocks']} on the skip"
        output = "" if stage["height"] is None else f"{stage['height']}x{stage['width']}"
        numbers = [str(stage["stride"]), str(stage["channels"]), output, f"{stage['parameters']:,}"]
        rows.append([stage["name"], *numbers, blocks])
    return _table(["stage", "stride", "channels", "output", "parameters", "blocks"], rows, left=(0, 5))


def _flow_text(flow: Json, size: int) -> list[str]:
    rows = [[stage["name"], f"{stage['norm']:.3e}", f"{stage['rms']:.3e}"] for stage in flow["stages"]]
    lines = [f"gradient norm at the stages of {flow['model']} ({size}x{size} noise)"]
    lines.append(_table(["stage", "norm", "per element"], rows))
    if flow["isolated"] is None:
        return [*lines, f"isolated convolutions of {flow['model']}: unknown, torch.fx cannot trace it"]
    begin, end = flow["trunk"]
    lines.append(f"isolated convolutions of {flow['model']}")
    for part, names in flow["isolated"].items():
        title = f"trunk, {begin} to {end}" if part == "trunk" else part
        if names or part == "trunk":
            lines += [f"  {title}: {len(names) or 'none'}", *(f"    {name}" for name in names)]
    return lines


def _table(head: list[str], rows: list[list[str]], left: Sequence[int] = (0, 3, 4)) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: list[str]) -> str:
        placed = (
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return ("  " + "  ".join(placed)).rstrip()

    return "\n".join(map(line, [head, *rows]))
