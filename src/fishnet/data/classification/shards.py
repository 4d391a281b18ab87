"""Random access to WebDataset shards (tar files), by an index of their members built in one pass over the headers."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path
from typing import NamedTuple

from fishnet.data.images import IMAGE_EXTENSIONS
from fishnet.errors import FishnetError


class Member(NamedTuple):
    """Position of the content of one file in a shard, in bytes."""

    shard: int
    offset: int
    size: int


class ShardIndex(NamedTuple):
    """Contents of the shards of a split, in their order."""

    paths: list[Path]
    names: list[str]
    """`<shard>.tar/<key>.<extension>` of each image."""
    images: list[Member]
    labels: list[str]
    """Content of the `.cls` file of each image."""

    def read(self, index: int) -> bytes:
        """Return the bytes of one image file."""
        return read_member(self.paths, self.images[index])


_SAMPLE = re.compile(r"^((?:.*/)?[^/.]+)\.([^/]+)$")


def shard_paths(root: Path, split: str) -> list[Path]:
    """Return `root/<split>-*.tar`, sorted by name."""
    return sorted(path for path in root.glob("*.tar") if path.name.startswith(f"{split}-"))


def read_member(paths: list[Path], member: Member) -> bytes:
    """Return the content of a member; opens the shard each time, so that processes share no file position."""
    with paths[member.shard].open("rb") as stream:
        stream.seek(member.offset)
        return stream.read(member.size)


def index_shards(paths: list[Path]) -> ShardIndex:
    """Read the headers of all shards once and pair each image with its `.cls` file.

    As in WebDataset, the key of a file is its path up to the first dot of its name, and a sample consists of the files
    with the same key in one shard.

    Raises:
        FishnetError: A shard is damaged or compressed, or an image has no label; the message names shard and key.
    """
    index = ShardIndex(paths, [], [], [])
    for number, path in enumerate(paths):
        _index_one(index, number, _members(path, number))
    if not index.names:
        raise FishnetError(
            f"no samples in {paths[0]} .. {paths[-1].name}; expected pairs such as 0001.jpg and 0001.cls"
        )
    return index


def _index_one(index: ShardIndex, number: int, members: dict[str, dict[str, Member]]) -> None:
    path = index.paths[number]
    for key, files in members.items():
        images = [ending for ending in files if f".{ending}" in IMAGE_EXTENSIONS]
        if not images:
            continue
        if "cls" not in files:
            raise FishnetError(f"shard {path}: the sample {key} has an image but no label ({key}.cls)")
        if len(images) > 1:
            raise FishnetError(f"shard {path}: the sample {key} has several images ({', '.join(images)})")
        index.names.append(f"{path.name}/{key}.{images[0]}")
        index.images.append(files[images[0]])
        index.labels.append(read_member(index.paths, files["cls"]).decode("utf-8", "replace").strip())


def _members(path: Path, number: int) -> dict[str, dict[str, Member]]:
    """Return key -> extension -> member of one shard."""
    found: dict[str, dict[str, Member]] = {}
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                match = _SAMPLE.match(member.name)
                if not member.isfile() or match is None:
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                key, ending = match[1], match[2].lower()
                found.setdefault(key, {})[ending] = Member(number, member.offset_data, member.size)
    except tarfile.TarError as error:
        raise FishnetError(
            f"shard {path} cannot be read ({error}): it must be a complete, uncompressed tar file; create it again"
        ) from error
    return found
