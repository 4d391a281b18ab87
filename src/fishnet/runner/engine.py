"""Inference engine of an exported network: graphs and decoders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .errors import RunnerError
from .graphs import FORMATS, PACKAGES, fingerprint, lacking, open_graph
from .head import Arrays, Graph, Head, Json
from .heads import head_of
from .openvino_graph import OFTEN
from .prepare import Preparation, Size

EXPORT_JSON = "export.json"
"""File of an exported folder that describes the network."""
FORMAT_VERSION = 1
DENSE = "dense"
"""Name of the graph that takes images."""
INPUT = "images"
"""Name of its input."""


class Engine:
    """Runs an exported network.

    Args:
        preparation: Preprocessing of images.
        heads: Decoders by the name of the head.
        graphs: Graphs by name: `dense` takes images, the others pooled maps of regions.
    """

    def __init__(
        self, preparation: Preparation, heads: Mapping[str, Head[object]], graphs: Mapping[str, Graph]
    ) -> None:
        self.preparation, self.heads, self.graphs = preparation, dict(heads), dict(graphs)

    def raw(self, batch: np.ndarray) -> dict[str, Arrays]:
        """Return the outputs of all heads for a normalized batch (N, 3, H, W), by head and by name."""
        outputs = self.graphs[DENSE]({INPUT: batch})
        found: dict[str, Arrays] = {head: {} for head in self.heads}
        for name, values in outputs.items():
            head = max((one for one in self.heads if name.startswith(f"{one}_")), key=len)
            found[head][name[len(head) + 1 :]] = values
        return found

    def decode(self, raw: Mapping[str, Arrays], canvas: Size, sizes: Sequence[Size]) -> dict[str, list[object]]:
        """Return the predictions of every head, one per image.

        Args:
            raw: Outputs by head and by name.
            canvas: Height and width of the batch.
            sizes: Height and width of each image in it.
        """
        return {name: self.heads[name].decode(own, canvas, sizes, self.graphs) for name, own in raw.items()}

    def run(self, images: Sequence[np.ndarray]) -> dict[str, list[object]]:
        """Return the predictions by head for prepared images uint8 (h, w, 3) of any sizes."""
        answers: dict[str, dict[int, object]] = {name: {} for name in self.heads}
        for places in self.preparation.groups(images):
            batch, canvas, sizes = self.preparation.batch([images[place] for place in places])
            for name, found in self.decode(self.raw(batch), canvas, sizes).items():
                answers[name].update(zip(places, found, strict=True))
        return {name: [found[place] for place in range(len(images))] for name, found in answers.items()}


def read_description(folder: Path) -> Json:
    """Return the content of export.json.

    Raises:
        RunnerError: The file is missing, damaged, or of a newer version.
    """
    path = folder / EXPORT_JSON
    try:
        found = json.loads(path.read_text("utf-8"))
        version = found["format_version"]
    except OSError as error:
        reason = error.strerror
        raise RunnerError(f"cannot read {path}: {reason}; give a folder that fishnet export wrote") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunnerError(f"{path} is damaged ({type(error).__name__}: {error}); export the model again") from error
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise RunnerError(f"{path} has format {version}, this runner reads up to {FORMAT_VERSION}: use a newer one")
    return dict(found)


def open_engine(folder: Path, allow_fallback: bool = False, often: int | None = None) -> Engine:
    """Return the network of a folder that `fishnet export` wrote.

    Args:
        folder: Exported folder.
        allow_fallback: Compute in fp32 if this machine does not support the precision of the export.
        often: Number of batches after which OpenVINO compiles a faster model for their shape; by default 1 for networks
            of a fixed image size, 100 otherwise.

    Raises:
        RunnerError: A file is missing, damaged or belongs to another model, the package that runs the format is
            missing, or the machine lacks the precision.
    """
    found = read_description(folder)
    try:
        form, precision = str(found["format"]), str(found["precision"])
        graphs: dict[str, dict[str, object]] = found["graphs"]  # type: ignore[assignment]
        preparation = Preparation(**found["preprocessing"])  # type: ignore[arg-type]
        heads = {name: head_of(spec) for name, spec in found["heads"].items()}  # type: ignore[attr-defined]
        files = {name: (folder / str(own["file"]), dict(own["sha256"])) for name, own in graphs.items()}  # type: ignore[call-overload]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunnerError(
            f"{folder / EXPORT_JSON} is damaged ({type(error).__name__}: {error}); export again"
        ) from error
    if form not in FORMATS:
        raise RunnerError(f"{folder / EXPORT_JSON} has the unknown format {form!r}; formats are {', '.join(FORMATS)}")
    for _, sums in files.values():
        for name, expected in sums.items():
            if fingerprint(folder / name) != expected:
                raise RunnerError(
                    f"{folder / name} does not belong to {EXPORT_JSON} beside it: it is damaged or of another model; "
                    "export the model again"
                )
    if often is None:
        often = 1 if preparation.kind == "square" else OFTEN
    allowed = allow_fallback or bool(found.get("fallback"))
    return Engine(preparation, heads, _opened(files, form, precision, allowed, often))


def _opened(
    files: Mapping[str, tuple[Path, dict[str, str]]], form: str, precision: str, allow_fallback: bool, often: int
) -> dict[str, Graph]:
    try:
        reason = lacking(form, precision)
    except ImportError as error:
        first, package = next(iter(files.values()))[0], PACKAGES[form]
        raise RunnerError(f"{first} needs {package}: pip install {package} ({error})") from error
    if reason is not None and not allow_fallback:
        raise RunnerError(f"{reason}: export the model in another precision, or allow fp32 with --allow-fallback")
    used = precision if reason is None else "fp32"
    # the number of regions, and so the shape of the other graphs, hardly ever repeats
    return {name: open_graph(path, form, used, often if name == DENSE else None) for name, (path, _) in files.items()}
