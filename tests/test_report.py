"""The report's numbers, what its page holds and leaves out, and the reports of a run folder and of a table on disk."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
from test_cutoffs import drawn, table

from infer.files import write_json
from infer.predictions import Predictions
from infer.report import ArenaFacts, ReportInput, write_report
from infer.report.__main__ import main
from infer.report.figures import figures
from infer.report.rows import most_useful, row_losses, row_table
from infer.report.run_folder import column_texts

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> \u2028 \ud800 {{data}}"


def page_data(path: Path) -> dict:
    """What the page's scripts read."""
    text = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    return json.loads(found[1])


def sharper(predictions: Predictions, power: float) -> Predictions:
    probs = predictions.probs64() ** power
    return replace(predictions, probs=probs / probs.sum(axis=1, keepdims=True))


def test_a_page_holds_no_text_of_a_row_as_html(tmp_path: Path) -> None:
    rows = drawn(20, ("<b>bold</b>", "it's"))
    report = ReportInput(
        title=HOSTILE, predictions=rows, name=HOSTILE, texts=dict.fromkeys(rows.ids, HOSTILE), baselines={HOSTILE: 1.0},
        about={HOSTILE: HOSTILE}, strays=[(HOSTILE, 0.1)], comparison=[{HOSTILE: HOSTILE}],
    )  # fmt: skip
    path = write_report(tmp_path / "report.html", report, pictures=False)
    text = path.read_text(encoding="utf-8")
    assert "<script>window" not in text and "<img" not in text and "<b>bold" not in text
    assert text.count("<script") == 4, "one for the theme, the data, plotly, the page"
    assert page_data(path)["rows"]["rows"][0][5][0] == HOSTILE.replace("\ud800", "?")


def test_a_page_asks_the_network_for_nothing(tmp_path: Path) -> None:
    text = write_report(tmp_path, ReportInput("t", drawn(20)), pictures=False).read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert not re.findall(
        r"""(?:src|href)\s*=\s*["']""", re.sub(r'<script type="text/plain".*?</script>', "", text, flags=re.S)
    )


def test_the_same_input_makes_the_same_page(tmp_path: Path) -> None:
    report = ReportInput("t", drawn(50), about={"date": "a day"})
    pages = [write_report(tmp_path / name, report, pictures=False).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_every_number_of_a_page_is_that_of_its_table() -> None:
    rows = drawn(300, ("a", "b", "c"))
    found = figures(ReportInput("t", rows, calibrated=sharper(rows, 1.3)))
    truth = rows.label_index()
    assert found["confusion"] == sklearn.metrics.confusion_matrix(truth, rows.probs.argmax(axis=1)).tolist()
    for curve in found["curves"]:
        column = rows.labels.index(curve["label"])
        assert curve["auc"] == pytest.approx(sklearn.metrics.roc_auc_score(truth == column, rows.probs[:, column]))
    before, after = found["reliability"]
    assert [before["log_loss"], after["log_loss"]] == [rows.log_loss(), sharper(rows, 1.3).log_loss()]
    assert sum(part["rows"] for part in after["bins"]) == 300
    assert sum(found["confidence"]["right"]) == (rows.predicted == rows.truth).sum()
    assert sum(found["confidence"]["wrong"]) == (rows.predicted != rows.truth).sum()


def test_thresholds_are_chosen_on_the_calibrated_table() -> None:
    rows = table(np.array([[0.4, 0.6], [0.7, 0.3]]), ["yes", "no"])
    modes = figures(ReportInput("t", rows, calibrated=sharper(rows, 3.0)))["cutoffs"]["modes"]
    sure = modes[2]
    top = [sure["thresholds"][at] for at in np.array(sure["counts"]).reshape(-1, 3)[:, 0]]
    assert max(top) > 0.75, "0.6 becomes 0.77"


def test_a_table_without_labels_has_rows_and_shares_but_no_score(tmp_path: Path) -> None:
    rows = drawn(30)
    bare = Predictions(rows.ids, rows.labels, rows.probs, rows.other)
    path = write_report(tmp_path / "report.html", ReportInput("t", bare))
    data = page_data(path)
    assert data["score"] is None and data["curves"] is None and data["confusion"] is None
    assert len(data["rows"]["rows"]) == 30 and not data["cutoffs"]["labelled"]
    assert 'id="curves"' not in path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"], "no picture has data"


def test_partly_labelled_rows_are_scored_where_they_can_be() -> None:
    rows = drawn(30)
    some = replace(rows, truth=np.where(np.arange(30) < 20, rows.truth, None))
    found = figures(ReportInput("t", some))
    assert found["score"]["rows"] == 20 and found["cutoffs"]["rows"] == 20 and len(found["rows"]["rows"]) == 30


def test_one_class_of_true_labels_leaves_the_curves_out() -> None:
    found = figures(ReportInput("t", table(np.array([[0.4, 0.6], [0.7, 0.3]]), ["yes", "yes"])))
    assert found["curves"] is None and found["score"]["auc"] is None


def test_methods_are_joined_by_id_and_take_the_truth_of_the_table() -> None:
    rows = drawn(100)
    order = np.random.default_rng(0).permutation(100)
    other = replace(sharper(rows, 2.0).take(order), truth=None)
    found = figures(ReportInput("t", rows, name="mine", methods={"other": other}))["curves"]
    by_method = {curve["method"]: curve["auc"] for curve in found if curve["label"] == "yes"}
    assert by_method["mine"] == pytest.approx(by_method["other"]), "sharper probabilities rank the same"


def test_methods_of_other_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="other has true label"):
        ReportInput("t", drawn(10), methods={"other": drawn(9)})
    elsewhere = replace(drawn(9), ids=np.array([f"x{at}" for at in range(9)], dtype=object))
    with pytest.raises(ValueError, match="other has none of the rows"):
        ReportInput("t", drawn(10), methods={"other": elsewhere})


