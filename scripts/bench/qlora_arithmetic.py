"""What a QLoRA step of a Llama needs, worked out from its shape alone; the figures the benchmark stands beside.

Terms, all in bytes: 4-bit weights, the 16-bit embedding and head, adapters with their gradients and AdamW moments,
one dequantised matrix, and per token the stored checkpoints, one recomputed layer and the logits that are read.
Knows shapes, never a network. H, F, K, V: hidden, feed-forward, key/value and vocabulary sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

from soft_model import Shape

GIB = 2**30
BLOCK = 64  # weights that share a scale (Dettmers et al. 2023, section 3: NF4)
BLOCKS_OF_SCALES = 256  # scales that share a scale, and are 8 bits each themselves (double quantization)
# CUDA's context lies outside torch's allocator, cuBLAS' workspace and fragments inside: estimated, not worked out.
CONTEXT_GIB = (0.5, 0.8)
FULL_LOGITS = 12  # bytes a logit: 16-bit, its float32 copy, a gradient of each; in float32 its log-softmax counts
LABEL_LOGITS = 8  # float32 and its gradient; at reading positions only


@dataclass(frozen=True)
class Needs:
    """What differs between two ways to train. wide: embedding, head and residual stream stand in float32.

    full_logits: at every token; else at reading positions.
    """

    wide: bool
    full_logits: bool


ROADS = {
    "ours": Needs(wide=False, full_logits=False),
    "ours, full logits": Needs(wide=False, full_logits=True),
    "plain": Needs(wide=True, full_logits=True),
}


def linear_layers(shape: Shape) -> list[tuple[int, int]]:
    """(outputs, inputs) of a layer's seven matrices: q, k, v, o, gate, up, down."""
    keys = key_size(shape)
    hidden, wide = shape.hidden, shape.intermediate
    return [(hidden, hidden), (keys, hidden), (keys, hidden), (hidden, hidden), (wide, hidden), (wide, hidden),
            (hidden, wide)]  # fmt: skip


def key_size(shape: Shape) -> int:
    return shape.hidden // shape.heads * shape.kv_heads


def linear_weights(shape: Shape) -> int:
    return shape.layers * sum(rows * columns for rows, columns in linear_layers(shape))


def nf4_bits(*, double: bool = True) -> float:
    """Bits of a weight: 4.127 with the scales quantized again, 4.5 without; tables of a few bytes not counted."""
    return 4 + (8 + 32 / BLOCKS_OF_SCALES) / BLOCK if double else 4 + 32 / BLOCK


def linear_bytes(shape: Shape, *, double: bool = True) -> float:
    return linear_weights(shape) * nf4_bits(double=double) / 8


def table_weights(shape: Shape) -> int:
    """Weights of the embedding, which a tied head is too."""
    return shape.vocab * shape.hidden


def adapter_weights(shape: Shape, rank: int, only: tuple[int, ...] | None = None) -> int:
    """Weights of a pair of rank-`rank` matrices beside all linear layers; only: positions in linear_layers."""
    layers = linear_layers(shape)
    chosen = layers if only is None else [layers[at] for at in only]
    return shape.layers * rank * sum(rows + columns for rows, columns in chosen)


def adapter_bytes(weights: int, *, moment_bytes: int = 4) -> int:
    """float32 weights and gradients, and AdamW's two moments: 4 bytes each, or 1 where they are quantized."""
    return weights * (4 + 4 + 2 * moment_bytes)


def checkpoint_bytes(shape: Shape, tokens: int, width: int) -> int:
    """The residual stream before every layer, `width` bytes a number, kept for the backward pass."""
    return tokens * shape.layers * shape.hidden * width


def layer_bytes(shape: Shape, tokens: int, width: int = 2) -> tuple[int, int]:
    """(least, most) that one layer holds when it is computed again for its gradient; attention keeps no T x T table.

    Least: every intermediate result once, `width` bytes a number: gate, up, their activation and product; the
    residual, two norms, queries, attention and its projection; keys and values. Most: float32 copies in both norms,
    and two gradients of the feed-forward's width beside it.
    """
    least = width * (4 * shape.intermediate + 6 * shape.hidden + 2 * key_size(shape))
    most = least + 2 * 2 * 4 * shape.hidden + width * 2 * shape.intermediate
    return tokens * least, tokens * most


def logit_bytes(shape: Shape, rows: int, tokens: int, *, full: bool) -> int:
    """tokens: of all rows together. rows: reading positions, one a row where every answer has one token."""
    return shape.vocab * (tokens * FULL_LOGITS if full else rows * LABEL_LOGITS)


def parts(
    shape: Shape, rows: int, length: int, rank: int, needs: Needs, *, width: int = 2, four_bit: bool = True,
    on_gpu: bool = True,
) -> dict[str, tuple[float, float]]:  # fmt: skip
    """{part: (least, most) GiB} of a step with `rows` rows of `length` tokens, activation checkpointing on.

    width: bytes of a number in the model's precision. four_bit: else the linear layers stand in that precision too.
    """
    tokens = rows * length
    table_width = 4 if needs.wide else width
    table = table_weights(shape) * table_width
    least, most = layer_bytes(shape, tokens, width)
    exact = {
        "linear layers": linear_bytes(shape) if four_bit else linear_weights(shape) * width,
        "embedding": table,
        "head": 0 if shape.tied else table,
        "adapters": adapter_bytes(adapter_weights(shape, rank)),
        "one matrix dequantised": width * max(one * other for one, other in linear_layers(shape)) if four_bit else 0,
        "checkpoints": checkpoint_bytes(shape, tokens, table_width),
        "logits": logit_bytes(shape, rows, tokens, full=needs.full_logits),
    }
    found = {name: (size / GIB, size / GIB) for name, size in exact.items()}
    found["one layer again"] = (least / GIB, most / GIB)
    return found | ({"context, fragments": CONTEXT_GIB} if on_gpu else {})


def total(ranges: dict[str, tuple[float, float]]) -> tuple[float, float]:
    """(least, most) GiB of all parts together."""
    return sum(least for least, _ in ranges.values()), sum(most for _, most in ranges.values())


def step_flops(shape: Shape, tokens: int, rows: int, *, full: bool) -> float:
    """Matmul FLOPs of a step: forward, the layers once more for their gradient, and the gradient of their inputs.

    The frozen weights have no gradient of their own; adapters (under 1 %) and attention are not counted.
    """
    head = 2 * (2.0 * table_weights(shape) * (tokens if full else rows))
    return 3 * 2.0 * linear_weights(shape) * tokens + head
