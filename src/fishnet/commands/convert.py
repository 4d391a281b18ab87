"""`fishnet convert`: convert checkpoints between known layouts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fishnet.errors import FishnetError, UsageError

_BUFFERS = (".running_mean", ".running_var", ".num_batches_tracked")


@dataclass
class Conversion:
    """Result of `convert`."""

    source: Path
    """Checkpoint that was read."""
    dest: Path
    """File that was written."""
    layout: str
    """Layout of the source."""
    to: str
    """Layout of the file that was written."""
    member: str | None
    """Member of the family, if names and shapes match one."""
    tensors: int
    """Number of tensors, running statistics included."""
    parameters: int
    """Number of trainable parameters."""
    options: dict[str, object]
    """Model options of the run, which layouts do not record."""

    def __str__(self) -> str:
        text = (
            f"{self.member or 'a FishNet with another configuration'}: layout {self.layout} -> {self.to}, "
            f"{self.tensors} tensors, {self.parameters:,} parameters: {self.dest}"
        )
        if self.options and self.to != "fishnet":
            options = ", ".join(f"{name}={value}" for name, value in self.options.items())
            text += f" (the layout does not record {options}: build the network with these options to load it)"
        return text


def convert(
    source: str | Path,
    dest: str | Path,
    to: Literal["fishnet", "released", "pytorchcv"] = "fishnet",
    overwrite: bool = False,
    prefer_ema: bool = True,
) -> Conversion:
    """Read a checkpoint of any known layout and write it in another one.

    Args:
        source: Checkpoint file (.safetensors, .pth, .pt, .tar, .ckpt, .pth.zip), run folder, or tag (osmr_in1k).
        dest: File to write; its suffix determines the format: .safetensors, .pth or .pt (a state dict) or .tar (as the
            release, under state_dict with module. before each name).
        to: Layout to write.
        overwrite: Replace an existing file.
        prefer_ema: Take the EMA weights instead of those of the last step, if the source has both.

    Returns:
        Description of the conversion, printed as one line.

    Raises:
        UsageError: The source does not exist, or the destination does.
        FishnetError: The source cannot be read, or does not fit the layout.
    """
    from fishnet.cards import CARD_KEY
    from fishnet.models.checkpoints.files import WRITTEN_SUFFIXES, read_metadata, write_checkpoint
    from fishnet.models.checkpoints.layouts import CLASSIFIER, convert_state, detect_layout
    from fishnet.models.checkpoints.states import is_network, whole_of
    from fishnet.models.checkpoints.weights import locate_weights, read_checkpoint, recognize_member

    target = Path(dest).expanduser()
    if target.suffix not in WRITTEN_SUFFIXES:
        raise UsageError(f"cannot write {target}: the file name must end in {', '.join(WRITTEN_SUFFIXES)}.")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists; pass --overwrite to replace it, or choose another name.")
    path = locate_weights(source)
    own = read_checkpoint(path, prefer_ema)
    state = whole_of(own, (), CLASSIFIER.fishnet)[0] if is_network(own) else own
    try:
        layout = detect_layout(state)
        converted = own if to == "fishnet" and is_network(own) else convert_state(state, to)
    except FishnetError as error:
        raise FishnetError(f"cannot convert {path}: {error}") from error
    metadata = {name: text for name, text in read_metadata(path).items() if name != "format"}
    options = _model_options(metadata.get(CARD_KEY), path)
    write_checkpoint(target, converted, metadata if to == "fishnet" else None)
    result = Conversion(
        source=path,
        dest=target,
        layout=layout,
        to=to,
        member=recognize_member(state),
        tensors=len(converted),
        parameters=sum(value.numel() for key, value in converted.items() if not key.endswith(_BUFFERS)),
        options=options,
    )
    print(result)
    return result


def _model_options(card: str | None, path: Path) -> dict[str, object]:
    """Return the model options in the card of a model file; none if it has no card."""
    from fishnet.cards import ModelCard

    return {} if card is None else ModelCard.from_json(card, path).architecture.options
