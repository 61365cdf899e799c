"""Conjugate gradient, batched over T tasks, and what every solver returns.

A solver is a pure function; a task that did not converge is reported in its Solution, never hidden.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Solution(NamedTuple):
    """What a solver returns. `value` may carry gradients; the rest is for the log."""

    value: Tensor
    residual: Tensor  # (T,) norm of what should be zero at the solution
    iterations: Tensor  # (T,) steps until the task converged, or until the solver stopped
    converged: Tensor  # (T,) bool
    more: dict[str, Tensor] = {}  # what else a solver has to say, (T,) each

    def statistics(self) -> dict[str, Tensor]:
        """The columns of log.csv, a value a task."""
        told = {"iterations": self.iterations, "residual": self.residual, "converged": self.converged}
        return told | self.more


def cg(
    matvec: Callable[[Tensor], Tensor], b: Tensor, *, tolerance: float = 1e-6, iterations: int | None = None
) -> Solution:
    """Solve A x = b for a symmetric positive definite A a task, by conjugate gradient (Hestenes & Stiefel 1952).

    matvec: (T, n) -> (T, n), the product with every task's A.   b: (T, n).
    iterations: at most so many; None means n, which is exact but for rounding.
    value: (T, n).   residual: |b - A x| a task, recomputed from x.
    converged: residual <= tolerance |b|, or the rounding of so many steps. A task whose A shows a direction of no
    positive curvature (p'Ap <= 0) isn't positive definite: it stops there and counts as not converged.
    """
    x, r, p = torch.zeros_like(b), b.clone(), b.clone()
    rr = r.square().sum(-1)  # (T,)
    target = (tolerance * b.norm(dim=-1)).square()
    definite = torch.ones_like(rr, dtype=torch.bool)
    count = torch.zeros_like(rr, dtype=torch.long)
    for _ in range(b.shape[-1] if iterations is None else iterations):
        active = definite & (rr > target)
        if not active.any():
            break
        count += active
        Ap = matvec(p)
        curvature = (p * Ap).sum(-1)
        definite = definite & ~(active & (curvature <= 0))
        active = active & definite
        step = torch.where(active, rr / torch.where(active, curvature, 1.0), 0.0)[:, None]
        x, r = x + step * p, r - step * Ap
        rr_new = r.square().sum(-1)
        p = torch.where(active[:, None], r + (rr_new / torch.where(active, rr, 1.0))[:, None] * p, p)
        rr = rr_new
    residual = (b - matvec(x)).norm(dim=-1)
    # The recurrence's own residual drifts from the true one by rounding: allow that much, no more.
    slack = 10 * torch.finfo(b.dtype).eps * (1 + count)
    return Solution(x, residual, count, definite & (residual <= (tolerance + slack) * b.norm(dim=-1)))
