"""Muon: momentum whose matrices are made orthogonal before each step, with AdamW for all that is no matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

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
        weight_decay: share taken off all matrices a step, times their rate; other parameters have none.
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
            raise ConfigError("Muon", "lr and matrix_lr must be above 0", f"{lr} and {matrix_lr}")
        if not 0 <= momentum < 1:
            raise ConfigError("Muon, momentum", "must be at least 0 and below 1", str(momentum))
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
            for parameter in group["params"] if group["orthogonal"] else ():
                if parameter.grad is not None:
                    self._step_matrix(parameter, group)
        self._adamw.step()
        return loss

    def _step_matrix(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, grad = self.state[parameter], parameter.grad
        assert grad is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(grad, 1 - group["momentum"])
        update = grad.lerp(state["momentum"], group["momentum"]).flatten(1)
        rows, columns = update.shape
        update = orthogonalize(update) * max(1.0, rows / columns) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(update.view(parameter.shape), alpha=group["lr"])


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """A matrix (rows, columns) with the same singular vectors and singular values near 1 (0.7 to 1.2).

    Newton-Schulz iteration: products of matrices alone, where a decomposition would stall a GPU. A matrix of zeros
    stays so. Computed in float32 on CPU and bfloat16 on CUDA, which the iteration bears.
    """
    work = matrix.to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    wide = work.shape[0] <= work.shape[1]
    work = work if wide else work.T
    work = work / (work.norm() + 1e-7)
    for _ in range(steps):
        gram = work @ work.T
        work = _A * work + (_B * gram + _C * gram @ gram) @ work
    return (work if wide else work.T).to(matrix.dtype)
