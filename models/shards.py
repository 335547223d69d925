"""The files that hold a model's weights: refused where their list leads out of the folder, or where they are damaged.

Knows names and what safetensors raises; never a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from models.tasks.files import read_record, told_of

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def listed_shards(folder: Path) -> set[str]:
    """The names in the index of weights that stand in several files. Raises ValueError for one outside the folder.

    By their words alone: the hub's cache keeps links to files that are really elsewhere.
    """
    path = folder / INDEX
    record = read_record(path)
    with told_of(path, "is no index of weights"):
        names = {str(name) for name in record["weight_map"].values()}
    for name in sorted(names):
        kinds = (PurePosixPath(name), PureWindowsPath(name))
        if any(one.is_absolute() or one.drive or ".." in one.parts for one in kinds):
            raise ValueError(f"{path} names {name!r}, which is outside of its folder. Get the model from its maker.")
    return names


@contextmanager
def reading_weights(source: str | Path) -> Iterator[None]:
    """A block that opens the weights of a folder, or hub name: a stray list, or a damaged file, is a ValueError."""
    from safetensors import SafetensorError

    folder = Path(source)
    if (folder / INDEX).is_file() and not (folder / WHOLE).is_file():
        listed_shards(folder)
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{source} holds weights that are damaged ({error}). Copy its files again.") from error
