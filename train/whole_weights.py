"""A network whose weights the processes of a launch dealt out among themselves: whole again, to be read or saved.

Knows DeepSpeed's and torch's ways of dealing out (train.sharding chooses); nothing of rows or steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What an ended engine of DeepSpeed leaves on them, 0.19.
LEFT_ON_MODULES = ("ds_", "_external_params", "_original_parameters", "all_parameters", "pre_bwd_fn", "post_bwd_fn")


@contextmanager
def whole(network: Any, engine: Any = None, *, exact: bool = False) -> Iterator[None]:
    """Inside, every process has all of the network's weights, and reading it exchanges nothing: any number of rows.

    So evaluations and saves need room for the whole network in each process. engine: DeepSpeed's, where it has one.
    exact: the weights as the optimizer has them, to be saved; FSDP reads in the number format of its layers. Every
    process must come here. Weights that are changed inside are those of the main process afterwards.
    """
    from torch.distributed.fsdp import FSDPModule

    sharded = [module for module in network.modules() if isinstance(module, FSDPModule)]
    if sharded:
        with _full_tensors(network) if exact else _unsharded(sharded):
            yield
    elif any(hasattr(parameter, "ds_id") for parameter in network.parameters()):
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(network.parameters()), modifier_rank=0), _unhooked(engine):
            yield
    else:
        yield


def marks(network: Any) -> dict[int, frozenset[str]]:
    """What each parameter has beside its numbers, before DeepSpeed takes it; by id."""
    return {id(parameter): frozenset(vars(parameter)) for parameter in network.parameters()}


def take_back(network: Any, engine: Any, before: dict[int, frozenset[str]]) -> None:
    """Leave a network that ZeRO-3 dealt out as torch made it, whole in every process; its engine ends.

    A base of adapters goes on to predict, where processes read as many rows as they like, and to the next fold, whose
    engine deals it out anew. before: the network's marks. Every process must call it.
    """
    parameters = list(network.parameters())
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return
    import deepspeed
    from deepspeed.runtime.zero import parameter_offload

    with deepspeed.zero.GatheredParameters(parameters):
        gathered = [parameter.data for parameter in parameters]  # held on to while DeepSpeed lets go
    engine.destroy()  # its hooks
    for parameter, tensor in zip(parameters, gathered, strict=True):
        for name in vars(parameter).keys() - before[id(parameter)]:
            delattr(parameter, name)
        parameter.data = tensor
    for module in network.modules():
        module._parameters = dict(module._parameters)  # a dict that gathers what is read from it
        for name in [name for name in vars(module) if name.startswith(LEFT_ON_MODULES)]:
            delattr(module, name)
    parameter_offload.FWD_MODULE_STACK.clear()  # or every fold's network stays in memory


@contextmanager
def _unsharded(modules: list[Any]) -> Iterator[None]:
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


@contextmanager
def _full_tensors(network: Any) -> Iterator[None]:
    """Inside, the network's parameters are plain tensors; its forward must not be called."""
    import torch
    from torch.distributed.tensor import DTensor

    dealt: list[tuple[Any, str, Any]] = [
        (module, name, parameter)
        for module in network.modules()
        for name, parameter in module._parameters.items() if isinstance(parameter, DTensor)
    ]  # fmt: skip
    try:
        for module, name, parameter in dealt:
            full = torch.nn.Parameter(parameter.detach().full_tensor(), requires_grad=parameter.requires_grad)
            module._parameters[name] = full
        yield
    finally:
        for module, name, parameter in dealt:
            module._parameters[name] = parameter


def as_dealt(tensor: Any, like: Any) -> Any:
    """A whole tensor as this process has its share of `like`; itself where that one is whole."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device, like.dtype), like.device_mesh, like.placements)


def save_dealt_state(trainer: Any, folder: str) -> None:
    """The optimizer's state of a Trainer that shards. Every process must call it."""
    if trainer.is_deepspeed_enabled:
        trainer.model_wrapped.save_checkpoint(folder, exclude_frozen_parameters=True)
        return
    from accelerate.utils import save_fsdp_optimizer

    accelerator = trainer.accelerator
    save_fsdp_optimizer(accelerator.state.fsdp_plugin, accelerator, trainer.optimizer, trainer.model, folder)


def load_deepspeed_state(engine: Any, checkpoint: Path, processes: int) -> None:
    """What save_dealt_state left, trained weights and their masters included.

    Raises ValueError where the state was dealt out to another number of processes, or is not there.
    """
    shards = list(checkpoint.glob("global_step*/*zero_pp_rank_*_optim_states.pt"))
    if len(shards) != processes:
        raise ValueError(
            f"{checkpoint} was saved by {len(shards)} processes, and DeepSpeed cannot deal its state to {processes}."
            f" Start with {len(shards)} again, or delete this folder to begin the fold anew."
        )
    loaded, _ = engine.load_checkpoint(str(checkpoint), load_module_strict=False)
    assert loaded is not None, checkpoint


@contextmanager
def _unhooked(engine: Any) -> Iterator[None]:
    """Inside, ZeRO-3 neither gathers nor gives back weights around each layer.

    Source: trl.models.utils.remove_hooks and add_hooks, which generate with it.
    """
    offload = getattr(engine.optimizer, "parameter_offload", engine.optimizer)
    for parameter in offload.module.parameters():
        parameter.ds_active_sub_modules.clear()
    for hook in [*offload.forward_hooks, *offload.backward_hooks]:
        hook.remove()
    offload.forward_hooks, offload.backward_hooks = [], []
    try:
        yield
    finally:
        offload._register_deepspeed_module(offload.module)
