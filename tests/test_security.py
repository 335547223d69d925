"""What SECURITY.md says is kept out: code in weights, paths that lead out of a folder, forged lines, formulas, keys."""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import ROOT, compose
from safetensors.torch import load_file

from infer.chunked import open_parts, part_schema
from infer.fitted_files import load_fitted, save_fitted
from infer.logs import indented, open_log, plain
from infer.text_run import open_source, run_identity
from models.adapter_files import weight_files
from models.causal import load_language_model
from models.encoder import load_encoder

SOURCES = [path for folder in ("models", "infer", "train") for path in (ROOT / folder).rglob("*.py")]
FORGED = "x\nFORGED 1\r\nFORGED 2\x1b[31m\u2028FORGED 3\u202e"


def calls_of(path: Path) -> list[tuple[str, ast.Call]]:
    """(the dotted name that is called, the call) of a source file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_no_code_of_a_model_is_ever_run() -> None:
    """Every from_pretrained of transformers says trust_remote_code=False, and no config can say otherwise."""
    seen = 0
    for path in SOURCES:
        for name, call in calls_of(path):
            if not name.endswith(".from_pretrained") or name.startswith("Peft"):
                continue
            seen += 1
            said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert said.get("trust_remote_code") == "False" or "arguments" in said.get(None, ""), f"{path}: {name}"
    assert seen >= 8
    assert all("trust_remote_code" not in path.read_text() for path in (ROOT / "conf").rglob("*.yaml"))


def test_nothing_is_unpickled_and_nothing_is_unpacked_into_a_folder() -> None:
    refused = re.compile(
        r"^(pickle|joblib|dill|cloudpickle)\.|^torch\.load$|\.extractall$|unpack_archive$|^eval$|^exec$"
    )
    for path in SOURCES:
        for name, call in calls_of(path):
            assert not refused.search(name), f"{path}, line {call.lineno}: {name}"
            assert "allow_pickle=True" not in ast.unparse(call), f"{path}, line {call.lineno}: {name}"
            if re.fullmatch(r"yaml\.\w+", name):
                assert name in ("yaml.safe_load", "yaml.safe_dump"), f"{path}, line {call.lineno}: {name}"


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (os.environ["BOMB"],))


def test_an_encoders_pickle_is_opened_by_request_only_and_never_run(
    tmp_path: Path, tiny_encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models.encoder import load_encoder

    folder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, folder)
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights as safetensors.*model\.allow_pickle=true"):
        load_encoder(str(folder))
    found = load_encoder(str(folder), allow_pickle=True).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    torch.save({**weights, "bomb": _Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights.only|unpickl"):
        load_encoder(str(folder), allow_pickle=True)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/b", "..", ""])
def test_a_saved_classifier_names_no_part_outside_its_folder(name: str, tmp_path: Path) -> None:
    save_fitted(tmp_path / "inside", "tfidf", {}, {"words": [1, 2]})
    save_fitted(tmp_path, "tfidf", {}, {"outside": [3]})
    assert load_fitted(tmp_path / "inside", "tfidf")[1] == {"words": [1, 2]}
    path = tmp_path / "inside" / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parts": [name]}))
    with pytest.raises(ValueError, match=r"settings\.json is no saved classifier's"):
        load_fitted(tmp_path / "inside", "tfidf")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/secret.safetensors", "a/../../x", "C:\\x", "..\\x"])
def test_a_list_of_weights_that_leads_out_of_its_folder_is_refused(
    name: str, tmp_path: Path, tiny_encoder: str, tiny_language_model: str
) -> None:
    for source, load in ((tiny_encoder, load_encoder), (tiny_language_model, load_language_model)):
        folder = tmp_path / Path(source).name
        shutil.copytree(source, folder)
        tensors = list(load_file(folder / "model.safetensors"))
        shutil.move(folder / "model.safetensors", tmp_path / "secret.safetensors")
        (folder / "other.safetensors").write_bytes((tmp_path / "secret.safetensors").read_bytes())
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(tensors, name)}))
        with pytest.raises(ValueError, match=r"index\.json names .* outside of its folder"):
            load(str(folder))
    with pytest.raises(ValueError, match="outside of its folder"):
        weight_files(str(folder))


@pytest.mark.parametrize("kept", [0, 7, 3000])
def test_damaged_weights_are_refused_by_name(
    kept: int, tmp_path: Path, tiny_encoder: str, tiny_language_model: str
) -> None:
    for source, load in ((tiny_encoder, load_encoder), (tiny_language_model, load_language_model)):
        folder = tmp_path / Path(source).name
        shutil.copytree(source, folder)
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=f"{folder.name} holds weights that are damaged"):
            load(str(folder))


def test_every_test_that_security_md_names_is_there() -> None:
    """Its file, and where words follow the file, a test whose name has them."""
    rows = [line.split("|") for line in (ROOT / "SECURITY.md").read_text().splitlines() if line.startswith("| ")]
    named = 0
    for cells in rows[2:]:
        for file, words in re.findall(r"`(test_\w+\.py)`(?:: ([^`;|]+))?", cells[-2]):
            source = (ROOT / "tests" / file).read_text(encoding="utf-8")
            names = re.findall(r"def (test_\w+)", source)
            wanted = re.findall(r"\w+", words.lower())
            assert names and any(all(word in name for word in wanted) for name in names), f"{file}: {words}"
            named += 1
    assert named >= 20


def test_a_lines_control_characters_are_written_out(tmp_path: Path) -> None:
    assert plain(FORGED) == "x\nFORGED 1\\r\nFORGED 2\\x1b[31m\\u2028FORGED 3\\u202e"
    assert indented("a\nb") == "a\n  b"
    log = open_log(tmp_path / "run.log", main=True)
    log.info(f"row {FORGED}\n2020-01-01 00:00:00  all is well")
    for handler in log.handlers:
        handler.flush()
    lines = (tmp_path / "run.log").read_text().split("\n")
    assert sum(bool(re.match(r"\d{4}-", line)) for line in lines) == 1, lines
    logging.getLogger("tiebreak").handlers.clear()


def test_a_file_cannot_forge_a_line_of_the_commands_output(tmp_path: Path) -> None:
    """A column's name is what an error shows as it is; cells are shown in quotes, with their line ends written out."""
    pd.DataFrame({"id": ["1"], FORGED: ["a"], "label": ["positive"]}).to_csv(tmp_path / "in.csv", index=False)
    asked = ["+experiment=reviews_soft", f"task.input_csv={tmp_path / 'in.csv'}", f"output={tmp_path / 'out.csv'}"]
    done = subprocess.run([sys.executable, "-m", "infer", *asked], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "FORGED" in done.stderr
    assert not re.search(r"(?m)^FORGED|[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202e]", done.stdout + done.stderr)


def test_keys_in_the_environment_stand_in_no_file_and_no_line(
    tmp_path: Path, tiny_encoder: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A whole training with its record, its log, its card and its report."""
    from conftest import tiny_run

    from train.run import run as train

    secrets = {
        name: f"sk-planted-{name.lower()}" for name in ("OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY", "MY_PASSWORD")
    }
    for name, secret in secrets.items():
        monkeypatch.setenv(name, secret)
    train(tiny_run(tmp_path, tiny_encoder, "report=true"))
    said = capfd.readouterr()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"environment.json", "config.yaml", "report.html"} <= {path.name for path in files}
    for secret in secrets.values():
        assert secret not in said.out + said.err
        assert all(secret.encode() not in path.read_bytes() for path in files)


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"])
def test_a_csv_for_a_spreadsheet_holds_no_formula(begin: str, tmp_path: Path) -> None:
    schema = part_schema(["id", f"{begin}cmd()"], ["p_a", "predicted"])
    cells = {"id": [f"{begin}1+1", "1=1"], f"{begin}cmd()": [None, f"{begin}x"]}
    frame = pd.DataFrame({**cells, "p_a": [-0.5, 0.25], "predicted": [f"{begin}a", "a-"]})
    for name, identity in (("plain.csv", {}), ("shown.csv", {"spreadsheet": True})):
        with open_parts(tmp_path / name, identity, schema) as parts:
            parts.write(0, frame)
            parts.merge(1, {})
    exact, shown = (pd.read_csv(tmp_path / name, dtype=str) for name in ("plain.csv", "shown.csv"))
    assert exact["id"].tolist() == [f"{begin}1+1", "1=1"], "by default a cell is what it was"
    assert shown["id"].tolist() == [f"'{begin}1+1", "1=1"] and shown["predicted"].tolist() == [f"'{begin}a", "a-"]
    assert shown.columns.tolist() == ["id", f"'{begin}cmd()", "p_a", "predicted"]
    assert shown["p_a"].tolist() == ["-0.5", "0.25"], "numbers stay numbers"
    assert (tmp_path / "shown.csv").read_bytes().startswith(b"\xef\xbb\xbf")


def test_a_spreadsheet_is_another_table_and_needs_a_csv(tmp_path: Path) -> None:
    rows = tmp_path / "in.csv"
    rows.write_text("id,text\n=1,a\n")
    asked = ["+experiment=reviews_soft", f"task.input_csv={rows}"]
    settings = [
        compose(*asked, f"output={tmp_path / 'out.csv'}", f"spreadsheet={given}") for given in ("false", "true")
    ]
    identities = [run_identity(one, open_source(one)) for one in settings]
    assert identities[1] == identities[0] | {"spreadsheet": True}
    with pytest.raises(ValueError, match=r"a spreadsheet opens \.csv"):
        compose(*asked, f"output={tmp_path / 'out.parquet'}", "spreadsheet=true")
