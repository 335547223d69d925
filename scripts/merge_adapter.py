"""Merges a fold's adapter, or the mean of several folds' adapters, into the unquantised base model.

    python scripts/merge_adapter.py runs/NAME/seed42/fold0/checkpoint merged --rows labelled.csv
    python scripts/merge_adapter.py runs/NAME/seed42/fold*/checkpoint merged --average --rows labelled.csv

An adapter trained beside 4-bit weights has learnt to mend their errors, and the merged model has none: so the labelled
rows are read before (as trained) and after, and the change is printed. --rows must be rows that no fold was trained on,
and for one fold its own held-out rows (heldout.csv names them); the mean of folds has seen all of the run's rows.
The merged folder is an ordinary model: safetensors, tokenizer, and any tool that opens such. python -m infer reads it
with model.name=merged method=next_token.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def merge(folders: Sequence[Path], out: Path, *, rows_csv: Path | None, base_name: str | None, precision: str) -> str:
    """Write the merged model; the report of the change on the labelled rows.

    Raises ValueError for checkpoints of different bases or questions, a sequence head, and a folder that is not empty.
    """
    from infer.label_reader import LabelReader
    from models.adapter_base import load_base
    from models.adapter_files import average_adapters, check_base
    from models.checkpoint import read_identity
    from models.engine_settings import QuestionSettings

    identities = [read_identity(folder) for folder in folders]
    first = identities[0]
    check_alike(folders, identities)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty. Name a new folder: a merged model must not be mixed with another.")
    name = base_name or first["base"]["name"]
    quantization = first["base"]["quantization"]
    for folder in folders:
        check_base(folder, name, quantization)
    question = QuestionSettings(**first["question"])
    rows, truth = labelled_rows(rows_csv, question, first["task"]) if rows_csv else ([], np.empty(0, dtype=np.int64))

    def read(base: Any) -> Any:
        from infer.adapter_reading import read_active

        reader = LabelReader(base.loaded, question, max_tokens=first["max_tokens"])
        return read_active(base, reader, [row.fields for row in rows], progress=True)

    def carry(base: Any) -> Any:
        return average_adapters(base, folders) if len(folders) > 1 else base.carry(folders)

    before = None
    if rows:
        trained = load_base(name, precision=precision, quantization=quantization)
        carry(trained)
        before = read(trained)
    base = load_base(name, precision=precision, quantization="none")
    model = carry(base)
    if not is_plain(model):
        raise ValueError(f"{name} is stored in 4 bits: {WHY_NOT_4_BIT}")
    merged = model.merge_and_unload(safe_merge=True)
    base.carried = None
    merged.save_pretrained(out)
    base.loaded.tokenizer.save_pretrained(out)
    written = f"{out}: {type(merged).__name__} with {len(folders)} adapter(s) merged into the unquantised {name}"
    return written if before is None else f"{written}\n{change(before, read(base), truth, quantization)}"


WHY_NOT_4_BIT = (
    "merging there rounds the sum to 4 bits again, which loses what the adapter taught. Name the unquantised base with "
    "--base; the adapter itself may stay beside 4-bit weights, unmerged."
)


def is_plain(model: Any) -> bool:
    """Is no layer under an adapter stored in bytes?"""
    layers = [module.base_layer for module in model.modules() if hasattr(module, "base_layer")]
    return all(layer.weight.is_floating_point() for layer in layers if hasattr(layer, "weight"))


def check_alike(folders: Sequence[Path], identities: Sequence[dict[str, Any]]) -> None:
    """Refuse checkpoints that cannot be one model."""
    for folder, identity in zip(folders, identities, strict=True):
        if identity["method"] != "adapter":
            raise ValueError(
                f"{folder} was made by the method {identity['method']}, expected adapter: nothing to merge."
            )
        if identity["head"] != "label":
            raise ValueError(
                f"{folder} has a head of its own (adapter.head=sequence), which a merged language model has no place "
                "for. Keep it as it is: python -m infer loads base and adapter."
            )
        for key in ("base", "labels", "question"):
            if identity[key] != identities[0][key]:
                raise ValueError(f"{folder} and {folders[0]} differ in their {key}. Merge folds of one run.")


def labelled_rows(path: Path, question: Any, task: str) -> tuple[list[Any], np.ndarray]:
    """(the rows, (N,) columns of their labels) of a table with the question's fields, the label in column `label`."""
    from models.engine_settings import row_fields
    from models.tasks.tables import read_head
    from models.tasks.text import open_rows

    if task == "arena":
        raise ValueError(
            "--rows reads tables of texts. Merge without it, and score the merged model with python -m infer."
        )
    columns = [str(name) for name in read_head(path).columns]
    fields = row_fields(question.prompt)
    text = next((name for name in ("text", "Skill", "skill") if name in columns), columns[0])
    labels = list(question.labels)
    source = open_rows(
        str(path), fields=fields, text_column=text, id_column="id" if "id" in columns else None, label_column="label",
        keep_columns=[], labels=labels, written_columns=[], chunk_rows=10_000,
    )  # fmt: skip
    rows = [row for _, chunk in source.chunks() for row in chunk if row.label is not None]
    if not rows:
        raise ValueError(f"{path} has no labelled row. Give rows with their label in a column `label`.")
    return rows, np.array([labels.index(row.label) for row in rows])


def change(before: Any, after: Any, truth: np.ndarray, quantization: str) -> str:
    """What merging did to the labelled rows, in a few lines."""
    lines = [f"{len(truth)} labelled rows      as trained ({quantization})   merged"]
    for name, score in (("log loss", log_loss), ("accuracy", accuracy)):
        lines.append(f"  {name:<22}{score(before.probs(), truth):.4f}              {score(after.probs(), truth):.4f}")
    moved = np.abs(before.probs() - after.probs()).max(axis=1)
    changed = (before.probs().argmax(axis=1) != after.probs().argmax(axis=1)).sum()
    lines.append(
        f"  a probability moved by {moved.mean():.4f} on average, {moved.max():.4f} at most; {changed} labels changed"
    )
    return "\n".join(lines)


def log_loss(probs: np.ndarray, truth: np.ndarray) -> float:
    """Mean -log p of the true labels."""
    return float(-np.log(np.maximum(probs[np.arange(len(truth)), truth], 1e-15)).mean())


def accuracy(probs: np.ndarray, truth: np.ndarray) -> float:
    """Share of rows whose likeliest label is the true one."""
    return float((probs.argmax(axis=1) == truth).mean())


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 with a sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, help="checkpoint folders of one run")
    parser.add_argument("out", type=Path, help="the folder to write, new or empty")
    parser.add_argument("--average", action="store_true", help="merge the mean of several folds' adapters")
    parser.add_argument("--rows", type=Path, help="labelled rows that none of the folds was trained on")
    parser.add_argument("--base", help="where the unquantised base is now; default: where it was in training")
    parser.add_argument("--precision", default="auto", help="auto, fp32, fp16 or bf16: of the merged weights")
    parser.add_argument("--into-4-bit", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    try:
        if given.into_4_bit:
            raise ValueError(f"--into-4-bit: {WHY_NOT_4_BIT}")
        if len(given.checkpoints) > 1 and not given.average:
            raise ValueError(f"{len(given.checkpoints)} checkpoints: add --average to merge their mean, or name one.")
        if given.average and given.rows is None:
            raise ValueError("--average needs --rows: a mean that nothing was scored on may be worse than each fold.")
        print(merge(given.checkpoints, given.out, rows_csv=given.rows, base_name=given.base, precision=given.precision))
    except (ValueError, FileNotFoundError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
