"""A language model is loaded as its file says, whole, in one number format, or refused with what to do."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import KINDS

from models.causal import load_language_model
from models.fingerprint import fingerprint, model_files
from models.gguf_cache import LEFT_BEHIND_S, new_folder

IDS = torch.tensor([[0, 40, 41, 300, 42, 17, 18, 99]])


@pytest.fixture
def folder(tmp_path: Path, tiny_llama, tiny_tokenizer) -> Path:
    """A checkpoint folder of a tiny Llama."""
    return saved(tmp_path / "llama", tiny_llama(len(tiny_tokenizer)), tiny_tokenizer)


def saved(folder: Path, model, tokenizer) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def logits(model) -> torch.Tensor:
    extra = {"decoder_input_ids": torch.tensor([[2]])} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        return model(input_ids=IDS, attention_mask=None, **extra).logits.float()


def same_logits(loaded, model) -> None:
    # The weights are the same bits; where they lie in memory decides how float32 sums are cut up.
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_folder_gives_the_logits_of_the_model_saved_there(
    tmp_path: Path, tiny_causal, tiny_tokenizer, kind: str
) -> None:
    model = tiny_causal(kind, len(tiny_tokenizer))
    loaded = load_language_model(str(saved(tmp_path, model, tiny_tokenizer))).model
    assert not loaded.training
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    same_logits(loaded, model)


@pytest.mark.parametrize("tied", [True, False])
def test_an_encoder_decoder_is_known_by_its_config(tmp_path: Path, tiny_t5, tiny_tokenizer, tied: bool) -> None:
    model = tiny_t5(len(tiny_tokenizer), tied=tied)
    loaded = load_language_model(str(saved(tmp_path, model, tiny_tokenizer))).model
    same_logits(loaded, model)
    assert (loaded.lm_head.weight.data_ptr() == loaded.shared.weight.data_ptr()) == tied


@pytest.mark.parametrize(("kind", "attention"), [("llama", "sdpa"), ("gemma2", "eager"), ("bloom", "eager")])
def test_attention_is_sdpa_where_the_architecture_has_all_of_it(
    tmp_path: Path, tiny_causal, tiny_tokenizer, kind: str, attention: str
) -> None:
    loaded = load_language_model(str(saved(tmp_path, tiny_causal(kind, len(tiny_tokenizer)), tiny_tokenizer)))
    assert loaded.model.config._attn_implementation == attention
    assert f"{attention} attention" in loaded.line


def test_the_line_names_model_size_device_and_precision(folder: Path) -> None:
    loaded = load_language_model(str(folder))
    for part in (str(folder), "LlamaForCausalLM", "0.0 M parameters", "precision fp32"):
        assert part in loaded.line


def test_the_tokenizer_comes_as_it_was_saved(folder: Path, tiny_tokenizer) -> None:
    """Nothing is added to it: a token of ours would have no trained embedding."""
    tokenizer = load_language_model(str(folder)).tokenizer
    text = " positive\n<|im_start|>12"
    assert tokenizer(text)["input_ids"] == tiny_tokenizer(text)["input_ids"]
    assert len(tokenizer) == len(tiny_tokenizer)
    assert tokenizer.chat_template == tiny_tokenizer.chat_template


def half_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16 is refused on a CPU, where it is only slow; its numbers can be looked at all the same."""
    monkeypatch.setattr("models.causal.device_and_precision", lambda asked, key: ("cpu", "fp16", "precision fp16"))


def test_fp16_is_every_weight_of_a_llama(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half_on_cpu(monkeypatch)
    loaded = load_language_model(str(folder), precision="fp16")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float16}


