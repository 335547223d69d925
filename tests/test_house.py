"""The house: imports run one way, every experiment composes, the doors answer fast and refuse by name."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, compose

from models.settings import FREE_KEYS, flatten

EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
# Who may import whom: each may import itself and what stands before it.
ORDER = ["models.tasks", "models", "infer", "train"]
HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "evaluate", "deepspeed", "wandb", "sklearn", "datasets"}


def imports_of(path: Path, *, top_only: bool) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def layer(module: str) -> int | None:
    if module.startswith("models.tasks"):
        return 0
    names = {"models": 1, "infer": 2, "train": 3}
    return names.get(module.split(".")[0])


@pytest.mark.parametrize("folder", ORDER)
def test_imports_run_one_way(folder: str) -> None:
    here = ORDER.index(folder)
    files = (ROOT / folder.replace(".", "/")).glob("*.py")
    for path in files:
        upward = [name for name in imports_of(path, top_only=False) if (layer(name) or 0) > here]
        assert not upward, f"{path.relative_to(ROOT)} imports {upward}"


def test_nothing_imports_scripts() -> None:
    for folder in ("models", "infer", "train"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not {name for name in imports_of(path, top_only=False) if name.startswith(("scripts", "tests"))}


def test_tasks_know_no_torch() -> None:
    for path in (ROOT / "models" / "tasks").glob("*.py"):
        assert not {name.split(".")[0] for name in imports_of(path, top_only=False)} & {"torch", "transformers"}, path


def test_hydra_is_imported_at_the_door_only() -> None:
    for folder in ("models", "infer", "train"):
        for path in (ROOT / folder).rglob("*.py"):
            if path != ROOT / "infer" / "door.py":
                names = {name.split(".")[0] for name in imports_of(path, top_only=False)}
                assert not names & {"hydra", "omegaconf"}, path


def test_the_doors_import_nothing_heavy() -> None:
    schema = ("models/settings.py", "models/engine_settings.py", "models/kind_settings.py")
    for name in ("infer/door.py", "infer/overrides.py", "infer/cli.py", "train/cli.py", *schema):
        assert not {found.split(".")[0] for found in imports_of(ROOT / name, top_only=True)} & HEAVY, name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_carries_its_own_name(name: str) -> None:
    assert compose(f"+experiment={name}").name == name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_says_its_command(name: str) -> None:
    text = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n#")
    assert f"+experiment={name}" in text.split("defaults:")[0].split("\nname:")[0]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_experiment_repeats_a_default(name: str) -> None:
    import yaml
    from omegaconf import OmegaConf

    content = yaml.safe_load((ROOT / "conf" / "experiment" / f"{name}.yaml").read_text())
    chosen = [key for entry in content.pop("defaults", []) for key in entry.items()]
    groups = [f"{group.removeprefix('override /')}={choice}" for group, choice in chosen]
    default = leaves(OmegaConf.to_container(_config(*groups), resolve=False))
    same = {key: value for key, value in leaves(content).items() if key in default and default[key] == value}
    assert not same, f"{name} repeats {same}"


def leaves(tree: dict, prefix: str = "") -> dict:
    """{"task.budget_tokens": 512, ...} of nested mappings."""
    flat: dict = {}
    for key, value in tree.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + str(key): value}
    return flat


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+trainer.epoch=3", "Did you mean trainer.epochs"),
        ("+model.heads=joint", "Did you mean model.head"),
        ("trainer.epochs=abc", "trainer.epochs"),
        ("task.budget_tokens=many", "task.budget_tokens"),
        ("trainer.swap=maybe", "trainer.swap='maybe'"),
        ("model.head=both", "model.head='both'"),
        ("folds.count=1", "folds.count=1"),
        ("folds.only=[7]", "folds.only=7"),
        ("folds.holdout=1.5", "folds.holdout=1.5"),
        ("trainer.label_smoothing=2", "trainer.label_smoothing=2"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(override: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        compose("+experiment=arena_quickstart", override)


def test_pair_features_need_the_siamese_head() -> None:
    with pytest.raises(ValueError, match="siamese"):
        compose("+experiment=arena_quickstart", "model.head=joint", "model.pair_features=true")


def test_free_keys_are_settings() -> None:
    assert set(flatten(compose("+experiment=arena_quickstart"))) >= FREE_KEYS


def run_door(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env=os.environ | environment,
    )  # fmt: skip


def test_help_answers_without_heavy_imports() -> None:
    before = os.times()
    done = run_door("train", "--help", PYTHONPROFILEIMPORTTIME="1")
    after = os.times()
    seconds = sum(after[2:4]) - sum(before[2:4])  # of the processor's time, its children's: no busy machine's
    assert done.returncode == 0 and "python -m infer" in done.stdout
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not imported & HEAVY
    assert seconds < 10  # under one; this bound only catches a forgotten import


def test_multirun_under_two_ranks_is_refused_with_what_to_do() -> None:
    done = run_door("train", "--multirun", "+experiment=arena_quickstart", "seed=1,2", WORLD_SIZE="2", RANK="0")
    assert done.returncode == 2
    assert "one by one" in done.stderr


def test_no_experiment_is_refused_with_what_to_add() -> None:
    done = run_door("infer")
    assert done.returncode == 2 and "+experiment=NAME" in done.stderr


@pytest.mark.parametrize("override", ["trainer.epoch=3", "trainr.epochs=3"])
def test_a_misspelt_override_is_answered_with_the_right_key(override: str) -> None:
    done = run_door("train", "+experiment=arena_quickstart", override)
    assert done.returncode == 2 and "Did you mean trainer.epochs?" in done.stderr


def test_a_switch_may_be_written_with_dashes() -> None:
    from infer.overrides import as_meant

    assert as_meant(["--spreadsheet", "--help", "+experiment=x"]) == ["++spreadsheet=true", "--help", "+experiment=x"]


def test_jobs_of_a_sweep_get_folders_of_their_own() -> None:
    from infer.door import to_settings

    config = _config("+experiment=arena_quickstart")
    assert to_settings(config, "trainer.epochs=1").run_dir == "runs/arena_quickstart/seed42/trainer.epochs=1"
    assert to_settings(config).run_dir == "runs/arena_quickstart/seed42"


def _config(*overrides: str):
    """The config as Hydra composes it, before the schema."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module

    with initialize_config_module("conf", version_base="1.3"):
        return hydra_compose("config", overrides=list(overrides))


def test_relative_paths_stay_relative_to_where_the_command_runs(tmp_path: Path) -> None:
    """Finetuning trap 33: without version_base Hydra moves into its own folder and `task.train_csv=my.csv` is lost."""
    from conftest import pair_rows, write_arena_csv

    write_arena_csv(tmp_path / "my.csv", pair_rows(24))
    done = subprocess.run(
        [sys.executable, "-m", "train", "+experiment=arena_length", "doctor=true", "task.train_csv=my.csv"],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "24 rows from my.csv" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["my.csv"], "Hydra left folders of its own"


def test_settings_are_plain_containers() -> None:
    """Finetuning trap 34: OmegaConf's own lists leak into JSON, W&B and pickles."""
    settings = compose("+experiment=arena_quickstart", "folds.only=[0]", "blend.runs=[a,b]")
    assert type(settings.folds.only) is list and type(settings.blend.runs) is list


@pytest.mark.parametrize("name", ["arena_blend", "reviews_soft"])
def test_train_sends_what_is_not_trained_to_the_other_verb(name: str) -> None:
    done = run_door("train", f"+experiment={name}")
    assert done.returncode == 2 and f"python -m infer +experiment={name}" in done.stderr
