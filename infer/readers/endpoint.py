"""method=next_token by an endpoint: the likeliest first tokens of its reply, as probabilities of the labels.

A token counts for the label whose answer it begins, where it begins that of one label only; what would follow it, and
so question.answers_end, is not asked. A server tells the few likeliest tokens (top_logprobs): what it does not tell,
and tokens of no label, are p_other. Knows labels and texts.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infer.endpoint.completions import Completion
from infer.endpoint.questions import EndpointAsker
from infer.logs import log
from infer.readers.answer_notes import ANSWERED, FAILED, UNPARSABLE, note
from infer.readers.answer_prompts import spoken
from infer.readers.label import LabelReading
from models.engine_settings import QuestionSettings
from models.method_settings import EndpointSettings
from models.settings import Settings

TOP = 20  # the most that OpenAI and a vLLM server with its defaults give
BLANKS = " \t\r\n▁Ġ"  # before a token's word, also as SentencePiece and byte-level tokenizers write them
SHARED = 0.05  # probability of a token that begins answers of several labels, above which no label can be told
STRAY_MASS = 0.5  # of the labels, below which it is told what took the rest


class EndpointReader:
    """Reads labels from the first token of an endpoint's replies."""

    def __init__(self, endpoint: EndpointSettings, question: QuestionSettings) -> None:
        self.labels = tuple(question.labels)
        self.spellings = [[one.strip() for one in question.labels[label]] for label in self.labels]
        replies = {label: spoken(question.labels, label) for label in self.labels}
        self.asker = EndpointAsker(endpoint, question, system=question.system, replies=replies)
        what = [question.prompt, self.asker.before, self.spellings]
        sha256 = hashlib.sha256(json.dumps(what).encode()).hexdigest()
        self.identity: dict[str, Any] = {"endpoint": endpoint.model, "prompt_sha256": sha256}

    def read(
        self, rows: Sequence[Mapping[str, str]], *, names: Sequence[str] = (), progress: bool = False
    ) -> LabelReading:
        """The logs of each label's mass among the tokens told, -inf for none. NaN rows are unanswered.

        Raises EndpointRefused where no request is answered any more, ValueError for a server that tells no
        probabilities, and for labels whose answers begin with the same token.
        """
        mass = np.full((len(rows), len(self.labels)), np.nan)
        notes: dict[int, dict[str, Any]] = {}
        strays: dict[str, float] = {}
        for number, said in self.asker.ask(rows, max_tokens=1, temperature=0, logprobs=True, top_logprobs=TOP):
            if isinstance(said, Exception):
                notes[number] = note(None, FAILED, str(said))
                continue
            told = self._told(said)
            found, rest = self._mass(told)
            if not found.any():
                notes[number] = note(said.text, UNPARSABLE, f"no label among the {len(told)} likeliest first tokens")
            else:
                mass[number], notes[number] = found, note(said.text, ANSWERED)
            if found.sum() < STRAY_MASS:
                for token, prob in rest.items():
                    strays[token] = strays.get(token, 0.0) + prob
        with np.errstate(divide="ignore"):
            log_probs = np.log(mass)
        return LabelReading(log_probs, np.zeros(len(rows)), strays=strays, notes=[notes[at] for at in range(len(rows))])

    def _told(self, said: Completion) -> dict[str, float]:
        """{token: probability} of the reply's first token; {} where the reply is empty."""
        if not said.tokens:
            if said.text:
                raise ValueError(
                    f"{self.asker.settings.url} tells no log-probabilities of {self.asker.settings.model}. Use another "
                    "server or model, or method=generate_hard or verbalized."
                )
            return {}
        first, told = said.tokens[0], dict[str, float]()
        listed = any(token == first.token for token, _ in first.top)
        for token, log_prob in first.top if listed else (*first.top, (first.token, first.log_prob)):
            # Tokens that are not the same may be written the same, a word with and without its space for one.
            told[token] = told.get(token, 0.0) + math.exp(min(log_prob, 0.0))
        return told

    def _mass(self, told: Mapping[str, float]) -> tuple[np.ndarray, dict[str, float]]:
        """((L,) the labels' mass, the tokens of none with theirs)."""
        found, rest = np.zeros(len(self.labels)), {}
        for token, prob in told.items():
            owners = self._owners(token)
            if len(owners) == 1:
                found[owners[0]] += prob
                continue
            if len(owners) > 1 and prob > SHARED:
                shared = " and ".join(self.labels[owner] for owner in owners)
                raise ValueError(
                    f"The endpoint's first token {token!r} begins the answers of {shared} and cannot tell them "
                    "apart. Give them answers that begin with different words, or use method=verbalized."
                )
            rest[token] = prob
        return found, rest

    def _owners(self, token: str) -> list[int]:
        begun = token.lstrip(BLANKS).rstrip()
        if not begun:
            return []
        return [at for at, known in enumerate(self.spellings) if any(one.startswith(begun) for one in known)]


def load_endpoint_reader(settings: Settings) -> EndpointReader:
    """The reader of a run."""
    endpoint = settings.endpoint
    log.info(f"{endpoint.url}, model {endpoint.model}, {endpoint.workers} at a time, its {TOP} likeliest first tokens")
    return EndpointReader(endpoint, settings.question)
