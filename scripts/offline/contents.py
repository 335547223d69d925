"""What of a run the bundle carries: the finished folds' checkpoints, the temperature, the base if its licence lets it.

Everything is checked before anything is copied; no path of this machine and nothing that looks like a secret leaves it.
Knows run folders, licences and files; never a wheel or a notebook.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from infer.checkpoints import CARD, finished_checkpoints
from models.checkpoint import IDENTITY, read_identity
from models.manifest import MANIFEST, damage, write_manifest
from models.names import local_folder, resolve_gguf, resolve_model
from models.tasks.files import read_record

GIB = 2**30
DATA_SET_GIB = 200  # of one Kaggle data set
FREE_LICENCES = {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "isc", "unlicense"}
# Of what a model folder holds, what loads it; pickles stay behind.
BASE_FILES = (
    "*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README*", "LICENSE*", "NOTICE*",
)  # fmt: skip
LEFT_OUT = (MANIFEST, CARD, ".tmp-*")  # the manifest is written anew; the card is for people, and may name paths
TEXTS = (".json", ".md", ".txt", ".jinja")
# Records that name files of the machine they were made on. Not the tokenizer's own: its tokens may start with a slash.
RECORDS = (IDENTITY, "config.json", "tokenizer_config.json", "adapter_config.json", "generation_config.json")
_SECRET = re.compile(r"hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{30,}|AKIA[0-9A-Z]{16}"
                     r"|KGAT_[0-9a-f]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY")  # fmt: skip
_PATH = re.compile(r"^(?:[A-Za-z]:[\\/]|~[\w.-]*/|\\\\|file:/|\.\.?/|/(?=[^/\s][^/\n]*/))[^\n]*$")
# Under these keys one slash makes a path; elsewhere it may be a token.
_NAMES_A_PLACE = re.compile(r"(?:^|_)(?:name|path|dir|folder|file|csv)s?$")
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")  # their tokens may look like paths


@dataclass(frozen=True)
class Base:
    """The model that adapters stand beside. path: its folder or GGUF file, None where it is not copied, for why."""

    name: str
    path: Path | None
    why: str


@dataclass(frozen=True)
class Contents:
    """A run that can be bundled."""

    run: Path
    experiment: str
    method: str
    checkpoints: tuple[Path, ...]
    base: Base | None
    precision: str
    quantization: str


def look_into(run: Path) -> Contents:
    """The run's contents, every checkpoint verified.

    Raises FileNotFoundError without a finished fold, ValueError for a damaged checkpoint, for folds of several
    methods, and for a run that makes no submission.csv.
    """
    checkpoints = finished_checkpoints(run) if run.is_dir() else []
    if not checkpoints or checkpoints == [run]:
        raise FileNotFoundError(
            f"{run} holds no finished fold of a run. Train first: python -m train +experiment=NAME. (A blend, or a "
            "model that is only asked, has no checkpoints: bundle the runs that it is made of.)"
        )
    for checkpoint in checkpoints:
        said = damage(checkpoint) if checkpoint.is_dir() else "it is not there, and done.json says that it was written"
        if said is not None:
            raise ValueError(
                f"{checkpoint} is damaged: {said}. Remove {checkpoint.parent} and train that fold again "
                f"(folds.only=[{checkpoint.parent.name.removeprefix('fold')}])."
            )
    identities = [read_identity(checkpoint) for checkpoint in checkpoints]
    tasks, methods = {str(one["task"]) for one in identities}, {str(one["method"]) for one in identities}
    if tasks != {"arena"}:
        raise ValueError(f"{run} was trained for {', '.join(sorted(tasks))}; a submission.csv needs the task arena.")
    if len(methods) != 1:
        raise ValueError(f"The folds of {run} were made by several methods: {', '.join(sorted(methods))}.")
    first, method = identities[0], methods.pop()
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    base = find_base(first["base"]["name"]) if method == "adapter" else None
    return Contents(
        run, str(config["name"]), method, tuple(checkpoints), base, str(config["trainer"]["precision"]),
        str(first["base"]["quantization"]) if method == "adapter" else "none",
    )  # fmt: skip


def find_base(name: str) -> Base:
    """Where an adapter's base stands, if it may be copied; else how to attach it on Kaggle."""
    attach = (
        "Attach it on Kaggle as a Model (Add Input, Models), accept its licence there, and set BASE in the notebook."
    )
    try:
        path = resolve_gguf(name)
        if path is None:
            path = local_folder(resolve_model(name))
    except FileNotFoundError:
        return Base(name, None, f"{last_of(name)} is not on this machine. {attach}")
    licence = licence_of(path)
    if licence not in FREE_LICENCES:
        said = f"has the licence {licence!r}, which binds whoever hands it on" if licence else "names no licence"
        return Base(name, None, f"{last_of(name)} {said}, so it is not copied. {attach}")
    return Base(name, path, f"licence {licence}")


