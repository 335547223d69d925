"""Adapters: what is frozen stays, what is trained is float32, 4-bit layers pass gradients after an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from models import adapter_base
from models.adapter_base import load_base, refuse_sharding, with_sequence_head
from models.adapter_files import average_adapters, base_identity, check_base, save_adapter, weights_mark
from models.adapters import check_formats, name_padding, prepare_frozen
from models.answer_network import AnswerNetwork, SequenceNetwork, label_tree
from models.causal import load_language_model
from models.method_settings import AdapterSettings
from train.adapter_guard import GradientGuard, adapters_without_gradient, layers_without_gradient

LABELS = ("Hard", "Soft", "Unknown")
SETTINGS = AdapterSettings("label", 4, 8, 0.0, "all-linear", "auto")
IDS = torch.arange(40, 40 + 8 * 12).reshape(8, 12)
LENGTHS = torch.tensor([12, 9, 11, 12, 7, 8, 10, 12])
TRUTH = torch.arange(8) % 3
PRECISIONS = [("none", "fp32"), ("none", "bf16"), ("nf4", "fp32"), ("nf4", "bf16")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama whose layers bitsandbytes can pack: multiples of 64."""
    from tiny_models import make_tokenizer, tiny_causal

    folder = tmp_path_factory.mktemp("base")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 2}
    tiny_causal("llama", 448, **sizes).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def no_base_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_base, "_base", None)


def need_4bit(quantization: str) -> None:
    if quantization == "nf4":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install -e '.[gpu]'")


def make(folder: str, quantization: str = "none", precision: str = "fp32", head: str = "label", seed: int = 1):
    """(the base with a new adapter, the network)."""
    need_4bit(quantization)
    base = load_base(folder, precision=precision, quantization=quantization, head=head, labels=len(LABELS))
    model = base.fresh(SETTINGS, seed=seed)
    return base, AnswerNetwork(model, [label_tree([(11,), (12, 4), (13,)])]) if head == "label" else SequenceNetwork(
        model
    )


def step(base, network, optimizer) -> float:
    network.train()
    with base.autocast():
        loss = F.cross_entropy(network(IDS, LENGTHS), TRUTH)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def evaluate(base, network) -> torch.Tensor:
    network.eval()
    with torch.no_grad(), base.autocast():
        return network(IDS, LENGTHS).float()


def trained(network) -> list:
    return [weight for weight in network.parameters() if weight.requires_grad]


def save(base, folder: Path, name: str, quantization: str = "none") -> Path:
    told = {"question": {}, "max_tokens": None, "tta": True}
    save_adapter(base, folder, task="skills", labels=LABELS, base=base_identity(name, quantization), **told)
    return folder


@pytest.mark.parametrize("head", ["label", "sequence"])
@pytest.mark.parametrize(("quantization", "precision"), PRECISIONS)
def test_training_goes_on_after_every_evaluation_and_comes_back_the_same(
    tmp_path: Path, folder: str, quantization: str, precision: str, head: str
) -> None:
    """Trap T2: an evaluation used to end the learning of 4-bit layers, without an error."""
    base, network = make(folder, quantization, precision, head)
    optimizer = torch.optim.AdamW(trained(network), lr=5e-3)
    guard = GradientGuard(base.carried)
    losses = []
    for _ in range(4):
        losses.append(step(base, network, optimizer))
        assert not adapters_without_gradient(base.carried)
        guard.on_pre_optimizer_step()
        evaluate(base, network)
        guard.on_evaluate()
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.7 * losses[0]
    before = evaluate(base, network)
    save(base, tmp_path / "checkpoint", folder, quantization)
    plain = evaluate(base, rewrap(base.bare(), head))
    assert head == "sequence" or (plain - before).abs().max() > 0.1  # the adapter does matter
    again = rewrap(base.carry([tmp_path / "checkpoint"]), head)
    torch.testing.assert_close(evaluate(base, again), before, rtol=0, atol=0)


def rewrap(model, head: str):
    return AnswerNetwork(model, [label_tree([(11,), (12, 4), (13,)])]) if head == "label" else SequenceNetwork(model)


