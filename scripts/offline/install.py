"""Installs from a folder of wheels what this Python lacks or has too old: into a folder of its own, without a network.

    python install.py WHEELS TO

What stands in TO is found first where PYTHONPATH names it; the machine's own packages stay as they are, torch among
them. Afterwards a new process imports what a run needs and computes on every GPU. Runs where tiebreak is not yet:
knows the standard library and pip alone.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from email.parser import Parser
from pathlib import Path
from typing import NamedTuple

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name
from pip._vendor.packaging.version import Version

RECORD = "tiebreak-wheels.json"
ROOT = "tiebreak"
GIVEN = "torch"  # the image's own build fits its driver: what it needs is beside it, and is not looked into
TORCHAO_FROM = "0.16"  # peft raises where it finds an older one, and images bring 0.10
BUILT_ON_TORCH = (
    "torchvision",
    "torchaudio",
)  # over another torch they raise, and transformers with them
SMOKE = """
import importlib, importlib.metadata, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
import torch
names = ("torch", "transformers", "tokenizers", "accelerate", "peft", "numpy", "pandas", "scikit-learn", "tiebreak")
print("imports:", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names))
for number in range(torch.cuda.device_count()):
    one = torch.ones(8, 8, device=f"cuda:{number}")  # raises where the build has no code for this GPU
    print(f"cuda:{number} {torch.cuda.get_device_name(number)}: {float((one @ one).sum()):.0f} == 512")
print(f"{torch.cuda.device_count()} GPU(s)")
"""
SMOKE_NAMES = (
    "hydra", "omegaconf", "transformers", "accelerate", "peft", "pandas", "pyarrow", "scipy", "sklearn", "skops",
    "safetensors", "sentencepiece", "infer.cli", "infer.run", "infer.classifiers", "infer.encoder", "infer.adapter",
)  # fmt: skip


class Package(NamedTuple):
    """A package that is there, or a wheel of it."""

    version: str
    requires: tuple[str, ...]


def choose(
    image: Mapping[str, Package], wheels: Mapping[str, Package], *, always: Iterable[str] = (), root: str = ROOT
) -> list[str]:
    """Names of the wheels to install, as few as make root's requirements and theirs hold; the image gives the rest.

    always: wheels to take whatever the image has. Raises ValueError naming a requirement that nothing here meets.
    """
    taken = {root, *always}
    while True:
        before = len(taken)
        _walk(root, image, wheels, taken)
        if len(taken) == before:
            return sorted(taken)


def _walk(root: str, image: Mapping[str, Package], wheels: Mapping[str, Package], taken: set[str]) -> None:
    """Follow the requirements from root once, and take the wheels that they show to be needed."""
    todo, seen = [(root, "")], set()
    while todo:
        asker, extra = todo.pop()
        if (asker, extra) in seen or (asker == GIVEN and asker not in taken):
            continue
        seen.add((asker, extra))
        for text in (wheels if asker in taken else image)[asker].requires:
            need = Requirement(text)
            if need.marker is not None and not need.marker.evaluate({"extra": extra}):
                continue
            name = str(canonicalize_name(need.name))
            if not _met(need, wheels if name in taken else image, name):
                if name not in taken and _met(need, wheels, name):
                    taken.add(name)
                elif asker not in taken and asker in wheels:
                    taken.add(asker)  # the image's own asks for what the wheels are too new for
                elif asker in taken:
                    raise ValueError(_unmet(asker, need, wheels if name in taken else image, name))
            if name in (wheels if name in taken else image):
                todo += [(name, one) for one in ("", *need.extras)]


def _met(need: Requirement, where: Mapping[str, Package], name: str) -> bool:
    return name in where and need.specifier.contains(Version(where[name].version), prereleases=True)


def _unmet(asker: str, need: Requirement, where: Mapping[str, Package], name: str) -> str:
    found = f"{name} {where[name].version}" if name in where else f"no {name}"
    return (
        f"{asker} needs {need}, and here is {found}, without a wheel that fits. Make the bundle again "
        "(python scripts/kaggle_bundle.py), or add such a wheel to its folder wheels."
    )


def installed() -> dict[str, Package]:
    """What this Python has, by name; of several of one name the one that an import would find."""
    found: dict[str, Package] = {}
    for one in importlib.metadata.distributions():
        name = one.metadata["Name"]
        if name:  # a damaged dist-info has none
            found.setdefault(str(canonicalize_name(name)), Package(one.version, tuple(one.requires or ())))
    return found


def wheels_in(folder: Path) -> dict[str, Package]:
    """The wheels of a folder, by name."""
    found = {}
    for file in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(file) as archive:
            name = next(
                one for one in archive.namelist() if one.endswith(".dist-info/METADATA") and one.count("/") == 1
            )
            told = Parser().parsestr(archive.read(name).decode("utf-8"), headersonly=True)
        found[str(canonicalize_name(told["Name"]))] = Package(told["Version"], tuple(told.get_all("Requires-Dist", [])))
    return found


def install(wheels: Path, to: Path) -> list[str]:
    """Install into `to`; the names of what was installed. Raises ValueError for wheels of another Python."""
    told = json.loads((wheels / RECORD).read_text(encoding="utf-8"))
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if told["python"] != here:
        raise ValueError(
            f"These wheels are for Python {told['python']}, and here is {here}. "
            f"Make the bundle again with --python {here}, or choose an image with {told['python']}."
        )
    image, house = installed(), wheels_in(wheels)
    names = choose(image, house, always=told["always"])
    pinned = [f"{name}=={house[name].version}" for name in names]
    _pip(
        "install", "--no-index", "--find-links", str(wheels), "--no-deps", "--no-compile", "--target", str(to), *pinned
    )
    for name in names:
        print(f"  {name} {house[name].version}" + (f" (image: {image[name].version})" if name in image else ""))
    for name, why in in_the_way(image, names).items():
        print(f"  {name} {image[name].version} goes for this session: {why}")
        _pip("uninstall", "--yes", name)
    return names


def in_the_way(image: Mapping[str, Package], names: Iterable[str]) -> dict[str, str]:
    """Packages of the image that a run does not need and that would make it fail, and why. names: to be installed."""
    found = {}
    if "torchao" in image and Version(image["torchao"].version) < Version(TORCHAO_FROM):
        found["torchao"] = f"peft refuses one older than {TORCHAO_FROM}"
    if GIVEN in names:
        found |= {name: f"it was built for the image's own {GIVEN}" for name in BUILT_ON_TORCH if name in image}
    return found


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", arguments[0], "--quiet", "--disable-pip-version-check", *arguments[1:]]
    if subprocess.run(command).returncode:
        raise ValueError(f"pip {arguments[0]} failed (above).")


def check(to: Path) -> None:
    """Import what a run needs, and compute on every GPU, in a new process. Raises ValueError."""
    environment = os.environ | {"PYTHONPATH": str(to), "HF_HUB_OFFLINE": "1"}
    if subprocess.run([sys.executable, "-c", SMOKE, *SMOKE_NAMES], env=environment, cwd=to).returncode:
        raise ValueError(
            "The packages do not work together on this image (above). 'no kernel image' means a GPU that the image's "
            "torch has no code for, such as a P100: make the bundle with --gpu p100, or choose GPU T4 x2."
        )


def main() -> None:
    try:
        wheels, to = (Path(argument).resolve() for argument in sys.argv[1:])
        print(f"{len(install(wheels, to))} packages installed into {to}")
        check(to)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
