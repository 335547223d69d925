"""The settings of the ways of answering: which one, what an adapter is, how a model writes, what embeds, who serves.

Part of the schema in models.settings; knows no network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from models.choices import one_of, within

METHODS = (
    "encoder", "uniform", "prior", "length", "tfidf", "features", "ensemble", "blend", "embedding_logistic",
    "embedding_centroid", "embedding_description", "next_token", "adapter", "chain_of_thought", "generate_hard",
    "verbalized", "verbalized_score", "sampled",
)  # fmt: skip
WRITTEN_METHODS = ("generate_hard", "verbalized", "verbalized_score")  # the model writes its answer, which is parsed
# They put a question to a model.
ASKED_METHODS = ("next_token", "adapter", "chain_of_thought", "sampled", *WRITTEN_METHODS)
EMBEDDING_METHODS = ("embedding_logistic", "embedding_centroid", "embedding_description")
ARENA_METHODS = ("length", "features", "ensemble", "blend")  # they read pairs of answers
TEXT_METHODS = (*EMBEDDING_METHODS, "chain_of_thought", "sampled", *WRITTEN_METHODS)  # they read texts, not pairs
UNTRAINED_METHODS = ("next_token", "chain_of_thought", "embedding_description", "sampled", *WRITTEN_METHODS)
NETWORK_METHODS = ("encoder", "adapter")  # they learn in a training loop: python -m train
ENDPOINT_METHODS = ("next_token", *WRITTEN_METHODS)  # a server can stand in for the local model
POOLINGS = ("mean", "cls")
AUTO = "auto"
ADAPTER_HEADS = ("label", "sequence")
ADAPTER_USES = ("auto", "run", "none")


@dataclass
class MethodSettings:
    """How an answer is found: a fine-tuned network, a scikit-learn baseline, or a language model's next token."""

    name: str
    embeddings: str  # features, ensemble: MiniLM cosines; auto uses them where the package is installed

    def __post_init__(self) -> None:
        one_of("method.name", self.name, METHODS)
        one_of("method.embeddings", self.embeddings, ("auto", "yes", "no"))


@dataclass
class AdapterSettings:
    """Low-rank matrices beside a language model's frozen ones (Hu et al. 2021; 4-bit base: Dettmers et al. 2023)."""

    head: str  # label: the answers' own logits; sequence: a new head of one output per label
    rank: int
    alpha: float  # the product counts alpha / rank times
    dropout: float  # of the adapter's input
    targets: str  # all-linear, or module names joined by commas: q_proj,v_proj
    use: str  # python -m infer: run (the run's checkpoints), none (the model as it is), auto (run, where trained)

    def __post_init__(self) -> None:
        one_of("adapter.head", self.head, ADAPTER_HEADS)
        one_of("adapter.use", self.use, ADAPTER_USES)
        within("adapter.rank", self.rank, 1, 4096)
        within("adapter.alpha", self.alpha, 1e-3, 1e5)
        within("adapter.dropout", self.dropout, 0.0, 0.9)
        if not self.targets.strip():
            raise ValueError("adapter.targets is empty: expected all-linear, or module names joined by commas.")


@dataclass
class GenerationSettings:
    """What a model writes before it is read."""

    max_new_tokens: int
    batch_rows: int
    answer_header: str  # closes the reasoning; the answer stands behind it
    instruction: str | None  # generate_hard, verbalized*: how to write the answer; auto: where no examples show it
    temperature: float  # generate_hard, verbalized*, sampled: 0 writes the likeliest token; above, tokens are drawn
    samples: int  # sampled: answers drawn of each row

    def __post_init__(self) -> None:
        within("generation.max_new_tokens", self.max_new_tokens, 1, 100_000)
        within("generation.batch_rows", self.batch_rows, 1, 100_000)
        within("generation.temperature", self.temperature, 0.0, 100.0)
        within("generation.samples", self.samples, 1, 100_000)
        if not self.answer_header.strip():
            raise ValueError("generation.answer_header is empty: expected the words that ask for the answer.")


@dataclass
class EmbeddingSettings:
    """The network whose sentence vectors the embedding methods read."""

    name: str  # a local folder, package:NAME/folder, or a hub name
    max_tokens: int  # of a text; the rest is not seen
    pooling: str  # mean: of the last layer over the tokens; cls: the first token's
    temperature: float  # embedding_description: cosines are divided by it; the others learn theirs

    def __post_init__(self) -> None:
        one_of("embedding.pooling", self.pooling, POOLINGS)
        within("embedding.max_tokens", self.max_tokens, 8, 100_000)
        within("embedding.temperature", self.temperature, 1e-3, 100.0)


@dataclass
class EndpointSettings:
    """An OpenAI-compatible server that stands in for the local model; url None: the local model answers."""

    url: str | None  # up to and with the version: http://localhost:8000/v1
    model: str | None  # the name it serves the model under
    key_variable: str | None  # the environment variable that holds the key; never the key
    workers: int  # requests under way at a time
    timeout_s: float  # of one attempt
    attempts: int  # of one row, before it stays unanswered
    stop_after: int  # rows failed in a row: the run stops, and goes on when it is started again

    def __post_init__(self) -> None:
        if self.url is not None and not self.model:
            raise ValueError("endpoint.url needs endpoint.model: the name under which the server serves its model.")
        if self.key_variable is not None and not re.fullmatch(r"[A-Z][A-Z0-9_]{0,40}", self.key_variable):
            raise ValueError(
                "endpoint.key_variable (not shown: it may be a key) is no variable's name such as OPENAI_API_KEY. Put "
                "the key into an environment variable, and give its name here."
            )
        for key in ("workers", "attempts", "stop_after"):
            within(f"endpoint.{key}", getattr(self, key), 1, 1000)
        within("endpoint.timeout_s", self.timeout_s, 0.01, 1e5)
