"""Language models of two layers and a tokenizer of four hundred tokens, made on the spot in milliseconds.

The weights are random and large, so that a wrong mask, position or scale moves the logits by whole nats.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# With 32 hidden units the logits of two tokens differ by about 2 nats, and attention looks at a few places.
WEIGHT_DEVIATION = 0.3
POSITIONS = 512

CHATML = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Words that must come out whole are written often; the others are left in pieces.
SENTENCES = [
    "Review: This film was terrible and dull, I hated it.\nSentiment: negative\n\n",
    "Review: I love this film, a wonderful story!\nSentiment: positive\n\n",
    "Review: The plot is good but the end was bad.\nSentiment: neutral\n\n",
    "Question: is the answer positive or negative? Answer: positive. Answer: negative. Answer: Yes. Answer: No.\n",
    "billing problem: the billing of my account is wrong. Label: billing\n",
    "technical issue: it does not work. Label: technical issue\n",
    "Choose one of: A, B, C, D. Answer: A\nAnswer: B\nAnswer: C\nAnswer: D\n",
    "system: You classify texts. user: What is it? assistant: positive\n",
]


def make_tokenizer(*, adds_bos: bool = True) -> Any:
    """A byte-level BPE as Llama 3 has it, with a ChatML template that writes the BOS too.

    Whole: " positive", " negative", "positive", "billing", " No", " A". In pieces: " positively", " Yes", " neutral".
    adds_bos: whether encoding puts <s> before a text, as Llama's tokenizers do and GPT-2's does not.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    controls = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)  # the pattern is GPT-2's
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=controls, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator([*SENTENCES, *["positive negative billing"] * 3], trainer)
    if adds_bos:
        template = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
        backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        additional_special_tokens=[AddedToken(token, special=True) for token in controls[3:]],
        model_max_length=POSITIONS, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = CHATML
    return tokenizer


def tiny_llama(vocab: int, **changes: Any) -> Any:
    """A Llama of two layers, hidden size 32; vocab: rows of its embedding and head. changes: of its config."""
    return tiny_causal("llama", vocab, **changes)


def tiny_causal(kind: str, vocab: int, **changes: Any) -> Any:
    """A causal language model of two layers in float32, eval mode, the same weights at every call.

    kind: a key of KINDS. changes: of its config, such as sliding_window=8.
    """
    import transformers

    name, settings = KINDS[kind]
    renamed = {"gpt2": GPT2_SHAPE, "bloom": BLOOM_SHAPE, "mamba": MAMBA_SHAPE}.get(kind, SHAPE)
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = getattr(transformers, f"{name}Config")(**(tokens | renamed | settings | {"vocab_size": vocab} | changes))
    return _stirred(getattr(transformers, f"{name}ForCausalLM", None) or transformers.GPT2LMHeadModel, config)


def tiny_t5(vocab: int, *, tied: bool = True, **changes: Any) -> Any:
    """An encoder-decoder of two layers each, float32, eval mode.

    tied: the head is the embedding and its input is scaled, as in T5; else a head of its own, unscaled, as in
    T5 v1.1 and Flan.
    """
    from transformers import T5Config, T5ForConditionalGeneration

    settings = {
        "vocab_size": vocab, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2,
        "relative_attention_num_buckets": 8, "relative_attention_max_distance": 32, "pad_token_id": 2,
        "eos_token_id": 1, "decoder_start_token_id": 2, "tie_word_embeddings": tied, "dropout_rate": 0.1,
        "feed_forward_proj": "relu" if tied else "gated-gelu",
    }  # fmt: skip
    model = _stirred(T5ForConditionalGeneration, T5Config(**(settings | changes)))
    if not tied:  # transformers ties every T5 it makes and unties it on loading, where the file holds two matrices
        torch.manual_seed(1)
        model.lm_head.weight = nn.Parameter(torch.randn(vocab, 32) * WEIGHT_DEVIATION)
    return model


def _stirred(network: Any, config: Any) -> Any:
    """The network with every matrix and bias drawn anew from seed 0: a bias of zero would hide its own neglect."""
    torch.manual_seed(0)
    model = network(config).float().eval()
    # T5 means its embeddings to be of size one, and its queries to carry the scale that others put into attention.
    scales = {"shared": 3.0, ".q.": 0.25} if config.model_type == "t5" else {}
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or (parameter.dim() > 1 and "A_log" not in name):  # A_log: a recurrence's decay
            scale = next((scale for part, scale in scales.items() if part in name), 1.0)
            nn.init.normal_(parameter, std=WEIGHT_DEVIATION * scale)
    return model


SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 64, "max_position_embeddings": POSITIONS,
}  # fmt: skip
GPT2_SHAPE = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS}
BLOOM_SHAPE = {"hidden_size": 32, "n_layer": 2, "n_head": 2}
MAMBA_SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 4}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama_tied": ("Llama", {"tie_word_embeddings": True}),
    # Small caps, so that leaving one out is seen; the window is longer than any test's prompt.
    "gemma2": ("Gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16, "final_logit_softcapping": 3.0,
                          "attn_logit_softcapping": 2.0, "sliding_window": POSITIONS,
                          "attn_implementation": "eager"}),  # transformers 5.17 takes sdpa, which drops the cap
    "mistral": ("Mistral", {"sliding_window": 16}),
    "gpt2": ("GPT2", {"tie_word_embeddings": True}),
    "cohere": ("Cohere", {"logit_scale": 0.5, "tie_word_embeddings": True}),
    "granite": ("Granite", {"logits_scaling": 2.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.8,
                            "attention_multiplier": 0.2}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "mamba": ("Mamba", {}),
    "bloom": ("Bloom", {}),  # ALiBi: positions come from the mask
    "phi": ("Phi", {"tie_word_embeddings": False}),  # a bias on the head
}  # fmt: skip
