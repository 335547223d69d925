"""Low-rank adapters beside a frozen language model, in 4 bits or not: how the model is prepared and the adapter added.

Own preparation instead of peft's prepare_model_for_kbit_training, which turns embeddings and head to float32 (2 GiB
more for Llama-3.1-8B) and with them every stored activation. Here norms are float32 inside and give back the model's
own format; embeddings and head stay as they are; what is trained is float32. Knows weights, never a row.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from models.causal import keep_unpacked
from models.method_settings import AdapterSettings
from models.precision import TORCH_NAMES

if TYPE_CHECKING:
    import torch

SEQUENCE_HEAD = "score"  # transformers' name for it; float32, and never in 4 bits
TASK_TYPES = {"label": "CAUSAL_LM", "sequence": "SEQ_CLS"}


def prepare_frozen(model: Any, precision: str) -> None:
    """Freeze a loaded model and make it fit to carry adapters in `precision` (fp32, fp16, bf16: weights and compute).

    Raises ValueError where weights or 4-bit layers compute in another format.
    """
    import torch

    model.requires_grad_(False)
    keep_unpacked(model)  # a no-op off the CPU
    dtype = getattr(torch, TORCH_NAMES[precision])
    if dtype != torch.float32:
        for module in model.modules():
            if _is_norm(module):
                module.float()
                module.register_forward_pre_hook(_to_float32)
                module.register_forward_hook(_ToFormat(dtype))
    check_formats(model, precision)


def check_formats(model: Any, precision: str) -> None:
    """Refuse a mix: frozen weights and 4-bit layers in `precision`, norms and all that is trained in float32.

    bfloat16 weights under fp16 compute are emulated on old cards and break their gradient scaler.
    """
    import torch

    dtype = getattr(torch, TORCH_NAMES[precision])
    for name, module in model.named_modules():
        computes = getattr(module, "compute_dtype", None)
        if hasattr(module, "quant_state") and computes != dtype:
            raise ValueError(
                f"{name} computes in {computes}, expected {dtype}. Load the model with precision={precision}."
            )
        for key, weight in module.named_parameters(recurse=False):
            wanted = {torch.float32} if weight.requires_grad else {dtype}
            wanted |= {torch.float32} if _is_norm(module) or SEQUENCE_HEAD in name.split(".") else set()
            if weight.is_floating_point() and weight.dtype not in wanted:
                raise ValueError(
                    f"{name}.{key} is {weight.dtype}, expected {' or '.join(sorted(map(str, wanted)))}. Load the model "
                    f"with precision={precision}."
                )


def autocast(device: str, precision: str) -> AbstractContextManager[Any]:
    """The autocast of training and prediction alike; none in fp32."""
    import torch

    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=getattr(torch, TORCH_NAMES[precision]))


def add_lora(model: Any, settings: AdapterSettings, *, head: str, seed: int) -> Any:
    """The PeftModel of a prepared model with a new adapter named default, its weights drawn from seed.

    Raises ValueError where no layer has a name of adapter.targets.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    targets: Any = settings.targets.strip()
    if targets != "all-linear":
        targets = [name.strip() for name in targets.split(",")]
    alpha: Any = int(settings.alpha) if float(settings.alpha).is_integer() else settings.alpha
    config = LoraConfig(
        task_type=TASK_TYPES[head], r=settings.rank, lora_alpha=alpha, lora_dropout=settings.dropout,
        target_modules=targets, bias="none",
    )  # fmt: skip
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        if head == "sequence":
            torch.nn.init.normal_(model.score.weight, std=model.config.initializer_range)
        try:
            with quiet_peft():
                return get_peft_model(model, config)
        except ValueError as error:
            if "arget modules" not in str(error):
                raise
            raise ValueError(
                f"adapter.targets={settings.targets} names no layer of {type(model).__name__}. Use all-linear, or such "
                f"names as {', '.join(_linear_names(model)[:4])}."
            ) from error


@contextmanager
def quiet_peft() -> Iterator[None]:
    """peft without its use of a property that transformers has renamed: a FutureWarning at every fold."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def checkpoint_activations(model: Any, every: int = 1) -> None:
    """Recompute the activations of every `every`-th layer in the backward pass, the first one's among them.

    All of them: a third more time, a fraction of the memory.

    Not re-entrant: gradients reach the adapters although the embeddings, and so the layers' inputs, have none.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    # The older name is deprecated from transformers 5.2x on, the newer one missing before.
    if enable := getattr(model, "activation_checkpointing_enable", None):
        enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # transformers makes the embeddings' output ask for a gradient, which the re-entrant way needs alone: frozen layers
    # below the first that trains would be recomputed and run backward for nothing.
    model.disable_input_require_grads()
    # By hand: not every transformers has every_n_layers.
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if every > 1 and not layers:
        raise ValueError(f"trainer.checkpoint_every={every}: {type(model).__name__} cannot leave layers out. Set 1.")
    for number, layer in enumerate(layers):
        layer.gradient_checkpointing = number % every == 0


def name_padding(tokenizer: Any) -> None:
    """Give a tokenizer a pad token other than its end token, where it has one to give.

    Nothing here reads the pad id (rows go by their lengths); who opens the checkpoint with another tool may.
    """
    if tokenizer.pad_token is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    taken = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    ids = {str(token.content): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    free = [text for text, number in sorted(ids.items(), key=lambda item: item[1]) if number not in taken]
    wanted = [text for mark in ("pad", "reserved", "") for text in free if mark in text]
    if tokenizer.unk_token is not None and tokenizer.unk_token_id not in taken:
        wanted.insert(sum("pad" in text for text in free), str(tokenizer.unk_token))
    if wanted:
        tokenizer.pad_token = wanted[0]


def trained_line(model: Any) -> str:
    """How much is trained, for the log."""
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    layers = sum(hasattr(module, "lora_A") for module in model.modules())
    return f"{trained / 1e6:.2f} M adapter parameters in {layers} layers"


class _ToFormat:
    """A forward hook: the output in the model's own format, so that a float32 norm does not widen what follows it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.to(self.dtype)


def _to_float32(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (inputs[0].float(), *inputs[1:])


def _is_norm(module: Any) -> bool:
    return "norm" in type(module).__name__.lower() and next(module.children(), None) is None


def _linear_names(model: Any) -> list[str]:
    """Names of the layers that all-linear adapts: neither the head nor the embeddings."""
    import torch
    from transformers.pytorch_utils import Conv1D  # GPT-2's

    head = model.get_output_embeddings()
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head
    }
    return sorted(names - {SEQUENCE_HEAD})
