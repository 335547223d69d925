"""Language models, causal ones and encoder-decoders, ready to be read: weights, tokenizer, and what they are called.

One number format everywhere; safetensors and GGUF only: nothing is unpickled and no remote code runs. Knows no prompt.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.choices import one_of
from models.fingerprint import fingerprint, model_files
from models.gguf_cache import dequantised
from models.kind_settings import QUANTIZATIONS
from models.names import has_safetensors, local_folder, resolve_gguf, resolve_model
from models.precision import TORCH_NAMES, device_and_precision, own_device
from models.shards import reading_weights
from models.tasks.tokens import check_tokenizer, restore_nfkc


@dataclass(frozen=True)
class LoadedModel:
    """A language model in eval mode on this process's device, and its tokenizer.

    identity: what the probabilities depend on: name (as given: a folder may move), files (a fingerprint of weights,
    config and tokenizer), precision, quantization. line: one sentence for the log.
    """

    model: Any
    tokenizer: Any
    name: str
    identity: dict[str, str]
    line: str


@dataclass(frozen=True)
class Source:
    """Where transformers finds a model: a folder or a hub name, and in a folder the GGUF file where it is one."""

    where: str
    gguf: str | None = None

    def arguments(self) -> dict[str, Any]:
        """What every from_pretrained is told."""
        return {"trust_remote_code": False} | ({} if self.gguf is None else {"gguf_file": self.gguf})


def load_language_model(name: str, *, precision: str = "auto", quantization: str = "none") -> LoadedModel:
    """The language model that `name` means.

    name: a local folder, a hub name, package:NAME/sub/folder, or a GGUF file (a path, package:NAME/FILE.gguf, or
    package:NAME where it holds one only). precision: auto, fp16, bf16, fp32. quantization: none, nf4.
    Raises FileNotFoundError for what is not there, ImportError for a missing library, and ValueError for what cannot
    answer by its next token, lacks weights or a tokenizer, or needs another device.
    """
    check_quantization(quantization)
    device = own_device()
    _, precision, device_line = device_and_precision(precision, "engine.precision")
    file = resolve_gguf(name)
    source = Source(resolve_model(name)) if file is None else _ordinary(file, precision)
    if quantization == "nf4" and source.gguf is not None:
        raise ValueError(
            f"model.quantization=nf4 of {source.gguf} needs its converted copy on disk, which could not be written. "
            "Set TIEBREAK_CACHE to a folder with room, or use model.quantization=none."
        )
    model, tokenizer = _read(source, precision, device=device, quantization=quantization)
    identity = identify_language_model(name, precision=precision, quantization=quantization)
    line = (
        f"{name}: {type(model).__name__}, {model.num_parameters() / 1e6:.1f} M parameters, {device_line}, "
        f"{model.config._attn_implementation} attention" + (", 4-bit NF4" if quantization == "nf4" else "")
    )
    return LoadedModel(model, tokenizer, name, identity, line)


def identify_language_model(name: str, *, precision: str = "auto", quantization: str = "none") -> dict[str, str]:
    """LoadedModel.identity without loading: what must be the same again for the same probabilities.

    Raises what load_language_model raises for a model that is not there or a device that cannot.
    """
    check_quantization(quantization)
    _, precision, _ = device_and_precision(precision, "engine.precision")
    file = resolve_gguf(name)
    where = resolve_model(name) if file is None else str(file.parent)
    # A hub model may not be downloaded yet; its commit says as much as its files.
    files = fingerprint({file} if file is not None else model_files(Path(where))) if Path(where).is_dir() else None
    mark = files or local_folder(where).name
    return {"name": name, "files": mark, "precision": precision, "quantization": quantization}


def check_quantization(quantization: str) -> None:
    """Refuse a word that is none of QUANTIZATIONS, and nf4 without bitsandbytes."""
    one_of("model.quantization", quantization, QUANTIZATIONS)
    if quantization == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(
            "model.quantization=nf4 needs bitsandbytes, which is not installed: pip install -e '.[gpu]', "
            "or use model.quantization=none."
        )


def _read(source: Source, precision: str, **how: str) -> tuple[Any, Any]:
    """(network, tokenizer), what is cheap to refuse first. how: device and quantization of `read_network`."""
    config = read_config(source)
    network = network_class(config, source.where)
    tokenizer = read_tokenizer(source, config)
    return read_network(source, config, network, precision, **how), tokenizer


def read_tokenizer(source: Source, config: Any) -> Any:
    """The tokenizer of a model. Raises ValueError where there is none, or only a stub, see check_tokenizer."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.where, **source.arguments())
    except (ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{source.where} holds no tokenizer that can be read ({reason}). "
            "Copy tokenizer.json and tokenizer_config.json of the same model there."
        ) from error
    check_tokenizer(tokenizer, config.get_text_config(decoder=True).vocab_size)
    if tokenizer.is_fast:
        restore_nfkc(tokenizer)
    if source.gguf is not None:
        name_end_and_padding(tokenizer, config)
    return tokenizer


