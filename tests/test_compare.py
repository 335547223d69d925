"""A comparison from its command line to its page: rows without overlap, a process a way, one failure costs one way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import WORDS, compose
from hydra import initialize_config_module
from test_report import page_data

from infer.chunked import LOG_P, P
from infer.cli import ways_of
from infer.compare import ways as compare_ways
from infer.compare.rows import draw_rows
from infer.compare.run import compare
from infer.compare.way import run_way
from infer.files import write_json
from infer.identity import write_record
from infer.predictions import OTHER_COLUMN

WAYS = "compare.ways={words:['method=tfidf'],read:[],hard:['method=generate_hard']}"


def labelled(count: int = 60) -> pd.DataFrame:
    """Rows whose label a word tells, the first few of them with a text that comes again in capitals."""
    random = np.random.default_rng(0)
    label = np.array(["positive", "negative"])[np.arange(count) % 2]
    word = np.where(label == "positive", "good", "bad")
    texts = [f"{random.choice(WORDS)} {one} {random.choice(WORDS)} {at}" for at, one in enumerate(word)]
    texts[-6:] = [text.upper() for text in texts[:6]]
    return pd.DataFrame({"key": [f"k{at}" for at in range(count)], "text": texts, "label": label, "more": "x"})


def line_of(folder: Path, model: str, *overrides: str) -> list[str]:
    return [
        "+experiment=reviews_soft", f"model.name={model}", f"task.input_csv={folder / 'in.csv'}", "task.id_column=key",
        f"run_dir={folder / 'out'}", f"output={folder / 'comparison.csv'}", WAYS, *overrides,
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


def earlier(folder: Path) -> None:
    """The record of a comparison."""
    write_record(folder / "out" / "compare.json", {"outputs": [str(folder / "comparison.csv")]}, {})


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """pretend(says, fails) -> names of the ways run from then on: their processes only write what `says` gives.

    says: the test rows' table -> (N, 2) probabilities of positive and negative. fails: names of ways that do.
    """

    def start_to(says: Callable[[pd.DataFrame], np.ndarray], *fails: str) -> list[str]:
        ran: list[str] = []

        def run(verb: str, line: list[str], folder: Path) -> tuple[float, float | None, str | None]:
            ran.append(folder.name)
            if folder.name in fails:
                return 0.0, None, "it fell over"
            given = dict(one.lstrip("+").split("=", 1) for one in line)
            assert Path(given["task.train_csv"]).name == "fit.csv" and Path(given["task.input_csv"]).name == "test.csv"
            test = pd.read_csv(given["task.input_csv"])
            probs = np.array(says(test), dtype=np.float64)
            names = np.array(["positive", "negative"], dtype=object)
            answer = np.where(np.isnan(probs[:, 0]), None, names[np.nan_to_num(probs).argmax(axis=1)])
            table = {"id": test["key"], "label": test["label"], "predicted": answer, OTHER_COLUMN: 0.0}
            for at, name in enumerate(names):
                table |= {P + name: probs[:, at], LOG_P + name: np.log(probs[:, at])}
            pd.DataFrame(table).to_parquet(folder / "predictions.parquet")
            write_json(folder / "predictions.parquet.json", {})
            write_json(folder / "cost.json", {"rows": len(test), "seconds": 1.0, "peak_mib": 9.0})
            return 1.0, None, None

        monkeypatch.setattr(compare_ways, "_run", run)
        return ran

    return start_to


def knowing(test: pd.DataFrame) -> np.ndarray:
    """Seven tenths for the true label."""
    return np.where((test["label"] == "positive").to_numpy()[:, None], [0.7, 0.3], [0.3, 0.7])


def silent(test: pd.DataFrame) -> np.ndarray:
    return np.full((len(test), 2), np.nan)


@pytest.fixture
def line(tmp_path: Path, tiny_language_model: str) -> list[str]:
    labelled().to_csv(tmp_path / "in.csv", index=False)
    return line_of(tmp_path, tiny_language_model)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison of two ways, each by a process of its own."""
    folder = tmp_path_factory.mktemp("compare")
    labelled().to_csv(folder / "in.csv", index=False)
    start(line_of(folder, "none", "compare.ways={words:['method=tfidf'],shares:['method.name=prior']}"))
    return folder


def test_the_table_holds_what_each_way_scored_and_cost(compared: Path) -> None:
    table = pd.read_csv(compared / "comparison.csv", index_col="way")
    assert table.loc["words", "accuracy"] >= 0.8, "a word tells the label"
    rows = len(pd.read_csv(compared / "out" / "test.csv"))
    assert (table["rows"] == rows).all()
    assert table.loc["shares", "accuracy"] == pytest.approx(0.5)
    assert (table["labelled_rows"] == 60 - rows).all()
    assert (table["rows_per_s"] > 0).all() and (table["peak_mib"] > 50).all()
    read = pd.read_parquet(compared / "out" / "ways" / "words" / "predictions.parquet")
    assert (read["predicted"] == read["label"]).mean() == pytest.approx(table.loc["words", "accuracy"])


