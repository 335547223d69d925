"""The settings of reading a language model: the question, how the engine runs, how its numbers are calibrated.

Part of the schema in models.settings. Checks all that can be known before a tokenizer is there; knows no token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.choices import one_of, within
from models.tasks.templates import template_fields

PRECISIONS = ("auto", "fp16", "bf16", "fp32")
ANSWER_FORMS = ("text", "letters", "numbers")
ANSWER_ENDS = ("none", "eos", "boundary")
CALIBRATORS = ("contextual", "pmi", "batch", "prior", "temperature", "vector", "isotonic")
LEARNT_CALIBRATORS = ("temperature", "vector", "isotonic")  # fitted on labelled rows
MOST_LABELS = {"letters": 26, "numbers": 9}  # one sign each: "10" would begin like "1"
OTHER = "other"  # the column p_other holds the mass outside the label set
LABEL = "label"  # an example's field, and so none of the template's
REASONING = "reasoning"  # an example's field: what is written before its answer
OPTIONS = "options"  # the template's field for the list of lettered or numbered answers
FEWEST_TOKENS = 16
SHARE_TOLERANCE = 1e-6


@dataclass
class QuestionSettings:
    """What a language model is asked about a row, and which answers stand for which label.

    labels: label -> one answer or a list of spellings, as dict[str, list[str]] once checked; None where no question is
    asked. examples: rows with their `label`, shown before the question; method=chain_of_thought also shows their
    `reasoning`, which the other methods leave out. descriptions: label -> one text or several that say what it means,
    as dict[str, list[str]] once checked, for method=embedding_description; None: the labels' names.
    """

    prompt: str | None  # a template: {text}, or the row's columns; {options} for the lettered or numbered list
    system: str | None  # before it all: the chat template's system turn, or a first paragraph
    examples: Any
    labels: Any
    answers: str  # text: the answers below; letters, numbers: the sign of an option listed in the prompt
    permutations: str  # cyclic: options, or the arena's two answers, in every rotation; none: once
    answers_end: str  # none: " positive" contains " positively"; eos, boundary tell them apart
    chat: str  # auto: the chat template where there is one, unless every answer begins with a space
    descriptions: Any = None  # the one default of the schema: questions in older checkpoints lack it

    def __post_init__(self) -> None:
        one_of("question.answers", self.answers, ANSWER_FORMS)
        one_of("question.permutations", self.permutations, ("cyclic", "none"))
        one_of("question.answers_end", self.answers_end, ANSWER_ENDS)
        one_of("question.chat", self.chat, ("auto", "yes", "no"))
        if self.labels is not None:
            self.labels = _answers_of_labels(self.labels)
        if self.prompt is not None:
            _check_prompt(self.prompt, self.answers, self.labels or {})
        if self.descriptions is not None:
            self.descriptions = _descriptions(self.descriptions, self.labels)
        self.examples = _examples(self.examples, self.prompt, self.labels)


@dataclass
class EngineSettings:
    """How the engine runs. Rows are texts; tokens are the prompt's and the answers' together."""

    precision: str
    budget_tokens: int | None  # of a batch; None: what the memory takes
    max_tokens: int | None  # of a prompt: a longer text is cut; None: what the model reads
    chunk_rows: int  # read, scored and written at once: what a kill costs

    def __post_init__(self) -> None:
        one_of("engine.precision", self.precision, PRECISIONS)
        within("engine.chunk_rows", self.chunk_rows, 1, 1_000_000)
        for key in ("budget_tokens", "max_tokens"):
            value = getattr(self, key)
            if value is not None and value < FEWEST_TOKENS:
                raise ValueError(f"engine.{key}={value}: expected {FEWEST_TOKENS} or more, or null to let it be found.")


@dataclass
class CalibrationSettings:
    """What happens to the raw log-probabilities: nothing, a saved calibrator, or one fitted on these rows."""

    use: str | None  # the file of a saved calibrator
    fit: str | None
    prior: list[float] | None  # fit=prior: the share of each label where the answers are used

    def __post_init__(self) -> None:
        if self.fit is not None:
            one_of("calibration.fit", self.fit, CALIBRATORS)
        if self.use is not None and self.fit is not None:
            raise ValueError(
                f"calibration.use={self.use} and calibration.fit={self.fit} exclude each other: a saved calibrator is "
                "applied as it is. Set one of them to null."
            )
        if self.fit == "prior" and self.prior is None:
            raise ValueError(
                "calibration.fit=prior needs the labels' shares where the answers are used, in the labels' order: "
                "'calibration.prior=[0.2,0.8]'."
            )
        if self.prior is not None:
            _check_shares(self.prior, self.fit)


def _check_shares(shares: list[float], fit: str | None) -> None:
    if fit != "prior":
        raise ValueError(f"calibration.prior={shares} is used by calibration.fit=prior alone. Set it, or prior=null.")
    if not all(share > 0 for share in shares) or abs(sum(shares) - 1) > SHARE_TOLERANCE:
        raise ValueError(
            f"calibration.prior={shares} sums to {sum(shares):g}: expected shares above 0 that sum to 1, one per label."
        )


def _answers_of_labels(given: Any) -> dict[str, list[str]]:
    """The spellings of each label, each once. Refuses what would make a probability meaningless."""
    if not isinstance(given, Mapping):
        raise ValueError(
            f'question.labels={given!r}: expected each label with its answer, such as {{spam: " spam", ham: " ham"}}.'
        )
    answers: dict[str, list[str]] = {}
    for key, value in given.items():
        label = _text(key, "a label in question.labels")
        if label in answers:
            raise ValueError(f"question.labels has the label {label!r} twice. Give each label once.")
        answers[label] = _spellings(label, value)
    if not answers:
        raise ValueError("question.labels is empty: expected two labels or more, each with its answer.")
    if len(answers) == 1:
        raise ValueError(
            f"question.labels has one label ({label!r}): its share would always be 1. Expected two or more; "
            "a yes-or-no question has the labels yes and no."
        )
    if OTHER in answers:
        raise ValueError(
            f"question.labels: the label {OTHER!r} is taken: p_{OTHER} is the mass outside the label set. "
            "Choose another name; its answer may stay."
        )
    _refuse_shared_spellings(answers)
    return answers


def _spellings(label: str, value: Any) -> list[str]:
    """One label's answers without repeats, in the order given."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if not values:
        raise ValueError(f"question.labels.{label} is an empty list: expected at least one answer.")
    return list(dict.fromkeys(_text(one, f"an answer of question.labels.{label}") for one in values))


