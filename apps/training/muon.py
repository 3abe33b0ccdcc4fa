"""Muon: momentum whose matrices are made orthogonal before each step, with AdamW for all that is no matrix."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from decathlete.compat import foreach_lerp, foreach_lerp_, foreach_mul_, foreach_sub_
from decathlete.errors import ConfigError

# Newton-Schulz polynomial of the method's author: singular values end between about 0.7 and 1.2, in five steps
_A, _B, _C = 3.4445, -4.7750, 2.0315


class Muon(torch.optim.Optimizer):
    """Optimizer for convolutional networks that learn in minutes.

    The momentum of every convolution's weights, flattened to a matrix (first axis, all others), is replaced by the
    nearest matrix with orthonormal rows or columns, so that all directions of a layer learn at one pace. Norm layers,
    biases and the layer that ends in the classes take the steps of PyTorch's AdamW. PyTorch's own ``torch.optim.Muon``
    takes matrices alone, which no convolution has; ``benchmarks/optimizers.py`` compares this one with AdamW.

    Args:
        params: of the network; which are matrices is seen from their shape.
        lr: peak rate of AdamW's part.
        matrix_lr: peak rate of the matrices; a step changes a matrix by about this much in spectral norm.
        momentum: of the matrices, Nesterov's form.
        weight_decay: fraction taken off all matrices a step, times their rate; other parameters have none.
        betas: of AdamW's part.
        min_rows: a weight whose first axis is shorter is no matrix here: the head of a few classes.

    Raises:
        ConfigError: a rate or a momentum out of range.

    Source: K. Jordan and others, "Muon: an optimizer for hidden layers in neural networks", 2024 (docs/references.md).
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 3e-3,
        matrix_lr: float = 1.5e-2,
        momentum: float = 0.95,
        weight_decay: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        min_rows: int = 8,
    ) -> None:
        if lr <= 0 or matrix_lr <= 0:
            raise ConfigError("Muon", "expected lr and matrix_lr above 0", f"{lr} and {matrix_lr}")
        if not 0 <= momentum < 1:
            raise ConfigError("Muon, momentum", "expected a number of at least 0 and below 1", str(momentum))
        all_params = list(params)
        matrices = [p for p in all_params if p.ndim >= 2 and p.shape[0] >= min_rows]
        chosen = {id(p) for p in matrices}
        others = [p for p in all_params if id(p) not in chosen]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "lr": matrix_lr, "weight_decay": weight_decay, "orthogonal": True},
            {"params": others, "lr": lr, "weight_decay": 0.0, "orthogonal": False},
        ]
        defaults = {"lr": lr, "momentum": momentum, "betas": tuple(betas), "eps": 1e-8}
        super().__init__([group for group in groups if group["params"]], defaults)
        self.__setstate__({})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take in what a checkpoint or a pickle holds, and have AdamW work on the same state and groups."""
        super().__setstate__(state)
        for values in self.state.values():
            if "mean" in values:  # of a checkpoint from before AdamW was torch's own
                values["exp_avg"], values["exp_avg_sq"] = values.pop("mean"), values.pop("square")
        self._adamw = torch.optim.AdamW([{"params": []}])
        groups = [group for group in self.param_groups if not group["orthogonal"]]
        self._adamw.__setstate__({"state": self.state, "param_groups": groups})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Change the parameters once, by their gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None] if group["orthogonal"] else []
            if parameters:
                self._step_matrices(parameters, group)
        self._adamw.step()
        return loss

    def _step_matrices(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        grads = [p.grad for p in parameters]
        momenta = [self.state[p]["momentum"] for p in parameters]
        foreach_lerp_(momenta, grads, 1 - group["momentum"])
        updates = list(foreach_lerp(grads, momenta, group["momentum"]))
        if parameters[0].is_cuda:
            updates = orthogonalize_together(updates)
        else:
            updates = [(orthogonalize(u.flatten(1)) * _gain(u.flatten(1))).view(u.shape) for u in updates]
        foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        foreach_sub_(parameters, updates, alpha=group["lr"])


def _gain(matrix: Tensor) -> float:
    return max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5


def orthogonalize_together(updates: Sequence[Tensor], steps: int = 5) -> list[Tensor]:
    """What :func:`orthogonalize` makes of many weights (first axis, all others), times their gain, for a GPU.

    A GPU waits for launches here, not for arithmetic, so the iteration runs once for all matrices. Each step multiplies
    a matrix X by a polynomial of its square X Xt (Xt X where X is tall), and changes the square by the same polynomial:
    the squares suffice, padded with zeros to one size, and X is multiplied once, at the end. In float32: it is within
    1e-3 of `orthogonalize`, while bfloat16 would be off by 3e-2.
    """
    # in the order of memory, so that nothing is copied: the order of the columns does not matter
    dense = [u.is_contiguous() for u in updates]
    matrices = [(u if d else u.movedim(1, -1)).flatten(1).float() for u, d in zip(updates, dense, strict=True)]
    order = sorted(range(len(matrices)), key=lambda n: tuple(matrices[n].shape))
    blocks = [list(block) for _, block in itertools.groupby(order, key=lambda n: matrices[n].shape)]
    stacks = [torch.stack([matrices[n] for n in block]) for block in blocks]
    side = max(min(matrix.shape) for matrix in matrices)
    squares = matrices[0].new_zeros(len(matrices), side, side)
    places, start = [], 0
    for stack in stacks:
        edge, stop = min(stack.shape[1:]), start + len(stack)
        places.append((slice(start, stop), slice(edge), slice(edge)))
        tall = stack.shape[1] > stack.shape[2]
        squares[places[-1]] = stack.mT @ stack if tall else stack @ stack.mT
        start = stop
    norms = squares.diagonal(dim1=1, dim2=2).sum(1).sqrt().add_(1e-7).view(-1, 1, 1)
    squares /= norms**2
    product = torch.empty(0)
    for step in range(steps):
        polynomial = torch.baddbmm(squares, squares, squares, beta=_B, alpha=_C)
        polynomial.diagonal(dim1=1, dim2=2).add_(_A)
        product = polynomial @ product if step else polynomial
        if step < steps - 1:
            squares = polynomial @ squares @ polynomial
    product = product / norms
    found: list[Tensor] = [product] * len(matrices)
    for block, stack, place in zip(blocks, stacks, places, strict=True):
        pair = (stack, product[place]) if stack.shape[1] > stack.shape[2] else (product[place], stack)
        for n, matrix in zip(block, torch.baddbmm(stack, *pair, beta=0, alpha=_gain(stack[0])), strict=True):
            moved = updates[n] if dense[n] else updates[n].movedim(1, -1)
            found[n] = matrix.view(moved.shape) if dense[n] else matrix.view(moved.shape).movedim(-1, 1)
    return found


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """A matrix (rows, columns) with the same singular vectors and singular values near 1 (0.7 to 1.2), in float32.

    Newton-Schulz iteration: products of matrices alone. A matrix of zeros stays so.
    """
    work = matrix.float()
    wide = work.shape[0] <= work.shape[1]
    work = work if wide else work.T
    work = work / (work.norm() + 1e-7)
    for _ in range(steps):
        gram = work @ work.T
        work = _A * work + (_B * gram + _C * gram @ gram) @ work
    return (work if wide else work.T).to(matrix.dtype)