def test_the_page_has_every_way(compared: Path) -> None:
    data = page_data(compared / "out" / "report.html")
    assert {curve["method"] for curve in data["curves"]} == {"words", "shares"}
    assert {one["method"] for one in data["reliability"]} == {"words", "shares"}
    assert "Where they differ" in (compared / "out" / "report.html").read_text(encoding="utf-8")
    assert (compared / "out" / "report_curves.png").is_file()


def test_no_text_is_in_both_files_and_every_column_comes_along(compared: Path) -> None:
    fit, test = (pd.read_csv(compared / "out" / name) for name in ("fit.csv", "test.csv"))
    assert not set(fit["text"].str.casefold()) & set(test["text"].str.casefold())
    assert sorted([*fit["key"], *test["key"]]) == sorted(labelled()["key"]), "each row once"
    assert list(test.columns) == ["key", "text", "label", "more"]


def test_a_way_learns_from_the_rows_to_learn_from_and_reads_the_others(tmp_path: Path) -> None:
    rows = labelled(40)
    pd.concat([rows[rows["label"] == "positive"][:15], rows[rows["label"] == "negative"][:5]]).to_csv(
        tmp_path / "fit.csv", index=False
    )
    rows[rows["label"] == "negative"][5:].to_csv(tmp_path / "test.csv", index=False)
    settings = compose(
        "+experiment=reviews_soft", "method.name=prior", f"task.input_csv={tmp_path / 'test.csv'}",
        f"task.train_csv={tmp_path / 'fit.csv'}", "task.id_column=key", f"run_dir={tmp_path / 'run'}",
        f"output={tmp_path / 'out.csv'}",
    )  # fmt: skip
    read = pd.read_csv(run_way(settings))
    assert read["id"].tolist() == rows[rows["label"] == "negative"]["key"].tolist()[5:]
    assert read["p_positive"].to_numpy() == pytest.approx(0.75, abs=0.05), "the share of fit.csv"


def test_a_way_that_fails_is_named_and_costs_the_others_nothing(
    line: list[str], tmp_path: Path, pretend: Callable[..., list[str]]
) -> None:
    pretend(knowing, "read")
    with pytest.raises(ValueError, match=r"^1 of 3 ways failed: read: it fell over"):
        start(line)
    table = pd.read_csv(tmp_path / "comparison.csv", index_col="way")
    assert list(table.index)[-1] == "read" and table.loc["read", "trouble"] == "it fell over"
    assert (table.loc[["words", "hard"], "accuracy"] == 1).all()
    assert np.isnan(table.loc["hard", "log_loss"]) and table.loc["words", "log_loss"] == pytest.approx(-np.log(0.7))
    assert table.loc["hard", "labelled_rows"] == 2, "the examples of its prompt"
    assert "These ways failed" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_finished_way_is_not_run_again(
    line: list[str], tmp_path: Path, pretend: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = [*line, "report=false"]
    ran = pretend(knowing, "read")
    with pytest.raises(ValueError, match="read"):
        start(line)
    assert ran == ["words", "read", "hard"]
    ran = pretend(silent)
    assert pd.read_csv(start(line), index_col="way").loc["words", "accuracy"] == 1
    assert ran == ["read"]
    ran = pretend(knowing)
    some = [*line, "compare.only=[words]", "question.prompt='A film: {text} It was'"]
    assert pd.read_csv(start(some))["way"].tolist() == ["words"], "of another prompt what is asked would be made again"
    assert ran == []


def test_where_nothing_is_answered_there_is_a_table_and_no_page(
    line: list[str], tmp_path: Path, pretend: Callable[..., list[str]]
) -> None:
    mine = tmp_path / "calibration.csv"
    mine.write_text("a table of the user, beside `output`")
    pretend(silent, "read")
    earlier(tmp_path)
    (tmp_path / "out" / "report.html").write_text("of an earlier comparison")
    with pytest.raises(ValueError, match="1 of 3 ways failed: read"):
        start(line)
    table = pd.read_csv(tmp_path / "comparison.csv", index_col="way")
    assert (table.loc[["words", "hard"], "unanswered"] == table.loc["words", "rows"]).all()
    assert not (tmp_path / "out" / "report.html").exists() and mine.read_text().startswith("a table of the user")


def test_where_every_way_failed_the_table_says_so(
    line: list[str], tmp_path: Path, pretend: Callable[..., list[str]]
) -> None:
    earlier(tmp_path)
    (tmp_path / "comparison.csv").write_text("of an earlier comparison")
    pretend(knowing, "words", "read", "hard")
    with pytest.raises(ValueError, match="3 of 3 ways failed"):
        start(line)
    assert (pd.read_csv(tmp_path / "comparison.csv")["trouble"] == "it fell over").all()


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
    line: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_ways, "_run", lambda *_: pytest.fail("too early"))
    with pytest.raises((ValueError, OSError), match=r"compare\.ways\.read: .*nowhere"):
        start([*line, "model.name=/nowhere/at/all"])
