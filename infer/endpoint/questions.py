"""A question as chat messages for an endpoint, and the endpoint that the settings name; knows no answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from infer.endpoint.client import Endpoint, EndpointClient, RequestFailed
from infer.endpoint.completions import Completion
from infer.endpoint.queue import complete_all
from models.engine_settings import QuestionSettings
from models.method_settings import EndpointSettings
from models.tasks.templates import template_pieces


class EndpointAsker:
    """Puts a question about each row to an endpoint, several at a time.

    system: before it all, None for nothing. replies: label -> what an example of it answers.
    """

    def __init__(
        self, settings: EndpointSettings, question: QuestionSettings, *, system: str | None, replies: Mapping[str, str]
    ) -> None:
        assert settings.url is not None and settings.model is not None and question.prompt is not None
        self.settings, self.prompt = settings, question.prompt
        where = Endpoint(
            settings.url, settings.model, settings.key_variable, timeout_s=settings.timeout_s,
            attempts=settings.attempts,
        )  # fmt: skip
        self.client = EndpointClient(where)
        self.before = [{"role": "system", "content": system}] if system else []
        for example in question.examples:
            self.before.append({"role": "user", "content": filled(self.prompt, example)})
            self.before.append({"role": "assistant", "content": replies[example["label"]]})

    def messages(self, row: Mapping[str, str]) -> list[dict[str, str]]:
        """The conversation that ends with the question about this row."""
        return [*self.before, {"role": "user", "content": filled(self.prompt, row)}]

    def ask(
        self, rows: Sequence[Mapping[str, str]], **options: Any
    ) -> Iterator[tuple[int, Completion | RequestFailed]]:
        """(number of the row, its answer or failure) as they come. options: of the requests. Raises EndpointRefused."""
        requests = ((number, self.messages(row)) for number, row in enumerate(rows))
        workers, stop_after = self.settings.workers, self.settings.stop_after
        return complete_all(self.client, requests, workers=workers, stop_after=stop_after, **options)


def filled(prompt: str, fields: Mapping[str, str]) -> str:
    """The template with a row's texts in the places of its fields."""
    return "".join(fields[text] if is_field else text for is_field, text in template_pieces(prompt))