def test_a_method_that_left_rows_open_is_drawn_by_those_that_it_answered() -> None:
    rows = drawn(100)
    part = replace(sharper(rows, 2.0).take(np.arange(40)), truth=None)
    found = figures(ReportInput("t", rows, name="mine", methods={"part": part}))["curves"]
    by_method = {curve["method"]: curve["auc"] for curve in found if curve["label"] == "yes"}
    assert by_method["part"] == pytest.approx(
        sklearn.metrics.roc_auc_score(rows.truth[:40] == "yes", rows.probs[:40, 1])
    )
    assert by_method["mine"] == pytest.approx(sklearn.metrics.roc_auc_score(rows.truth == "yes", rows.probs[:, 1]))


def test_a_method_of_labels_alone_is_a_point_among_the_curves(tmp_path: Path) -> None:
    rows = drawn(60)
    labels_only = replace(rows, probs=np.eye(2)[rows.probs.argmax(axis=1)])
    report = ReportInput("t", rows, name="soft", methods={"hard": labels_only})
    found = figures(report)
    point = next(curve for curve in found["curves"] if curve["method"] == "hard" and curve["label"] == "yes")
    said, true = rows.predicted == "yes", rows.truth == "yes"
    assert point["point"] == pytest.approx([said[~true].mean(), said[true].mean()])
    assert point["pr_point"] == pytest.approx([said[true].mean(), true[said].mean()])
    assert "roc" not in point and {one["method"] for one in found["reliability"]} == {"soft"}
    assert write_report(tmp_path / "report.html", report).is_file() and (tmp_path / "report_curves.png").is_file()


def test_reliability_is_there_for_every_method_before_and_after() -> None:
    rows = drawn(80)
    report = ReportInput(
        "t", rows, name="a", methods={"b": sharper(rows, 2.0)}, calibrated_methods={"b": sharper(rows, 1.1)}
    )
    found = [(one["method"], one["name"]) for one in figures(report)["reliability"]]
    assert found == [("a", "as predicted"), ("b", "before calibration"), ("b", "after calibration")]


def test_the_rows_of_a_large_table_are_the_most_wrong_and_the_least_sure() -> None:
    rows = drawn(5_000)
    chosen = most_useful(rows, 1_000)
    losses, sure = row_losses(rows), rows.probs.max(axis=1)
    assert len(set(chosen.tolist())) == 1_000
    assert (np.diff(losses[chosen]) <= 0).all(), "most wrong first"
    assert set(np.argsort(-losses)[:500]) <= set(chosen)
    assert len(set(np.argsort(sure)[:300]) - set(chosen)) == 0
    assert losses[chosen].min() < 0.2, "some right ones to compare with"


