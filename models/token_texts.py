"""What each token of a vocabulary spells, as bytes, and which tokens may follow a whole word.

Byte-level vocabularies (GPT-2, Llama 3), SentencePiece ones (Llama 2, T5, Gemma) and word pieces (BERT). Knows a
tokenizer, no answers.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenTexts:
    """The spelling of every token.

    texts: (V,) bytes of each id; b"" for control tokens, which spell nothing. controls: their ids.
    """

    def __init__(self, tokenizer: Any) -> None:
        vocabulary = tokenizer.get_vocab()
        self.size = max(vocabulary.values()) + 1
        added = tokenizer.added_tokens_decoder
        self.controls = sorted({i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids))
        spell = _speller(json.loads(tokenizer.backend_tokenizer.to_str()))
        self.texts = [b""] * self.size
        for token, number in vocabulary.items():
            self.texts[number] = str(token).encode() if number in added else spell(token)
        for number in self.controls:
            self.texts[number] = b""

    def starting_with(self, text: bytes) -> np.ndarray:
        """Ids of the tokens whose spelling begins with `text`."""
        return np.array([i for i, spelt in enumerate(self.texts) if spelt.startswith(text) and spelt], dtype=np.int64)

    def word_starts(self) -> np.ndarray:
        """Ids of the tokens before which a word has ended: those that begin with a space, a line break or punctuation.

        A token that begins within a character says nothing yet and counts as going on with the word. Control tokens
        are the caller's affair. Source: the boundary correction of Pimentel and Meister 2024 and Oh and Schuler 2024,
        there for words in a text.
        """
        return np.array([i for i, spelt in enumerate(self.texts) if spelt and not _goes_on(spelt)], dtype=np.int64)


def _goes_on(spelt: bytes) -> bool:
    text = spelt.decode("utf-8", errors="replace")
    first = text[0]
    return first in "_\ufffd" or first.isalnum() or unicodedata.category(first).startswith("M")


def _speller(definition: dict[str, Any]) -> Callable[[str], bytes]:
    """The function from a token's name to its bytes, for a tokenizer of this definition."""
    if '"ByteLevel"' in json.dumps([definition["pre_tokenizer"], definition["decoder"]]):
        return _from_byte_level
    if definition["model"]["type"] == "WordPiece":
        inside = definition["model"]["continuing_subword_prefix"]  # other pieces begin a word
        return lambda token: (token[len(inside) :] if token.startswith(inside) else " " + token).encode()
    return _from_sentencepiece


@lru_cache(maxsize=1)
def _byte_of_sign() -> dict[str, int]:
    """GPT-2's alphabet: a printable sign for every byte; those that have none take the signs from 256 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + at): byte for at, byte in enumerate(others)}


def _from_byte_level(token: str) -> bytes:
    alphabet = _byte_of_sign()
    return bytes(alphabet[sign] for sign in token) if all(sign in alphabet for sign in token) else token.encode()


def _from_sentencepiece(token: str) -> bytes:
    found = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(found[1], 16)]) if found else token.replace("\u2581", " ").encode()
