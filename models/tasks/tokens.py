"""Texts of arena rows as token ids, each distinct text tokenised once and kept in one flat array; knows no budget.

A tokenizer object is handed in; nothing here loads one.
"""

from __future__ import annotations

import hashlib
import json
import logging
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
from tqdm.auto import tqdm

from models.tasks.arena import ArenaRow
from models.tasks.files import write_atomically

log = logging.getLogger("tiebreak")

DIGEST_BYTES = 32  # SHA-256 of all before it ends the file
CHUNK_TEXTS = 1000  # texts per tokenizer call: enough to amortise it, 350,000 ids in Python lists at a time
LAYOUT_VERSION = b"2"  # part of the fingerprint: raise it when the ids of the same text, or the file's order, change
STUB_SHARE = 0.5  # real vocabularies fill 99 % of their embedding rows or more, a stub has single-digit entries

Turns = tuple[np.ndarray, ...]  # each (tokens,) int32, no special tokens


@dataclass(frozen=True)
class TokenFields:
    """One row as token ids: the turns of the prompt and of both answers, the same number each."""

    prompt: Turns
    answer_a: Turns
    answer_b: Turns

    def swapped(self) -> TokenFields:
        """The same row with the answers exchanged."""
        return TokenFields(self.prompt, self.answer_b, self.answer_a)


@dataclass(frozen=True, eq=False)
class TokenCache(Sequence[TokenFields]):
    """TokenFields of N rows, by number, over flat arrays; U distinct texts, F = 3 N fields in the order prompt, a, b.

    ids: all texts' token ids, one after the other, int32. text_starts: (U + 1,) where each begins in ids.
    texts: the text number of every turn of every field. field_starts: (F + 1,) where each field begins in texts.
    The competition's 57,477 rows are about 46 million ids, 184 MB; loaded with mmap they stay on disk.
    """

    ids: np.ndarray
    text_starts: np.ndarray
    texts: np.ndarray
    field_starts: np.ndarray
    fingerprint: str

    def __len__(self) -> int:
        return (len(self.field_starts) - 1) // 3

    @overload
    def __getitem__(self, index: int) -> TokenFields: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenFields]: ...
    def __getitem__(self, index: int | slice) -> TokenFields | list[TokenFields]:
        if isinstance(index, slice):
            return [self[row] for row in range(len(self))[index]]
        row = range(len(self))[index]  # the range knows negative indices and refuses those outside
        return TokenFields(self._turns(3 * row), self._turns(3 * row + 1), self._turns(3 * row + 2))

    def __iter__(self) -> Iterator[TokenFields]:
        return (self[row] for row in range(len(self)))

    def _turns(self, number: int) -> Turns:
        texts = self.texts[self.field_starts[number] : self.field_starts[number + 1]].tolist()
        starts = self.text_starts
        return tuple(self.ids[starts[text] : starts[text + 1]] for text in texts)

    def row_tokens(self) -> np.ndarray:
        """(N,) int64 tokens of each row's three fields together: what it would take without markers."""
        sizes = np.diff(self.text_starts)[self.texts]
        return np.add.reduceat(sizes, self.field_starts[:-1:3])

    def save(self, path: str | Path) -> None:
        """Writes one file, atomically; the ids come last, so that they can be mapped from disk, and their SHA-256."""
        key = np.array(self.fingerprint)
        with write_atomically(path) as unfinished:
            with open(unfinished, "wb") as stream:
                for values in (key, self.text_starts, self.texts, self.field_starts, self.ids):
                    np.save(stream, values, allow_pickle=False)
            with open(unfinished, "r+b") as stream:
                stream.write(hashlib.file_digest(stream, "sha256").digest())

    @classmethod
    def load(cls, path: str | Path, mmap: bool = True) -> TokenCache:
        """What `save` wrote; with mmap the ids are read from disk as they are used. ValueError for a damaged file."""
        with open(path, "rb") as stream:
            if not _is_whole(stream):
                raise ValueError(f"{path} is damaged: its bytes are not those that were written. Delete it.")
            key, text_starts, texts, field_starts = (np.load(stream, allow_pickle=False) for _ in range(4))
            if not mmap or not text_starts[-1]:  # an empty array cannot be mapped
                ids = np.load(stream, allow_pickle=False)
            else:
                np.lib.format.read_magic(stream)
                shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
                ids = np.memmap(path, dtype=dtype, mode="r", offset=stream.tell(), shape=shape)
        return cls(ids, text_starts, texts, field_starts, str(key))


