"""reviews_flan_t5 offline: a T5 of two layers and a tokenizer of T5's kind, by the command, against the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, SHARED, compose

from infer.reference import reference_log_probs
from infer.run import run

REVIEWS = ROOT / "data" / "sample" / "reviews" / "reviews.csv"
PROMPT = "Review:\n{text}\nIs this movie review sentence negative or positive?\nOPTIONS:\n- negative\n- positive"
NATS = 1e-4  # float32 passes of two layers against float64 sums


def trained_tokenizer() -> Any:
    """T5's own class over 300 pieces learnt from some reviews of the sample, with its end token and sentinels."""
    from tokenizers import SentencePieceUnigramTokenizer
    from transformers import T5Tokenizer

    learnt = SentencePieceUnigramTokenizer()
    texts = [*pd.read_csv(REVIEWS)["text"][:150], *["negative positive OPTIONS: - negative - positive"] * 200]
    specials = ["<pad>", "</s>", "<unk>"]
    learnt.train_from_iterator(texts, vocab_size=300, show_progress=False, special_tokens=specials, unk_token="<unk>")
    pieces = [(piece, score) for piece, score in json.loads(learnt.to_str())["model"]["vocab"]]
    return T5Tokenizer(vocab=pieces, extra_ids=10)


@pytest.fixture(params=["learnt here", "T5's own"])
def tiny_flan(request: pytest.FixtureRequest, tmp_path: Path, tiny_t5: Any) -> Path:
    """A folder as a hub download of flan-t5-small leaves it: untied head, gated feed-forward, padding is token 0."""
    from transformers import AutoTokenizer

    own = SHARED / "models" / "t5-tokenizer"
    if request.param == "T5's own" and not own.is_dir():
        pytest.skip("T5's tokenizer is not beside this checkout (../shared/models)")
    tokenizer = trained_tokenizer() if request.param == "learnt here" else AutoTokenizer.from_pretrained(own)
    rows = max(tokenizer.get_vocab().values()) + 29  # T5's head has 28 rows that are no tokens
    folder = tmp_path / "flan"
    tiny_t5(rows, tied=False, pad_token_id=0, decoder_start_token_id=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_flan_t5_reads_the_sample_as_the_oracle_does(tiny_flan: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    reviews = pd.read_csv(REVIEWS).iloc[[0, 3, 500, 900, 990]]
    reviews.to_csv(tmp_path / "in.csv", index=False)
    run(
        compose(
            "+experiment=reviews_flan_t5", f"model.name={tiny_flan}", f"task.input_csv={tmp_path / 'in.csv'}",
            f"output={tmp_path / 'out.parquet'}", "engine.precision=fp32",
        )
    )  # fmt: skip
    table = pd.read_parquet(tmp_path / "out.parquet")
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(tiny_flan), AutoTokenizer.from_pretrained(tiny_flan)
    prompts = [PROMPT.replace("{text}", text) for text in reviews["text"]]
    expected = reference_log_probs(model, tokenizer, prompts, ["positive", "negative"])
    found = table[["logp_positive", "logp_negative"]].to_numpy(dtype=np.float64)
    assert np.abs(found - expected).max() < NATS
    np.testing.assert_allclose(table["p_other"], 1 - np.exp(expected).sum(axis=1), atol=1e-5)
    shares = np.exp(expected[:, 0]) / np.exp(expected).sum(axis=1)
    np.testing.assert_allclose(table["p_positive"], shares, atol=1e-4)
    assert table["p_positive"].nunique() == len(reviews), "the texts do not reach the encoder"
