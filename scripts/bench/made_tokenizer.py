"""A tokenizer for arena rows where no checkpoint's is at hand: byte-level BPE, trained on the rows themselves.

Its tokens are a little longer than a real vocabulary's on the same text, since it has seen all of it; how the lengths
of rows differ from each other, which is what the batching benchmarks are about, stays theirs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from models.names import resolve_model
from models.reader import load_tokenizer
from models.tasks.arena import ArenaRow

MADE = "made"
TOKENIZER_HELP = f"folder, package or hub name; {MADE}: trained on the rows of --source, nothing is downloaded"
VOCABULARY = 30_000  # as BERT's; fewer where the rows do not hold as many


def tokenizer_for(name: str, rows: Iterable[ArenaRow]) -> Any:
    """The tokenizer that --tokenizer names. Raises what load_tokenizer raises."""
    return make_tokenizer(rows) if name == MADE else load_tokenizer(resolve_model(name))


def make_tokenizer(rows: Iterable[ArenaRow], vocabulary: int = VOCABULARY) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    controls = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(controls.values()), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    texts = (text for row in rows for field in (row.prompt, row.response_a, row.response_b) for text in field)
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **controls)