def test_without_labels_the_least_sure_rows_come_first() -> None:
    rows = drawn(5_000)
    chosen = most_useful(Predictions(rows.ids, rows.labels, rows.probs, rows.other), 1_000)
    assert len(set(chosen.tolist())) == 1_000
    assert (np.diff(rows.probs.max(axis=1)[chosen]) >= 0).all()


def test_long_texts_lose_their_middle_and_say_so() -> None:
    rows = drawn(2)
    shown = row_table(rows, {rows.ids[0]: {"question": "head" + "x" * 50_000 + "tail", "answer": "short"}})
    text = next(row for row in shown["rows"] if row[0] == rows.ids[0])[5][0]
    assert text.startswith("head") and text.endswith("tail") and "characters…]" in text and len(text) < 5_000
    assert shown["columns"] == ["question", "answer"]


def test_the_mass_elsewhere_is_shown_where_there_is_any() -> None:
    rows = drawn(100)
    assert figures(ReportInput("t", rows))["mass"] is None
    found = figures(ReportInput("t", replace(rows, other=np.linspace(0, 1, 100)), strays=[(" the", 0.2)]))["mass"]
    assert sum(found["mass"]) == 100 and sum(found["other"]) == 100 and found["strays"] == [[" the", 0.2]]


def test_arena_figures_follow_lengths_and_winners() -> None:
    labels = ("model_a", "model_b", "tie")
    rows = drawn(200, labels)
    lengths = {rows.ids[at]: (100, 50) if rows.truth[at] == "model_a" else (50, 100) for at in range(200)}
    facts = ArenaFacts(lengths, dict.fromkeys(rows.ids[:50], 0.25))
    found = figures(ReportInput("t", rows, arena=facts))["arena"]
    assert found["winners"]["true"] == pytest.approx([(rows.truth == label).mean() for label in labels])
    assert found["lengths"]["boxes"][0] == {"winner": "model_a", "a": [100] * 5, "b": [50] * 5}
    assert found["difference"]["true"][-1] == 1.0 and found["difference"]["true"][0] < 0
    assert found["disagreement"]["mean"] == pytest.approx(0.25) and sum(found["disagreement"]["rows"]) == 50


def run_folder(folder: Path) -> Predictions:
    """What a run of two folds leaves behind, but for its checkpoints."""
    rows = drawn(60, ("model_a", "model_b", "tie"))
    heldout = replace(rows, fold=np.arange(60) % 2)
    heldout.write(folder / "heldout.csv")
    for fold in (0, 1):
        part = heldout.take(heldout.fold == fold)
        (folder / f"fold{fold}").mkdir()
        part.write(folder / f"fold{fold}" / "heldout.csv")
        np.save(folder / f"fold{fold}" / "disagreement.npy", np.full(30, 0.1))
        log = [{"loss": 1.1, "step": 1}, {"loss": 0.9, "step": 2}, {"eval_log_loss": 1.0, "step": 2, "epoch": 1}]
        write_json(folder / f"fold{fold}" / "done.json", {"fold": fold, "log_loss": part.log_loss(), "log": log})
    return heldout


def test_a_run_folder_becomes_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder(tmp_path)
    assert main([str(tmp_path)]) == 0
    assert "60 rows" in capsys.readouterr().out
    data = page_data(tmp_path / "report.html")
    assert [fold["fold"] for fold in data["folds"]] == [0, 1]
    assert data["training"]["fold 1"] == {"train": [[1, 1.1], [2, 0.9]], "heldout": [[2, 1.0]]}
    assert sum(data["arena"]["disagreement"]["rows"]) == 60
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == [f"report_{name}.png" for name in ("arena", "calibration", "confusion", "curves", "training")]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_a_run_with_a_temperature_shows_both_tables(tmp_path: Path) -> None:
    heldout = sharper(run_folder(tmp_path), 4.0)
    heldout.write(tmp_path / "heldout.csv")
    from infer.metrics import score

    write_json(tmp_path / "metrics.json", {**score(heldout), "temperature": 4.0, "baselines": {"class prior": 1.1}})
    assert main([str(tmp_path)]) == 0
    data = page_data(tmp_path / "report.html")
    assert [part["name"] for part in data["reliability"]] == ["before calibration", "after calibration"]
    assert data["reliability"][1]["log_loss"] < data["reliability"][0]["log_loss"]
    assert next(line[0] for line in data["baselines"]).endswith("calibrated")