def tokenise_fields(rows: Sequence[ArenaRow], tokenizer: Any) -> TokenCache:
    """Token ids of every turn of every row, without special tokens; each distinct text is tokenised once.

    A control token spelt out in a text, as in "[SEP]", becomes the tokens of its characters: a user who writes it
    must not be able to end the answer.
    """
    numbers: dict[str, int] = {}
    texts: array[int] = array("i")
    field_starts = [0]
    for row in rows:
        for turns in (row.prompt, row.response_a, row.response_b):
            texts.extend(numbers.setdefault(turn, len(numbers)) for turn in turns)
            field_starts.append(len(texts))
    flat, lengths = _tokenise(list(numbers), tokenizer)
    return TokenCache(
        ids=np.frombuffer(flat, dtype=np.int32),
        text_starts=np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
        texts=np.frombuffer(texts, dtype=np.int32),
        field_starts=np.array(field_starts, dtype=np.int64),
        fingerprint=fingerprint(rows, tokenizer),
    )


def cached_fields(rows: Sequence[ArenaRow], tokenizer: Any, folder: str | Path) -> TokenCache:
    """The rows' tokens from a file in `folder` named by their fingerprint; tokenised and written there the first time.

    Several processes may ask at once: each writes the whole file under its own name, the last one stays.
    """
    path = Path(folder) / f"tokens-{fingerprint(rows, tokenizer)[:16]}.bin"
    if path.exists():
        try:
            return TokenCache.load(path)
        except ValueError as error:
            log.warning(f"{error} It is made again.")
    fields = tokenise_fields(rows, tokenizer)
    try:
        fields.save(path)
    except OSError as error:
        log.warning(f"warning: {error} Going on without it: the next start makes these tokens again.")
        return fields
    return TokenCache.load(path)


def _is_whole(stream: BinaryIO) -> bool:
    """Does the file end with the SHA-256 of what stands before? 46 million ids, 184 MB, take 0.2 s."""
    size = stream.seek(0, 2)
    if size < DIGEST_BYTES:
        return False
    stream.seek(0)
    digest, left = hashlib.sha256(), size - DIGEST_BYTES
    while left:
        block = stream.read(min(left, 2**20))
        if not block:  # cut short since its size was asked for
            return False
        digest.update(block)
        left -= len(block)
    wanted = stream.read(DIGEST_BYTES)
    stream.seek(0)
    return digest.digest() == wanted


