"""The skills task and labelled rows: each skill once, in order, and nothing lost without a word."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from models.kind_settings import SkillsTask, TextTask
from models.tasks.labelled import read_labelled
from models.tasks.skills import SkillSource, open_task_rows
from models.tasks.text import RowSource

LABELS = ("Hard", "Soft", "Unknown")
SAMPLE = ROOT / "data" / "sample" / "skills" / "skills.csv"


def task_of(path: Path, kind: type[TextTask] = SkillsTask, **changes) -> TextTask:
    skills = {"only_column": "Skill_Type", "only_value": "Professional_Skill"} if kind is SkillsTask else {}
    given = {
        "name": "skills", "input_csv": str(path), "train_csv": None, "id_column": "auto", "text_column": "Skill",
        "label_column": "auto", "keep_columns": [], "target_columns": None, "on_bad_row": "refuse", **skills, **changes,
    }  # fmt: skip
    return kind(**given)


def source_of(path: Path, *, chunk_rows: int = 100, **changes) -> RowSource:
    return open_task_rows(task_of(path, **changes), path, fields=["text"], labels=LABELS, chunk_rows=chunk_rows)


def skills_in(source: RowSource) -> list[str]:
    return [row.fields["text"] for _, chunk in source.chunks() for row in chunk]


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("separator", [",", ";"])
def test_a_skill_stands_once_whatever_its_case_and_blanks_and_keeps_its_place(tmp_path: Path, separator: str) -> None:
    lines = ["Skill;label", "Python;Hard", "Tact;Soft", "PYTHON;Hard", " tact ;", "Straße;Hard", "STRASSE;Hard"]
    source = source_of(written(tmp_path / "s.csv", "\n".join(lines).replace(";", separator) + "\n"))
    assert skills_in(source) == ["Python", "Tact", "Straße"]
    assert [row.id for _, chunk in source.chunks() for row in chunk] == ["0", "1", "4"]
    survey = source.survey()
    assert survey.rows == 3 and survey.left_out == {"repeats an earlier skill": 3}


def test_a_repeat_with_another_label_is_named_and_the_first_label_stands(tmp_path: Path) -> None:
    path = written(tmp_path / "s.csv", "Skill;label\nPython;Hard\npython;Soft\nTact;\ntact;Soft\n")
    source = source_of(path)
    assert [row.label for _, chunk in source.chunks() for row in chunk] == ["Hard", None]
    [(reason, count)] = source.survey().left_out.items()
    assert count == 2 and "row 2 (line 3): python is Soft, before Hard" in reason and "tact is Soft" in reason


def test_rows_of_another_kind_and_blank_ones_are_left_out_where_the_file_has_the_column(tmp_path: Path) -> None:
    lines = "Skill,Skill_Type,n\nPython,Professional_Skill,1\nGerman,Language_Skill,2\n ,Professional_Skill,3\nSQL,,4\n"
    path = written(tmp_path / "s.csv", lines)
    source = source_of(path, keep_columns=["n"])
    assert skills_in(source) == ["Python"]
    assert [row.kept for _, chunk in source.chunks() for row in chunk] == [{"n": "1"}]
    assert source.survey().left_out == {"Skill_Type is not Professional_Skill": 2, "no text": 1}
    assert skills_in(source_of(path, only_column=None)) == ["Python", "German", "SQL"]
    assert skills_in(source_of(path, only_column="no such column")) == ["Python", "German", "SQL"]
    with pytest.raises(ValueError, match="has no skill left to read: 4 Skill_Type is not Soft_Skill"):
        source_of(path, only_value="Soft_Skill").survey()


def test_chunks_are_full_of_rows_that_stay(tmp_path: Path) -> None:
    names = [name for number in range(10) for name in (f"skill {number}", f"Skill {number}", " ")]
    path = written(tmp_path / "s.csv", "Skill\n" + "\n".join(f'"{name}"' for name in names) + "\n")
    chunks = list(source_of(path, chunk_rows=4).chunks())
    assert [(number, len(chunk)) for number, chunk in chunks] == [(0, 4), (1, 4), (2, 2)]


def test_a_question_that_does_not_show_the_skill_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "s.csv", "Skill,trade\nPython,IT\n")
    with pytest.raises(ValueError, match=r"fields trade, none of them the skill"):
        open_task_rows(task_of(path), path, fields=["trade"], labels=LABELS, chunk_rows=9)
    named = open_task_rows(task_of(path), path, fields=["trade", "Skill"], labels=LABELS, chunk_rows=9)
    assert isinstance(named, SkillSource) and named.text_field == "Skill"


def test_a_table_of_other_texts_keeps_its_repeats(tmp_path: Path) -> None:
    path = written(tmp_path / "s.csv", "Skill,label\nPython,Hard\npython,Soft\n")
    task = task_of(path, TextTask, name="text")
    assert len(skills_in(open_task_rows(task, path, fields=["text"], labels=LABELS, chunk_rows=9))) == 2
    assert read_labelled(task, LABELS).left_out == {}


def test_the_sample_is_what_its_readme_says() -> None:
    found = read_labelled(task_of(SAMPLE), LABELS)
    assert (len(found.rows), found.left_out) == (210, {})
    assert found.targets.sum(axis=0).tolist() == [126, 56, 28]
    assert SAMPLE.read_text(encoding="utf-8").splitlines()[0] == "Skill;label"


def test_the_sample_holds_none_of_the_real_skills(real_data: Path) -> None:
    real = pd.read_csv(real_data / "skills" / "skills.csv", sep=";", keep_default_na=False)
    ours = {row.fields["text"].casefold() for row in read_labelled(task_of(SAMPLE), LABELS).rows}
    assert not ours & set(real["Skill"].str.casefold())


def test_the_real_skills_are_read_whole(real_data: Path) -> None:
    found = read_labelled(task_of(real_data / "skills" / "skills.csv"), LABELS)
    assert found.targets.sum(axis=0).tolist() == [1563, 275, 156] and found.left_out == {}


def test_rows_without_label_are_left_out_and_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "s.csv", "Skill;label\nPython;Hard\nGo;\nTact;Soft\ntact;Soft\n")
    found = read_labelled(task_of(path), LABELS)
    assert [row.label for row in found.rows] == ["Hard", "Soft"]
    assert found.targets.tolist() == [[1, 0, 0], [0, 1, 0]]
    assert found.left_out == {"repeats an earlier skill": 1, "no label": 1}


SHARES = {"Hard": "h", "Soft": "s", "Unknown": "u"}


def test_shares_become_soft_targets_and_the_largest_the_label(tmp_path: Path) -> None:
    """A row has shares, a label, both, or neither; votes are divided by their sum."""
    path = written(tmp_path / "s.csv", "Skill,label,h,s,u\nA,,3,1,0\nB,Hard,,,\nC,Hard,0.2,0.8,0\nD,,,,\n")
    found = read_labelled(task_of(path, target_columns=SHARES), LABELS)
    np.testing.assert_allclose(found.targets, [[0.75, 0.25, 0], [1, 0, 0], [0.2, 0.8, 0]], atol=1e-7)
    assert found.targets.dtype == np.float32
    assert [row.label for row in found.rows] == ["Hard", "Hard", "Hard"]
    assert found.left_out == {"no label": 1} and all(row.kept == {} for row in found.rows)


def test_shares_alone_are_enough_and_the_label_is_the_largest(tmp_path: Path) -> None:
    path = written(tmp_path / "s.csv", "Skill,h,s,u\nA,3,1,0\nB,0,0,2\n")
    found = read_labelled(task_of(path, target_columns=SHARES), LABELS)
    assert [row.label for row in found.rows] == ["Hard", "Unknown"]


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ("1,,0", "h=1, s=, u=0 are not all numbers"),
        ("1,x,0", "are not all numbers"),
        ("0,0,0", "must be 0 or more and not all 0"),
        ("-1,2,0", "must be 0 or more and not all 0"),
        ("nan,2,0", "must be 0 or more and not all 0"),
    ],
)
def test_shares_that_are_none_are_refused_with_their_place(tmp_path: Path, cells: str, said: str) -> None:
    path = written(tmp_path / "s.csv", f"Skill,h,s,u\nA,1,0,0\nB,{cells}\n")
    with pytest.raises(ValueError, match=f"row 2 .line 3.: .*{said}"):
        read_labelled(task_of(path, target_columns=SHARES), LABELS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label_column": None}, "has no column of labels to learn from: it has Skill, label"),
        ({"target_columns": {"Hart": "label"}}, r"names the label 'Hart', .*closest: 'Hard'"),
        ({"target_columns": {"Hard": "h"}}, "no column for the label 'Soft'"),
        ({"target_columns": SHARES}, "has no column 'h'.*Mend task.target_columns"),
    ],
)
def test_a_task_without_labels_to_learn_from_is_refused(tmp_path: Path, changes: dict, said: str) -> None:
    path = written(tmp_path / "s.csv", "Skill,label\nPython,Hard\nTact,Soft\n")
    with pytest.raises(ValueError, match=said):
        read_labelled(task_of(path, **changes), LABELS)


def test_a_table_with_one_label_only_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "s.csv", "Skill,label\nPython,Hard\nGo,Hard\nTact,\n")
    with pytest.raises(ValueError, match=r"has 2 labelled rows, all Hard .left out: .*no label.*two labels or more"):
        read_labelled(task_of(path), LABELS)


def test_a_training_table_of_its_own_is_read_where_it_is_named(tmp_path: Path) -> None:
    written(tmp_path / "in.csv", "Skill\nPython\n")
    path = written(tmp_path / "train.csv", "Skill,label\nGo,Hard\nTact,Soft\n")
    found = read_labelled(task_of(tmp_path / "in.csv", train_csv=str(path)), LABELS)
    assert [row.fields["text"] for row in found.rows] == ["Go", "Tact"]
