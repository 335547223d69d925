"""Any sequence-classification checkpoint reads texts: its softmax, its labels mapped to ours, one left out or kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import compose

from infer.readers.text_encoder import TextEncoderReader, owners_of
from infer.run import run
from models.reader import load_tokenizer
from models.text_encoder import TextEncoding, load_text_network, longest_text

TEXTS = ["the film was good", "bad", "a dull plot and a bad scene which do you like or is the review fine"]


@pytest.fixture(scope="session")
def sentiment(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: str) -> Path:
    """A checkpoint of three labels, as the hub has them."""
    folder = tmp_path_factory.mktemp("sentiment")
    shutil.copytree(tiny_encoder, folder, dirs_exist_ok=True)
    change(folder, id2label={"0": "NEG", "1": "NEU", "2": "POS"}, label2id={"NEG": 0, "NEU": 1, "POS": 2})
    return folder


def change(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def raw_shares(folder: Path, texts: list[str]) -> np.ndarray:
    """(N, 3) softmax of each text alone, by transformers itself."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
    return torch.stack(logits).double().softmax(-1).numpy()


def reader_of(folder: Path, owners: list[int], labels: tuple[str, ...], **settings) -> TextEncoderReader:
    from transformers import AutoTokenizer

    network, tokenizer = load_text_network(str(folder)), AutoTokenizer.from_pretrained(folder)
    return TextEncoderReader(network, tokenizer, labels, owners, precision="fp32", **settings)


def test_batches_give_the_softmax_of_each_text_alone(sentiment: Path) -> None:
    reading = reader_of(sentiment, [0, 1, 2], ("NEG", "NEU", "POS")).read([{"text": text} for text in TEXTS])
    np.testing.assert_allclose(np.exp(reading.log_probs), raw_shares(sentiment, TEXTS), atol=1e-6)
    assert np.abs(reading.other).max() < 1e-9 and not reading.cut_share.any()


