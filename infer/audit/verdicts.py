"""What a judge said of a sample: verdicts read from the judge's table or asked of an endpoint, each row checked.

Knows a sample, verdict words and their files; nothing of figures. A verdict is a label, `unsure`, or, where the judge
sees the prediction, `right` or `wrong`; a blank one is still to come.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infer.audit.sample import Sample
from infer.endpoint.client import EndpointClient
from infer.endpoint.completions import Completion
from infer.endpoint.queue import complete_all
from infer.files import guard_formula
from models.tasks.files import write_atomically
from models.tasks.tables import offer_closest, read_table, require_columns

RIGHT, WRONG, UNSURE = "right", "wrong", "unsure"
NUMBER, TEXT, VERDICT = "number", "text", "verdict"
NAMED_IN_ERRORS = 5
JSON_LINES = ".jsonl"
MEANINGS = {
    "Hard": "a technical or professional ability that is taught and can be tested, such as a tool, a language, a craft",
    "Soft": "a personal or social ability, such as leading, listening, adapting, managing one's time",
    "Unknown": "neither, or the text names no skill",
}
_SAID = re.compile(r"\W*verdict\W*[:=]\s*(.+)", re.IGNORECASE)


@dataclass(frozen=True)
class Verdicts:
    """number -> verdict of the rows that have one; blank: rows without; failed: number -> why no answer came."""

    given: Mapping[int, str]
    blank: int
    failed: Mapping[int, str] = field(default_factory=dict)


def read_verdicts(path: Path, sample: Sample) -> Verdicts:
    """The verdicts in a judge's table (any order, rows may lack), or in what ask_endpoint wrote (.jsonl).

    Refuses, naming the rows: a word that is no verdict, a row of no or another sample, two rows of one number.
    """
    if path.suffix == JSON_LINES:
        given = {number: row[VERDICT] for number, row in _read_answers(path, sample).items() if row[VERDICT]}
    else:
        given = _read_judged(path, sample)
    return Verdicts(given, len(sample.rows) - len(given))


def meanings_of(labels: Sequence[str]) -> dict[str, str]:
    """What the labels of skills mean, for the judge; nothing where other labels are among them (Easy, Hard)."""
    return {label: MEANINGS[label] for label in labels} if set(labels) <= set(MEANINGS) else {}


def verdict_words(sample: Sample) -> dict[str, str]:
    """Every word that is a verdict on this sample, as written and in small letters -> the verdict."""
    others = [UNSURE, *([RIGHT, WRONG] if sample.shows_predicted else [])]
    small = {word.casefold(): word for word in (*others, *sample.labels)}
    return {label: label for label in sample.labels} | {
        word: verdict for word, verdict in small.items() if word not in sample.labels
    }


def ask_endpoint(
    client: EndpointClient,
    sample: Sample,
    path: Path,
    *,
    meanings: Mapping[str, str],
    workers: int = 4,
    stop_after: int = 5,
    **options: Any,
) -> Verdicts:
    """Asks for the verdicts that `path` lacks and adds each to it as it comes; all that it holds then.

    Run again after whatever broke: rows that have a verdict are not asked again, with whatever options (they go to the
    server). The prediction is never shown. Raises EndpointRefused with all that was answered before on disk. Refuses a
    file of another sample, model or question.
    """
    asker = _Asker(sample, client.endpoint.model, dict(meanings), options)
    kept = {number: row for number, row in _read_answers(path, sample, asker).items() if row[VERDICT]}
    with write_atomically(path) as temporary:  # without the line that a crash cut off, and those without a verdict
        temporary.write_text("".join(map(_line, kept.values())), encoding="utf-8")
    missing = [(row.number, asker.messages(row.text)) for row in sample.rows if row.number not in kept]
    texts, failed = {row.number: row.text for row in sample.rows}, dict[int, str]()
    with path.open("a", encoding="utf-8") as stream:
        for number, said in complete_all(client, missing, workers=workers, stop_after=stop_after, **options):
            if not isinstance(said, Completion):
                failed[number] = str(said)
                continue
            row = asker.row(number, texts[number], said)
            stream.write(_line(row))
            stream.flush()
            if row[VERDICT]:
                kept[number] = row
            else:
                failed[number] = f"no verdict in the answer ({said.finish}): {' '.join(said.text.split())[-80:]!r}"
    return Verdicts({number: row[VERDICT] for number, row in kept.items()}, len(sample.rows) - len(kept), failed)


def question(sample: Sample, text: str, meanings: Mapping[str, str]) -> str:
    """What an endpoint is asked of one row."""
    said = [f"- {label}: {meanings[label]}" if label in meanings else f"- {label}" for label in sample.labels]
    asked = ["Which one of these labels fits the text below best?", *said]
    shown = ["", f"Text: {json.dumps(text, ensure_ascii=False)}", ""]
    told = ["Think it over in a sentence at most, then end with a line that holds nothing but", "Verdict: <label>"]
    return "\n".join([*asked, *shown, *told])


def read_answer(text: str, sample: Sample) -> str:
    """The label that an answer settles on, "" where it settles on none: the last `Verdict:` line, or the one line.

    A label somewhere in a sentence is none ("certainly not Soft"), nor is one inside a thought (<think>...</think>).
    """
    lines = [line for line in re.sub(r"(?s)^.*</think>", "", text).splitlines() if line.strip()]
    marked = [found[1] for line in lines if (found := _SAID.match(line))]
    said = marked[-1] if marked else lines[0] if len(lines) == 1 else ""
    bare = said.strip(" \t*_`'\"<>()[]{}.,:;!")
    words = verdict_words(sample)
    verdict = words.get(bare) or words.get(bare.casefold()) or ""
    return verdict if verdict in sample.labels else ""


@dataclass(frozen=True)
class _Asker:
    """One question to one model: what an answer depends on, written beside it, so that answers never mix."""

    sample: Sample
    model: str
    meanings: dict[str, str]
    options: dict[str, Any]

    @property
    def mark(self) -> str:
        asked = [question(self.sample, "", self.meanings), self.model, self.sample.mark]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]

    def messages(self, text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": question(self.sample, text, self.meanings)}]

    def row(self, number: int, text: str, said: Completion) -> dict[str, Any]:
        verdict = read_answer(said.text, self.sample)
        answer = {"answer": said.text, "finish": said.finish, "model": said.model or self.model}
        return {NUMBER: number, TEXT: text, VERDICT: verdict, **answer, "asked": self.mark, "options": self.options}


def _line(row: Mapping[str, Any]) -> str:
    # ASCII: half an emoji in an answer is no UTF-8, and must not cost the answer.
    return json.dumps(row) + "\n"


def _read_answers(path: Path, sample: Sample, asker: _Asker | None = None) -> dict[int, dict[str, Any]]:
    """number -> row of what ask_endpoint wrote; a last line without its end was cut off by a crash and is left out."""
    texts = {row.number: row.text for row in sample.rows}
    found: dict[int, dict[str, Any]] = {}
    if not path.exists():
        if asker is not None:
            return found
        raise FileNotFoundError(f"{path} does not exist. Ask for verdicts first: scripts/judge_sample.py ask.")
    for at, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
            number, text, verdict = row[NUMBER], row[TEXT], row[VERDICT]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}, line {at} is no answer of an endpoint ({error}). Delete the line.") from error
        if number not in texts or texts[number] != text or verdict not in ("", *sample.labels):
            raise ValueError(f"{path}, line {at} is of another sample. Give another --verdicts, or delete the file.")
        if asker is not None and row.get("asked") != asker.mark:
            raise ValueError(
                f"{path}, line {at} answers another model or question than '{asker.model}' is asked now. Give another "
                "--verdicts, or delete the file."
            )
        found[number] = row
    return found


def _read_judged(path: Path, sample: Sample) -> dict[int, str]:
    table = read_table(path)
    require_columns(table, [NUMBER, TEXT, VERDICT], "The sample's columns must stay as they were.")
    words, rows = verdict_words(sample), {row.number: row for row in sample.rows}
    listed, given = ", ".join(dict.fromkeys(words.values())), dict[int, str]()
    wrong: list[str] = []
    seen: set[int] = set()
    for at, (number, text, word) in enumerate(_cells(table.frame)):
        row = rows.get(int(number)) if number.isascii() and number.isdigit() else None
        if row is None:
            wrong.append(f"{table.place(at)}: number {number!r}, expected 1 to {len(rows)}")
        elif row.number in seen:
            wrong.append(f"{table.place(at)}: number {number} stands twice")
        elif text.split() not in (row.text.split(), guard_formula(row.text).split()):
            wrong.append(f"{table.place(at)}: text {text!r}, expected {row.text!r} beside number {number}")
        elif word and word not in words and word.casefold() not in words:
            near = offer_closest(word, list(words.values()))
            wrong.append(f"{table.place(at)}: verdict {word!r}{near}, expected {listed} or blank")
        elif word:
            given[row.number] = words.get(word) or words[word.casefold()]
        if row is not None:
            seen.add(row.number)
    if wrong:
        more = f"\n... and {len(wrong) - NAMED_IN_ERRORS} more" if len(wrong) > NAMED_IN_ERRORS else ""
        raise ValueError("\n".join(wrong[:NAMED_IN_ERRORS]) + f"{more}\nMend these rows, then run it again.")
    return given


def _cells(frame: Any) -> Iterator[tuple[str, str, str]]:
    for cells in zip(frame[NUMBER], frame[TEXT], frame[VERDICT], strict=True):
        number, text, word = ("" if cell is None else str(cell).strip() for cell in cells)
        yield number, text, word