@pytest.mark.parametrize("kind", ["packed", "cut"])
def test_the_guard_fails_a_run_whose_frozen_layers_pass_no_gradient(folder: str, kind: str) -> None:
    base, network = make(folder, "nf4")
    layers = [module for module in network.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    if kind == "packed":
        for layer in layers:  # the fix of trap T2, undone
            layer.support_avx512bf16_for_cpu = True
    optimizer = torch.optim.AdamW(trained(network), lr=1e-3)
    guard = GradientGuard(base.carried)
    step(base, network, optimizer)
    if kind == "cut":  # packed: the network tried in eval mode, before its first step, whether it takes a tree
        guard.on_pre_optimizer_step()
    evaluate(base, network)
    guard.on_evaluate()
    if kind == "cut":
        for layer in layers[1:]:
            layer.register_forward_hook(lambda module, inputs, output: output.detach())
    step(base, network, optimizer)
    with pytest.raises(RuntimeError, match=r"no gradient .*after an evaluation"):
        guard.on_pre_optimizer_step()


def test_the_guard_names_an_adapter_that_got_no_gradient(folder: str) -> None:
    base, network = make(folder)
    step(base, network, torch.optim.SGD(trained(network), lr=0.0))
    assert not layers_without_gradient(base.carried)
    name, weight = next((n, w) for n, w in base.carried.named_parameters() if "lora_B" in n and w.requires_grad)
    weight.grad.zero_()
    with pytest.raises(RuntimeError, match=name.replace(".", r"\.")):
        GradientGuard(base.carried).on_pre_optimizer_step()


def test_norms_are_float32_and_widen_nothing_behind_them(folder: str) -> None:
    base, network = make(folder, precision="bf16")
    model = base.loaded.model
    assert model.model.norm.weight.dtype == torch.float32
    assert model.lm_head.weight.dtype == model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert {weight.dtype for weight in trained(network)} == {torch.float32}
    seen = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].dtype))
    evaluate(base, network)
    assert set(seen) == {torch.bfloat16}


def test_only_adapters_are_trained(folder: str) -> None:
    _, network = make(folder)
    names = [name for name, weight in network.named_parameters() if weight.requires_grad]
    assert len(names) == 2 * 2 * 7 and all("lora_" in name for name in names)


def test_mixed_formats_are_refused_by_name(folder: str) -> None:
    model = load_language_model(folder, precision="fp32").model
    model.lm_head.half()
    with pytest.raises(ValueError, match=r"lm_head\.weight is torch\.float16, expected torch\.float32"):
        prepare_frozen(model, "fp32")
    base, _ = make(folder, "nf4", "bf16")
    with pytest.raises(ValueError, match=r"is torch\.bfloat16, expected torch\.float32"):
        check_formats(base.loaded.model, "fp32")
    layer = base.loaded.model.model.layers[0].mlp.up_proj
    layer.get_base_layer().compute_dtype = torch.float16
    with pytest.raises(ValueError, match=r"up_proj\S* computes in torch\.float16, expected torch\.bfloat16"):
        check_formats(base.loaded.model, "bf16")


def test_a_fold_starts_from_its_seed_whatever_came_before(folder: str) -> None:
    base, network = make(folder, seed=3)
    first = [weight.detach().clone() for weight in trained(network)]
    step(base, network, torch.optim.AdamW(trained(network), lr=1e-2))
    torch.rand(5)
    _, network = make(folder, seed=3)
    assert all(torch.equal(one, other) for one, other in zip(first, trained(network), strict=True))
    _, network = make(folder, seed=4)
    assert not all(torch.equal(one, other) for one, other in zip(first, trained(network), strict=True))


def test_one_base_serves_all_folds_and_is_as_it_was(folder: str) -> None:
    base, network = make(folder)
    expected = evaluate(base, rewrap(base.bare(), "label"))
    base, network = make(folder)
    step(base, network, torch.optim.AdamW(trained(network), lr=1e-1))
    model = base.loaded.model
    again = load_base(folder, precision="fp32", labels=len(LABELS))
    assert again.loaded.model is model and again.carried is None
    torch.testing.assert_close(evaluate(again, rewrap(model, "label")), expected, rtol=0, atol=0)


def test_peft_opens_a_checkpoint_by_itself_and_it_holds_nothing_of_the_base(tmp_path: Path, folder: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, network = make(folder)
    step(base, network, torch.optim.AdamW(trained(network), lr=1e-2))
    expected = evaluate(base, network)
    checkpoint = save(base, tmp_path / "checkpoint", folder)
    files = {path.name for path in checkpoint.iterdir()}
    assert files == {
        "adapter_config.json", "adapter_model.safetensors", "tiebreak.json", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja",
    }  # fmt: skip
    assert all("lora_" in name for name in load_file(checkpoint / "adapter_model.safetensors"))
    assert json.loads((checkpoint / "adapter_config.json").read_text())["base_model_name_or_path"] == folder
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), checkpoint)
    torch.testing.assert_close(evaluate(base, rewrap(plain, "label")), expected, rtol=0, atol=1e-5)
    assert len(AutoTokenizer.from_pretrained(checkpoint)) == 400


def test_the_sequence_head_is_saved_in_float32_and_not_quantised(tmp_path: Path, folder: str) -> None:
    base, network = make(folder, "nf4", "bf16", "sequence")
    assert type(base.loaded.model.score).__name__ == "ModulesToSaveWrapper"
    step(base, network, torch.optim.AdamW(trained(network), lr=1e-2))
    saved = load_file(save(base, tmp_path / "c", folder, "nf4") / "adapter_model.safetensors")
    head = next(weight for name, weight in saved.items() if "score" in name)
    assert head.dtype == torch.float32 and head.shape == (3, 64)