def test_a_folder_without_a_held_out_table_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no heldout.csv" in capsys.readouterr().err


def test_a_written_table_becomes_its_report_with_raw_beside_calibrated(tmp_path: Path) -> None:
    rows = drawn(40)
    frame = rows.to_frame()
    raw = sharper(rows, 2.0).probs64()
    for column, label in enumerate(rows.labels):
        frame[f"logp_{label}"] = np.log(raw[:, column] * 0.5)
    frame.loc[3, ["p_no", "p_yes", "p_other"]] = np.nan
    frame["fold"] = "the user's own"
    frame.to_parquet(tmp_path / "out.parquet")
    write_json(tmp_path / "out.parquet.json", {"strays": [[" the", 0.25]], "identity": {"question.prompt": "Is it?"}})
    (tmp_path / "my.csv").write_text("id,words\nrow0,hello there\n")
    assert main([str(tmp_path / "out.parquet"), "--texts", str(tmp_path / "my.csv"), "--text-column", "words"]) == 0
    text = (tmp_path / "out.parquet.report.html").read_text(encoding="utf-8")
    data = page_data(tmp_path / "out.parquet.report.html")
    assert "1 more without an answer" in text and "Is it?" in text
    assert data["reliability"][0]["log_loss"] == pytest.approx(
        sharper(rows, 2.0).take(np.arange(40) != 3).log_loss(), abs=1e-5
    )
    assert ["hello there"] in [row[5] for row in data["rows"]["rows"]]


@pytest.mark.parametrize(("id_column", "expected"), [("auto", "one"), ("id", "one"), (None, "two"), ("key", "two")])
def test_texts_are_joined_by_the_id_that_the_task_used(tmp_path: Path, id_column: str | None, expected: str) -> None:
    (tmp_path / "my.csv").write_text("id,key,text\n1,0,one\n2,1,two\n")
    assert column_texts(tmp_path / "my.csv", np.array(["1"], dtype=object), "text", id_column) == {"1": expected}


def test_texts_come_from_any_file_that_a_task_reads(tmp_path: Path) -> None:
    (tmp_path / "skills.csv").write_text("Skill;label\nPython, advanced;Hard\nTact;Soft\n")
    ids = np.array(["0", "1"], dtype=object)
    assert column_texts(tmp_path / "skills.csv", ids, "Skill", "auto") == {"0": "Python, advanced", "1": "Tact"}
    (tmp_path / "my.jsonl").write_text('{"id": "a", "text": "one"}\n{"id": "b", "text": null}\n')
    found = column_texts(tmp_path / "my.jsonl", np.array(["a", "b"], dtype=object), "text", "auto")
    assert found == {"a": "one", "b": ""}


def test_a_run_takes_its_texts_from_the_column_that_is_named(tmp_path: Path) -> None:
    rows = drawn(20)
    rows.write(tmp_path / "heldout.csv")
    (tmp_path / "config.yaml").write_text("name: mine\ntask: {name: text, text_column: body}\n")
    (tmp_path / "my.csv").write_text("id,words\nrow0,hello there\n")
    assert main([str(tmp_path), "--texts", str(tmp_path / "my.csv"), "--text-column", "words"]) == 0
    assert ["hello there"] in [row[5] for row in page_data(tmp_path / "report.html")["rows"]["rows"]]


def test_texts_of_another_table_are_refused(tmp_path: Path) -> None:
    (tmp_path / "my.csv").write_text("id,text\n1,one\n")
    with pytest.raises(ValueError, match="none of the ids, the first of which is 'x'"):
        column_texts(tmp_path / "my.csv", np.array(["x"], dtype=object), "text", "auto")
    with pytest.raises(ValueError, match="not 'title'"):
        column_texts(tmp_path / "my.csv", np.array(["1"], dtype=object), "title", "auto")
