"""Folder of an exported network: graphs, export.json, and the standalone runner."""

from __future__ import annotations

import ast
import inspect
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path

from fishnet.errors import UsageError
from fishnet.files import Json, atomic_write, write_json
from fishnet.runner.engine import EXPORT_JSON
from fishnet.runner.graphs import fingerprint
from fishnet.runner.heads import COPIED, HEADS

SOURCE = "fishnet.runner"
PACKAGE = "fishnet_runner"
"""Folder with the copy of `fishnet.runner`."""
IMPORTABLE = {*sys.stdlib_module_names, "numpy", "PIL", PACKAGE}
"""Packages that a copied decoder may import."""
RUNNER = '''\
"""Run the exported network in this folder; needs NumPy, Pillow and {package}.

    python runner.py IMAGE...            a line of JSON for each image
    python runner.py --help              all options

From Python, with this folder on the path:

    from runner import Model
    model = Model("exported")  # the path of this folder
    model("photo.jpg")["predictions"]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fishnet_runner.command import main  # noqa: E402
from fishnet_runner.model import Model  # noqa: E402

__all__ = ["Model"]

if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent))
'''


def write_runner(folder: Path, package: str, decoders: Iterable[str]) -> None:
    """Write runner.py and the package that it imports.

    Args:
        folder: Exported folder.
        package: Package that runs its graphs, such as onnxruntime.
        decoders: Names of its decoders; those of other packages are copied too.

    Raises:
        UsageError: A decoder is not registered, or its module cannot be imported without its package.
    """
    source = resources.files(SOURCE)
    for entry in source.iterdir():
        if entry.name.endswith(".py"):
            atomic_write(folder / PACKAGE / entry.name, entry.read_text("utf-8"))
    for name in decoders:
        if name not in HEADS:
            raise UsageError(f"no decoder named {name!r} is registered; call fishnet.runner.heads.register_decoder")
        if not HEADS[name].__module__.startswith(f"{SOURCE}."):
            atomic_write(folder / PACKAGE / f"{COPIED}{name}.py", standalone_source(HEADS[name]))
    atomic_write(folder / "runner.py", RUNNER.replace("{package}", package))


def standalone_source(decoder: type) -> str:
    """Return the source of the module of a decoder, which imports the copy of `fishnet.runner`.

    Raises:
        UsageError: The module has no source file, or imports a module that is not copied.
    """
    module = decoder.__module__
    try:
        source = inspect.getsource(sys.modules[module]).replace(SOURCE, PACKAGE)
    except (OSError, TypeError) as error:
        raise UsageError(f"the decoder {decoder.__name__} cannot be exported: {module} has no source file") from error
    if other := sorted({name for name in _imports(ast.parse(source)) if name.partition(".")[0] not in IMPORTABLE}):
        raise UsageError(
            f"the decoder {decoder.__name__} cannot be exported: its module {module} imports {', '.join(other)}, but "
            f"may import only the standard library, NumPy, Pillow and {SOURCE}"
        )
    return source


def _imports(tree: ast.AST) -> Iterator[str]:
    """Yield the names of the imported modules, except those that only type checkers import."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
        elif not (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")):
            yield from _imports(node)


def describe_graph(path: Path) -> Json:
    """Return the entry of export.json for a graph: its file, and the checksums of its files."""
    files = [path, *(other for suffix in (".bin", ".onnx.data") if (other := path.with_suffix(suffix)).is_file())]
    return {"file": path.name, "sha256": {file.name: fingerprint(file) for file in files}}


def write_description(folder: Path, content: Json) -> None:
    """Write export.json."""
    write_json(folder / EXPORT_JSON, content)


def move_into_place(staged: Path, out: Path) -> None:
    """Move the files of a complete folder to their final folder; files of an older export are replaced."""
    if not out.exists():
        staged.rename(out)
        return
    for name in _older(out):
        (out / name).unlink(missing_ok=True)
    for entry in sorted(staged.iterdir()):
        place = out / entry.name
        if place.is_dir():
            shutil.rmtree(place)
        entry.replace(place)


def _older(out: Path) -> list[str]:
    """Return the names of the graph files of an older export."""
    try:
        graphs = json.loads((out / EXPORT_JSON).read_text("utf-8"))["graphs"]
        return [Path(name).name for graph in graphs.values() for name in graph["sha256"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