def test_fp16_leaves_the_matrices_of_t5_that_overflow_in_float32(
    tmp_path: Path, tiny_t5, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_on_cpu(monkeypatch)
    model = tiny_t5(len(tiny_tokenizer), tied=False)
    loaded = load_language_model(str(saved(tmp_path, model, tiny_tokenizer)), precision="fp16").model
    formats = {name.split(".")[-2] == "wo": p.dtype for name, p in loaded.named_parameters()}
    assert formats == {True: torch.float32, False: torch.float16}
    # Half precision has eleven bits: logits of about 5 are right to some hundredths after two layers.
    assert (logits(loaded) - logits(model)).abs().max() < 0.05


def test_a_missing_tensor_is_refused_instead_of_drawn_at_random(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 .*layers\.1\.mlp\.up_proj.*random"):
        load_language_model(str(folder))


def test_a_tensor_of_another_shape_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    with pytest.raises(ValueError, match="copy it again"):
        load_language_model(str(folder))


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


def test_a_pickle_is_never_opened(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb()))
    load_language_model(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"pickles.*safetensors"):
        load_language_model(str(folder))


def test_an_encoder_is_refused_by_what_it_cannot_do(tiny_encoder: str) -> None:
    with pytest.raises(ValueError, match=r"no language model: a bert network.*next-token.*causal"):
        load_language_model(tiny_encoder)


def test_a_model_with_code_of_its_own_is_refused(folder: Path) -> None:
    remote = {"model_type": "my_own", "auto_map": {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.My"}}
    (folder / "config.json").write_text(json.dumps(remote))
    (folder / "mine.py").write_text("raise RuntimeError('remote code ran')")
    with pytest.raises(ValueError, match="never run here"):
        load_language_model(str(folder))


def test_a_folder_without_a_tokenizer_or_a_config_is_refused_with_the_files_it_lacks(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"holds no tokenizer.*tokenizer\.json"):
        load_language_model(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        load_language_model(str(folder))


def test_a_tokenizer_stub_is_refused(tmp_path: Path, tiny_llama, tiny_tokenizer) -> None:
    folder = saved(tmp_path, tiny_llama(10 * len(tiny_tokenizer)), tiny_tokenizer)
    with pytest.raises(ValueError, match=r"400 tokens.*4000 rows"):
        load_language_model(str(folder))


def test_wrong_settings_are_refused_by_their_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"engine\.precision='int8'"):
        load_language_model(str(folder), precision="int8")
    with pytest.raises(ValueError, match=r"model\.quantization='nf5'.*none, nf4"):
        load_language_model(str(folder), quantization="nf5")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[gpu\]'"):
        load_language_model(str(folder), quantization="nf4")


def test_nf4_packs_the_layers_and_leaves_the_head(folder: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra: gpu)")
    loaded = load_language_model(str(folder), quantization="nf4")
    packed = [module for module in loaded.model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert len(packed) == 14  # q, k, v, o, gate, up, down of two layers
    assert {module.weight.quant_type for module in packed} == {"nf4"}
    assert all(module.weight.quant_state.nested for module in packed)
    assert {module.compute_dtype for module in packed} == {torch.float32}
    assert type(loaded.model.lm_head) is torch.nn.Linear
    assert not any(getattr(module, "support_avx512bf16_for_cpu", False) for module in packed)
    assert loaded.identity["quantization"] == "nf4" and "NF4" in loaded.line
    # The logits are those of the packed weights, unpacked, and the same ones at every reading (trap T2).
    first, unpacked = logits(loaded.model), load_language_model(str(folder)).model
    for name, module in loaded.model.named_modules():
        if module in packed:
            weight = unpacked.get_submodule(name).weight
            restored = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            assert torch.corrcoef(torch.stack([restored.flatten(), weight.flatten()]))[0, 1] > 0.97, name
            weight.data.copy_(restored)
    torch.testing.assert_close(first, logits(unpacked), rtol=0, atol=1e-5)
    assert torch.equal(logits(loaded.model), first)


def test_identity_follows_the_weights_and_the_tokenizer_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("a model")
    (copy / "calibrator.json").write_text("{}")
    files = load_language_model(str(folder)).identity["files"]
    assert load_language_model(str(copy)).identity["files"] == files
    weights = load_file(copy / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.weight"][3, 3] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(model_files(copy)) != files
    shutil.copy(folder / "model.safetensors", copy)
    assert fingerprint(model_files(copy)) == files
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").write_text(template.replace("assistant", "robot"))
    assert fingerprint(model_files(copy)) != files


def test_a_fingerprint_looks_everywhere_in_a_large_file(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    whole = bytearray(5_000_000)
    file.write_bytes(whole)
    before = fingerprint([file])
    for start in range(0, len(whole), 1_000_000):  # a fifth of the file changed, wherever it stands
        changed = bytearray(whole)
        changed[start : start + 1_000_000] = b"\1" * 1_000_000
        file.write_bytes(changed)
        assert fingerprint([file]) != before


# ---- GGUF ----


def write_gguf(path: Path, model, tokenizer) -> Path:
    """A tiny Llama as llama.cpp's converter writes it, in float32."""
    from gguf import GGUFWriter

    config = model.config
    writer = GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    controls = {token["id"] for token in definition["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    writer.add_token_types([3 if number in controls else 1 for number in range(len(tokenizer))])  # control, normal
    writer.add_token_merges([" ".join(pair) for pair in definition["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(gguf_name(name), interleaved(name, tensor.numpy(), config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(name: str) -> str:
    pairs = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
             "model.layers": "blk", "self_attn.o_proj": "attn_output", "self_attn.": "attn_", "mlp.": "ffn_",
             "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "_proj": ""}  # fmt: skip
    for ours, theirs in pairs.items():
        name = name.replace(ours, theirs)
    return name


def interleaved(name: str, matrix: np.ndarray, config) -> np.ndarray:
    """llama.cpp turns neighbouring dimensions of queries and keys, transformers the two halves of a head."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return matrix
    halves = matrix.reshape(heads, 2, -1, matrix.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(matrix.shape)


@pytest.fixture
def gguf(tmp_path: Path, tiny_llama, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch):
    """(the file, the model in it), with an empty cache."""
    pytest.importorskip("gguf", reason="gguf is not installed: bash scripts/setup.sh installs it")
    monkeypatch.setenv("TIEBREAK_CACHE", str(tmp_path / "cache"))
    model = tiny_llama(len(tiny_tokenizer))
    return write_gguf(tmp_path / "tiny.gguf", model, tiny_tokenizer), model


def test_a_gguf_file_is_converted_once_and_keeps_weights_tokens_and_template(
    gguf, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, model = gguf
    first = load_language_model(str(file))
    monkeypatch.setattr("models.gguf_cache.check_library", lambda file: pytest.fail("converted again"))
    for loaded in (first, load_language_model(str(file))):
        same_logits(loaded.model, model)
        tokenizer = loaded.tokenizer
        for text in (" positive", "technical issue 12", "\n\n  a", "<|im_start|>user"):
            plain = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == plain
        assert tokenizer.chat_template == tiny_tokenizer.chat_template
        assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")
        assert loaded.identity == first.identity


def test_a_gguf_file_that_cannot_be_kept_is_loaded_all_the_same(
    gguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file, model = gguf
    (tmp_path / "full").write_text("a file where a folder should be: nothing can be written below it")
    monkeypatch.setenv("TIEBREAK_CACHE", str(tmp_path / "full"))
    monkeypatch.setattr(logging.getLogger("tiebreak"), "propagate", True)
    loaded = load_language_model(str(file))
    same_logits(loaded.model, model)
    said = {record.getMessage() for record in caplog.records if record.name == "tiebreak"}  # caught on two roads
    assert len(said) == 1 and "TIEBREAK_CACHE" in said.pop()


def test_without_its_library_a_gguf_file_is_refused_with_the_install_line(
    gguf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install gguf"):
        load_language_model(str(gguf[0]))


def test_a_file_that_is_no_gguf_is_refused_by_its_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<html>not found")
    with pytest.raises(ValueError, match=r"begins with b'<html>not found'.*Download"):
        load_language_model(str(tmp_path / "page.gguf"))


def test_the_process_that_comes_second_uses_the_first_ones_folder(tmp_path: Path) -> None:
    with new_folder(tmp_path / "model") as slow:
        (slow / "who").write_text("slow")
        with new_folder(tmp_path / "model") as fast:
            (fast / "who").write_text("fast")
    assert (tmp_path / "model" / "who").read_text() == "fast"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no space"), new_folder(tmp_path / "model") as unfinished:
        (unfinished / "half").touch()
        raise OSError("no space")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path: Path) -> None:
    for name, age_s in ((".unfinished-old", LEFT_BEHIND_S + 60), (".unfinished-now", 60)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    with new_folder(tmp_path / "model"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".unfinished-now", "model"]


def test_smollm2_answers_as_it_was_trained_to(smollm2) -> None:
    model, tokenizer = smollm2
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        probs = model(ids).logits[0, -1].softmax(-1)
    best = int(probs.argmax())
    # Measured when the model was chosen, on another conversion of the same file: 0.773.
    assert tokenizer.decode(best) == " Paris" and float(probs[best]) == pytest.approx(0.773, abs=0.005)
    assert [tokenizer(text)["input_ids"] for text in (" positive", "Hard")] == [[2731], [25994]]
    turns = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert "<|im_start|>user\nHi<|im_end|>" in turns
