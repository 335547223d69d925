"""models.tasks.segments and tokens: the budget's laws on drawn rows, real rows under real tokenizers, every refusal."""

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
from models.tasks.segments import (
    LEAST_TEXT,
    Frame,
    TokenFields,
    encode_answer,
    encode_pair,
    make_frame,
    smallest_budget,
)
from models.tasks.tokens import (
    TokenCache,
    cached_fields,
    check_tokenizer,
    fingerprint,
    keep_newlines,
    tokenise_fields,
    unknown_share,
)

# Frame ids are below 20, texts' ids above 100, so every id of a sequence tells where it came from.
START, SEP, MARK, PROMPT, A, B, ANSWER = 1, 2, 3, 10, 11, 12, 13
FRAME = Frame((START,), (SEP,), (), (MARK,), (PROMPT,), (A,), (B,), (ANSWER,))
# Answer markers of unlike lengths, as some vocabularies give them, a long mark, and an end token of its own.
ODD_FRAME = Frame((START,), (SEP, SEP), (9,), (MARK,) * 5, (PROMPT,) * 3, (A,), (B,) * 4, (ANSWER,))


def turn(length: int, start: int = 100) -> np.ndarray:
    return np.arange(start, start + length, dtype=np.int32)


def row(prompt: list[int], answer_a: list[int], answer_b: list[int]) -> TokenFields:
    """Turns of these lengths; turn k of the prompt counts from 10,000 k + 1000, of a from + 3000, of b from + 6000."""
    fields = (
        tuple(turn(length, 10_000 * k + base) for k, length in enumerate(lengths))
        for lengths, base in ((prompt, 1000), (answer_a, 3000), (answer_b, 6000))
    )
    return TokenFields(*fields)


@st.composite
def drawn_rows(draw: st.DrawFn) -> TokenFields:
    count = draw(st.integers(1, 5))
    length = st.one_of(st.integers(0, 12), st.integers(0, 300))
    lengths = st.lists(length, min_size=count, max_size=count)
    return row(draw(lengths), draw(lengths), draw(lengths))


frames = st.sampled_from([FRAME, ODD_FRAME])
budgets = st.one_of(st.integers(0, 60), st.integers(0, 1500)).map(lambda extra: smallest_budget(ODD_FRAME) + extra)


def text_ids(ids: np.ndarray) -> list[int]:
    return [i for i in ids.tolist() if i >= 100]


def size(turns: tuple[np.ndarray, ...]) -> int:
    return sum(map(len, turns))


def full_length(fields: TokenFields, frame: Frame) -> int:
    around = len(frame.prompt_marker + frame.answer_a_marker + frame.answer_b_marker + 3 * frame.separator)
    texts = size(fields.prompt) + size(fields.answer_a) + size(fields.answer_b)
    return len(frame.start + frame.end) + texts + around * len(fields.prompt)


# --- by hand


def test_a_row_that_fits_is_laid_out_turn_by_turn() -> None:
    encoded = encode_pair(row([1, 2], [2, 0], [1, 1]), False, FRAME, 64)
    assert encoded.input_ids.tolist() == [
        START, PROMPT, 1000, SEP, A, 3000, 3001, SEP, B, 6000, SEP, PROMPT, 11000, 11001, SEP, A, SEP, B, 16000, SEP,
    ]  # fmt: skip
    assert encoded.token_type_ids.tolist() == [0] * 4 + [1] * 7 + [0] * 4 + [1] * 5
    assert encoded.cut == (0, 0, 0)


def test_one_answer_is_laid_out_with_its_prompt() -> None:
    encoded = encode_answer(row([1, 1], [1, 1], [1, 1]), "b", FRAME, 64)
    expected = [START, PROMPT, 1000, SEP, ANSWER, 6000, SEP, PROMPT, 11000, SEP, ANSWER, 16000, SEP]
    assert encoded.input_ids.tolist() == expected
    assert encoded.cut == (0, 0)


