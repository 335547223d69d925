"""Llamas of any shape with random weights in 4 bits, made matrix by matrix: the whole never stands in 16 or 32 bits.

The skeleton is made without memory (meta device), as transformers makes one before it loads 4-bit weights; then each
matrix is drawn on the device, quantized and let go. What comes out is what from_pretrained gives for a quantized model.
"""

from __future__ import annotations

from typing import Any

from soft_model import SHAPES as SOFT_SHAPES
from soft_model import Shape, torch_dtype

SHAPES = SOFT_SHAPES | {
    # All vocabulary: what reading every position costs shows on a CPU within minutes.
    "head": Shape(128_256, 256, 2, 4, 2, 704),
}
POSITIONS = 8_192


def parse_shape(text: str) -> Shape:
    """A name of SHAPES, or its six numbers V,H,layers,heads,kv_heads,F joined by commas (the head is not tied then).

    Raises ValueError for anything else.
    """
    if text in SHAPES:
        return SHAPES[text]
    numbers = text.split(",")
    if len(numbers) != 6 or not all(number.isdigit() and int(number) for number in numbers):
        raise ValueError(
            f"--shape {text}: expected one of {', '.join(SHAPES)}, or six numbers: vocabulary, hidden, layers, heads, "
            "key/value heads, feed-forward, such as 128256,4096,32,32,8,14336."
        )
    vocab, hidden, layers, heads, kv_heads, intermediate = map(int, numbers)
    if hidden % heads or heads % kv_heads or hidden // heads % 2:
        raise ValueError(
            f"--shape {text}: the heads ({heads}) must divide the hidden size ({hidden}) into even parts, and the "
            f"key/value heads ({kv_heads}) the heads."
        )
    return Shape(vocab, hidden, layers, heads, kv_heads, intermediate, tied=False)


def build(shape: Shape, *, device: str, precision: str, quantization: str = "nf4", seed: int = 0) -> Any:
    """A LlamaForCausalLM in eval mode on the device; embedding and head in `precision`, linear layers in 4 bits.

    quantization: nf4 (double quantization), or none. The same seed gives the same weights on the same kind of device.
    """
    import torch

    model = _skeleton(shape, precision)
    if quantization == "nf4":
        model = _four_bit_layers(model, device, precision)
    generator = torch.Generator(device=device).manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            _fill(module, device, torch_dtype(precision), shape.hidden**-0.5, generator)
    model.tie_weights()
    with torch.device(device):
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)  # a table that no checkpoint holds
    _mark_four_bit(model, quantization)
    left = [name for name, weight in model.named_parameters() if weight.is_meta]
    assert not left, left
    return model.eval()


def _skeleton(shape: Shape, precision: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, intermediate_size=shape.intermediate,
        tie_word_embeddings=shape.tied, max_position_embeddings=POSITIONS, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch_dtype(precision), attn_implementation="sdpa")


def _four_bit_layers(model: Any, device: str, precision: str) -> Any:
    """The skeleton with bitsandbytes' layers in the place of its linear ones, the head's apart."""
    from transformers import BitsAndBytesConfig
    from transformers.quantizers import AutoHfQuantizer

    quantizer = AutoHfQuantizer.from_config(
        BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch_dtype(precision),
        )
    )  # fmt: skip
    quantizer.preprocess_model(model=model, device_map={"": device}, dtype=torch_dtype(precision))
    model.hf_quantizer = quantizer
    return model


def _fill(module: Any, device: str, dtype: Any, deviation: float, generator: Any) -> None:
    """Draw a module's own weights on the device: normal matrices, as soft_model.fill draws them; norms are one."""
    import torch

    for name, weight in list(module.named_parameters(recurse=False)):
        shape = weight.shape
        if weight.dim() == 1:
            module.register_parameter(name, torch.nn.Parameter(torch.ones(shape, device=device, dtype=dtype)))
            continue
        drawn = torch.empty(shape, device=device, dtype=dtype).normal_(0.0, deviation, generator=generator)
        if type(weight).__name__ == "Params4bit":
            kind, options = type(weight), {**weight.__dict__}
            options = {key: options[key] for key in ("compress_statistics", "quant_type", "quant_storage")}
            made = kind(drawn, requires_grad=False, module=module, **options).to(device)  # quantized on its way there
        else:
            made = torch.nn.Parameter(drawn)
        module.register_parameter(name, made)


def _mark_four_bit(model: Any, quantization: str) -> None:
    """Let the model say of itself what a loaded 4-bit model says: peft and Trainer ask."""
    if quantization != "nf4":
        return
    from models.causal import keep_unpacked

    model.hf_quantizer.postprocess_model(model)
    if model.device.type == "cpu":
        keep_unpacked(model)


def stored_bytes(module: Any) -> int:
    """Bytes of a module's parameters, each once, with the scales of 4-bit ones."""
    total, seen = 0, set()
    for weight in module.parameters():
        if weight.data_ptr() not in seen:
            seen.add(weight.data_ptr())
            total += weight.numel() * weight.element_size() + _scale_bytes(getattr(weight, "quant_state", None))
    return total


def _scale_bytes(state: Any) -> int:
    if state is None:
        return 0
    own = [state.absmax, state.code] + ([] if state.offset is None else [state.offset])
    return sum(one.numel() * one.element_size() for one in own) + _scale_bytes(state.state2)