def test_an_adapter_of_another_base_is_refused_before_it_is_loaded(tmp_path: Path, folder: str, tiny_causal) -> None:
    from tiny_models import make_tokenizer

    base, _ = make(folder)
    checkpoint = save(base, tmp_path / "checkpoint", folder)
    assert check_base(checkpoint, folder, "none")["labels"] == list(LABELS)
    other = tmp_path / "other"
    tiny_causal("llama", 448).save_pretrained(other)
    make_tokenizer().save_pretrained(other)
    with pytest.raises(ValueError, match="has other weights"):
        check_base(checkpoint, str(other), "none")
    with pytest.raises(ValueError, match=r"trained with model\.quantization=none, not nf4"):
        check_base(checkpoint, folder, "nf4")
    (checkpoint / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors"):
        check_base(checkpoint, folder, "none")


def test_a_base_that_was_moved_is_the_same_base(tmp_path: Path, folder: str) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "moved")
    assert weights_mark(str(tmp_path / "moved")) == weights_mark(folder)


def test_the_mean_of_adapters_is_the_mean_of_their_products(tmp_path: Path, folder: str) -> None:
    products, folders = [], []
    for seed in (1, 2, 3):
        base, network = make(folder, seed=seed)
        step(base, network, torch.optim.AdamW(trained(network), lr=1e-2))
        layer = base.loaded.model.model.layers[1].self_attn.q_proj
        products.append(layer.get_delta_weight("default").detach())
        folders.append(save(base, tmp_path / str(seed), folder))
    model = average_adapters(base, folders)
    layer = base.loaded.model.model.layers[1].self_attn.q_proj
    assert layer.r["mean"] == 12 and model.active_adapter == "mean"
    torch.testing.assert_close(layer.get_delta_weight("mean"), torch.stack(products).mean(0), rtol=1e-5, atol=1e-6)
    factors = [[w[seed].weight for w in (layer.lora_B, layer.lora_A)] for seed in ("fold0", "fold1", "fold2")]
    wrong = 2 * torch.stack([b for b, _ in factors]).mean(0) @ torch.stack([a for _, a in factors]).mean(0)
    assert (layer.get_delta_weight("mean") - wrong).abs().max() > 1e-4  # the mean of the factors is another matrix


def test_one_adapter_is_no_mean(tmp_path: Path, folder: str) -> None:
    base, _ = make(folder)
    with pytest.raises(ValueError, match="two or more"):
        average_adapters(base, [save(base, tmp_path / "c", folder)])


def test_targets_that_name_no_layer_are_refused_with_names_that_do(folder: str) -> None:
    base = load_base(folder, precision="fp32")
    with pytest.raises(ValueError, match=r"such names as down_proj, gate_proj, k_proj, o_proj\."):
        base.fresh(AdapterSettings("label", 4, 8, 0.0, "query", "auto"), seed=1)


@pytest.mark.parametrize(
    ("kind", "said"), [("gpt2", "as c_attn, c_fc, c_proj."), ("phi", "as dense, fc1, fc2, k_proj.")]
)
def test_the_advice_on_targets_names_no_head(tiny_causal, kind: str, said: str) -> None:
    from models.adapters import add_lora

    with pytest.raises(ValueError, match=said):
        add_lora(tiny_causal(kind, 448), AdapterSettings("label", 4, 8, 0.0, "query", "auto"), head="label", seed=1)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "ZeRO-3"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "zero3.json"}, "ZeRO-3"),
    ],
)
def test_sharding_of_4_bit_weights_is_refused(tmp_path: Path, environment: dict, said: str) -> None:
    if "ACCELERATE_DEEPSPEED_CONFIG_FILE" in environment:
        (tmp_path / "zero3.json").write_text('{"zero_optimization": {"stage": 3}}')
        environment = environment | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "zero3.json")}
    with pytest.raises(ValueError, match=f"{said} cannot shard"):
        refuse_sharding("nf4", environment)
    refuse_sharding("none", environment)
    refuse_sharding("nf4", {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"})


def test_a_network_without_a_sequence_head_is_refused(tiny_causal) -> None:
    with pytest.raises(ValueError, match=r"adapter\.head=label"):
        with_sequence_head(tiny_causal("cohere", 96), 3)


def test_padding_is_named_apart_from_the_end(tiny_tokenizer) -> None:
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    name_padding(tokenizer)
    assert tokenizer.pad_token == "<pad>"
    tokenizer.pad_token = tokenizer.eos_token
    name_padding(tokenizer)
    assert tokenizer.pad_token == "<pad>" and tokenizer.pad_token_id != tokenizer.eos_token_id


def test_checkpointed_activations_reach_every_adapter(folder: str) -> None:
    from models.adapters import checkpoint_activations

    base, network = make(folder)
    plain = evaluate_gradients(base, network)
    checkpoint_activations(base.loaded.model)
    np.testing.assert_allclose(evaluate_gradients(base, network), plain, rtol=1e-5)


def evaluate_gradients(base, network) -> np.ndarray:
    step(base, network, torch.optim.SGD(trained(network), lr=0.0))
    return np.array([float(weight.grad.norm()) for weight in trained(network)])