def test_a_long_row_gives_the_prompt_a_quarter_and_the_answers_half_of_the_rest() -> None:
    encoded = encode_pair(row([100], [100], [100]), False, FRAME, 65)
    # 64 tokens of room: 16 for the prompt, 24 for each answer; 2 of each are marker and separator, 1 the cut mark
    prompt = [*range(1000, 1007), MARK, *range(1094, 1100)]
    first = [*range(3000, 3011), MARK, *range(3090, 3100)]
    second = [*range(6000, 6011), MARK, *range(6090, 6100)]
    assert encoded.input_ids.tolist() == [START, PROMPT, *prompt, SEP, A, *first, SEP, B, *second, SEP]
    assert encoded.cut == (87, 79, 79)


def test_what_a_short_answer_does_not_need_the_other_takes_then_the_prompt() -> None:
    one_short = encode_pair(row([100], [5], [100]), False, FRAME, 65)
    assert one_short.cut == (87, 0, 100 - (64 - 16 - 7 - 3))
    both_short = encode_pair(row([100], [5], [6]), False, FRAME, 65)
    assert both_short.cut == (100 - (64 - 7 - 8 - 3), 0, 0)


def test_earlier_turns_are_cut_first_and_left_out_with_their_markers() -> None:
    encoded = encode_answer(row([1, 1, 1], [50, 50, 20]), "a", FRAME, 41) if False else None
    fields = row([1, 1, 1], [50, 50, 20], [0, 0, 0])
    encoded = encode_answer(fields, "a", FRAME, 51)
    # 50 of room less the prompt's 9: 22 for the last turn, 19 for the one before, nothing for the first
    middle = [*range(13000, 13008), MARK, *range(13042, 13050)]
    assert encoded.input_ids.tolist() == [
        START, PROMPT, 1000, SEP, PROMPT, 11000, SEP, ANSWER, *middle, SEP, PROMPT, 21000, SEP, ANSWER,
        *range(23000, 23020), SEP,
    ]  # fmt: skip
    assert encoded.cut == (0, 84)


def test_a_turn_of_which_too_little_would_show_is_left_out() -> None:
    # last turn 22 with its frame; 41 - 22 - 2 leaves room for the mark and LEAST_TEXT in one case, not in the other
    def shown(budget: int) -> set[int]:
        fields = row([1, 1], [50, 20], [0, 0])
        return {
            i // 10_000 for i in text_ids(encode_answer(fields, "a", FRAME, budget).input_ids) if i % 10_000 >= 3000
        }

    exact = 1 + 3 + 3 + 22 + 2 + 1 + LEAST_TEXT
    assert shown(exact) == {0, 1}
    assert shown(exact - 1) == {1}


# --- laws


@given(drawn_rows(), frames, budgets, st.floats(0, 1))
def test_the_budget_is_never_exceeded(fields: TokenFields, frame: Frame, budget: int, share: float) -> None:
    for encoded in (
        encode_pair(fields, False, frame, budget, share),
        encode_answer(fields, "a", frame, budget, share),
    ):
        assert len(encoded.input_ids) == len(encoded.token_type_ids) <= budget
        assert encoded.input_ids.dtype == np.int32


@given(drawn_rows(), frames)
def test_nothing_is_cut_when_all_fits_exactly(fields: TokenFields, frame: Frame) -> None:
    budget = max(full_length(fields, frame), smallest_budget(frame))
    encoded = encode_pair(fields, False, frame, budget)
    assert encoded.cut == (0, 0, 0)
    assert len(encoded.input_ids) == full_length(fields, frame)


@given(drawn_rows(), frames, budgets)
def test_cut_counts_every_token_of_text_that_is_not_there(fields: TokenFields, frame: Frame, budget: int) -> None:
    encoded = encode_pair(fields, False, frame, budget)
    kept = set(text_ids(encoded.input_ids))
    for turns, cut in zip((fields.prompt, fields.answer_a, fields.answer_b), encoded.cut, strict=True):
        assert sum(int(i) not in kept for t in turns for i in t) == cut


@given(drawn_rows(), frames, budgets)
def test_the_last_turn_of_every_field_stays_in_sight(fields: TokenFields, frame: Frame, budget: int) -> None:
    kept = set(text_ids(encode_pair(fields, False, frame, budget).input_ids))
    for turns in (fields.prompt, fields.answer_a, fields.answer_b):
        last = turns[-1].tolist()
        assert sum(i in kept for i in last) >= min(len(last), LEAST_TEXT)
        assert not last or (last[0] in kept and last[-1] in kept)  # its head and its tail


