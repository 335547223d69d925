"""The models of the soft-classification benchmark: Llama shapes with seeded random weights, and tokenizers to match.

Weights come from a seed, so every process builds the same network and nothing large is written to disk. The fill below
does not depend on the transformers version, so a peer that needs an older one reads the very same weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

END = "<|end|>"
# Common words, one token each in the made tokenizer and in most real ones.
_TEXT = """
the of and to in is you that it he was for on are as with his they at be this have from or one had by word but not
what all were we when your can said there use an each which she do how their if will up other about out many then
them these so some her would make like him into time has look two more write go see number no way could people my
than first water been call who oil its now find long down day did get come made may part over new sound take only
little work know place year live me back give most very after thing our just name good sentence man think say great
positive negative account login password reset expired billing card payment failed refund late delivery parcel lost
product damaged box question
"""
WORDS = _TEXT.split()


@dataclass(frozen=True)
class Shape:
    """A Llama network: vocab rows V, hidden H, and what a config needs besides."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    tied: bool = True


SHAPES = {
    "toy": Shape(1_024, 32, 2, 4, 2, 64),
    "m32": Shape(32_000, 384, 6, 6, 2, 1_024),  # 22 M parameters, 57 % of them the head
    "m128": Shape(128_256, 384, 6, 6, 2, 1_024),  # 59 M, 84 %: the worst case for whoever reads every position
    "1b": Shape(128_256, 2_048, 16, 32, 8, 8_192),  # Llama-3.2-1B
    "8b": Shape(128_256, 4_096, 32, 32, 8, 14_336, tied=False),  # Llama-3.1-8B
}


def build_model(shape: Shape, *, device: str, precision: str, seed: int = 0) -> Any:
    """A LlamaForCausalLM of that shape on the device, in eval mode; the same weights in every process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, intermediate_size=shape.intermediate,
        tie_word_embeddings=shape.tied, max_position_embeddings=8_192, bos_token_id=None, eos_token_id=0,
        pad_token_id=0, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch_dtype(precision))
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    fill(model, seed)
    return model.eval()


def fill(model: Any, seed: int) -> None:
    """Normal weights of deviation 1/sqrt(H), so that layers neither fade nor explode; norms stay one."""
    import torch

    generator = torch.Generator(device=model.device).manual_seed(seed)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):  # a tied head is listed once
            if weight.dim() > 1:
                weight.normal_(0.0, model.config.hidden_size**-0.5, generator=generator)


def load_model(folder: str, *, device: str, precision: str) -> Any:
    """A real model from a local folder, in eval mode, its weights in memory rather than mapped from the file.

    A mapped weight enters the resident set when it is first read, and would be counted as memory over load.
    """
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch_dtype(precision))
    model = model.to(device).eval()
    for weight in model.parameters():
        weight.data = weight.data.clone()
    return model


def torch_dtype(precision: str) -> Any:
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def write_tokenizer(folder: Path, vocab: int) -> None:
    """A byte-level BPE tokenizer of exactly `vocab` entries, in files that transformers 4 and 5 read.

    Every word of WORDS is one token, with a space before it. The entries that training does not fill are made-up words
    without merges: never produced, at no cost, and the model's rows and the tokenizer's entries agree in number.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, min_frequency=1, special_tokens=[END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator([f" {word}" for word in WORDS] + ["\nLabel:"], trainer)
    content = json.loads(backend.to_str())
    entries = content["model"]["vocab"]
    entries |= {f"made-up-{number}": number for number in range(len(entries), vocab)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def load_tokenizer(folder: str) -> Any:
    """The tokenizer of a folder: its tokenizer.json as it stands, whatever class a transformers version wraps it in."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    as_it_stands = (Path(folder) / "tokenizer.json").is_file()
    tokenizer = (PreTrainedTokenizerFast if as_it_stands else AutoTokenizer).from_pretrained(folder)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # transformers 4 adds a third, which cappr refuses
    return tokenizer


def plain_folder(name: str, precision: str, work: Path) -> str:
    """A folder with the ordinary checkpoint that `name` means (a folder, a hub name, package:..., a GGUF file).

    Peers know folders only, so what is none yet is written to `work`.
    """
    if (Path(name) / "config.json").is_file():
        return str(Path(name).resolve())
    from models.causal import load_language_model

    loaded = load_language_model(name, precision=precision)
    folder = work / "model"
    for part in (loaded.model, loaded.tokenizer):
        part.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # transformers 4 reads rope_theta only where older files have it, and goes on with 10,000 where it is not there.
    config |= {"rope_theta": theta} if (theta := (config.get("rope_parameters") or {}).get("rope_theta")) else {}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)
