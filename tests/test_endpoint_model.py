"""A server over SmolLM2 in place of the local SmolLM2: the same probabilities and texts, whatever breaks on the way."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, compose
from endpoint_server import Reply, serving
from endpoint_server_model import ModelReplies

from infer.endpoint import client as endpoint_module
from infer.endpoint.client import EndpointRefused
from infer.run import run

REVIEWS = ROOT / "data" / "sample" / "reviews" / "reviews.csv"
# In a chat an answer opens the line; a server's first token may be either spelling, and both count.
LABELS = 'question.labels={positive:[positive," positive"],negative:[negative," negative"]}'
ASKED = {  # without examples it writes differently of each review, and not always an answer
    "next_token": ["method=next_token"],
    "generate_hard": ["method=generate_hard", "generation.max_new_tokens=12", "question.examples=[]"],
    "verbalized": ["method=verbalized", "generation.max_new_tokens=30"],
}
FAULTS = [Reply(429, "{}"), Reply(500, "oops"), Reply(200, '{"choices": [{"mess'), Reply(hang_up=True)]


@pytest.fixture(scope="module")
def replies(smollm2: Any) -> ModelReplies:
    return ModelReplies(*smollm2)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, smollm2: Any) -> None:
    """Waits of milliseconds; the local model is the one that the server has in memory."""
    monkeypatch.setattr(endpoint_module, "FIRST_WAIT_S", 0.01)
    loaded = SimpleNamespace(model=smollm2[0], tokenizer=smollm2[1], identity={}, line="SmolLM2")
    monkeypatch.setattr("models.causal.load_language_model", lambda *_, **__: loaded)


def arguments(folder: Path, output: str, *overrides: str, rows: Sequence[int] = (0, 3, 500, 900)) -> list[str]:
    """The command line of a run over some reviews, two in a chunk."""
    pd.read_csv(REVIEWS).iloc[list(rows)].to_csv(folder / "in.csv", index=False)
    return [
        "+experiment=reviews_soft", f"task.input_csv={folder / 'in.csv'}", f"output={folder / output}", LABELS,
        "question.chat=yes", "engine.chunk_rows=2", "report=false", *overrides,
    ]  # fmt: skip


def served(url: str) -> list[str]:
    return [f"endpoint.url={url}", "endpoint.model=SmolLM2", "endpoint.timeout_s=30", "endpoint.stop_after=2"]


def written(folder: Path, output: str) -> list[tuple[Any, ...]]:
    lines = (folder / output.replace(".csv", ".answers.jsonl")).read_text().splitlines()
    notes = [json.loads(line) for line in lines]
    return [(note["id"], note["written"], note["outcome"], note["cut"]) for note in notes]


def test_the_command_reads_from_a_server_what_the_engine_reads_from_the_model(
    tmp_path: Path, replies: ModelReplies
) -> None:
    """A label's mass is the engine's, less what of it lies beyond the twenty tokens that the server tells."""
    tails: dict[str, float] = {}

    def told(number: int, content: dict[str, Any]) -> Reply:
        made = replies(number, content)
        top = json.loads(made.body)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        tails[content["messages"][-1]["content"]] = 1 - sum(math.exp(one["logprob"]) for one in top)
        return made

    with serving(told) as server:
        command = [sys.executable, "-m", "infer", *arguments(tmp_path, "served.csv", *served(server.url))]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert found.returncode == 0, found.stderr
    run(compose(*arguments(tmp_path, "local.csv")))
    there, here = pd.read_csv(tmp_path / "served.csv"), pd.read_csv(tmp_path / "local.csv")
    columns = ["logp_positive", "logp_negative"]
    missing = np.exp(here[columns].to_numpy()) - np.exp(there[columns].to_numpy())
    tail = [tails[f"Review: {text}\nSentiment:"] for text in pd.read_csv(tmp_path / "in.csv")["text"]]
    assert (missing > -1e-5).all() and (missing.sum(axis=1) < np.array(tail) + 1e-5).all()  # float32 columns
    np.testing.assert_allclose(there["p_other"] - here["p_other"], missing.sum(axis=1), atol=1e-6)
    assert max(tail) < 0.1 and (here["p_positive"] - there["p_positive"]).abs().max() < 0.005
    assert there["predicted"].tolist() == here["predicted"].tolist() and there["predicted"].nunique() == 2


@pytest.mark.parametrize(
    ("method", "rows"),
    [("generate_hard", (0, 3, 500, 900)), pytest.param("verbalized", (0, 500), marks=pytest.mark.slow)],
)
def test_a_server_writes_what_the_local_model_writes(
    method: str, rows: Sequence[int], tmp_path: Path, replies: ModelReplies
) -> None:
    run(compose(*arguments(tmp_path, "local.csv", *ASKED[method], rows=rows)))
    with serving(replies) as server:
        run(compose(*arguments(tmp_path, "served.csv", *ASKED[method], *served(server.url), rows=rows)))
    assert written(tmp_path, "served.csv") == written(tmp_path, "local.csv")
    columns = ["id", "p_positive", "p_negative", "p_other", "predicted", "confidence"]
    there, here = (pd.read_csv(tmp_path / name)[columns] for name in ("served.csv", "local.csv"))
    pd.testing.assert_frame_equal(there, here)
    if method == "generate_hard":
        outcomes = {outcome for _, _, outcome, _ in written(tmp_path, "local.csv")}
        assert outcomes == {"answered", "unparsable"}


def breaking(replies: ModelReplies) -> Callable[[int, dict[str, Any]], Reply]:
    """Every question fails in a way of its own before it is answered, one of them by a time-out too."""
    failures: dict[str, list[Reply]] = {}

    def reply(number: int, content: dict[str, Any]) -> Reply:
        made, question = replies(number, content), content["messages"][-1]["content"]
        if question not in failures:
            late = [Reply(body=made.body, delay_s=60)] if not failures else []
            failures[question] = [FAULTS[len(failures)], *late]
        return failures[question].pop() if failures[question] else made

    return reply


@pytest.mark.parametrize("method", ["next_token", "generate_hard"])
def test_faults_on_the_way_change_no_byte_of_the_table(method: str, tmp_path: Path, replies: ModelReplies) -> None:
    with serving(replies) as server:
        run(compose(*arguments(tmp_path, "whole.csv", *ASKED[method], *served(server.url))))
    with serving(breaking(replies)) as server:
        run(compose(*arguments(tmp_path, "out.csv", *ASKED[method], *served(server.url), "endpoint.timeout_s=2")))
    assert len(server.asked) >= 4 + 4 + 1  # each once more, the late one twice more, and what a busy machine delays
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert (tmp_path / "out.answers.jsonl").read_bytes() == (tmp_path / "whole.answers.jsonl").read_bytes()


def test_a_server_that_is_killed_and_started_again_gives_the_same_table(tmp_path: Path, replies: ModelReplies) -> None:
    with serving(replies) as server:
        run(compose(*arguments(tmp_path, "whole.csv", *served(server.url))))

    def dying(number: int, content: dict[str, Any]) -> Reply:
        return Reply(dies=True) if number == 3 else replies(number, content)

    with serving(dying) as server, pytest.raises(EndpointRefused, match="The endpoint is gone"):
        run(compose(*arguments(tmp_path, "out.csv", *served(server.url), "endpoint.attempts=2", "endpoint.workers=1")))
    assert not (tmp_path / "out.csv").exists()
    with serving(replies) as server:
        run(compose(*arguments(tmp_path, "out.csv", *served(server.url))))
    assert len(server.asked) == 2  # the chunk that was finished is not asked again
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
