"""method=sampled: how often drawn answers are each label, in the place of the probabilities that next_token reads.

    row -> prompt as next_token asks it -> `generation.samples` draws -> share of the draws that begin with an answer

What a server without log-probabilities can tell, and the check of those that are read: both count the same event, the
tokens of an answer (and its end, where question.answers_end asks for one). Knows labels and texts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infer.generation import Drawn, Generator
from infer.readers.answer_notes import ANSWERED, FAILED, UNPARSABLE, note
from infer.readers.by_method import load_asked_model
from infer.readers.label import LabelReader, LabelReading
from models.answer_tree import AnswerTree
from models.answers import Cut
from models.engine_settings import QuestionSettings
from models.method_settings import GenerationSettings
from models.settings import Settings


class SampledReader:
    """Draws answers with a loaded model (`models.causal.LoadedModel`, or anything with its fields).

    max_tokens: of prompt and answer together; None: what the model's positions reach. Raises ValueError where the
    question does not suit the tokenizer, see LabelReader, and for an encoder-decoder.
    """

    def __init__(
        self, loaded: Any, question: QuestionSettings, generation: GenerationSettings, *, seed: int,
        max_tokens: int | None = None,
    ) -> None:  # fmt: skip
        self.asked = LabelReader(loaded, question, max_tokens=max_tokens)
        self.labels, self.samples = self.asked.labels, generation.samples
        longest = max(one.answers.most_tokens for one in self.asked.arrangements) + self.asked.ended
        self.generator = Generator(
            loaded, max_new_tokens=longest, batch_rows=generation.batch_rows, temperature=generation.temperature,
            seed=seed,
        )  # fmt: skip
        what = [self.asked.identity["prompt_sha256"], generation.samples, generation.temperature, seed]
        sha256 = hashlib.sha256(json.dumps(what).encode()).hexdigest()
        self.identity: dict[str, Any] = {**loaded.identity, "prompt_sha256": sha256}

    def check(self) -> None:
        """The checks that need the tokenizer but no forward pass."""
        self.asked.check()

    def read(
        self, rows: Sequence[Mapping[str, str]], *, names: Sequence[str] = (), progress: bool = False
    ) -> LabelReading:
        """The logs of each label's share of the draws, -inf for none. NaN: no draw was an answer, or none was made.

        With rotated options the shares are means over the rotations, as are the probabilities that next_token reads.
        """
        shares, cut_share = np.zeros((len(rows), len(self.labels))), np.zeros(len(rows))
        told: list[dict[str, int]] = [{} for _ in rows]
        strays: dict[str, float] = {}
        for arrangement in self.asked.arrangements:
            encoded = self.asked.encoder.encode([arrangement.template.fill(row) for row in rows]) if rows else []
            encoded = [self.asked.encoder.fit(one, self.asked.room(arrangement)) for one in encoded]
            cut_share = np.maximum(cut_share, [one.cut_share for one in encoded])
            followed = [arrangement.answers.follow(one) for one in encoded]
            for cut in dict.fromkeys(cut for _, cut in followed):
                self._refuse_taken_back(cut)
                tree = arrangement.answers.tree(cut)
                places = [at for at, (_, own) in enumerate(followed) if own == cut]
                drawn = self.generator.draw(
                    [followed[at][0] for at in places], self.samples, _Unsettled(tree, ended=self.asked.ended),
                    names=[names[at] for at in places] if names else (), progress=progress,
                )  # fmt: skip
                for at, draws in zip(places, drawn, strict=True):
                    shares[at] += self._shares(draws, tree, arrangement.owners, told[at], strays)
        shares /= len(self.asked.arrangements)
        failed = np.isnan(shares.sum(axis=1))
        shares[shares.sum(axis=1) == 0] = np.nan
        with np.errstate(divide="ignore"):
            log_probs = np.log(shares)
        notes = [self._note(*one) for one in zip(told, shares, failed.tolist(), strict=True)]
        return LabelReading(log_probs, cut_share, strays=strays, notes=notes)

    def _shares(
        self, draws: Sequence[Drawn], tree: AnswerTree, owners: Sequence[int], told: dict[str, int],
        strays: dict[str, float],
    ) -> np.ndarray:  # fmt: skip
        """(L,) of one prompt's draws; NaN where the model's logits were not finite. told, strays: counted on."""
        found = np.zeros(len(self.labels))
        for one in draws:
            if not one.ended:
                return np.full(len(self.labels), np.nan)
            answer = _answer_of(one.ids, tree, ended=self.asked.ended)
            text = self.asked.tokenizer.decode(list(one.ids) if answer is None else list(tree.answers[answer]))
            told[text] = told.get(text, 0) + one.times
            if answer is None:
                strays[text] = strays.get(text, 0.0) + one.times / self.samples / len(self.asked.arrangements)
            else:
                found[owners[answer]] += one.times
        return found / self.samples

    def _note(self, told: Mapping[str, int], shares: np.ndarray, failed: bool) -> dict[str, Any]:
        """The text that came most often, and every text that came with its number of draws.

        failed: not every draw could be made, so that those which were say nothing of the shares.
        """
        drawn = dict(sorted(told.items(), key=lambda item: -item[1]))
        if failed:
            return note(None, FAILED, "the model's logits are not finite", drawn=drawn)
        if np.isnan(shares).any():
            return note(next(iter(drawn)), UNPARSABLE, "no draw begins with an answer", drawn=drawn)
        return note(next(iter(drawn)), ANSWERED, drawn=drawn)

    def _refuse_taken_back(self, cut: Cut) -> None:
        if cut.taken_back:
            text = self.asked.tokenizer.decode(list(cut.taken_back))
            raise ValueError(
                f"The prompt ends in {text!r}, whose token an answer changes, so that answers cannot be drawn behind "
                "it. End question.prompt with a whole word or a colon, or use method=next_token."
            )


class _Unsettled:
    """Can tokens still become an answer, or its end still come?"""

    def __init__(self, tree: AnswerTree, *, ended: bool) -> None:
        deepest = 1 if ended else 0
        self.beginnings = {path[:depth] for path in tree.answers for depth in range(1, len(path) + deepest)}

    def __call__(self, ids: Sequence[int]) -> bool:
        return tuple(ids) in self.beginnings


def _answer_of(ids: tuple[int, ...], tree: AnswerTree, *, ended: bool) -> int | None:
    """The answer (its position in the tree) that these tokens are, with an end where one is asked for; None: no one."""
    for at, path in enumerate(tree.answers):
        if ids[: len(path)] != path:
            continue
        if not ended or (len(ids) == len(path) + 1 and ids[-1] in tree.mass_ids[tree.ends[at]]):
            return at
    return None


def load_sampled_reader(settings: Settings) -> SampledReader:
    """The reader of a run; whatever the tokenizer can tell is checked."""
    reader = SampledReader(
        load_asked_model(settings), settings.question, settings.generation, seed=settings.seed,
        max_tokens=settings.engine.max_tokens,
    )  # fmt: skip
    reader.check()
    return reader
