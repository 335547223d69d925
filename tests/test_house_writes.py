"""Every file that the project writes is put in its place whole: nothing writes under a final name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

WHOLE = {"write_atomically", "write_folder_atomically", "new_folder", "save_whole", "TemporaryDirectory"}
# Methods that write a file, whoever's; and functions by the module that they are called of.
METHODS = {"write_text", "write_bytes", "to_parquet", "savefig", "save_pretrained", "write_html", "write_image",
           "write_table", "write_parquet", "ParquetWriter", "FileHandler", "save_file", "serialize_file", "save_model",
           "to_excel", "to_pickle", "tofile"}  # fmt: skip
FUNCTIONS = {"np.save", "np.savez", "np.savez_compressed", "torch.save", "json.dump", "pickle.dump", "skops.io.dump",
             "joblib.dump", "shutil.copy", "shutil.copy2", "shutil.copyfile", "shutil.copytree",
             "shutil.move"}  # fmt: skip
CHECKPOINT = "fills a folder that its caller puts in place: models.checkpoint.save_whole, train.checkpoints"
WORK = "works in a temporary folder of the benchmark"
BUNDLE = "fills the bundle's folder, which kaggle_bundle puts in place, or a temporary one for its rehearsal"
ALLOWED = {
    "infer/locks.py:hold": "a lock file holds nothing",
    "infer/compare/ways.py:_run": "a log grows line by line",
    "infer/audit/verdicts.py:ask_endpoint": "answers are added one by one; a cut-off line is left out when read",
    "infer/cluster/part_folder.py:in_hand": "a mark of who is at work; half of one counts for none",
    "infer/parts.py:_write_parquet": "writes the temporary file that merge() hands it",
    "infer/parts.py:_write_csv": "writes the temporary file that merge() hands it",
    "infer/encoder.py:save": CHECKPOINT,
    "infer/readers/trained_text_encoder.py:save": CHECKPOINT,
    "models/text_encoder.py:save_text_network": CHECKPOINT,
    "models/encoder_adapters.py:save_encoder": CHECKPOINT,
    "models/adapter_files.py:save_adapter": CHECKPOINT,
    "models/causal.py:write": "fills the folder that models.gguf_cache puts in place",
    "train/loop.py:save_model": CHECKPOINT,
    "train/saving.py:_save_optimizer_and_scheduler": CHECKPOINT,
    "scripts/bench/soft_job.py:save": WORK,
    "scripts/bench/soft_model.py:write_tokenizer": WORK,
    "scripts/bench/soft_model.py:plain_folder": WORK,
    "scripts/bench/soft_classification.py:prepare": WORK,
    "scripts/bench/soft_worker.py:attempt": WORK,
    "scripts/bench/soft_worker.py:__init__": "sets a counter of the kernel's",
    "scripts/bench/million_rows.py:write_rows": WORK,
    "scripts/bench/million_rows.py:write_model": WORK,
    "scripts/bench/pipeline.py:resample": WORK,
    "scripts/kaggle_bundle.py:put_wheels": BUNDLE,
    "scripts/kaggle_bundle.py:train_tiny": BUNDLE,
    "scripts/offline": BUNDLE,
}


def reason_of(place: str) -> str | None:
    """The exception that a write stands under: its function's, or its folder's."""
    return ALLOWED.get(place) or ALLOWED.get(place.rpartition("/")[0])


def dotted(node: ast.expr) -> str:
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "?")


def opens_to_write(call: ast.Call) -> bool:
    """open(path, "w"), path.open("wb"), zipfile.ZipFile(path, "a"), gzip.open(path, mode="x"), not "r+b"."""
    if dotted(call.func).rpartition(".")[2] not in ("open", "ZipFile", "GzipFile"):
        return False
    given = [*call.args[:2], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    modes = [one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    return any(set(mode) <= set("rwaxbt+") and set(mode) & set("wax") for mode in modes)


def writes(call: ast.Call) -> bool:
    name = dotted(call.func)
    last = name.rpartition(".")[2]
    to_a_file = bool(call.args) or any(keyword.arg == "path_or_buf" for keyword in call.keywords)
    return name in FUNCTIONS or last in METHODS or (last == "to_csv" and to_a_file) or opens_to_write(call)


def plain_writes(tree: ast.AST, *, inside: str = "", whole: bool = False) -> Iterator[tuple[str, int]]:
    """(function, line) of every write that stands in no block that puts its file in place."""
    for node in ast.iter_child_nodes(tree):
        function = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else inside
        safe = whole
        if isinstance(node, ast.With):
            calls = [item.context_expr for item in node.items]
            safe |= any(isinstance(one, ast.Call) and dotted(one.func).rpartition(".")[2] in WHOLE for one in calls)
        if isinstance(node, ast.Call) and writes(node) and not whole:
            yield function, node.lineno
        yield from plain_writes(node, inside=function, whole=safe)


def found_in(path: Path) -> list[tuple[str, int]]:
    name = path.relative_to(ROOT).as_posix()
    found = plain_writes(ast.parse(path.read_text(encoding="utf-8")))
    return [(f"{name}:{function}", line) for function, line in found]


def all_plain_writes() -> list[tuple[str, int]]:
    folders = ("models", "infer", "train", "scripts")
    return [one for folder in folders for path in sorted((ROOT / folder).rglob("*.py")) for one in found_in(path)]


def test_nothing_writes_under_a_final_name() -> None:
    odd = [f"{place}, line {line}" for place, line in all_plain_writes() if reason_of(place) is None]
    assert not odd, f"use models.tasks.files.write_atomically, or say here why not: {odd}"


def test_every_exception_is_one() -> None:
    found = {place for place, _ in all_plain_writes()}
    assert not set(ALLOWED) - found - {place.rpartition("/")[0] for place in found}


@pytest.mark.parametrize(
    "line",
    [
        "path.write_text('x')", "frame.to_csv(path)", "np.save(path, x)", "open(path, 'w')", "path.open('ab')",
        "gzip.open(path, mode='wb')", "model.save_pretrained(folder)", "shutil.copy(a, b)",
        "zipfile.ZipFile(path, 'w')",
    ],
)  # fmt: skip
def test_a_plain_write_is_seen_and_one_in_a_block_is_not(line: str) -> None:
    assert list(plain_writes(ast.parse(f"def make():\n    {line}"))) == [("make", 2)]
    assert not list(plain_writes(ast.parse(f"def make():\n    with write_atomically(p) as path:\n        {line}")))


@pytest.mark.parametrize("line", ["path.open('rb')", "open(path)", "frame.to_csv(index=False)", "array.copy()"])
def test_what_writes_nothing_is_let_through(line: str) -> None:
    assert not list(plain_writes(ast.parse(line)))
