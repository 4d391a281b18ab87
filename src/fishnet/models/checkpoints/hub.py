"""Published weights of timm models: whether they are in the cache or within reach, before anything waits for them."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from pathlib import Path

import timm
import torch
from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache

from fishnet.errors import FishnetError

SECONDS = 8
"""Time that the server has to answer."""
_FILES = ("model.safetensors", "pytorch_model.bin")


def check_published(name: str) -> None:
    """Raise an error if the published weights of a timm model are neither in the cache nor within reach.

    Without this, every part of a download is tried again for about a minute.

    Raises:
        FishnetError: The download failed; the message names the weights, their URL, and what to do.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or (config.file and Path(config.file).is_file()):
        return
    hub_id = str(config.hf_hub_id or "")
    if hub_id.endswith("/"):  # the rest is the name of the model
        hub_id += f"{config.architecture}.{config.tag}" if config.tag else str(config.architecture)
    if hub_id:
        files = (config.hf_hub_filename,) if config.hf_hub_filename else _FILES
        if any(isinstance(try_to_load_from_cache(hub_id, file), str) for file in files):
            return
        address = hf_hub_url(hub_id, files[0])
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else None
    elif config.url:
        address, offline = str(config.url), None
        if (Path(torch.hub.get_dir()) / "checkpoints" / address.rpartition("/")[2]).is_file():
            return
    else:
        return
    if reason := offline or _unreachable(address):
        raise FishnetError(
            f"cannot download the pretrained weights of {name} from {address}: {reason}. Fetch the file elsewhere and "
            "pass --weights FILE"
        )


def _unreachable(address: str) -> str | None:
    """Return why a server does not answer, or None if it does."""
    outcome: list[str | None] = [f"no answer within {SECONDS} seconds"]

    def ask() -> None:
        request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "fishnet"})
        try:
            with urllib.request.urlopen(request, timeout=SECONDS):
                outcome[0] = None
        except urllib.error.HTTPError as error:
            error.close()
            outcome[0] = None if error.code < 500 else str(error)  # the server responds; the download reports details
        except (OSError, ValueError) as error:
            outcome[0] = str(getattr(error, "reason", None) or error)

    # looking up a name has no timeout of its own
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return outcome[0]
