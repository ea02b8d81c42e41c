"""PyTorch's fully sharded training (`fully_shard`), as far as a walk has to know it: the one door to its private parts.

Each module has a state with groups of parameters. Between passes a group holds a shard of each; its module's forward
pass gathers them, and frees them again at the end. A hook on the module's outputs gathers them for the backward pass,
and a node at its inputs frees them and reduces the gradients. `tests/test_torch_contract.py` checks what is used here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

# The node at a module's inputs.
LEAVING = "RegisterPostBackwardFunctionBackward"
MODULE = "torch.distributed.fsdp"
State: TypeAlias = Any
Group: TypeAlias = Any


def loaded() -> bool:
    """Returns True if something can be sharded: a process group is there, and the code was imported."""
    dist = torch.distributed
    return f"{MODULE}._fully_shard" in sys.modules and dist.is_available() and dist.is_initialized()


def states() -> list[State]:
    """The states of all sharded modules that are alive."""
    if not loaded():
        return []
    from torch.distributed._composable_state import _module_state_mapping
    from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState

    found = [reference() for reference in list(_module_state_mapping.values())]
    return list({id(state): state for state in found if isinstance(state, FSDPState)}.values())


def groups(state: State) -> list[Group]:
    """The groups of parameters of a module, which are gathered together; most have one, some none."""
    found = getattr(state, "_fsdp_param_groups", None)
    return [one for one in (found or [getattr(state, "_fsdp_param_group", None)]) if one is not None]


def parameters(group: Group) -> list[tuple[Tensor, Tensor]]:
    """Each parameter that was gathered before: the shard, and what stands in graphs."""
    pairs = [(p.sharded_param, getattr(p, "_unsharded_param", None)) for p in group.fsdp_params]
    return [(shard, whole) for shard, whole in pairs if whole is not None]


def is_gathered(group: Group) -> bool:
    """Returns True if the parameters of a group are there."""
    return bool(group.is_unsharded)


def gather(group: Group) -> None:
    """Bring the parameters of a group together; every rank of its mesh must do so."""
    group.unshard()
    group.wait_for_unshard()


def free(group: Group) -> None:
    """Keep the shards only."""
    group.reshard()


def ranks(group: Group) -> tuple[int, list[int]]:
    """How many ranks reduce the gradients of a group, and those among which it is sharded."""
    info = group.mesh_info
    counts = [getattr(info, name, None) for name in ("shard_mesh_size", "replicate_mesh_size")]
    return math.prod(n for n in counts if n), torch.distributed.get_process_group_ranks(info.shard_process_group)


def divisor(group: Group) -> float:
    """What the sum over ranks of a gradient is divided by."""
    given = group.gradient_divide_factor
    return ranks(group)[0] if given is None else float(given)


def state_of_hook(frame: Any) -> State | None:
    """The state whose hook on an output is about to run in this frame; None for any other function."""
    if not is_own(frame):
        return None
    from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState

    given = [*frame.f_locals.values(), *frame.f_locals.get("args", ())]
    return next((one for one in given if isinstance(one, FSDPState)), None)


def is_own(frame: Any) -> bool:
    """Returns True for a function of PyTorch's sharded training, of this kind or the older one."""
    return frame is not None and str(frame.f_globals.get("__name__", "")).startswith(MODULE)


@contextmanager
def quiet(of: Sequence[State]) -> Iterator[None]:
    """Within the block the hooks of these states do nothing, as for groups whose backward pass has begun."""
    if not of:
        yield
        return
    from torch.distributed.fsdp._fully_shard._fsdp_common import TrainingState

    contexts = {id(state._state_ctx): state._state_ctx for state in of}
    queued = [(context, context.post_backward_final_callback_queued) for context in contexts.values()]
    before = [(state, state._training_state, state._states_to_backward_prefetch) for state in of]
    grouped = [(group, group._training_state) for state in of for group in groups(state)]
    for context, _ in queued:
        context.post_backward_final_callback_queued = True
    for state, *_ in before:
        state._states_to_backward_prefetch = []
    for group, _ in grouped:
        group._training_state = TrainingState.PRE_BACKWARD
    try:
        yield
    finally:
        for context, was in queued:
            context.post_backward_final_callback_queued = was
        for state, training, prefetched in before:
            state._training_state, state._states_to_backward_prefetch = training, prefetched
        for group, training in grouped:
            group._training_state = training
