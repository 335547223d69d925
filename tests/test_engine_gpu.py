"""The engine on a CUDA GPU: python -m pytest -m gpu tests/test_engine_gpu.py"""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from test_engine import ANSWERS, NATS, ROWS, VOCABULARY, plain, prompts_of, read
from tiny_models import KINDS, tiny_causal, tiny_t5

from infer.engine import Engine
from models.answer_tree import build_tree

pytestmark = [
    pytest.mark.usefixtures("exact_float32"),
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine"),
]
# Half precision has 11 or 8 bits: logits of these tiny models are right to about 0.05 and 0.3 nats.
HALF = [(torch.float16, 0.1), (torch.bfloat16, 0.6)]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_family_in_float32_agrees_with_the_cpu_oracle(kind: str) -> None:
    prompts = prompts_of(7)
    expected = plain(tiny_causal(kind, ROWS), prompts)
    assert np.abs(read(tiny_causal(kind, ROWS).cuda(), prompts) - expected).max() < NATS


@pytest.mark.parametrize(("dtype", "nats"), HALF)
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "mistral"])
def test_half_precision_stays_near_float32(kind: str, dtype: torch.dtype, nats: float) -> None:
    if dtype is torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bfloat16")
    prompts = prompts_of(7)
    found = read(tiny_causal(kind, ROWS).to("cuda", dtype), prompts)
    assert np.abs(found - plain(tiny_causal(kind, ROWS), prompts)).mean() < nats


def test_an_encoder_decoder_agrees_with_the_cpu_oracle() -> None:
    prompts = prompts_of(5)
    expected = plain(tiny_t5(ROWS), prompts)
    assert np.abs(read(tiny_t5(ROWS).cuda(), prompts) - expected).max() < NATS


def test_a_full_gpu_halves_the_budget_and_every_row_is_read() -> None:
    model = tiny_causal("llama", ROWS, max_position_embeddings=4096).cuda()
    prompts = prompts_of(64, prefix=0, longest=2000)
    tree = build_tree(ANSWERS)
    expected = tree.log_probs(Engine(model, vocab_size=VOCABULARY, budget_tokens=8192).read(prompts, tree))
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (256 << 20)) / total)
    try:
        engine = Engine(model, vocab_size=VOCABULARY, budget_tokens=64 * 2000)
        found = tree.log_probs(engine.read(prompts, tree))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert engine.budget_tokens < 64 * 2000, "the whole set at once should not have fitted"
    assert np.abs(found - expected).max() < NATS


def test_four_bits_stay_near_float32(tmp_path) -> None:
    pytest.importorskip("bitsandbytes")
    from tiny_models import make_tokenizer

    from models.causal import load_language_model

    model = tiny_causal("llama", 448, hidden_size=256, intermediate_size=512)
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    prompts = prompts_of(5)
    found = read(load_language_model(str(tmp_path), precision="fp16", quantization="nf4").model, prompts)
    expected = read(model, prompts)
    assert np.isfinite(found).all()
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9