def name_end_and_padding(tokenizer: Any, config: Any) -> None:
    """Give a GGUF file's tokenizer the file's own EOS and padding.

    transformers 5.17 says that SmolLM2 ends with its BOS: the mass of an answer's end would be another token's.
    """
    for kind in ("eos", "pad"):
        number = getattr(config, f"{kind}_token_id", None)
        if isinstance(number, int):
            setattr(tokenizer, f"{kind}_token", tokenizer.convert_ids_to_tokens(number))


def read_config(source: Source) -> Any:
    """The config of a model. Raises FileNotFoundError without one, ValueError where it asks for code of its own."""
    from transformers import AutoConfig

    folder = Path(source.where)
    if source.gguf is None and folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json and no GGUF file: it is no model's folder.")
    try:
        return AutoConfig.from_pretrained(source.where, **source.arguments())
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{source.where} brings Python code of its own, which is never run here. "
                "Use a model of an architecture that transformers has."
            ) from error
        raise


def read_network(
    source: Source, config: Any, network: Any, precision: str, *, device: str = "cpu", quantization: str = "none"
) -> Any:
    """The network in eval mode on `device`, its weights in `precision` or 4-bit.

    T5's `wo` matrices stay float32 in fp16, where they would overflow. Raises ValueError where a tensor is missing:
    transformers would draw it at random, without a word.
    """
    from models.encoder import refuse_gaps

    if source.gguf is None and Path(source.where).is_dir() and not has_safetensors(source.where):
        raise FileNotFoundError(_no_safetensors(source.where, "*.safetensors is absent"))
    arguments: dict[str, Any] = source.arguments()
    if quantization == "nf4" or source.gguf is not None:
        arguments["quantization_config"] = _quantization_config(precision, quantization)
    if device != "cpu" or quantization == "nf4":
        arguments["device_map"] = {"": device}  # straight to its place: the whole model never stands in main memory
    with quiet(), reading_weights(source.where):
        try:
            model, report = network.from_pretrained(
                source.where, config=config, dtype=TORCH_NAMES[precision], use_safetensors=True,
                attn_implementation=attention(config, network), ignore_mismatched_sizes=True, output_loading_info=True,
                **arguments,
            )  # fmt: skip
        except OSError as error:
            raise FileNotFoundError(_no_safetensors(source.where, str(error).strip().splitlines()[0])) from error
    refuse_gaps(source.where, report, whole=True)
    if device == "cpu" and quantization == "nf4":
        keep_unpacked(model)
    return model.eval()


def network_class(config: Any, name: str) -> Any:
    """The class that reads next-token logits. Raises ValueError for an encoder, or anything else without them."""
    from transformers.models.auto import modeling_auto as auto

    causal, to_text = auto.MODEL_FOR_CAUSAL_LM_MAPPING, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    mapping = to_text if config.is_encoder_decoder else causal
    # BERT and its kin are among the causal ones too, but their weights were trained to look both ways.
    masked = type(config) in auto.MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if type(config) not in mapping or (masked and not config.is_encoder_decoder):
        raise ValueError(
            f"{name} is no language model: a {config.model_type} network gives no next-token probabilities. "
            "Use a causal or an encoder-decoder model, such as model=smollm2."
        )
    return mapping[type(config)]


def attention(config: Any, network: Any) -> str:
    """sdpa, or eager where the network has no sdpa or caps its attention logits.

    The cap (Gemma 2) is checked here too: transformers 5.17 let sdpa drop it without a word.
    """
    capped = getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None) is not None
    return "sdpa" if network._supports_sdpa and not capped else "eager"


def keep_unpacked(model: Any) -> None:
    """Stop bitsandbytes on a CPU from re-packing 4-bit weights at the first prediction.

    Packed layers have no gradient, cannot be merged, and refuse sizes that are no multiple of 32 (trap T2, T3).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its bars and advice: what it reports is refused, or said in the log, by the caller."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _ordinary(file: Path, precision: str) -> Source:
    """A GGUF file's converted copy, made now where it is not there; the file itself where no copy can be kept."""
    packed = Source(str(file.parent), file.name)

    def write(folder: Path) -> None:
        for part in _read(packed, precision):
            part.save_pretrained(folder)

    folder = dequantised(file, precision, write)
    return packed if folder is None else Source(str(folder))


def _quantization_config(precision: str, quantization: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig, GgufConfig

    if quantization == "none":
        return GgufConfig(dequantize=True)  # without it the weights may stay packed, and then cannot be saved
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, TORCH_NAMES[precision]),
    )  # fmt: skip


def _no_safetensors(where: str, reason: str) -> str:
    return (
        f"{where} has no weights that may be opened ({reason}): pickles (.bin, .pt) can run code and are not read. "
        "Get the model's safetensors, or load and save_pretrained it once where you trust it."
    )
