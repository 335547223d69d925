"""The schema's kinds and groups: what is refused, in which words, and what a command line is taken to mean."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, compose

from infer.overrides import as_meant, known_keys
from models.kind_settings import MODEL_KINDS, TASK_KINDS, ArenaTask, EncoderModel, LanguageModel, TextTask
from models.settings import Settings, flatten

SOFT = "+experiment=reviews_soft"
JUDGE = "+experiment=arena_judge"
TRAINED = "+experiment=arena_quickstart"
NO_EXAMPLES = "question.examples=[]"


def refused(said: str, *overrides: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        compose(*overrides)


def question(*overrides: str):
    return compose(SOFT, *overrides).question


def test_each_kind_of_task_and_model_has_its_own_fields() -> None:
    soft, trained = compose(SOFT), compose(TRAINED)
    assert type(soft.task) is TextTask and type(soft.model) is LanguageModel
    assert type(trained.task) is ArenaTask and type(trained.model) is EncoderModel
    assert soft.text.text_column == "text" and trained.arena.budget_tokens == 160


@pytest.mark.parametrize("kind", ["arena", "text", "encoder", "language_model"])
def test_a_step_that_needs_another_kind_says_what_the_run_has(kind: str) -> None:
    settings = compose(SOFT if kind in ("arena", "encoder") else TRAINED)
    with pytest.raises(ValueError, match=r"(task\.name|model\.kind)=\w+, and this step"):
        getattr(settings, kind)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([SOFT, "task.name=foo"], "task.name='foo': expected one of arena, text"),
        ([SOFT, "model.kind=foo"], "model.kind='foo': expected one of encoder, causal"),
        (
            [SOFT, "task.votes_csv=my.csv"],
            "'task.votes_csv' where task.name=text. That kind has task.name, task.input_",
        ),
        ([TRAINED, "task.text_column=t"], "'task.text_column' where task.name=arena"),
        ([SOFT, "model.head=joint"], "'model.head' where model.kind=causal"),
        ([SOFT, "+task.text_colum=t"], "Did you mean task.text_column?"),
        ([SOFT, "+model.quantisation=nf4"], "Did you mean model.quantization?"),
        ([SOFT, "model.quantization=int8"], "model.quantization='int8': expected one of none, nf4"),
        ([SOFT, "task.input_csv=null"], "task.input_csv"),
        ([SOFT, "task.keep_columns=mean"], "task.keep_columns"),
        ([SOFT, "engine.budget_tokens=many"], "engine.budget_tokens"),
    ],
)
def test_a_key_or_value_of_no_kind_or_another_kind_is_refused(overrides: list[str], said: str) -> None:
    refused(said, *overrides)


def test_a_task_without_a_file_says_which_setting_has_no_value() -> None:
    refused("The setting task.input_csv has no value", TRAINED, "task=text", *(f"~task.{key}" for key in (
        "train_csv", "test_csv", "budget_tokens")))  # fmt: skip


def test_methods_are_refused_for_kinds_that_they_cannot_read() -> None:
    refused("method.name=features reads the arena task only", SOFT, "method=features")
    refused(
        "method.name=chain_of_thought reads texts, not arena rows", "+experiment=arena_judge", "method=chain_of_thought"
    )
    refused("method.name=adapter needs model.kind=causal", SOFT, "method=adapter", "model=minilm")
    refused("method.name=next_token needs model.kind=causal", SOFT, "model=minilm")
    refused("method.name=encoder needs model.kind=encoder", "+experiment=arena_deberta", "model=smollm2")


def test_every_kind_is_named_by_its_own_yaml_files() -> None:
    """A file that names no kind would be refused only when someone chooses it."""
    for group, key, kinds in (("task", "name", TASK_KINDS), ("model", "kind", MODEL_KINDS)):
        for path in (ROOT / "conf" / group).glob("*.yaml"):
            content = yaml.safe_load(path.read_text())
            assert "defaults" in content or content[key] in kinds, path


def test_auto_columns_are_settled_by_the_file() -> None:
    task = compose(SOFT).text
    settled = task.with_columns(["id", "text"])
    assert (settled.id_column, settled.label_column) == ("id", None)
    named = compose(SOFT, "task.label_column=stars").text.with_columns(["text", "label"])
    assert (named.id_column, named.label_column) == (None, "stars")


def test_an_answer_and_a_list_of_spellings_are_both_lists() -> None:
    labels = question('question.labels={yes:[" yes"," Yes"," yes"],no:" no"}', NO_EXAMPLES).labels
    assert labels == {"yes": [" yes", " Yes"], "no": [" no"]}


def test_whole_numbers_are_labels_and_answers() -> None:
    assert question("question.labels={1:1,2:2}", NO_EXAMPLES).labels == {"1": ["1"], "2": ["2"]}


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("{}", "question.labels is empty"),
        ("{spam:a}", "question.labels has one label ('spam')"),
        ("[spam,ham]", "expected each label with its answer"),
        ("{spam:a,ham:[]}", "question.labels.ham is an empty list"),
        ('{spam:a,ham:""}', "'' is an answer of question.labels.ham"),
        ('{spam:a,ham:" "}', "' ' is an answer of question.labels.ham"),
        ("{spam:a,ham:null}", "None is an answer of question.labels.ham"),
        ("{spam:[a,b],ham:[c,b]}", "'spam' and 'ham' share the answer 'b'"),
        ("{spam:a,other:b}", "the label 'other' is taken"),
        ("{spam:a,ham:true}", 'Put it in quotes: "yes", "no"'),
        ("{spam:a,ham:0.5}", "0.5 is an answer of question.labels.ham: expected text. Put it in quotes"),
        ("null", "method.name=next_token needs question.labels"),
    ],
)
def test_a_label_set_that_means_nothing_is_refused(labels: str, said: str) -> None:
    refused(said, SOFT, f"question.labels={labels}", NO_EXAMPLES)


def test_unquoted_yes_and_no_in_yaml_are_refused_with_the_cure(tmp_path: Path) -> None:
    """YAML 1.1 turns them into truth values: the labels would be called True and False."""
    from omegaconf import OmegaConf

    from models.engine_settings import QuestionSettings

    given = OmegaConf.to_container(OmegaConf.create('labels:\n  yes: " yes"\n  no: " no"\n'))
    plain = asdict(question()) | {"examples": []}
    with pytest.raises(ValueError, match='Put it in quotes: "yes", "no"'):
        QuestionSettings(**(plain | given))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["question.prompt=null"], "question.examples need question.prompt"),
        (["question.prompt=null", NO_EXAMPLES], "method.name=next_token needs question.prompt"),
        (["question.prompt=Good or bad?"], "has no field, so every row would get the same answer"),
        (["question.prompt={text} {label}"], "shows the field {label}"),
        (["question.prompt={text} {"], "without its partner"),
        (["question.prompt={text} {options}"], "lists {options}, but question.answers=text"),
        (["question.answers=letters"], "question.answers=letters needs {options} in question.prompt"),
        (["question.answers=tokens"], "question.answers='tokens': expected one of text, letters, numbers"),
        (["question.answers_end=stop"], "question.answers_end='stop'"),
        (["question.permutations=all"], "question.permutations='all'"),
        (["question.chat=maybe"], "question.chat='maybe'"),
        (["question.examples=good"], "question.examples='good': expected a list"),
        (["question.examples=[{txt:fine,label:positive}]"], "expected the fields text, label"),
        (["question.examples=[{text:fine,label:good}]"], "question.examples[0].label='good': expected one of positive"),
        (["question.examples=[{text:true,label:positive}]"], "True is the field text of question.examples[0]"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(overrides: list[str], said: str) -> None:
    refused(said, SOFT, *overrides)


@pytest.mark.parametrize(("answers", "most"), [("letters", 26), ("numbers", 9)])
def test_signs_run_out_after(answers: str, most: int) -> None:
    def asked(count: int) -> list[str]:
        labels = ",".join(f"l{number}:a{number}" for number in range(count))
        return [SOFT, NO_EXAMPLES, f"question.answers={answers}", "question.prompt={text} {options}",
                f"question.labels={{{labels}}}"]  # fmt: skip

    assert len(compose(*asked(most)).question.labels) == most
    refused(f"has signs for {most} labels, and question.labels has {most + 1}", *asked(most + 1))


def test_the_arena_is_asked_for_its_own_labels_and_answers() -> None:
    assert list(compose(JUDGE).question.labels) == ["model_a", "model_b", "tie"]
    refused("in this order", JUDGE, "question.labels={model_b:A,model_a:B,tie:tie}")
    refused("both answers must be shown", JUDGE, "question.prompt={prompt} {response_a} {options}")
    refused("both answers must be shown", JUDGE, "question.prompt={response_a} {response_b} {text} {options}")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["engine.chunk_rows=0"], "engine.chunk_rows=0"),
        (["engine.max_tokens=15"], "engine.max_tokens=15: expected 16 or more"),
        (["engine.budget_tokens=0"], "engine.budget_tokens=0: expected 16 or more"),
        (["engine.precision=int8"], "engine.precision='int8'"),
        (["calibration.fit=platt"], "calibration.fit='platt': expected one of contextual"),
        (["calibration.fit=batch", "calibration.use=c.json"], "exclude each other"),
        (["calibration.fit=prior"], "calibration.fit=prior needs the labels' shares"),
        (["calibration.prior=[0.5,0.5]"], "is used by calibration.fit=prior alone"),
        (["calibration.fit=prior", "calibration.prior=[0.5,0.6]"], "sums to 1.1"),
        (["calibration.fit=prior", "calibration.prior=[1.0,0.0]"], "expected shares above 0"),
        (["calibration.fit=prior", "calibration.prior=[0.2,0.3,0.5]"], "has 3 shares for the 2 labels positive, neg"),
        (["calibration.fit=vector", "task.label_column=null"], "learns from labelled rows"),
        (["output=out.txt"], "output=out.txt: expected a file that ends in .parquet, .csv, .csv.gz"),
        (["output=null"], "output=null: expected a file"),
        (["output=runs/.csv"], "output=runs/.csv: expected a file"),
    ],
)
def test_an_engine_calibration_or_output_that_cannot_be_is_refused(overrides: list[str], said: str) -> None:
    refused(said, SOFT, *overrides)


def test_isotonic_calibration_is_for_two_labels() -> None:
    assert compose(SOFT, "calibration.fit=isotonic").calibration.fit == "isotonic"
    refused("isotonic is for two labels, not 7", "+experiment=products_soft", "calibration.fit=isotonic")


def test_jobs_of_a_sweep_write_outputs_of_their_own() -> None:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module

    from infer.door import to_settings

    with initialize_config_module("conf", version_base="1.3"):
        config = hydra_compose("config", overrides=[SOFT, "output=soft/out.csv"])
        arena = hydra_compose("config", overrides=["+experiment=arena_length", "out_dir=answers"])
    assert to_settings(config, "question.chat=no").output == "soft/question.chat=no/out.csv"
    assert to_settings(arena, "seed=1").out_dir == "answers/seed=1"


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("question.prompt=Review: {text}", "Review: {text}"),
        ("question.prompt=Review: {text}\\nSentiment:", "Review: {text}\nSentiment:"),
        ('question.prompt=a line,\n{text} = it\'s (1) #1 & "so"\\', 'a line,\n{text} = it\'s (1) #1 & "so"\\'),
        ("question.prompt= {text} ", " {text} "),
        ('question.prompt="Review: {text}"', "Review: {text}"),
        ("question.prompt='Review: {text}\\nSo:'", "Review: {text}\nSo:"),
        ("question.prompt=in ${name}: {text}", "in reviews_soft: {text}"),
    ],
)
def test_a_prompt_on_the_command_line_is_taken_as_it_stands(override: str, meant: str) -> None:
    assert question(override).prompt == meant


def test_odd_names_of_files_and_columns_are_taken_as_they_stand() -> None:
    settings = compose(SOFT, "task.input_csv=my (1), #2=x.csv", "task.text_column=Text (en)", "output=C:\\out.csv")
    assert settings.text.input_csv == "my (1), #2=x.csv"
    assert settings.text.text_column == "Text (en)" and settings.output == "C:\\out.csv"


def test_labels_on_the_command_line_take_the_place_of_the_experiments() -> None:
    """Hydra alone would add them: the probabilities of four labels instead of two."""
    labels = question('question.labels={spam:" spam",ham:" ham"}', NO_EXAMPLES).labels
    assert labels == {"spam": [" spam"], "ham": [" ham"]}


def test_one_label_can_be_changed_or_added_alone() -> None:
    changed = question('question.labels.positive=" good"', '+question.labels.mixed=" mixed"').labels
    assert changed == {"positive": [" good"], "negative": [" negative"], "mixed": [" mixed"]}


def test_commas_go_on_to_mean_a_sweep() -> None:
    arguments = ["--multirun", SOFT, "method.name=tfidf,length"]
    assert as_meant(arguments) == arguments


def test_a_runs_record_shows_the_command_as_it_was_given(tmp_path: Path) -> None:
    code = "import sys; from infer.door import open_door; open_door(lambda settings: print(sys.argv[1:]))"
    given = [SOFT, "question.prompt=Review: {text}"]
    done = subprocess.run([sys.executable, "-c", code, *given], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == str(given), done.stderr


def test_known_keys_are_those_of_every_kind_and_no_other() -> None:
    skills = compose(SOFT, "task=skills", "task.input_csv=my.csv")
    every = {key for settings in (compose(SOFT), compose(TRAINED), skills) for key in flatten(settings)}
    assert set(known_keys()) == every
    assert set(known_keys({"task": "text", "model": "causal"})) == set(flatten(compose(SOFT)))


def test_a_run_folder_compares_labels_too(tmp_path: Path) -> None:
    """They nest deeper than other settings."""
    from train.record import open_run

    def at(*overrides: str) -> Settings:
        return compose(SOFT, f"run_dir={tmp_path}", *overrides)

    open_run(at())
    open_run(at("output=elsewhere.csv"))
    (tmp_path / "fold0").mkdir()
    with pytest.raises(ValueError, match=r"question\.labels"):
        open_run(at('question.labels.positive=" good"'))


@pytest.mark.parametrize("minutes", ["0", "-5", "nan"])
def test_a_time_budget_of_no_time_is_refused_by_name(minutes: str) -> None:
    with pytest.raises(ValueError, match=r"time_budget_minutes=.*above 0"):
        compose("+experiment=arena_quickstart", f"time_budget_minutes={minutes}")
