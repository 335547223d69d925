"""What the groups of a run's settings ask of each other, refused by name before anything is loaded.

Knows settings; the groups' own checks stand in their dataclasses.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from models.engine_settings import LEARNT_CALIBRATORS, QuestionSettings, row_fields
from models.kind_settings import ArenaTask, LanguageModel, TextTask
from models.method_settings import ENDPOINT_METHODS, WRITTEN_METHODS

if TYPE_CHECKING:
    from models.settings import Settings

OUTPUT_ENDINGS = (".parquet", ".csv", ".csv.gz")


def check_asked(settings: Settings) -> None:
    """Refuse, before a model is loaded, what a language model could not be asked."""
    method, question, model = settings.method.name, settings.question, settings.model
    if not isinstance(model, LanguageModel) and settings.endpoint.url is None:
        raise ValueError(
            f"method.name={method} needs model.kind=causal, a language model, not {model.kind} ({model.name}): "
            "model=smollm2 or model=llama31_8b_instruct."
        )
    for key in ("prompt", "labels"):
        if getattr(question, key) is None:
            raise ValueError(
                f"method.name={method} needs question.{key}: the question that the model is asked. "
                "conf/experiment/reviews_soft.yaml is an example."
            )
    if method in WRITTEN_METHODS:
        _check_written(method, question)
    heat = settings.generation.temperature
    if method == "sampled" and not heat > 0:
        raise ValueError(
            "generation.temperature=0 with method.name=sampled draws the same answer every time. Set "
            "generation.temperature=1, which draws as often as the model's probabilities say."
        )
    if heat > 0 and method == "chain_of_thought":
        raise ValueError(
            f"generation.temperature={heat}: with method.name=chain_of_thought the likeliest steps are written. Set "
            "generation.temperature=0."
        )
    if isinstance(settings.task, ArenaTask):
        _check_arena_question(list(question.labels), row_fields(question.prompt or ""))
        check_calibration(settings)


def _check_written(method: str, question: QuestionSettings) -> None:
    if question.answers != "text":
        raise ValueError(
            f"question.answers={question.answers} lists options whose signs are read, expected text with method.name="
            f"{method}: the answer is written. Set question.answers=text, and take {{options}} out."
        )
    if method == "verbalized_score" and len(question.labels) != 2:
        raise ValueError(
            f"method.name=verbalized_score writes one number, for two labels, not {len(question.labels)}: use "
            "method=verbalized."
        )


def check_endpoint(settings: Settings) -> None:
    method = settings.method.name
    if method not in ENDPOINT_METHODS or isinstance(settings.task, ArenaTask):
        raise ValueError(
            f"endpoint.url is set, and method.name={method} with task.name={settings.task.name} asks no server: with "
            f"task=text or task=skills {', '.join(ENDPOINT_METHODS)} do. Set endpoint.url=null."
        )
    if settings.question.answers != "text":
        raise ValueError(f"question.answers={settings.question.answers}: expected text with endpoint.url.")


def _check_arena_question(labels: list[str], asked: list[str]) -> None:
    from models.tasks.arena import LABELS, TEXT_COLUMNS  # here: it brings pandas, and --help must answer at once

    if tuple(labels) != LABELS:
        raise ValueError(
            f"question.labels are {', '.join(labels)}: task.name=arena has {', '.join(LABELS)}, in this order."
        )
    if not {"response_a", "response_b"} <= set(asked) <= set(TEXT_COLUMNS):
        raise ValueError(
            f"question.prompt has the fields {', '.join(asked)}: an arena row has {', '.join(TEXT_COLUMNS)}, "
            "and both answers must be shown."
        )


def check_output(output: str | None, *, spreadsheet: bool) -> None:
    if spreadsheet and str(output).endswith(".parquet"):
        raise ValueError(f"spreadsheet=true with output={output}: a spreadsheet opens .csv. Set output=out.csv.")
    if output is None or not output.endswith(OUTPUT_ENDINGS) or not Path(output).name.partition(".")[0]:
        raise ValueError(
            f"output={'null' if output is None else output}: expected a file that ends in {', '.join(OUTPUT_ENDINGS)}: "
            "output=out.parquet."
        )


def check_calibration(settings: Settings) -> None:
    fit, prior, labels = settings.calibration.fit, settings.calibration.prior, settings.question.labels
    if prior is not None and len(prior) != len(labels):
        raise ValueError(
            f"calibration.prior={prior} has {len(prior)} shares for the {len(labels)} labels {', '.join(labels)}: "
            "expected one per label, in this order."
        )
    if fit is not None and settings.method.name == "generate_hard":
        raise ValueError(f"calibration.fit={fit} needs probabilities, and method.name=generate_hard writes a label.")
    if fit == "isotonic" and len(labels) != 2:
        raise ValueError(f"calibration.fit=isotonic is for two labels, not {len(labels)}: vector takes any number.")
    if fit in LEARNT_CALIBRATORS and isinstance(settings.task, TextTask) and settings.task.label_column is None:
        raise ValueError(
            f"calibration.fit={fit} learns from labelled rows, and task.label_column is null: name the column of the "
            "true labels, or use batch, contextual or pmi."
        )
