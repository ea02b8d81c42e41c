"""What can be known of a Jacobian without holding it: Gramians, cross-Gramians, norms of its rows."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from gramjd.engine import compute
from gramjd.engine._torch import uncompiled
from gramjd.engine.consumers.gramian import Diagonal
from gramjd.errors import InputError, graph_errors
from gramjd.kernels.dispatch import chosen
from gramjd.losses import Inputs, Losses, as_budget, as_dtype, as_inputs, as_losses, names_of
from gramjd.renamed import GRAMIAN_WORDS, foreign_words


@overload
def gramian(
    losses: Losses,
    inputs: Inputs = None,
    *,
    other: Losses | None = None,
    per_parameter: Literal[False] = False,
    dtype: torch.dtype | None = None,
    memory_budget: int | None = None,
    backend: str | None = None,
    group: Any = None,
) -> Tensor: ...


@overload
def gramian(
    losses: Losses,
    inputs: Inputs = None,
    *,
    per_parameter: Literal[True],
    dtype: torch.dtype | None = None,
    memory_budget: int | None = None,
    backend: str | None = None,
) -> dict[Hashable, Tensor]: ...


@uncompiled
@foreign_words(GRAMIAN_WORDS)
def gramian(
    losses: Losses,
    inputs: Inputs = None,
    *,
    other: Losses | None = None,
    per_parameter: bool = False,
    dtype: torch.dtype | None = None,
    memory_budget: int | None = None,
    backend: str | None = None,
    group: Any = None,
) -> Tensor | dict[Hashable, Tensor]:
    """`G = J J^T`, where row i of J is the gradient of loss i.

    Args:
        losses: a tensor of any shape, a sequence of tensors, or a mapping from names to tensors; m is the number of all
            their elements.
        inputs: the tensors that J differentiates by (leaves or not), or a module, for those of its parameters that are
            trained and reached; default: the parameters that the losses reach, or all leaves where there is no
            `nn.Parameter` among them. Other leaves (data with `requires_grad`) are named in one warning.
        other: further losses, m' of them, of the same graph or another: `J J'^T` [m, m'] instead, such as the kernel
            between a training and a test batch. An input that only one side reaches counts as zero.
        per_parameter: each input's share of G by itself.
        dtype: what G is accumulated in, float32 or float64; default float32, or float64 where a loss or an input is.
        memory_budget: bytes that stacked rows may take where no batch axis is found, default a quarter of the memory;
            and the largest temporary of a layer's products, default a tenth of what a plain training step needs.
        backend: "torch", "onednn", "triton" or "auto", as `gramjd.kernels.use_backend` explains; default: the one in
            force.
        group: a `torch.distributed` process group whose ranks all make this call, for one Gramian [M, M] over the
            losses of all of them, in the order of the ranks; as in `gram_backward`.

    Returns:
        G [m, m], symmetric, detached; [m, m'] with `other`. With `per_parameter` a dictionary from each input (its
        name, if `inputs` is a mapping) to its G [m, m]; they add up to the whole. The graph stays usable.

    Raises:
        LossError: losses that are empty, not finite, not real floating point, or do not require grad.
        InputError: an input that no loss reaches; `other` together with `per_parameter`; a dtype or a budget that is
            not allowed.
        GraphError: the graph was freed or edited, or has a node that cannot be walked.
        BudgetError: not even two losses fit the budget; with `other`, not all of them do.
        RankError: with a `group`, what any of its ranks raised, on all of them.

    Source: Quinton and Rey, Jacobian Descent for Multi-Objective Optimization, section 6.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> gramian(w**2)
    tensor([[ 4.,  0.],
            [ 0., 16.]])
    >>> gramian(w**2, other=w.sum())
    tensor([[2.],
            [4.]])
    >>> gramian(w**2, {"w": w}, per_parameter=True)
    {'w': tensor([[ 4.,  0.],
            [ 0., 16.]])}
    """
    if group is not None:
        from gramjd.distributed.step import group_gramian

        if other is not None or per_parameter:
            raise InputError("`group` does not go together with `other` or `per_parameter`")
        return group_gramian(losses, group, inputs, dtype=dtype, memory_budget=memory_budget, backend=backend)
    found, targets = as_losses(losses), as_inputs(inputs)
    dtype, memory_budget = as_dtype(dtype), as_budget(memory_budget)
    if other is not None:
        if per_parameter:
            raise InputError("give either `other` or `per_parameter`, not both")
        others = as_losses(other)
        with chosen(backend), graph_errors():
            return compute.rectangle(found, others, targets, dtype, memory_budget)
    if per_parameter:
        with chosen(backend), graph_errors():
            shares = compute.shares(found, targets, dtype, memory_budget)
        names = names_of(inputs)
        return {names.get(id(tensor), tensor): share for tensor, share in shares}
    with chosen(backend), graph_errors():
        return compute.total(found, targets, dtype, memory_budget)


@uncompiled
@foreign_words(GRAMIAN_WORDS)
def gradient_norms(
    losses: Losses,
    inputs: Inputs = None,
    *,
    dtype: torch.dtype | None = None,
    memory_budget: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """The length of each loss's gradient, [m]: the root of the diagonal of G, without the rest of G.

    Args:
        losses, inputs, dtype, memory_budget, backend: as in `gramian`.

    Returns:
        The norms [m], detached. The graph stays usable.

    Raises:
        LossError, InputError, BudgetError: as `gramian` does.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> gradient_norms(w**2)
    tensor([2., 4.])
    """
    found, targets = as_losses(losses), as_inputs(inputs)
    dtype, memory_budget = as_dtype(dtype), as_budget(memory_budget)
    with chosen(backend), graph_errors():
        return compute.total(found, targets, dtype, memory_budget, Diagonal).sqrt()


__all__: Sequence[str] = ["gradient_norms", "gramian"]
