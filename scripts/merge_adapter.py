"""Merges a fold's adapter, or the mean of several folds' adapters, into the unquantised base model.

    python scripts/merge_adapter.py runs/NAME/seed42/fold0/checkpoint merged --rows labelled.csv
    python scripts/merge_adapter.py runs/NAME/seed42/fold*/checkpoint merged --average --rows labelled.csv

An adapter trained beside 4-bit weights has learnt to mend their errors, and the merged model has none: so the labelled
rows are read before (as trained) and after, and the change is printed. --rows must be rows that no fold was trained on,
and for one fold its own held-out rows (heldout.csv names them); the mean of folds has seen all of the run's rows. How
many of them were trained on is said where the run folder still tells it.
The merged folder is an ordinary model: safetensors, tokenizer, and any tool that opens such. python -m infer reads it
with model.name=merged method=next_token.
"""

import argparse
import gc
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np


def merge(
    folders: Sequence[Path], out: Path, *, rows_csv: Path | None, text_column: str | None, base_name: str | None,
    precision: str,
) -> str:  # fmt: skip
    """Write the merged model; the report of the change on the labelled rows.

    Raises ValueError for checkpoints of different bases or questions, a sequence head, a base stored in 4 bits, rows
    whose text column is not clear, and a folder that is not empty.
    """
    from models.adapter_base import load_base
    from models.adapter_files import check_base
    from models.checkpoint import read_identity
    from models.tasks.files import write_folder_atomically

    identities = [read_identity(folder) for folder in folders]
    first = identities[0]
    check_alike(folders, identities)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty. Name a new folder: a merged model must not be mixed with another.")
    rows = labelled_rows(rows_csv, folders[0], first, text_column) if rows_csv else []
    if rows:
        say_what_was_trained_on(rows_csv, rows, folders)
    name = base_name or first["base"]["name"]
    for folder in folders:
        check_base(folder, name, first["base"]["quantization"])
    before, precision_before = read_as_trained(folders, name, first, rows) if rows else (None, "")
    gc.collect()  # a network holds itself in rings, and two of 8B are more than a machine may have room for
    base = load_base(name, precision=precision, quantization="none")
    merged = carry(base, folders).merge_and_unload(safe_merge=True)
    base.carried = None
    with write_folder_atomically(out) as unfinished:
        merged.save_pretrained(unfinished)
        base.loaded.tokenizer.save_pretrained(unfinished)
    written = f"{out}: {type(merged).__name__} with {len(folders)} adapter(s) merged into the unquantised {name}"
    if before is None:
        return written
    told = (f"as trained ({first['base']['quantization']}, {precision_before})", f"merged ({base.precision})")
    return f"{written}\n{change(before, read(base, first, rows), rows, first['labels'], told)}"


def read_as_trained(
    folders: Sequence[Path], name: str, identity: dict[str, Any], rows: Sequence[Any]
) -> tuple[Any, str]:
    """(the reading of the rows by the adapters beside the base, quantised as in training, its number format)."""
    from infer.adapter import precision_here
    from models.adapter_base import load_base

    precision, quantization = precision_here(identity["precision"]), identity["base"]["quantization"]
    base = load_base(name, precision=precision, quantization=quantization)
    carry(base, folders, quantized=quantization != "none")
    return read(base, identity, rows), base.precision


def carry(base: Any, folders: Sequence[Path], *, quantized: bool = False) -> Any:
    """The base with the adapter, or the mean of several. quantized: it was loaded so, and is not to be merged."""
    from models.adapter_files import average_adapters

    model = average_adapters(base, folders) if len(folders) > 1 else base.carry(folders)
    if not quantized and not is_plain(model):
        raise ValueError(f"{base.loaded.name} is stored in 4 bits: {WHY_NOT_4_BIT}")
    return model


def read(base: Any, identity: dict[str, Any], rows: Sequence[Any]) -> Any:
    """The reading of the rows by what the base carries now."""
    from infer.adapter_reading import read_active
    from infer.readers.label import LabelReader
    from models.engine_settings import QuestionSettings

    reader = LabelReader(base.loaded, QuestionSettings(**identity["question"]), max_tokens=identity["max_tokens"])
    return read_active(base, reader, [row.fields for row in rows], progress=True)