def _refuse_shared_spellings(answers: Mapping[str, list[str]]) -> None:
    owner: dict[str, str] = {}
    for label, spellings in answers.items():
        for spelling in spellings:
            if spelling in owner:
                raise ValueError(
                    f"question.labels: {owner[spelling]!r} and {label!r} share the answer {spelling!r}: its mass "
                    "cannot belong to both. Give one of them another answer."
                )
            owner[spelling] = label


def _descriptions(given: Any, labels: Mapping[str, list[str]] | None) -> dict[str, list[str]]:
    """The descriptions of each label, in the labels' order. Refuses those of other labels than question.labels."""
    if labels is None or not isinstance(given, Mapping) or {str(key) for key in given} != set(labels):
        raise ValueError(
            f"question.descriptions={given!r}: expected a text for each label of question.labels: "
            f"{', '.join(labels or ['(there are none)'])}."
        )
    texts = {str(key): list(value) if isinstance(value, (list, tuple)) else [value] for key, value in given.items()}
    if not all(texts.values()):
        raise ValueError(f"question.descriptions={given!r}: expected one text or more for each label.")
    return {label: [_text(one, f"a description of {label}") for one in texts[label]] for label in labels}


def _text(value: Any, what: str) -> str:
    """A text from YAML. Whole numbers are taken as written; refuses what YAML has made of an unquoted word."""
    if isinstance(value, bool):
        raise ValueError(
            f"{value!r} is {what}: YAML reads an unquoted yes, no, on, off, true or false as a truth value. "
            'Put it in quotes: "yes", "no".'
        )
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is {what}: expected text. Put it in quotes.")
    if not value.strip():
        raise ValueError(f"{value!r} is {what}: expected more than white space, which encodes to nothing of its own.")
    return value


def _examples(given: Any, prompt: str | None, labels: Mapping[str, list[str]] | None) -> list[dict[str, str]]:
    """The examples as rows of text. Each fills the template's fields and names its label."""
    if given is None or given == []:
        return []
    if not isinstance(given, list):
        raise ValueError(f"question.examples={given!r}: expected a list: [{{text: I love it!, label: positive}}].")
    if prompt is None or labels is None:
        raise ValueError("question.examples need question.prompt and question.labels: they are shown in its form.")
    wanted = [*row_fields(prompt), LABEL]
    return [_example(example, f"question.examples[{number}]", wanted, labels) for number, example in enumerate(given)]


def _example(given: Any, name: str, wanted: list[str], labels: Mapping[str, list[str]]) -> dict[str, str]:
    optional = {REASONING} - set(wanted)
    if not isinstance(given, Mapping) or set(given) - optional != set(wanted):
        raise ValueError(f"{name}={given!r}: expected the fields {', '.join(wanted)}, as question.prompt has them.")
    told = [*wanted, *(optional & set(given))]
    example = {field: _text(given[field], f"the field {field} of {name}") for field in told}
    if example[LABEL] not in labels:
        raise ValueError(
            f"{name}.label={example[LABEL]!r}: expected one of {', '.join(labels)}. "
            "Give examples of these labels, or none: question.examples=[]."
        )
    return example


def row_fields(template: str) -> list[str]:
    """The template's fields that a row fills: all but {options}. Raises ValueError for a template that is none."""
    return [field for field in template_fields(template) if field != OPTIONS]


def _check_prompt(prompt: str, answers: str, labels: Mapping[str, list[str]]) -> None:
    fields = row_fields(prompt)
    if not fields:
        raise ValueError(
            f"question.prompt={prompt!r} has no field, so every row would get the same answer. "
            "Write {text} where the row's text stands."
        )
    if LABEL in fields:
        raise ValueError(
            f"question.prompt={prompt!r} shows the field {{{LABEL}}}: it holds the true label, which is what is asked. "
            "Take it out, or rename the column."
        )
    _check_options(answers, labels, listed=OPTIONS in template_fields(prompt))


def _check_options(answers: str, labels: Mapping[str, list[str]], *, listed: bool) -> None:
    if answers == "text":
        if listed:
            raise ValueError(
                "question.prompt lists {options}, but question.answers=text. Set question.answers=letters or numbers, "
                "or take {options} out."
            )
        return
    if not listed:
        raise ValueError(
            f"question.answers={answers} needs {{options}} in question.prompt: the place where the answers are listed."
        )
    if len(labels) > MOST_LABELS[answers]:
        raise ValueError(
            f"question.answers={answers} has signs for {MOST_LABELS[answers]} labels, and question.labels has "
            f"{len(labels)}. Use question.answers={'letters' if len(labels) <= MOST_LABELS['letters'] else 'text'}."
        )