def fingerprint(rows: Sequence[ArenaRow], tokenizer: Any) -> str:
    """SHA-256 of the rows' texts in order and of the tokenizer's definition: the same key means the same ids."""
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    # left behind by the last call that padded or truncated; they do not change the ids made here
    definition.update(truncation=None, padding=None)
    digest = hashlib.sha256(LAYOUT_VERSION + json.dumps(definition).encode())
    for row in rows:
        # repr keeps the borders between turns and fields, which plain joining would lose
        digest.update(repr((row.prompt, row.response_a, row.response_b)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def keep_newlines(tokenizer: Any) -> bool:
    """Gives the tokenizer a token for the line break if it has none; True if one was added.

    BERT's and DeBERTa-v3's turn line breaks into spaces, and lists and code lose their form. The model's embedding
    needs a row for the new id: compare len(tokenizer) with its rows, and let the row train.
    """
    from tokenizers import AddedToken

    broken, spaced = tokenizer(["a\nb", "a b"], add_special_tokens=False)["input_ids"]
    if broken != spaced:
        return False
    # normalized=False: matched in the raw text, before the normaliser turns it into a space
    tokenizer.add_tokens([AddedToken("\n", normalized=False)])
    return True


def restore_nfkc(tokenizer: Any) -> bool:
    """Puts NFKC before a SentencePiece vocabulary that lost its own normaliser; True if it was put there.

    transformers 5 builds DeBERTa-v3's tokenizer from spm.model without it, so that a one-character ellipsis, a
    ligature or a full-width comma becomes an unknown token where pretraining saw its plain form.
    """
    from tokenizers import normalizers

    backend = tokenizer.backend_tokenizer
    definition = json.loads(backend.to_str())
    has_one = any(kind in json.dumps(definition["normalizer"]) for kind in ('"NFKC"', '"Precompiled"'))
    if definition["model"]["type"] != "Unigram" or has_one:
        return False
    present = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), *present])
    return True


def check_tokenizer(tokenizer: Any, model_vocab_size: int) -> None:
    """Refuses a stub: transformers hands out a few control tokens, silently, where a vocabulary file is missing."""
    size = len(tokenizer)
    if size < STUB_SHARE * model_vocab_size:
        raise ValueError(
            f"The tokenizer has {size} tokens but the model's embedding has {model_vocab_size} rows: its vocabulary "
            f"file (spm.model, vocab.txt or tokenizer.json) is missing from '{tokenizer.name_or_path}'. Copy it there."
        )


def unknown_share(cache: TokenCache, tokenizer: Any) -> float:
    """Share (0 to 1) of unknown tokens in the distinct texts' ids; above 0.01 the tokenizer is the wrong one."""
    if tokenizer.unk_token_id is None or not len(cache.ids):
        return 0.0
    return float(np.count_nonzero(cache.ids == tokenizer.unk_token_id) / len(cache.ids))


def _tokenise(texts: Sequence[str], tokenizer: Any) -> tuple[array[int], np.ndarray]:
    flat: array[int] = array("i")  # grows in place: the peak is one copy of the ids, not two
    lengths = np.zeros(len(texts), dtype=np.int64)
    spelt_out = spelt_out_controls(tokenizer)
    starts = range(0, len(texts), CHUNK_TEXTS)
    for start in tqdm(starts, desc="tokenising", unit="k texts", delay=3, leave=False, disable=None):
        chunk = list(texts[start : start + CHUNK_TEXTS])
        encoded = tokenizer(
            chunk,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # texts longer than the model are what the budget is for
        )["input_ids"]
        for number, ids in enumerate(encoded, start=start):
            if not spelt_out.keys().isdisjoint(ids):
                ids = [plain for one in ids for plain in spelt_out.get(one, (one,))]
            flat.extend(ids)
            lengths[number] = len(ids)
    return flat, lengths


def spelt_out_controls(tokenizer: Any) -> dict[int, list[int]]:
    """For each control token the ids of its characters, broken by a space after the first.

    Marks such as <think>, added to the vocabulary without being called special, are control tokens too.
    split_special_tokens alone does not do: it leaves those marks, and DeBERTa-v3's vocabulary holds "[SEP]" as an
    ordinary piece too, with the control token's very id, and with NFKC full-width brackets turn into it.
    """
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if len(token.content.strip()) > 1}
    controls = sorted((added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id})
    # The text of an added token, not its name in the vocabulary, where a normaliser may have put a "\u2581" before it.
    texts = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
    names = [str(texts.get(i) or tokenizer.convert_ids_to_tokens(i)) for i in controls]
    spelt = [tokenizer(f"{name[:1]} {name[1:]}", add_special_tokens=False, split_special_tokens=True) for name in names]
    plain = [ids["input_ids"] for ids in spelt]
    assert not any(set(ids) & set(controls) for ids in plain), (names, plain)
    return dict(zip(controls, plain, strict=True))
