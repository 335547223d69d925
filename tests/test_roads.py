"""A setting that would do nothing on the road a command takes is refused by its name, and none that does something."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import compose

from infer.compare.run import compare
from infer.report import ArenaFacts
from infer.report.content import ReportInput
from infer.report.page import decision_use
from infer.roads import UNDERSTOOD, refuse_ignored, road_of
from infer.run import run
from models.settings import flatten

OUT = "output=out.parquet"
ROADS = {
    "an arena run": ["+experiment=arena_length"],
    "an arena judge": ["+experiment=arena_judge"],
    "a blend": ["+experiment=arena_blend"],
    "a table of texts": ["+experiment=reviews_soft"],
    "runner=ray": ["+experiment=reviews_soft", "runner=ray", "output=out/"],
    "a comparison (compare.ways)": ["+experiment=reviews_compare"],
}


@pytest.mark.parametrize("road", ROADS)
def test_every_experiment_of_a_road_is_taken_as_it_stands(road: str) -> None:
    settings = compose(*ROADS[road])
    assert road_of(settings) == road
    refuse_ignored(settings)


@pytest.mark.parametrize("experiment", ["arena_length", "arena_judge", "arena_blend"])
@pytest.mark.parametrize(
    "override",
    ["decision=/nope", "calibration.use=/nope", "calibration.fit=isotonic", "spreadsheet=true",
      "output=elsewhere.csv", "ray.actors=2"],
)  # fmt: skip
def test_the_arena_refuses_what_only_tables_of_texts_have(tmp_path: Path, experiment: str, override: str) -> None:
    if experiment == "arena_judge" and override == "calibration.fit=isotonic":
        override = "calibration.fit=vector"  # the other is refused for its three labels
    settings = compose(f"+experiment={experiment}", override, f"out_dir={tmp_path}")
    with pytest.raises(ValueError, match=f"{override.partition('=')[0]}=.* does nothing in "):
        run(settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("override", ["blend.runs=[a,b]", "ray.address=auto"])
def test_a_table_of_texts_refuses_what_others_have(override: str) -> None:
    with pytest.raises(ValueError, match=f"{override.partition('=')[0]}=.* does nothing in a table of texts"):
        run(compose("+experiment=reviews_soft", OUT, override))


@pytest.mark.parametrize("override", ["blend.runs=[a,b]", "ray.address=auto"])
def test_a_comparison_refuses_what_none_of_its_ways_has(override: str) -> None:
    with pytest.raises(ValueError, match="does nothing in a comparison"):
        compare(compose("+experiment=reviews_compare", override), [])


def test_of_two_places_for_one_table_neither_is_passed_over() -> None:
    with pytest.raises(
        ValueError, match=r"out_dir=there does nothing with output=here/out\.csv.*output=there/out\.csv"
    ):
        refuse_ignored(compose("+experiment=reviews_soft", "output=here/out.csv", "out_dir=there"))
    with pytest.raises(ValueError, match="out_dir=there does nothing with output="):
        refuse_ignored(compose("+experiment=reviews_soft", "output=runs/reviews_soft/seed42/mine.csv", "out_dir=there"))
    refuse_ignored(compose("+experiment=reviews_soft", "out_dir=there"))
    refuse_ignored(compose("+experiment=reviews_soft", "output=there/out.csv", "out_dir=there"))


def test_the_table_of_roads_names_settings_and_roads_that_there_are() -> None:
    known = flatten(compose("+experiment=reviews_soft"))
    assert set(UNDERSTOOD) <= set(known)
    assert {road for roads, _ in UNDERSTOOD.values() for road in roads} <= set(ROADS)


def test_a_page_offers_a_decision_only_to_a_command_that_takes_it(predictions) -> None:
    assert "infer … decision=" in decision_use(ReportInput("texts", predictions))
    assert "infer … decision=" not in decision_use(ReportInput("arena", predictions, arena=ArenaFacts()))


@pytest.fixture
def predictions():
    import numpy as np

    from infer.predictions import Predictions
    from models.tasks.arena import LABELS

    return Predictions(np.array(["1"], dtype=object), LABELS, np.full((1, 3), 1 / 3), np.zeros(1))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["+experiment=arena_length", "+experiment=reviews_soft"], "error: experiment is given twice, expected once."),
        (["++experiment=arena_length"], "Write it with one +, as in +experiment=NAME."),
        (["+experiment=arena_length", "method=nope"], "error: In 'config': Could not find 'method/nope'"),
    ],
)
def test_what_hydra_cannot_compose_is_told_as_every_other_mistake(line: list[str], said: str) -> None:
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-m", "infer", *line], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and said in done.stderr
    assert "HYDRA_FULL_ERROR" not in done.stderr and "override experiment" not in done.stderr
