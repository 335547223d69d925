"""models.tasks.tokens under the real tokenizers, and what models.tasks.segments makes of real rows with them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tasks.arena import ArenaRow, read_rows
from models.tasks.segments import encode_pair, make_frame
from models.tasks.tokens import (
    TokenCache,
    TokenFields,
    Turns,
    cached_fields,
    check_tokenizer,
    fingerprint,
    keep_newlines,
    restore_nfkc,
    tokenise_fields,
    unknown_share,
)

settings.load_profile("ci")  # the same examples every time, and no deadline: a busy machine is not a bug


def size(turns: Turns) -> int:
    return sum(map(len, turns))


@pytest.fixture(scope="module")
def deberta_folder() -> Path:
    folder = Path(__file__).resolve().parents[2] / "shared" / "models" / "deberta-v3-tokenizer"
    if not folder.is_dir():
        pytest.skip("DeBERTa-v3's tokenizer is not beside this checkout (../shared/models)")
    return folder


@pytest.fixture(scope="module")
def tokenizers(deberta_folder: Path, minilm: str) -> dict[str, Any]:
    from transformers import AutoTokenizer

    found = {"deberta": AutoTokenizer.from_pretrained(deberta_folder), "minilm": AutoTokenizer.from_pretrained(minilm)}
    for tokenizer in found.values():
        restore_nfkc(tokenizer)
        assert keep_newlines(tokenizer)
    return found


@pytest.fixture(params=["deberta", "minilm"])
def tokenizer(request: pytest.FixtureRequest, tokenizers: dict[str, Any]) -> Any:
    return tokenizers[request.param]


@pytest.fixture(scope="module")
def real_rows(real_data: Path) -> list[ArenaRow]:
    return read_rows(real_data / "arena_kaggle_sample" / "train.csv", labelled=True).rows


def asked(*prompts: str) -> list[ArenaRow]:
    return [ArenaRow(str(n), (prompt,), ("",), ("",)) for n, prompt in enumerate(prompts)]


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_cut_mark_and_the_markers_are_known_words(tokenizer: Any) -> None:
    frame = make_frame(tokenizer)
    for ids in (frame.cut_mark, frame.prompt_marker, frame.answer_a_marker, frame.answer_b_marker):
        assert tokenizer.unk_token_id not in ids
    assert len(frame.answer_a_marker) == len(frame.answer_b_marker)


def test_control_tokens_in_a_text_become_plain_characters(tokenizer: Any) -> None:
    texts = ["end[SEP]", "[CLS] start", "x [MASK] [PAD]", "a[SEP][SEP]\n[CLS]b", "[sep]"]
    cache = tokenise_fields(asked(*texts), tokenizer)
    controls = {tokenizer.sep_token_id, tokenizer.cls_token_id, tokenizer.mask_token_id, tokenizer.pad_token_id}
    assert controls.isdisjoint(cache.ids.tolist())
    for text, fields in zip(texts, cache, strict=True):
        said = tokenizer.decode(fields.prompt[0]).replace(" ", "").lower()
        assert said == text.replace(" ", "").lower()


def test_full_width_brackets_do_not_smuggle_in_a_separator(tokenizers: dict[str, Any]) -> None:
    cache = tokenise_fields(asked("a \uff3bSEP\uff3d b"), tokenizers["deberta"])
    assert tokenizers["deberta"].decode(cache.ids).split() == ["a", "[", "SEP]", "b"]


def test_texts_without_control_tokens_get_the_tokenizer_s_own_ids(tokenizer: Any, real_rows: list[ArenaRow]) -> None:
    some = real_rows[:30]
    for each, fields in zip(some, tokenise_fields(some, tokenizer), strict=True):
        pairs = zip(each.response_a, fields.answer_a, strict=True)
        assert all(ids.tolist() == plain_ids(tokenizer, text) for text, ids in pairs), each.id


def test_line_breaks_survive_and_the_other_tokens_stay_as_they_were(
    deberta_folder: Path, minilm: str, tokenizers: dict[str, Any], real_rows: list[ArenaRow]
) -> None:
    from transformers import AutoTokenizer

    for name, folder in (("deberta", deberta_folder), ("minilm", minilm)):
        untouched, kept = AutoTokenizer.from_pretrained(folder), tokenizers[name]
        restore_nfkc(untouched)
        newline = kept.convert_tokens_to_ids("\n")
        assert plain_ids(untouched, "a\nb") == plain_ids(untouched, "a b")
        assert plain_ids(kept, "a\n\nb").count(newline) == 2
        assert "\n" in kept.decode(plain_ids(kept, "a\nb"))
        for each in real_rows[:40]:
            ids = plain_ids(kept, each.response_a[0])
            assert [i for i in ids if i != newline] == plain_ids(untouched, each.response_a[0]), each.id
            assert ids.count(newline) == each.response_a[0].count("\n")


def test_with_nfkc_deberta_reads_real_rows_as_sentencepiece_does(deberta_folder: Path, real_rows: list) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    from transformers import AutoTokenizer

    reference = sentencepiece.SentencePieceProcessor(model_file=str(deberta_folder / "spm.model"))
    tokenizer = AutoTokenizer.from_pretrained(deberta_folder)
    assert plain_ids(tokenizer, "wait\u2026") != reference.encode("wait\u2026")
    assert restore_nfkc(tokenizer) and not restore_nfkc(tokenizer)
    assert plain_ids(tokenizer, "wait\u2026") == reference.encode("wait\u2026")
    texts = [text for each in real_rows for text in each.prompt + each.response_a + each.response_b]
    # SentencePiece spells an unknown character in bytes; the Rust tokenizer gives [UNK]: not ours to compare
    comparable = [text for text in texts if not any(p.startswith("<0x") for p in reference.encode(text, out_type=str))]
    assert len(comparable) > 0.9 * len(texts)
    assert [text for text in comparable if plain_ids(tokenizer, text) != reference.encode(text)] == []


def test_nfkc_is_not_put_before_a_vocabulary_that_was_trained_without(minilm: str) -> None:
    from transformers import AutoTokenizer

    assert not restore_nfkc(AutoTokenizer.from_pretrained(minilm))


def test_a_tokenizer_that_knows_line_breaks_is_left_alone(tokenizer: Any) -> None:
    before = len(tokenizer)
    assert not keep_newlines(tokenizer)
    assert len(tokenizer) == before


def test_a_tokenizer_without_its_vocabulary_file_is_refused(deberta_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    shutil.copy(deberta_folder / "tokenizer_config.json", tmp_path)
    stub = AutoTokenizer.from_pretrained(tmp_path)  # no error, no warning: a handful of control tokens
    with pytest.raises(
        ValueError, match=r"has \d+ tokens but the model's embedding has 128100 rows: .* is missing from"
    ):
        check_tokenizer(stub, 128_100)


def test_a_vocabulary_a_little_smaller_than_the_embedding_is_accepted(tokenizers: dict[str, Any]) -> None:
    check_tokenizer(tokenizers["deberta"], 128_100)
    check_tokenizer(tokenizers["minilm"], 30_522)


def test_the_unknown_share_is_small_on_real_rows_and_counts_unknown_tokens(
    tokenizers: dict[str, Any], real_rows: list[ArenaRow]
) -> None:
    minilm = tokenizers["minilm"]
    assert 0 < unknown_share(tokenise_fields(real_rows, minilm), minilm) < 0.01  # emoji, which it does not know
    assert unknown_share(tokenise_fields(asked("hello \U0001f355 \U0001f355 hello"), minilm), minilm) == 0.5
    assert unknown_share(tokenise_fields(asked(""), minilm), minilm) == 0


def test_a_tokenizer_without_separator_and_end_is_refused(tokenizers: dict[str, Any]) -> None:
    class Bare:
        sep_token_id = eos_token_id = None
        name_or_path = "bare"

    with pytest.raises(ValueError, match="'bare' has no sep_token and no eos_token"):
        make_frame(Bare())


# --- sequences of real rows


def test_real_rows_at_every_budget_keep_both_answers_in_sight(tokenizer: Any, real_rows: list[ArenaRow]) -> None:
    cache, frame = tokenise_fields(real_rows, tokenizer), make_frame(tokenizer)
    for budget in (64, 512, 4096):
        for number, fields in enumerate(cache):
            encoded = encode_pair(fields, False, frame, budget)
            mirrored = encode_pair(fields, True, frame, budget)
            assert len(encoded.input_ids) <= budget and len(mirrored.input_ids) == len(encoded.input_ids)
            assert mirrored.cut == (encoded.cut[0], encoded.cut[2], encoded.cut[1])
            for turns, cut in zip((fields.answer_a, fields.answer_b), encoded.cut[1:], strict=True):
                assert size(turns) - cut >= min(size(turns), budget // 8), (number, budget)
            if len(encoded.input_ids) < budget // 2:  # nothing is given up while half of the room is free
                assert encoded.cut == (0, 0, 0)


def test_a_sequence_of_a_real_row_reads_as_the_conversation(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["deberta"]
    fields = tokenise_fields([ArenaRow("1", ("Which?", "Why?"), ("Red.", "So."), ("Blue.", "Hm."))], tokenizer)[0]
    encoded = encode_pair(fields, False, make_frame(tokenizer), 128)
    assert tokenizer.decode(encoded.input_ids) == (
        "[CLS] Prompt: Which?[SEP] Answer A: Red.[SEP] Answer B: Blue.[SEP]"
        " Prompt: Why?[SEP] Answer A: So.[SEP] Answer B: Hm.[SEP]"
    )


# --- the cache


def same(a: TokenFields, b: TokenFields) -> bool:
    pairs = [(a.prompt, b.prompt), (a.answer_a, b.answer_a), (a.answer_b, b.answer_b)]
    return all(len(x) == len(y) and all(map(np.array_equal, x, y)) for x, y in pairs)


@pytest.mark.parametrize("mmap", [True, False])
def test_a_saved_cache_gives_the_same_fields(
    tmp_path: Path, tokenizers: dict[str, Any], real_rows: list, mmap: bool
) -> None:
    cache = tokenise_fields(real_rows, tokenizers["minilm"])
    cache.save(tmp_path / "tokens.bin")
    loaded = TokenCache.load(tmp_path / "tokens.bin", mmap=mmap)
    assert isinstance(loaded.ids, np.memmap) == mmap
    assert loaded.fingerprint == cache.fingerprint and len(loaded) == len(real_rows)
    assert all(map(same, loaded, cache))
    assert same(loaded[-1], cache[len(real_rows) - 1]) and same(loaded[2:][0], cache[2])
    with pytest.raises(IndexError):
        loaded[len(real_rows)]


def test_a_cache_of_empty_texts_is_saved_and_loaded(tmp_path: Path, tokenizers: dict[str, Any]) -> None:
    tokenise_fields(asked("", ""), tokenizers["minilm"]).save(tmp_path / "tokens.bin")
    fields = TokenCache.load(tmp_path / "tokens.bin")[1]
    assert [len(t) for t in (*fields.prompt, *fields.answer_a)] == [0, 0]


def test_a_text_that_recurs_is_tokenised_and_stored_once(tokenizers: dict[str, Any]) -> None:
    rows = [ArenaRow(str(n), ("hello world",), ("hello world",), ("yes",)) for n in range(50)]
    cache = tokenise_fields(rows, tokenizers["minilm"])
    assert len(cache.ids) == 3
    assert cache.row_tokens().tolist() == [5] * 50


def test_rows_tokenised_before_are_read_from_their_file(tmp_path: Path, tokenizers: dict[str, Any]) -> None:
    class Refusing:
        """The tokenizer's definition without its work: calling it fails."""

        backend_tokenizer = tokenizers["minilm"].backend_tokenizer

    rows = asked("hello", "world")
    first = cached_fields(rows, tokenizers["minilm"], tmp_path)
    again = cached_fields(rows, Refusing(), tmp_path)
    assert all(map(same, first, again))
    assert len(list(tmp_path.iterdir())) == 1


