"""A bundle's notebook reads on the GPU it is for, finds the attached base, and starts a process for each GPU."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, compose

sys.path.append(str(ROOT / "scripts"))
kaggle_bundle = importlib.import_module("kaggle_bundle")
contents = importlib.import_module("offline.contents")
notebook = importlib.import_module("offline.notebook")


@pytest.mark.parametrize("trained", ["auto", "bf16", "fp16", "fp32"])
def test_whatever_a_run_was_trained_in_a_t4_a_p100_and_a_cpu_can_read_it(trained: str, tmp_path: Path) -> None:
    from models.precision import resolve_precision

    inside = contents.Contents(tmp_path, "arena_deberta", "encoder", (tmp_path,), None, trained, "none")
    asked = next(one for one in notebook.infer_arguments(inside) if one.startswith("trainer.precision="))
    half = "fp32" if trained == "fp32" else "fp16"
    for capability, read_in in (((7, 5), half), ((6, 0), half), (None, "fp32")):
        assert resolve_precision(asked.partition("=")[2], capability) == read_in
    readme = notebook.readme_of(inside, notebook.Names("ada", "x", "llm", "t4"), ["run"])
    assert ("trained in bf16" in readme) == (trained == "bf16")


@pytest.mark.parametrize(("name", "file"), [("meta/llama", "config.json"), ("/x/llama.gguf", "llama.Q4.gguf")])
def test_an_attached_base_is_told_from_the_runs_own_and_from_another(name: str, file: str, tmp_path: Path) -> None:
    base = contents.Base(name, None, "not copied")
    inside = contents.Contents(tmp_path, "arena_llama_qlora", "adapter", (tmp_path,), base, "auto", "none")
    base_folder, run, other = (tmp_path / "input" / one for one in ("z/llama", "a-run", "b-other"))
    for folder, held in ((base_folder, file), (base_folder / "1_Pooling", file), (run / "fold0" / "checkpoint", file),
                         (tmp_path / "input" / "a-wheels", file), (run, notebook.RUN_RECORD)):  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        (folder / held).write_text("{}")

    def find() -> str:
        names: dict[str, Any] = {"KAGGLE": tmp_path, "RUN": run, "TEST": tmp_path, "os": os, "Path": Path,
                                 "WHEELS": tmp_path / "input" / "a-wheels"}  # fmt: skip
        exec(notebook.arguments_cell(inside), names)
        return compose(*names["ARGUMENTS"]).language_model.name

    assert find() == str(base_folder / file if file.endswith(".gguf") else base_folder)
    other.mkdir()
    (other / file).write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"2 .*expected one, of the attached base model.*set BASE"):
        find()


def test_for_a_p100_its_own_torch_is_installed_and_one_process_started(tmp_path: Path) -> None:
    inside = contents.Contents(tmp_path, "arena_deberta", "encoder", (tmp_path,), None, "auto", "none")
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    for gpu, always, processes in (("p100", ["torch"], 1), ("t4", [], 2)):
        asked = argparse.Namespace(gpu=gpu, wheels=None, no_wheels=True, python="3.12")
        kaggle_bundle.put_wheels(tmp_path / gpu, asked, inside)
        assert json.loads((tmp_path / gpu / "tiebreak-wheels.json").read_text())["always"] == always
        book = notebook.notebook_of(inside, notebook.Names("ada", "x", "llm", gpu))
        cell = next(one["source"] for one in book["cells"] if one["id"] == "predict")
        names: dict[str, Any] = {"Path": Path}
        exec("".join(cell[:2]), names)
        assert names["processes"] == (gpus or processes)
