"""DeBERTa's attention in tiers: transformers' own outputs and gradients, whatever the mask, dropout included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models import deberta_bias, deberta_flex, deberta_rows
from models.deberta_attention import padded_pieces, resolve_attention, set_tier, use_attention

LENGTH = 70
EXACT = 1e-9  # in float64 only the order of sums differs
KINDS: dict[str, dict[str, Any]] = {
    "v3": {"norm_rel_ebd": "layer_norm", "position_buckets": 8, "max_relative_positions": 16},
    "no buckets": {"share_att_key": False, "max_relative_positions": 20},
    "content to position alone": {"share_att_key": False, "pos_att_type": ["c2p"], "position_buckets": 8},
    "position to content alone": {"pos_att_type": ["p2c"], "position_buckets": 256},
    "v2 with a convolution": {"conv_kernel_size": 3, "norm_rel_ebd": "layer_norm", "position_buckets": 256},
    "no terms": {"pos_att_type": None},
    "absolute positions": {"relative_attention": False, "position_biased_input": True},
}


def network(kind: str = "v3", dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A DeBERTa of two layers in train mode; weights so large that a wrong distance moves every output."""
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    torch.manual_seed(0)
    settings = {
        "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32,
        "type_vocab_size": 0, "num_labels": 3, "relative_attention": True, "position_biased_input": False,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.4,
        "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "pooler_dropout": 0.0,
    }  # fmt: skip
    config = DebertaV2Config(**settings | KINDS[kind] | changes)
    return DebertaV2ForSequenceClassification(config).to(dtype).train()


