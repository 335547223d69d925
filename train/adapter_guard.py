"""The guard of adapter training: a run whose frozen layers stopped passing gradients fails with a sentence.

bitsandbytes re-packs 4-bit weights at an evaluation on some CPUs (keep_unpacked prevents it); from then on the adapters
learn from what little goes around the frozen layers, without any error. Knows networks, no rows.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

PROBED_LAYERS = 24  # spread over the depth: a probe computes one layer on two tokens
# A norm that overflows makes every gradient zero; it ends when fp16's scale was halved often enough.
MOST_SILENT = 32


class GradientGuard(TrainerCallback):
    """Looks at the gradients of the first step and of the first step after every evaluation that can be judged.

    Raises RuntimeError where an adapter got none, or a frozen layer passes none on. Under DeepSpeed, which has made its
    step and dropped the gradients by then, the frozen layers alone tell.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.due = True
        self.silent = 0  # steps in a row that had no gradient anywhere

    def on_evaluate(self, *given: Any, **also: Any) -> None:
        self.due = True

    def on_pre_optimizer_step(self, args: Any = None, *given: Any, **also: Any) -> None:
        stepped = bool(getattr(args, "deepspeed", None))
        if not self.due or (not stepped and overflowed(self.model)):
            return
        self.silent = self.silent + 1 if not stepped and all_zero(self.model) else 0
        if 0 < self.silent <= MOST_SILENT:
            return
        self.due = False
        without = [] if stepped else adapters_without_gradient(self.model)
        if without:
            raise RuntimeError(
                f"{len(without)} adapters got no gradient in the first step after an evaluation, the first is "
                f"{without[0]}: the run would learn nothing there. {ADVICE}"
            )
        dead = layers_without_gradient(self.model)
        if dead:
            raise RuntimeError(
                f"{len(dead)} frozen layers pass no gradient on after an evaluation, the first is {dead[0]}: the "
                f"layers below would hardly learn. {ADVICE}"
            )


ADVICE = "On a CPU update bitsandbytes or use model.quantization=none; on a GPU please report it with the model's name."


def adapters_without_gradient(model: Any) -> list[str]:
    """Names of the adapters in whose second matrix no gradient arrived; the first has none before the first step."""
    return [
        name
        for name, weight in model.named_parameters()
        if weight.requires_grad and "lora_B" in name and (weight.grad is None or not bool(weight.grad.abs().max() > 0))
    ]  # fmt: skip


def overflowed(model: Any) -> bool:
    """Whether a gradient is not finite: fp16's scaler skips the step, and the others tell nothing any more.

    The gradients were clipped before. Where their norm was infinite, each was multiplied by zero: infinite ones are NaN
    now and finite ones zero; where it was NaN, all are NaN.
    """
    return any(not bool(gradient.isfinite().all()) for gradient in _gradients(model) if gradient is not None)


def all_zero(model: Any) -> bool:
    """Whether all that is trained got a gradient and every one of them is zero.

    Finite gradients whose norm overflows are clipped to that. A network cut somewhere (trap T2) has some left, above
    the cut; one that is cut everywhere has none at all (None), and cannot be trained a step.
    """
    return all(gradient is not None and not bool(gradient.any()) for gradient in _gradients(model))


def layers_without_gradient(model: Any) -> list[str]:
    """Names of frozen layers under adapters through which a random input gets no gradient, or a made-up one."""
    import torch

    # Its own generator: the global one is dropout's, and a resumed run looks after other steps than an unbroken one.
    chance = torch.Generator().manual_seed(0)
    layers = [(name, module.base_layer) for name, module in model.named_modules() if hasattr(module, "base_layer")]
    layers = [(name, layer) for name, layer in layers if hasattr(layer, "in_features")]
    step = max(1, -(-len(layers) // PROBED_LAYERS))
    dead = []
    for name, layer in layers[::step]:
        weight = layer.weight
        if getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False):
            dead.append(name)  # re-packed for prediction: there is no backward pass, whatever this CPU makes of it
            continue
        dtype = getattr(layer, "compute_dtype", None) or weight.dtype
        probe = torch.randn(1, 2, layer.in_features, generator=chance).to(weight.device, dtype).requires_grad_()
        with torch.enable_grad():
            output = layer(probe)
            passed = output.requires_grad and torch.autograd.grad(output.float().sum(), probe, allow_unused=True)[0]
        if passed is False or passed is None or not bool(passed.abs().max() > 0):
            dead.append(name)
    return dead


def _gradients(model: Any) -> list[Any]:
    return [weight.grad for weight in model.parameters() if weight.requires_grad]
