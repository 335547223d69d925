"""Adapter checkpoints: the adapter as peft writes it, the tokenizer, and tiebreak.json; no weight of the base.

Any tool opens them: PeftModel.from_pretrained(base, folder). Refuses, before the base is loaded, an adapter that was
trained beside other weights. Knows files, never a row.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.adapter_base import AdapterBase
from models.adapters import name_padding
from models.checkpoint import read_identity, write_identity
from models.fingerprint import fingerprint
from models.names import local_folder, resolve_gguf, resolve_model
from models.shards import INDEX, WHOLE, listed_shards

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def base_identity(name: str, quantization: str) -> dict[str, str]:
    """What an adapter says of its base: the name it had, a mark of its weights' files, and their quantization."""
    return {"name": name, "weights": weights_mark(name), "quantization": quantization}


def weights_mark(name: str) -> str:
    """A mark of the files that hold a model's weights: the same for a hub name and a folder with the same files."""
    file = resolve_gguf(name)
    return fingerprint({file} if file is not None else weight_files(name))


def weight_files(name: str) -> set[Path]:
    """The safetensors of a model by a folder's or hub name, as its index lists them; what the cache lacks is fetched.

    Raises FileNotFoundError where a file is missing, and cannot be had: a part of them would have another mark.
    """
    where = resolve_model(name)
    local = Path(where).is_dir()
    folder = local_folder(where)
    found, missing = _listed(folder)
    if local and not found and not missing:
        found = set(folder.glob("*.safetensors"))
    if not local and (missing or not found):
        _fetch(where)
        folder = local_folder(where)
        found, missing = _listed(folder)
    if missing or not found:
        what = ", ".join(sorted(missing)[:3]) or WHOLE
        raise FileNotFoundError(
            f"{folder} lacks weights of {name} ({what}), so it cannot be told whether an adapter belongs to them. "
            "Copy the missing files there, or set model.name to a folder that has all of them."
        )
    return found


def _listed(folder: Path) -> tuple[set[Path], set[str]]:
    """(the weights' files that are there, names of those that the index lists and are not)."""
    if (folder / WHOLE).is_file():
        return {folder / WHOLE}, set()
    if not (folder / INDEX).is_file():
        return set(), set()
    names = listed_shards(folder)
    missing = {name for name in names if not (folder / name).is_file()}
    return {folder / name for name in names - missing}, missing


def _fetch(where: str) -> None:
    """A hub model's safetensors into the cache. Raises FileNotFoundError where the hub is not to be reached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE

    refusal = "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else ""
    if not refusal:
        try:
            # Not what stands in folders, nor a second copy of the same weights (consolidated.safetensors).
            snapshot_download(where, allow_patterns=[WHOLE, INDEX, "model-*.safetensors"], ignore_patterns=["*/*"])
        except OSError as error:
            refusal = str(error).strip().splitlines()[0]
    if refusal:
        raise FileNotFoundError(
            f"The weights of {where} are not all in the cache on this disk, and the hub was not asked or did not "
            f"answer ({refusal}). So it cannot be told whether an adapter belongs to them. Fetch them where the hub "
            f"can be reached (hf download {where}), or set model.name to a folder that has them."
        )


def check_base(folder: Path, name: str, quantization: str) -> dict[str, Any]:
    """The identity of an adapter checkpoint, once it is known to belong to this base, whose weights are fetched first.

    Raises ValueError for another base or quantization, what read_identity raises, and FileNotFoundError for a folder
    without the adapter's files, or a base whose weights are not there.
    """
    identity = read_identity(folder)
    for file in ADAPTER_FILES:
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder} holds no {file}: copy the checkpoint again, or train the fold again.")
    trained = identity["base"]
    if trained["quantization"] != quantization:
        raise ValueError(
            f"{folder} was trained with model.quantization={trained['quantization']}, not {quantization}: it learnt to "
            f"mend those weights' errors. Set model.quantization={trained['quantization']}, or train again."
        )
    if trained["weights"] != weights_mark(name):
        raise ValueError(
            f"{folder} was trained beside {trained['name']}, and {name} has other weights: its numbers would mean "
            f"nothing there. Set model.name={trained['name']} (or a folder with the same files), or train again."
        )
    return identity


def save_adapter(
    carrier: AdapterBase, folder: Path, *, adapter: str = "default", tokenizer: Any = None, task: str,
    labels: Sequence[str], **details: Any,
) -> None:  # fmt: skip
    """Write one carried adapter as a checkpoint; the identity, written last, says that it is whole.

    details: what tiebreak.json says beside: question, base, max_tokens, ...
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer or carrier.loaded.tokenizer
    name_padding(tokenizer)
    tokenizer.save_pretrained(folder)
    carrier.carried.peft_config[adapter].base_model_name_or_path = carrier.loaded.name
    with tempfile.TemporaryDirectory(dir=folder) as work:  # what a kill leaves of it goes with the unfinished folder
        # Without save_embedding_layers peft asks the hub whether a vocabulary has grown.
        carrier.carried.save_pretrained(work, selected_adapters=[adapter], save_embedding_layers=False)
        written = Path(work) if adapter == "default" else Path(work) / adapter
        for file in ADAPTER_FILES:
            shutil.move(written / file, folder / file)
    told = {"head": carrier.head, "precision": carrier.precision, **details}
    write_identity(folder, task=task, method="adapter", labels=labels, **told)


def average_adapters(base: AdapterBase, folders: Sequence[Path], name: str = "mean") -> Any:
    """The PeftModel with the mean of the folders' adapters active, as one adapter of the summed rank.

    The mean of the products B A, exactly: ranks are put side by side. The product of the mean factors is another
    matrix. Raises ValueError for adapters with a head of their own, and for one alone.
    """
    if base.head == "sequence":
        raise ValueError("Adapters with adapter.head=sequence have heads of their own: average their probabilities.")
    if len(folders) < 2:
        raise ValueError(f"There is {len(folders)} adapter to average, expected two or more. Train more folds.")
    model = base.carry(folders)
    names = [f"fold{number}" for number in range(len(folders))]
    model.add_weighted_adapter(names, [1 / len(names)] * len(names), name, combination_type="cat")
    model.set_adapter(name)
    model.requires_grad_(False)
    return model.eval()
