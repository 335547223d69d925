"""A comparison from its command line to its page: rows without overlap, a process a way, one failure costs one way."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import WORDS, compose
from hydra import initialize_config_module
from test_report import page_data

from infer import compare_ways
from infer.cli import ways_of
from infer.compare import compare
from infer.compare_rows import draw_rows
from infer.compare_ways import Way, identity_of, way_arguments
from infer.overrides import as_meant, laid_over, unknown_override

WAYS = ("compare.ways={shares:['method.name=prior'],words:['method=tfidf'],read:[],"
        "foreign:['method=encoder','model=minilm','compare.learn=no']}")  # fmt: skip


def labelled(count: int = 60) -> pd.DataFrame:
    """Rows whose label a word tells, the first few of them with a text that comes again in capitals."""
    random = np.random.default_rng(0)
    label = np.array(["positive", "negative"])[np.arange(count) % 2]
    word = np.where(label == "positive", "good", "bad")
    texts = [f"{random.choice(WORDS)} {one} {random.choice(WORDS)} {at}" for at, one in enumerate(word)]
    texts[-6:] = [text.upper() for text in texts[:6]]
    return pd.DataFrame({"key": [f"k{at}" for at in range(count)], "text": texts, "label": label, "more": "x"})


def line_of(folder: Path, model: str, encoder: str, *overrides: str) -> list[str]:
    return [
        "+experiment=reviews_soft", f"model.name={model}", f"task.input_csv={folder / 'in.csv'}", "task.id_column=key",
        f"run_dir={folder / 'out'}", f"output={folder / 'out' / 'comparison.csv'}",
        WAYS.replace("'compare.learn=no'", f"'compare.learn=no','model.name={encoder}'"), *overrides,
    ]  # fmt: skip


@contextmanager
def door() -> Iterator[None]:
    """What stands around a command while it runs."""
    with initialize_config_module("conf", version_base="1.3"):
        yield


def start(line: list[str]) -> Path:
    settings = compose("report=true", *line)
    with door():
        ways = ways_of(settings, line)
    return compare(settings, ways)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, tiny_language_model: str, tiny_encoder: str) -> dict[str, Any]:
    """A comparison of four ways, one of which cannot be read: its folder, its line and what it raised."""
    folder = tmp_path_factory.mktemp("compare")
    labelled().to_csv(folder / "in.csv", index=False)
    line = line_of(folder, tiny_language_model, tiny_encoder)
    with pytest.raises(ValueError) as raised:
        start(line)
    return {"folder": folder, "line": line, "said": str(raised.value), "out": folder / "out"}


def test_a_way_that_fails_is_named_and_costs_the_others_nothing(compared: dict[str, Any]) -> None:
    assert compared["said"].startswith("1 of 4 ways failed: foreign: ") and "LABEL_0" in compared["said"]
    table = pd.read_csv(compared["out"] / "comparison.csv", index_col="way")
    assert list(table.index)[-1] == "foreign" and "LABEL_0" in table.loc["foreign", "trouble"]
    assert table.loc[["shares", "words", "read"], "accuracy"].notna().all()


def test_the_table_holds_what_each_way_scored_and_cost(compared: dict[str, Any]) -> None:
    table = pd.read_csv(compared["out"] / "comparison.csv", index_col="way")
    assert table.loc["words", "accuracy"] >= 0.8, "a word tells the label"
    assert table.loc["shares", "accuracy"] == pytest.approx(0.5)
    rows = len(pd.read_csv(compared["out"] / "test.csv"))
    assert (table["rows"].dropna() == rows).all()
    assert table.loc["words", "labelled_rows"] == 60 - rows and table.loc["read", "labelled_rows"] == 2
    cost = table.loc[["shares", "words", "read"], ["rows_per_s", "peak_mib"]]
    assert (cost["rows_per_s"] > 0).all() and (cost["peak_mib"] > 50).all()
    read = pd.read_parquet(compared["out"] / "ways" / "read" / "predictions.parquet")
    assert (read["predicted"] == read["label"]).mean() == pytest.approx(table.loc["read", "accuracy"])


def test_the_page_has_every_way_and_asks_for_nothing(compared: dict[str, Any]) -> None:
    data = page_data(compared["out"] / "report.html")
    assert {curve["method"] for curve in data["curves"]} == {"shares", "words", "read"}
    assert {one["method"] for one in data["reliability"]} == {"shares", "words", "read"}
    text = (compared["out"] / "report.html").read_text(encoding="utf-8")
    assert "These ways failed" in text and "Where they differ" in text
    assert (compared["out"] / "report_curves.png").is_file()


def test_no_text_is_in_both_files_and_every_column_comes_along(compared: dict[str, Any]) -> None:
    fit, test = (pd.read_csv(compared["out"] / name) for name in ("fit.csv", "test.csv"))
    assert not set(fit["text"].str.casefold()) & set(test["text"].str.casefold())
    assert sorted([*fit["key"], *test["key"]]) == sorted(labelled()["key"]), "each row once"
    assert list(test.columns) == ["key", "text", "label", "more"]


def test_a_finished_way_is_not_run_again(compared: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr(compare_ways, "_run", lambda verb, line, folder: (ran.append(folder.name), (0.0, None, "x"))[1])
    before = (compared["out"] / "ways" / "words" / "predictions.parquet").read_bytes()
    with pytest.raises(ValueError, match="1 of 4 ways failed: foreign: x"):
        start([*compared["line"], "report=false"])
    assert ran == ["foreign"]
    assert (compared["out"] / "ways" / "words" / "predictions.parquet").read_bytes() == before
    ran.clear()
    with pytest.raises(ValueError, match="ways failed"):
        start([*compared["line"], "report=false", "question.prompt='A film: {text} It was'"])
    assert ran == ["read", "foreign"], "of another prompt only what is asked is made again"


def test_only_some_ways_are_run_and_the_finished_ones_are_shown(
    compared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_ways, "_run", lambda *_: pytest.fail("nothing is left to run"))
    line = [*compared["line"], "report=false", "compare.only=[words]", f"output={compared['folder'] / 'some.csv'}"]
    monkeypatch.setattr(compare_ways, "identity_in", lambda path: _unless(path, "read"))
    table = pd.read_csv(start(line))
    assert sorted(table["way"]) == ["shares", "words"]


def _unless(path: Path, name: str) -> Any:
    from infer.identity import identity_in

    return None if path.parent.name == name else identity_in(path)


def test_the_same_seed_draws_the_same_rows_and_another_draws_others(tmp_path: Path) -> None:
    labelled().to_csv(tmp_path / "in.csv", index=False)
    common = ["+experiment=reviews_soft", f"task.input_csv={tmp_path / 'in.csv'}", "task.id_column=key",
              "compare.per_class=10"]  # fmt: skip
    drawn = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        rows = draw_rows(compose(*common, f"seed={seed}"), tmp_path / name)
        drawn[name] = (tmp_path / name / "test.csv").read_bytes(), (tmp_path / name / "fit.csv").read_bytes()
        counts = pd.concat([pd.read_csv(rows.fit), pd.read_csv(rows.test)])["label"].value_counts()
        assert counts.to_dict() == {"positive": 10, "negative": 10}
        assert len(rows.ids) == 10 and rows.fit_rows == 10
    assert drawn["a"] == drawn["b"] and drawn["a"] != drawn["c"]


def test_rows_without_a_label_or_an_id_column_are_no_obstacle(tmp_path: Path) -> None:
    frame = labelled().drop(columns="key")
    frame.loc[:3, "label"] = ""
    frame.rename(columns={"more": "id"}).to_csv(tmp_path / "in.csv", index=False)
    settings = compose("+experiment=reviews_soft", f"task.input_csv={tmp_path / 'in.csv'}", "task.id_column=null")
    rows = draw_rows(settings, tmp_path)
    assert rows.id_column == "row" and len(rows.ids) + rows.fit_rows == 56
    assert set(pd.read_csv(rows.test)["id"]) == {"x"}, "the file's own column is kept as it was"


def test_a_table_without_labels_cannot_be_compared_on(tmp_path: Path) -> None:
    labelled().drop(columns="label").to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises(ValueError, match="no column of labels to judge by: it has key, text, more"):
        draw_rows(compose("+experiment=reviews_soft", f"task.input_csv={tmp_path / 'in.csv'}"), tmp_path)


def test_a_model_that_is_not_there_is_refused_before_any_way_runs(
    tmp_path: Path, tiny_language_model: str, tiny_encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled().to_csv(tmp_path / "in.csv", index=False)
    monkeypatch.setattr(compare_ways, "_run", lambda *_: pytest.fail("too early"))
    line = [*line_of(tmp_path, tiny_language_model, tiny_encoder), "model.name=/nowhere/at/all"]
    with pytest.raises((ValueError, OSError), match=r"compare\.ways\.read: .*nowhere"):
        start(line)


@pytest.mark.parametrize(
    ("ways", "said"),
    [
        ("compare.ways={a:['method=tfidf']}", "expected two ways or more"),
        ("compare.ways={a:['method=tfidf'],b:['method=tfdif']}", r"compare\.ways\.b: .*tfdif"),
        (
            "compare.ways={a:['method=tfidf'],b:['trainer.epoch=2']}",
            r"compare\.ways\.b: .*Did you mean trainer\.epochs",
        ),
        ("compare.ways={a:['method=tfidf'],b:prior}", r"compare\.ways\.b='prior': expected a list"),
        ("compare.ways={a:[],b c:[]}", "expected letters, digits"),
        ("compare.test_share=1.5", "compare.test_share=1.5"),
    ],
)
def test_ways_that_mean_nothing_are_refused_by_name(ways: str, said: str) -> None:
    line = ["+experiment=reviews_soft", ways]
    with pytest.raises(ValueError, match=said):
        settings = compose(*line)
        with door():
            ways_of(settings, line)


def test_arena_rows_are_not_compared() -> None:
    with pytest.raises(ValueError, match=r"compare\.ways reads texts, not task\.name=arena"):
        compose("+experiment=arena_length", "compare.ways={a:[],b:[]}")


def test_an_override_of_a_way_takes_the_place_of_the_command_lines() -> None:
    line = ["+experiment=x", "method=tfidf", "seed=1"]
    assert laid_over(line, ["method=prior", "++model.name=a"]) == [
        "+experiment=x",
        "seed=1",
        "method=prior",
        "++model.name=a",
    ]


def test_a_way_reads_checkpoints_of_another_run_where_it_does_not_learn() -> None:
    def run_dir(*overrides: str) -> list[str]:
        line = way_arguments(["+experiment=x", "run_dir=out"], "mine", overrides, Path("out"))
        return [one for one in line if one.lstrip("+").startswith("run_dir=")]

    assert run_dir("method=encoder", "run_dir=runs/mine", "compare.learn=no") == ["run_dir=runs/mine"]
    assert run_dir("method=tfidf", "++run_dir=runs/old", "compare.learn=no") == ["++run_dir=runs/old"]
    assert run_dir("method=tfidf") == ["run_dir=out/ways/mine/run"]
    with pytest.raises(ValueError, match=r"would be trained into that folder.*compare\.learn=no"):
        run_dir("method=encoder", "run_dir=runs/mine")


@pytest.mark.parametrize("override", ["output=x.csv", "++task.input_csv=other.csv", "compare.test_share=0.2"])
def test_a_way_cannot_read_other_rows_or_write_elsewhere(override: str) -> None:
    with pytest.raises(ValueError, match="A way cannot set"):
        way_arguments(["+experiment=x"], "mine", [override], Path("out"))


def test_a_model_of_the_command_line_is_not_given_to_a_way_with_a_model_of_its_own() -> None:
    line = ["+experiment=reviews_soft", "model.name=/my/llm", "compare.ways={a:[],b:['method=encoder','model=minilm']}"]
    settings = compose(*line)
    with door():
        ways = {way.name: way.settings for way in ways_of(settings, line)}
    assert ways["a"].model.name == "/my/llm" and "minilm" in ways["b"].model.name.lower()


def test_a_way_with_other_labels_is_refused_by_name() -> None:
    line = ["+experiment=reviews_soft", "compare.ways={a:['method=tfidf'],b:['question=skills','method=tfidf']}"]
    said = r"compare\.ways\.b: It answers with Hard, Soft, Unknown, and the comparison with positive, negative\."
    settings = compose(*line)
    with pytest.raises(ValueError, match=said), door():
        ways_of(settings, line)


def test_a_table_to_learn_from_beside_the_input_is_refused(tmp_path: Path) -> None:
    labelled().to_csv(tmp_path / "in.csv", index=False)
    more = ["task.train_csv=mine.csv", f"task.input_csv={tmp_path / 'in.csv'}"]
    with pytest.raises(ValueError, match=r"task\.train_csv=mine\.csv: a comparison draws"):
        draw_rows(compose("+experiment=reviews_soft", *more), tmp_path)


def test_a_way_depends_on_its_models_files_its_decision_and_its_calibrator(tmp_path: Path, tiny_encoder: str) -> None:
    for name in ("decision", "calibrator"):
        (tmp_path / f"{name}.json").write_text("{}")
    shutil.copytree(tiny_encoder, tmp_path / "network")
    ruled = ["method=encoder", "model=minilm", f"model.name={tmp_path / 'network'}"]
    files = [f"decision={tmp_path / 'decision.json'}", f"calibration.use={tmp_path / 'calibrator.json'}"]
    embedded = ["method=embedding_centroid", f"embedding.name={tmp_path / 'network'}"]
    composed = [compose("+experiment=reviews_soft", *own) for own in (ruled, [*ruled, *files], embedded)]

    def identities() -> list[dict[str, Any]]:
        rows = SimpleNamespace(identity={})
        return [identity_of(Way("a", (), one), rows) for one in composed]  # type: ignore[arg-type]

    before = identities()
    assert before == identities()
    (tmp_path / "decision.json").write_text("{} ")
    assert [one == other for one, other in zip(before, identities(), strict=True)] == [True, False, True]
    before = identities()
    (tmp_path / "calibrator.json").write_text("{} ")
    assert [one == other for one, other in zip(before, identities(), strict=True)] == [True, False, True]
    config = tmp_path / "network" / "config.json"
    config.write_text(config.read_text() + " ")
    assert not any(one == other for one, other in zip(before, identities(), strict=True))


@pytest.mark.parametrize(
    ("lines", "code", "said"),
    [
        ("reading\nerror: labels are missing\n(TIEBREAK_TRACEBACK=1 shows where)\n", 2, "labels are missing"),
        ("File x, line 3\nKeyError: 'a'\n\nSet the environment variable HYDRA_FULL_ERROR=1\n", 1, "KeyError: 'a'"),
        ("what a library said\n", 3, "what a library said"),
        ("", 3, "exit code 3"),
        ("half\n", -9, "killed by signal 9, memory may have run out"),
    ],
)
def test_what_a_failed_process_said_is_told_in_one_line(tmp_path: Path, lines: str, code: int, said: str) -> None:
    (tmp_path / "log.txt").write_text("error: of an earlier start\n" + lines)
    begin = len("error: of an earlier start\n")
    assert compare_ways._last_words(tmp_path / "log.txt", begin, code) == said


def test_one_more_way_can_be_given_beside_those_of_the_experiment() -> None:
    assert unknown_override(["compare.ways.mine=[method=prior]"]) is None
    settings = compose("+experiment=reviews_compare", "compare.ways.mine=[method=prior]")
    assert settings.compare.ways["mine"] == ["method=prior"] and "few_shot" in settings.compare.ways
    assert as_meant(["compare.ways={a:[]}"])[0] == "++compare.ways=null", "given whole, they take the others' place"


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_comparison_that_is_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    import subprocess
    import time

    script = (
        "import os, subprocess, sys, time\nfrom infer.compare_ways import _die_with_parent\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], preexec_fn=_die_with_parent)\n"
        "print(child.pid, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(100):
        state = Path(f"/proc/{child}/status")
        if not state.is_file() or "State:\tZ" in state.read_text():
            return
        time.sleep(0.1)
    os.kill(child, 9)
    pytest.fail("the child went on")


def test_every_comparison_composes_each_of_its_ways(tmp_path: Path) -> None:
    from conftest import ROOT

    names = sorted(
        path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml") if "compare:" in path.read_text()
    )
    assert "reviews_compare" in names
    for name in names:
        line = [f"+experiment={name}"]
        settings = compose(*line)
        with door():
            assert [way.name for way in ways_of(settings, line)] == list(settings.compare.ways), name
    assert json.dumps(settings.compare.ways)