def test_a_label_left_out_is_other_and_the_rest_are_normalised_without_it(sentiment: Path) -> None:
    reading = reader_of(sentiment, [1, -1, 0], ("positive", "negative")).read([{"text": text} for text in TEXTS])
    shares = raw_shares(sentiment, TEXTS)
    kept = shares[:, [2, 0]]
    np.testing.assert_allclose(reading.probs(), kept / kept.sum(axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(reading.other, shares[:, 1], atol=1e-6)


def test_two_of_its_labels_may_be_one_of_ours(sentiment: Path) -> None:
    reading = reader_of(sentiment, [1, 1, 0], ("good", "rest")).read([{"text": TEXTS[0]}])
    shares = raw_shares(sentiment, TEXTS[:1])
    np.testing.assert_allclose(reading.probs(), [[shares[0, 2], shares[0, :2].sum()]], atol=1e-6)


def test_a_long_text_is_cut_and_says_how_much(sentiment: Path) -> None:
    reader = reader_of(sentiment, [0, 1, 2], ("NEG", "NEU", "POS"), max_tokens=14)
    reading = reader.read([{"text": TEXTS[1]}, {"text": TEXTS[2]}])
    np.testing.assert_allclose(reading.cut_share, [0, 7 / 16])
    tokenizer = reader.encoding.tokenizer
    shown = tokenizer.decode(reader.encoding.encode([TEXTS[2]])[0][0])
    assert shown == "a dull plot and a [ . . . ] is the review fine", "a text loses its middle"
    assert longest_text(reader.model, tokenizer) == longest_text(reader.model, tokenizer, 10_000) == 256
    assert reader.read([]).log_probs.shape == (0, 3)


def test_a_control_token_spelt_in_a_text_is_text(minilm: str) -> None:
    encoding = TextEncoding(load_tokenizer(minilm, newlines=False), 32)
    (ids, plain), _ = encoding.encode(["good [SEP] film", "good film"])
    marks = encoding.tokenizer.cls_token_id, encoding.tokenizer.sep_token_id
    assert (ids[0], ids[-1]) == marks and not set(ids[1:-1].tolist()) & set(marks)
    assert plain.tolist() == encoding.tokenizer("good film")["input_ids"]


def test_a_tokenizer_that_cannot_pad_is_refused(tiny_tokenizer) -> None:
    from copy import deepcopy

    bare = deepcopy(tiny_tokenizer)
    bare.pad_token = None
    with pytest.raises(ValueError, match="has no pad token"):
        TextEncoding(bare, 32)


def test_a_network_of_relative_positions_takes_what_is_asked_for() -> None:
    from types import SimpleNamespace

    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    shape = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 8, "relative_attention": True,
             "position_biased_input": False, "pos_att_type": ["c2p", "p2c"]}  # fmt: skip
    network = DebertaV2ForSequenceClassification(DebertaV2Config(**shape))
    tokenizer = SimpleNamespace(model_max_length=int(1e30))
    assert longest_text(network, tokenizer, 2048) == 2048
    assert longest_text(network, tokenizer) == 512


def test_the_mapping_must_name_every_label_on_both_sides(sentiment: Path) -> None:
    labels = ["positive", "negative"]
    assert owners_of(str(sentiment), labels, {"NEG": "negative", "NEU": None, "POS": "positive"}) == [1, -1, 0]
    assert owners_of(str(sentiment), ["NEU", "POS", "NEG"], None) == [2, 0, 1]
    for given in (None, {"NEG": "negative", "POS": "positive"}, {"NEG": "negative", "NEU": None, "POS": "negative"},
                  {"NEG": "negative", "NEU": "mixed", "POS": "positive"}):  # fmt: skip
        with pytest.raises(ValueError, match=r"has the labels NEG, NEU, POS, and question.labels are positive, neg"):
            owners_of(str(sentiment), labels, given)


def test_checkpoints_that_give_no_softmax_or_read_pairs_are_refused(sentiment: Path, tmp_path: Path) -> None:
    shutil.copytree(sentiment, tmp_path / "multi")
    change(tmp_path / "multi", problem_type="multi_label_classification")
    with pytest.raises(ValueError, match="expected one label of several to be right"):
        owners_of(str(tmp_path / "multi"), ["NEG", "NEU", "POS"], None)
    shutil.copytree(sentiment, tmp_path / "pairs")
    (tmp_path / "pairs" / "tiebreak.json").write_text('{"format": 1, "task": "arena", "labels": []}')
    with pytest.raises(ValueError, match="reads pairs of answers, not texts"):
        owners_of(str(tmp_path / "pairs"), ["NEG", "NEU", "POS"], None)


def test_a_checkpoint_without_a_head_is_refused(minilm: str) -> None:
    """Its head would be random, without a word."""
    with pytest.raises(ValueError, match="lack 2 of the network's tensors"):
        load_text_network(minilm)


def test_a_table_is_read_by_a_checkpoint_as_it_is(sentiment: Path, tmp_path: Path) -> None:
    pd.DataFrame({"text": TEXTS, "label": ["positive", "negative", None]}).to_csv(tmp_path / "in.csv", index=False)

    def settings(*overrides: str):
        return compose(
            "+experiment=reviews_soft", "model=minilm", "method=encoder", f"model.name={sentiment}",
            f"task.input_csv={tmp_path / 'in.csv'}", f"output={tmp_path / 'out.csv'}",
            "model.labels={NEG: negative, NEU: null, POS: positive}", *overrides,
        )  # fmt: skip

    run(settings())
    table = pd.read_csv(tmp_path / "out.csv")
    shares = raw_shares(sentiment, TEXTS)
    np.testing.assert_allclose(table["p_other"], shares[:, 1], atol=1e-6)
    np.testing.assert_allclose(table["p_positive"], shares[:, 2] / (1 - shares[:, 1]), atol=1e-6)
    run(settings())  # finished already
    with pytest.raises(ValueError, match=r"they differ in model.labels"):
        run(settings("model.labels={NEG: negative, NEU: negative, POS: positive}"))
