"""The ways of a comparison before they run: what is refused by name, what a way's command line and its identity are."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import compose
from test_compare import door, labelled

from infer.cli import ways_of
from infer.compare import ways as compare_ways
from infer.compare.rows import draw_rows
from infer.compare.ways import Way, identity_of, way_arguments
from infer.overrides import as_meant, laid_over, unknown_override


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
        "import os, subprocess, sys, time\nfrom infer.compare.ways import _die_with_parent\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], preexec_fn=_die_with_parent)\n"
        "print(child.pid, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(600):
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
