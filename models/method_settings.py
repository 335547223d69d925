"""The settings of the ways of answering: which one, what a trained adapter is, how a model writes before it answers.

Part of the schema in models.settings; knows no network.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.choices import one_of, within

METHODS = (
    "encoder", "uniform", "prior", "length", "tfidf", "features", "ensemble", "blend", "embedding_logistic",
    "next_token", "adapter", "chain_of_thought",
)  # fmt: skip
ARENA_METHODS = ("encoder", "length", "features", "ensemble", "blend")  # they read pairs of answers
ASKED_METHODS = ("next_token", "adapter", "chain_of_thought")  # they put a question to a language model
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

    def __post_init__(self) -> None:
        within("generation.max_new_tokens", self.max_new_tokens, 1, 100_000)
        within("generation.batch_rows", self.batch_rows, 1, 100_000)
        if not self.answer_header.strip():
            raise ValueError("generation.answer_header is empty: expected the words that ask for the answer.")
