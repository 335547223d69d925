"""A virtual environment that stands for Kaggle's image: this one's packages where the image has them new enough.

Linked are the packages that image.txt lists in a version that a run can use, torch among them, in the versions of this
environment; of what the image has too old there is an empty one of that version, which raises where it is imported;
of what the image lacks, tiebreak among it, there is nothing. Where the bundle brings its own torch, what the image
built on the other raises as it would. Knows packages; never a bundle's content.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

from pip._vendor.packaging.utils import canonicalize_name

from offline.install import BUILT_ON_TORCH, GIVEN, RECORD, Package, choose, installed, wheels_in
from offline.wheels import write_stub

LIST = Path(__file__).with_name("image.txt")


def listed() -> dict[str, str]:
    """{"transformers": "5.9.0", ...} of image.txt."""
    lines = (line.strip() for line in LIST.read_text(encoding="utf-8").splitlines())
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def make_image(folder: Path, wheels: Path) -> tuple[Path, dict[str, str]]:
    """(the environment's python, what the image has too old: {"transformers": "5.9.0"})."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    site = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    has = listed()
    needed = choose({name: Package(version, ()) for name, version in has.items()}, wheels_in(wheels))
    too_old = {name: has[name] for name in needed if name in has}
    stubs = folder / "stubs"
    stubs.mkdir()
    always = json.loads((wheels / RECORD).read_text(encoding="utf-8"))["always"]
    built = {name: has[name] for name in BUILT_ON_TORCH} if GIVEN in always else {}
    for name, version in {**too_old, "torchao": has["torchao"], **built}.items():
        says, raises = f"the image's own {name} {version} was imported", "ImportError"
        if name in built:
            says, raises = "operator torchvision::nms does not exist", "RuntimeError"
        with zipfile.ZipFile(write_stub(stubs, name, version, says=says, raises=raises)) as archive:
            archive.extractall(site)
    for name in has.keys() - too_old.keys() - {"torchao", *built}:
        _link(name, site)
    return python, too_old


def _link(name: str, site: Path) -> None:
    """Every top-level file and folder of an installed package, where this environment has it."""
    try:
        package = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return
    for top in sorted({file.parts[0] for file in package.files or []} - {"..", "__pycache__"}):
        target = site / top
        if not target.exists():
            target.symlink_to(Path(str(package.locate_file(top))))


def repack(folder: Path, names: list[str]) -> None:
    """Wheels of packages that are installed here, for a rehearsal with this Python: their files, stored as they are."""
    for name in names:
        package = importlib.metadata.distribution(name)
        told = (package.read_text("WHEEL") or "").splitlines()
        tags = [line.partition(": ")[2] for line in told if line.startswith("Tag: ")]
        stem = str(canonicalize_name(name)).replace("-", "_")
        # Of a package's tags the last is the newest platform; one name holds one tag, and this one fits here.
        wheel = folder / f"{stem}-{package.version}-{tags[-1] if tags else 'py3-none-any'}.whl"
        files = [file for file in package.files or [] if _inside(file)]
        with zipfile.ZipFile(wheel, "w") as archive:
            for file in files:
                where = Path(str(package.locate_file(file)))
                if where.is_file() and file.name not in ("RECORD", "INSTALLER", "REQUESTED"):
                    archive.write(where, str(file))
            record = next(str(file) for file in files if file.name == "RECORD")
            lines = "".join(f"{one},,\n" for one in [*archive.namelist(), record])
            archive.writestr(record, lines)


def _inside(file: PurePosixPath) -> bool:
    return ".." not in file.parts and "__pycache__" not in file.parts and not file.is_absolute()


def closure(wheels: Path, root: str = "tiebreak") -> list[str]:
    """Names of the installed packages that tiebreak's wheel needs, without itself and torch."""
    image = {"torch": Package(importlib.metadata.version("torch"), ())}
    house = {**installed(), **wheels_in(wheels)}
    return [name for name in choose(image, house) if name not in (root, "torch")]