def test_the_fingerprint_sees_every_change_of_text_or_tokenizer(tokenizers: dict[str, Any]) -> None:
    minilm, base = tokenizers["minilm"], ArenaRow("1", ("p",), ("a",), ("b",))
    changes = [
        base, base.swapped(), replace(base, prompt=("p", "")), replace(base, prompt=("p', 'q",)),
        replace(base, prompt=("p", "q")), replace(base, response_a=("ab",), response_b=("",)),
    ]  # fmt: skip
    prints = [fingerprint([changed], minilm) for changed in changes] + [fingerprint([base], tokenizers["deberta"])]
    assert len(set(prints)) == len(prints)
    minilm(["a", "b b b"], padding=True, truncation=True, max_length=4)  # leaves its settings in the tokenizer
    assert fingerprint([base], minilm) == prints[0]


@settings(max_examples=20)
@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20)), min_size=1, max_size=5))
def test_each_field_holds_the_ids_of_its_own_text(tokenizers: dict[str, Any], texts: list) -> None:
    minilm = tokenizers["minilm"]
    rows = [ArenaRow(str(n), (p,), (a, p), (b,)) for n, (p, a, b) in enumerate(texts)]
    for each, fields in zip(rows, tokenise_fields(rows, minilm), strict=True):
        expected = [plain_ids(minilm, text) for text in (*each.prompt, *each.response_a, *each.response_b)]
        assert [t.tolist() for t in (*fields.prompt, *fields.answer_a, *fields.answer_b)] == expected