def licence_of(path: Path) -> str | None:
    """The licence that a model's card or GGUF header names, in lower case; None where neither does."""
    if path.is_file():
        from gguf import GGUFReader

        field = GGUFReader(str(path)).get_field("general.license")
        return str(field.contents()).lower() if field is not None else None
    card = path / "README.md"
    parts = card.read_text(encoding="utf-8", errors="replace").split("---", 2) if card.is_file() else []
    if len(parts) == 3 and not parts[0].strip():
        try:
            told = yaml.safe_load(parts[1])
        except yaml.YAMLError:
            return None
        licence = told.get("license") if isinstance(told, dict) else None
        return str(licence).lower() if isinstance(licence, str) else None
    return None


def copy_run(contents: Contents, folder: Path) -> None:
    """The run's folder as infer reads it: fold*/done.json, fold*/checkpoint, calibration.json. Raises ValueError."""
    here = places_here(contents.run)
    for checkpoint in contents.checkpoints:
        to = folder / checkpoint.parent.name / "checkpoint"
        to.parent.mkdir(parents=True)
        shutil.copytree(checkpoint, to, ignore=shutil.ignore_patterns(*LEFT_OUT))
        for name in RECORDS:
            if (to / name).is_file():
                _write_clean(to / name, to / name, here)
        write_manifest(to)
        _write_clean(checkpoint.parent / "done.json", to.parent / "done.json", here)
    if (contents.run / "calibration.json").is_file():
        _write_clean(contents.run / "calibration.json", folder / "calibration.json", here)
    refuse_secrets(folder)
    refuse_paths(folder, here)


def copy_base(base: Base, folder: Path) -> None:
    """The base's files, where it has a path."""
    if base.path is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    here = places_here(base.path)
    files = [base.path] if base.path.is_file() else sorted({one for ask in BASE_FILES for one in base.path.glob(ask)})
    for file in files:
        shutil.copyfile(file, folder / file.name)
        if file.name in RECORDS:
            _write_clean(file, folder / file.name, here)
    refuse_secrets(folder)
    refuse_paths(folder, here)


def size_of(contents: Contents) -> int:
    """Bytes that will be copied. Raises ValueError where a data set would be larger than Kaggle takes."""
    sizes = {str(contents.run): sum(_bytes(checkpoint) for checkpoint in contents.checkpoints)}
    if contents.base is not None and contents.base.path is not None:
        sizes[str(contents.base.path)] = _bytes(contents.base.path)
    for name, size in sizes.items():
        if size > DATA_SET_GIB * GIB:
            raise ValueError(
                f"{name} has {size / GIB:.0f} GiB; a Kaggle data set holds {DATA_SET_GIB}. Bundle fewer folds "
                "(folds.only), or train adapters (method=adapter)."
            )
    return sum(sizes.values())


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files)


def last_of(name: str) -> str:
    """A name without the folders of this machine: /home/me/llama -> llama; hub and package names stay."""
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] if _PATH.match(name) or re.match(r"/[^/]", name) else name


def without_paths(value: Any, here: Sequence[str] = (), *, key: str = "") -> Any:
    """The JSON value with every text that is a path of a machine cut to its last name, and `here` out of all texts.

    here: folders of this machine, each with its last slash.
    """
    if isinstance(value, dict):
        return {name: without_paths(one, here, key=name) for name, one in value.items()}
    if isinstance(value, list):
        return [without_paths(one, here, key=key) for one in value]
    if not isinstance(value, str) or len(value) < 2:
        return value
    if _PATH.match(value) or _NAMES_A_PLACE.search(key):
        return last_of(value)
    for place in here:
        value = value.replace(place, "")
    return value


def places_here(*paths: Path) -> tuple[str, ...]:
    """The checkout, the home and the folders of these paths, each with its last slash, the longest first."""
    asked = [Path(__file__).resolve().parents[2], Path.home()]
    asked += [place for path in paths for place in (path.absolute().parent, path.resolve().parent)]
    return tuple(sorted({f"{place}/" for place in asked if len(place.parts) > 1}, key=lambda one: (-len(one), one)))


def _write_clean(source: Path, target: Path, here: Sequence[str]) -> None:
    target.write_text(json.dumps(without_paths(read_record(source), here), indent=2) + "\n", encoding="utf-8")


def refuse_paths(folder: Path, here: Sequence[str]) -> None:
    """Raises ValueError naming the file that holds a folder of this machine."""
    for file in sorted(one for one in folder.rglob("*") if one.suffix in TEXTS and one.is_file()):
        if file.name not in VOCABULARIES:
            text = file.read_text(encoding="utf-8", errors="replace")
            named = next((place for place in here if place in text), None)
            if named is not None:
                raise ValueError(f"{file.relative_to(folder)} names {named}, a folder of this machine. Take it out.")


def refuse_secrets(folder: Path) -> None:
    """Raises ValueError naming the file that holds something like a key: what is uploaded is out of one's hands."""
    for file in sorted(one for one in folder.rglob("*") if one.suffix in TEXTS and one.is_file()):
        if _SECRET.search(file.read_text(encoding="utf-8", errors="replace")):
            raise ValueError(
                f"{file.relative_to(folder)} holds what looks like a key or token. Remove it from the run."
            )