def padding(*lengths: int) -> Tensor:
    return (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()


UNFUSED = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
MASKS = {
    "none": torch.ones(3, LENGTH, dtype=torch.long),
    "right": padding(LENGTH, 33, 1),
    "left": padding(LENGTH, 33, 1).flip(1),
    "gaps": (torch.arange(3 * LENGTH).view(3, LENGTH) % 7 != 5).long(),
}


def read(model: Any, tier: str, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """(the last hidden states of tokens that are read, every parameter's gradient)."""
    set_tier(model.deberta.encoder, tier)
    model.zero_grad()
    ids = ids_like(mask)
    outputs = model.deberta(ids, attention_mask=mask, output_hidden_states=True)
    hidden = torch.stack(tuple(outputs.hidden_states))[:, mask.bool()]
    weights = torch.linspace(-1, 1, hidden.numel(), dtype=hidden.dtype, device=hidden.device).view(hidden.shape)
    (hidden * weights).sum().backward()
    return hidden.detach(), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def ids_like(mask: Tensor) -> Tensor:
    """Token ids where the mask is: a network on a GPU takes no others."""
    return torch.arange(mask.numel(), device=mask.device).view(mask.shape) % 47 + 1


def assert_alike(found: Any, expected: Any, share: float) -> None:
    """All tensors are equal but for `share` of the largest number in each."""
    assert found[1].keys() == expected[1].keys()
    pairs = [(found[0], expected[0]), *((found[1][name], expected[1][name]) for name in expected[1])]
    for one, other in pairs:
        assert float((one - other).abs().max()) <= share * (float(other.abs().max()) + 1e-3)


@pytest.fixture(params=["as shipped", "in small pieces"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Also with blocks of a few tokens, so that short texts have chunks, far sides and recomputed probabilities."""
    if request.param == "in small pieces":
        for name, value in {"BLOCK_KEYS": 8, "CHUNK_BLOCKS": 2, "GROUP_SCORES": 2_000, "KEPT_TOKENS": 16}.items():
            monkeypatch.setattr(deberta_rows, name, value)
        monkeypatch.setattr(deberta_bias, "CHUNK_BYTES", 16 * 3 * 3 * LENGTH * 8)
    return request.param


@pytest.mark.parametrize(("kind", "masked"), [("v3", one) for one in MASKS] + [(one, "right") for one in KINDS])
def test_outputs_and_every_gradient_are_those_of_transformers(kind: str, masked: str, pieces: str) -> None:
    model = network(kind)
    assert_alike(read(model, "sdpa", MASKS[masked]), read(model, "eager", MASKS[masked]), EXACT)


def test_float32_agrees_to_a_hundred_thousandth_past_the_position_range() -> None:
    """At 600 tokens a network of 256 buckets over 512 positions has run out of both. Gradients, sums over all tokens
    that nearly cancel, are as near to float64 as transformers' own.
    """
    model = network(position_buckets=256, max_relative_positions=512, initializer_range=0.1)
    mask = padding(600, 64, 513)
    exact = read(model, "eager", mask)
    model = model.float()
    ours, theirs = read(model, "sdpa", mask), read(model, "eager", mask)
    assert float((ours[0] - theirs[0]).abs().max()) < 1e-5
    for name, expected in exact[1].items():
        errors = [float((found[1][name] - expected).abs().max()) for found in (ours, theirs)]
        assert errors[0] < 2 * errors[1] + 1e-6 * float(expected.abs().max()), name


@UNFUSED
@pytest.mark.parametrize("masked", ["none", "right", "gaps"])
def test_flex_reads_what_transformers_reads(masked: str) -> None:
    """On a CPU torch runs FlexAttention unfused and forward only."""
    model = network()
    with torch.no_grad():
        found = [states(model, tier, MASKS[masked]) for tier in ("flex", "eager")]
    assert torch.allclose(*found, atol=EXACT)


def states(model: Any, tier: str, mask: Tensor) -> Tensor:
    set_tier(model.deberta.encoder, tier)
    ids = ids_like(mask)
    return model.deberta(ids, attention_mask=mask).last_hidden_state[mask.bool()]


@UNFUSED
@pytest.mark.parametrize("kind", ["v3", "no buckets", "content to position alone"])
def test_flex_gives_the_gradients_of_transformers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses the backward pass on a CPU, though its unfused form has one: the refusal is taken away."""
    from torch.nn.attention import flex_attention

    if not hasattr(flex_attention, "_validate_device"):
        pytest.skip("this torch has no check to take away")
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    model = network(kind)
    assert_alike(read(model, "flex", MASKS["right"]), read(model, "eager", MASKS["right"]), EXACT)


def test_flex_computes_the_blocks_in_which_a_text_meets_itself() -> None:
    lengths = torch.tensor([5, 300, 128, 20])
    owner = deberta_flex.owners(lengths, 453)
    assert len(owner) == 512 and owner[-1] == 4
    same = owner[:, None] == owner[None]
    blocks = same.view(4, 128, 4, 128).permute(0, 2, 1, 3).flatten(2)
    assert torch.equal(deberta_flex.block_mask(owner).to_dense()[0, 0].bool(), blocks.any(-1))


def test_a_mask_of_pairs_is_followed() -> None:
    """Two texts in one row that do not see each other: (B, T, T), as the encoder takes it."""
    model, hidden = network(), torch.randn(2, 40, 24, dtype=torch.float64)
    mask = torch.zeros(2, 40, 40, dtype=torch.long)
    mask[:, :15, :15] = mask[:, 15:, 15:] = 1
    found = []
    for tier in ("sdpa", "eager"):
        set_tier(model.deberta.encoder, tier)
        found.append(model.deberta.encoder(hidden, mask).last_hidden_state)
    assert torch.allclose(*found, atol=EXACT)


def test_a_checkpointed_layer_drops_the_same_again() -> None:
    model = network(attention_probs_dropout_prob=0.2, hidden_dropout_prob=0.1)
    found = []
    for enable in (False, True):
        if enable:
            # The older name is deprecated from transformers 5.2x on, the newer one missing before.
            (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
        torch.manual_seed(3)
        found.append(read(model, "sdpa", MASKS["right"]))
    assert_alike(found[0], found[1], EXACT)


def test_nothing_of_the_size_of_the_scores_is_kept_of_a_long_text() -> None:
    model, tokens = network(dtype=torch.float32), 1100
    sizes: list[int] = []

    def pack(one: Tensor) -> Tensor:
        sizes.append(one.numel())
        return one

    set_tier(model.deberta.encoder, "sdpa")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one):
        model(torch.ones(1, tokens, dtype=torch.long))
    assert max(sizes) < tokens * tokens / 4


def test_half_precision_is_as_near_to_float32_as_transformers_own() -> None:
    model, mask = network(dtype=torch.float32, initializer_range=0.1), MASKS["right"]
    exact = read(model, "eager", mask)[0]
    errors = {}
    for tier in ("eager", "sdpa"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            errors[tier] = float((read(model, tier, mask)[0] - exact).abs().mean())
    assert 0 < errors["sdpa"] < 1.2 * errors["eager"]


def test_training_follows_a_prediction_in_inference_mode() -> None:
    """Distances are made once per length, and a tensor made in inference mode could not be trained with."""
    model, mask = network(), padding(53, 20)
    with torch.inference_mode():
        states(model, "sdpa", mask)
    torch.testing.assert_close(read(model, "sdpa", mask)[0], read(model, "eager", mask)[0], atol=1e-5, rtol=1e-5)


def test_the_tests_of_a_gpu_read_on_the_device_of_their_mask() -> None:
    """torch's meta device has shapes and no numbers, and like a GPU refuses a tensor of another device."""
    mask = padding(70, 33, 1).to("meta")
    assert ids_like(mask).device == mask.device and ids_like(mask).shape == mask.shape
    model = network().to("meta")
    assert model.deberta(ids_like(mask), attention_mask=mask).last_hidden_state.device == mask.device


def test_attention_maps_are_transformers_own() -> None:
    model, mask = network().eval(), MASKS["right"]
    maps = []
    for tier in ("sdpa", "eager"):
        set_tier(model.deberta.encoder, tier)
        maps.append(model.deberta(mask, attention_mask=mask, output_attentions=True).attentions[1])
    assert torch.equal(*maps)


def test_files_are_those_of_transformers(tmp_path: Path) -> None:
    """Saved from one tier, read by transformers, and back: the same bytes of weights and config."""
    from transformers import AutoModelForSequenceClassification

    from models.encoder import load_encoder

    network(dtype=torch.float32).save_pretrained(tmp_path / "eager")
    ours: Any = load_encoder(str(tmp_path / "eager"), labels=None)
    ours.save_pretrained(tmp_path / "ours")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "eager" / name).read_bytes()
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    ids = torch.arange(1, 41).view(2, 20)
    assert torch.allclose(ours.eval()(ids).logits, theirs(ids).logits, atol=1e-5)
    assert type(ours.deberta.encoder) is not type(theirs.deberta.encoder)


def test_a_gap_in_a_mask_is_seen() -> None:
    assert padded_pieces(torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 0]])) == ((0, 2), (4, 2), (6, 0))
    assert padded_pieces(torch.tensor([[1, 0, 1]])) is None


def test_the_choice_is_said_in_one_line() -> None:
    assert use_attention(torch.nn.Linear(2, 2), "auto") is None
    line = use_attention(network(attention_probs_dropout_prob=0.1), "sdpa")
    assert line is not None and line.startswith("attention sdpa (") and line.endswith("probabilities 0.1")


@pytest.mark.parametrize(
    ("device", "capability", "dropout", "said"),
    [
        ("cpu", None, 0.0, "this is a CPU"),
        ("cuda", (7, 5), 0.0, "this is sm_75"),
        ("cuda", (9, 0), 0.1, r"drops 0\.1 of them"),
    ],
)
def test_flex_is_refused_where_it_cannot_run(
    device: str, capability: tuple[int, int] | None, dropout: float, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        resolve_attention("flex", device=device, capability=capability, dropout=dropout)


def test_auto_is_sdpa_on_every_device() -> None:
    assert resolve_attention("auto", device="cpu", capability=None, dropout=0.1) == "sdpa"
    assert resolve_attention("auto", device="cuda", capability=(6, 0), dropout=0.1) == "sdpa"
    assert resolve_attention("flex", device="cuda", capability=(8, 0), dropout=0.0) == "flex"


def test_another_network_has_no_choice_of_attention(tiny_encoder: str) -> None:
    from models.encoder import load_encoder

    with pytest.raises(ValueError, match=r"is for DeBERTa, and .* is of the kind bert"):
        load_encoder(tiny_encoder, attention="eager")