WHY_NOT_4_BIT = (
    "merging there rounds the sum to 4 bits again, which loses what the adapter taught. Leave the adapter unmerged "
    "(python -m infer reads base and adapter), or train beside the unquantised model with model.quantization=nf4: such "
    "an adapter can be merged."
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


def labelled_rows(path: Path, folder: Path, identity: dict[str, Any], text_column: str | None) -> list[Any]:
    """The labelled rows of a table, read as the task of the checkpoint reads them.

    Columns are those of the run's settings where the table has them, and else `id` and `label`. Refuses a table whose
    text column is not clear, and one without a label.
    """
    from models.engine_settings import QuestionSettings, row_fields
    from models.tasks.skills import open_task_rows

    if identity["task"] == "arena":
        raise ValueError(
            "--rows reads tables of texts. Merge without it, and score the merged model with python -m infer."
        )
    question = QuestionSettings(**identity["question"])
    asked = row_fields(question.prompt or "")
    source = open_task_rows(
        task_of(path, folder, identity["task"], text_column, asked), path, fields=asked, labels=identity["labels"],
        chunk_rows=10_000,
    )  # fmt: skip
    rows = [row for _, chunk in source.chunks() for row in chunk if row.label is not None]
    if not rows:
        raise ValueError(f"{path} has no labelled row. Give rows with their label in a column `label`.")
    return rows


def task_of(path: Path, folder: Path, name: str, text_column: str | None, asked: Sequence[str]) -> Any:
    """The task that reads a table: the run's, with the columns that this table has."""
    from models.kind_settings import AUTO, TASK_KINDS
    from models.tasks.tables import table_columns
    from models.tasks.text import TEXT_FIELD
    from train.adapter_rows import run_task

    columns, run = table_columns(path), run_task(folder)
    text = text_column or next(
        (one for one in (getattr(run, "text_column", None), TEXT_FIELD) if one in columns), None
    )  # fmt: skip
    if text is None and (TEXT_FIELD in asked or name == "skills"):
        raise ValueError(
            f"{path} has the columns {', '.join(columns)}: it is not clear which of them holds the text. Name it: "
            "--text-column COLUMN."
        )
    told: dict[str, Any] = {"name": name, "input_csv": str(path), "text_column": text or TEXT_FIELD, "keep_columns": []}
    for key in ("id_column", "label_column"):
        known = getattr(run, key, AUTO)
        told[key] = known if known in columns else AUTO
    kind: Any = TASK_KINDS[name]
    return kind(**{one.name: getattr(run, one.name, None) for one in fields(kind)} | told | NOT_OF_THE_ROWS)


NOT_OF_THE_ROWS = {
    "train_csv": None,
    "target_columns": None,
    "on_bad_row": "refuse",
}  # two readings must see the same rows


def say_what_was_trained_on(path: Path | None, rows: Sequence[Any], folders: Sequence[Path]) -> None:
    """Warn on the error stream of rows that an adapter has learnt, or that it could not be told."""
    from train.adapter_rows import rows_trained_on, run_folder

    seen: set[int] = set()
    for folder in folders:
        found = rows_trained_on(rows, folder)
        if found is None:
            print(
                f"note: {run_folder(folder)} does not tell which rows {folder} was trained on (its folds.csv, and the "
                f"table it was trained on): make sure that {path} holds none of them.",
                file=sys.stderr,
            )
            return
        seen |= found
    if seen:
        print(
            f"warning: {len(seen)} of the {len(rows)} labelled rows of {path} are among those that were trained on: "
            "the figures flatter both models. Give rows that were not.",
            file=sys.stderr,
        )


def change(before: Any, after: Any, rows: Sequence[Any], labels: Sequence[str], told: tuple[str, str]) -> str:
    """What merging did to the labelled rows, in a few lines. told: the names of the two columns."""
    from infer.metrics import score
    from infer.predictions import Predictions

    truth = np.array([row.label for row in rows], dtype=object)
    ids = np.array([row.id for row in rows], dtype=object)
    scores = [
        score(Predictions(ids, tuple(labels), one.probs(), one.other, truth), bootstrap=0) for one in (before, after)
    ]
    widths = [max(len(one), 8) for one in told]
    lines = [f"{f'{len(rows)} labelled rows':<24}{told[0]}   {told[1]}"]
    for name, key in (("log loss", "log_loss"), ("accuracy", "accuracy")):
        figures = [f"{one[key]:<{width}.4f}" for one, width in zip(scores, widths, strict=True)]
        lines.append(f"  {name:<22}{'   '.join(figures)}".rstrip())
    moved = np.abs(before.probs() - after.probs()).max(axis=1)
    changed = (before.probs().argmax(axis=1) != after.probs().argmax(axis=1)).sum()
    lines.append(
        f"  a probability moved by {moved.mean():.4f} on average, {moved.max():.4f} at most; {changed} labels changed"
    )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 with a sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, help="checkpoint folders of one run")
    parser.add_argument("out", type=Path, help="the folder to write, new or empty")
    parser.add_argument("--average", action="store_true", help="merge the mean of several folds' adapters")
    parser.add_argument("--rows", type=Path, help="labelled rows that none of the folds was trained on")
    parser.add_argument("--text-column", help="the column of --rows with the text; default: the run's, or `text`")
    parser.add_argument("--base", help="where the unquantised base is now; default: where it was in training")
    parser.add_argument("--precision", default="auto", help="auto, fp32, fp16 or bf16: of the merged weights")
    given = parser.parse_args(arguments)
    try:
        if len(given.checkpoints) > 1 and not given.average:
            raise ValueError(f"{len(given.checkpoints)} checkpoints: add --average to merge their mean, or name one.")
        if given.average and given.rows is None:
            raise ValueError("--average needs --rows: a mean that nothing was scored on may be worse than each fold.")
        told = merge(
            given.checkpoints, given.out, rows_csv=given.rows, text_column=given.text_column, base_name=given.base,
            precision=given.precision,
        )  # fmt: skip
        print(told)
    except (ValueError, FileNotFoundError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