@given(drawn_rows(), frames, budgets)
def test_a_swap_mirrors_the_cut_and_keeps_the_very_same_text(fields: TokenFields, frame: Frame, budget: int) -> None:
    upright, swapped = (encode_pair(fields, order, frame, budget) for order in (False, True))
    prompt, first, second = upright.cut
    assert swapped.cut == (prompt, second, first)
    assert sorted(text_ids(upright.input_ids)) == sorted(text_ids(swapped.input_ids))


@given(drawn_rows(), frames, budgets)
def test_encoding_swapped_is_encoding_the_swapped_row(fields: TokenFields, frame: Frame, budget: int) -> None:
    by_order = encode_pair(fields, True, frame, budget)
    by_row = encode_pair(fields.swapped(), False, frame, budget)
    np.testing.assert_array_equal(by_order.input_ids, by_row.input_ids)
    np.testing.assert_array_equal(by_order.token_type_ids, by_row.token_type_ids)
    assert by_order.cut == by_row.cut


@given(drawn_rows(), budgets)
def test_later_turns_outrank_earlier_ones(fields: TokenFields, budget: int) -> None:
    kept = set(text_ids(encode_pair(fields, False, FRAME, budget).input_ids))
    for turns in (fields.prompt, fields.answer_a, fields.answer_b):
        whole = [all(int(i) in kept for i in t) for t in turns if len(t)]
        seen = [any(int(i) in kept for i in t) for t in turns if len(t)]
        assert seen == sorted(seen)  # nothing, then something
        assert whole == sorted(whole)
        assert sum(seen) - sum(whole) <= 1  # one turn at most is cut


@given(drawn_rows(), budgets)
def test_both_answers_get_their_part_however_long_the_prompt_and_the_other(fields: TokenFields, budget: int) -> None:
    encoded = encode_pair(fields, False, FRAME, budget)
    kept = set(text_ids(encoded.input_ids))
    even_part = (budget - 1 - (budget - 1) // 4) // 2
    for turns in (fields.answer_a, fields.answer_b):
        shown = sum(int(i) in kept for t in turns for i in t)
        # less what the markers, the mark and a turn too short to show take
        spare = 2 * len(turns) + 1 + 2 + LEAST_TEXT
        assert shown >= min(size(turns), even_part - spare)


@given(drawn_rows(), budgets)
def test_types_are_one_in_answers_and_zero_elsewhere(fields: TokenFields, budget: int) -> None:
    encoded = encode_pair(fields, False, FRAME, budget)
    place = 0
    for token, kind in zip(encoded.input_ids.tolist(), encoded.token_type_ids.tolist(), strict=True):
        place = {PROMPT: 0, A: 1, B: 1}.get(token, place)
        assert kind == place


@given(drawn_rows(), budgets)
def test_text_keeps_its_order(fields: TokenFields, budget: int) -> None:
    order = {PROMPT: 0, A: 1, B: 2}
    keys, segment = [], 0
    for token in encode_pair(fields, False, FRAME, budget).input_ids.tolist():
        segment = order.get(token, segment)
        if token >= 100:
            keys.append((token // 10_000, segment, token))
    assert keys == sorted(keys)


@pytest.mark.parametrize("frame", [FRAME, ODD_FRAME])
@pytest.mark.parametrize("answers", [1, 2])
def test_a_budget_that_cannot_show_every_field_is_refused_with_the_smallest_that_can(
    frame: Frame, answers: int
) -> None:
    fields, least = row([50], [50], [50]), smallest_budget(frame, answers)

    def encode(budget: int) -> Any:
        if answers == 2:
            return encode_pair(fields, False, frame, budget)
        return encode_answer(fields, "a", frame, budget)

    assert len(encode(least).input_ids) == least or frame is ODD_FRAME  # there the shorter marker leaves a rest
    said = f"A budget of {least - 1} tokens cannot show the prompt and every answer. Give {least} or more."
    with pytest.raises(ValueError, match=said):
        encode(least - 1)


def test_an_answer_that_is_neither_a_nor_b_is_refused() -> None:
    with pytest.raises(ValueError, match="which is 'c', expected 'a' or 'b'"):
        encode_answer(row([1], [1], [1]), "c", FRAME, 64)  # type: ignore[arg-type]


# --- real tokenizers


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
            assert (encoded.cut == (0, 0, 0)) == (full_length(fields, frame) <= budget)


def test_a_sequence_of_a_real_row_reads_as_the_conversation(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["deberta"]
    fields = tokenise_fields([ArenaRow("1", ("Which?", "Why?"), ("Red.", "So."), ("Blue.", "Hm."))], tokenizer)[0]
    encoded = encode_pair(fields, False, make_frame(tokenizer), 128)
    assert tokenizer.decode(encoded.input_ids) == (
        "[CLS] Prompt: Which?[SEP] Answer A: Red.[SEP] Answer B: Blue.[SEP]"
        " Prompt: Why?[SEP] Answer A: So.[SEP] Answer B: Hm.[SEP]"
    )


def test_the_cut_mark_and_the_markers_are_known_words(tokenizer: Any) -> None:
    frame = make_frame(tokenizer)
    for ids in (frame.cut_mark, frame.prompt_marker, frame.answer_a_marker, frame.answer_b_marker):
        assert tokenizer.unk_token_id not in ids
    assert len(frame.answer_a_marker) == len(frame.answer_b_marker)


def test_control_tokens_in_a_text_become_plain_characters(tokenizer: Any) -> None:
    texts = ["end[SEP]", "[CLS] start", "x [MASK] [PAD]", "\uff3bSEP\uff3d", "a[SEP][SEP]\n[CLS]b", "[sep]"]
    cache = tokenise_fields(asked(*texts), tokenizer)
    controls = {tokenizer.sep_token_id, tokenizer.cls_token_id, tokenizer.mask_token_id, tokenizer.pad_token_id}
    assert controls.isdisjoint(cache.ids.tolist())
    for text, fields in zip(texts, cache, strict=True):
        said = tokenizer.decode(fields.prompt[0]).replace(" ", "").lower()
        assert said == text.replace("\uff3b", "[").replace("\uff3d", "]").replace(" ", "").lower()


def test_texts_without_control_tokens_get_the_tokenizer_s_own_ids(tokenizer: Any, real_rows: list[ArenaRow]) -> None:
    for each, fields in zip(real_rows, tokenise_fields(real_rows, tokenizer), strict=True):
        pairs = zip(each.response_a, fields.answer_a, strict=True)
        assert all(ids.tolist() == plain_ids(tokenizer, text) for text, ids in pairs), each.id


def test_line_breaks_survive_and_the_other_tokens_stay_as_they_were(
    deberta_folder: Path, minilm: str, tokenizers: dict[str, Any], real_rows: list[ArenaRow]
) -> None:
    from transformers import AutoTokenizer

    for name, folder in (("deberta", deberta_folder), ("minilm", minilm)):
        untouched, kept = AutoTokenizer.from_pretrained(folder), tokenizers[name]
        newline = kept.convert_tokens_to_ids("\n")
        assert plain_ids(untouched, "a\nb") == plain_ids(untouched, "a b")
        assert plain_ids(kept, "a\n\nb").count(newline) == 2
        assert "\n" in kept.decode(plain_ids(kept, "a\nb"))
        for each in real_rows:
            ids = plain_ids(kept, each.response_a[0])
            assert [i for i in ids if i != newline] == plain_ids(untouched, each.response_a[0]), each.id
            assert ids.count(newline) == each.response_a[0].count("\n")


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

    with pytest.raises(ValueError, match="'bare' has no sep_token and no eos_token. Give it one"):
        make_frame(Bare())


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
    assert same(loaded[-1], cache[len(real_rows) - 1])
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


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20)), min_size=1, max_size=5))
def test_each_field_holds_the_ids_of_its_own_text(tokenizers: dict[str, Any], texts: list) -> None:
    minilm = tokenizers["minilm"]
    rows = [ArenaRow(str(n), (p,), (a, p), (b,)) for n, (p, a, b) in enumerate(texts)]
    for each, fields in zip(rows, tokenise_fields(rows, minilm), strict=True):
        expected = [plain_ids(minilm, text) for text in (*each.prompt, *each.response_a, *each.response_b)]
        assert [t.tolist() for t in (*fields.prompt, *fields.answer_a, *fields.answer_b)] == expected
