"""Conjugate gradient and Cholesky factors, batched over T tasks, and what every solver returns.

A solver is a pure function; a task that did not converge is reported in its Solution, never hidden.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from common import meters


class Solution(NamedTuple):
    """What a solver returns. `value` may carry gradients; the rest is for the log."""

    value: Tensor
    residual: Tensor  # (T,) norm of what should be zero at the solution
    iterations: Tensor  # (T,) steps until the task converged, or until the solver stopped
    converged: Tensor  # (T,) bool
    more: dict[str, Tensor]  # what else a solver has to say, (T,) each

    def statistics(self) -> dict[str, Tensor]:
        """The columns of log.csv, a value a task."""
        told = {"iterations": self.iterations, "residual": self.residual, "converged": self.converged}
        return told | self.more


def cg(
    matvec: Callable[..., Tensor],
    b: Tensor,
    *,
    tolerance: float = 1e-6,
    iterations: int | None = None,
    radius: Tensor | None = None,
    metric: Callable[[Tensor], Tensor] | None = None,
) -> Solution:
    """Solve A x = b for a symmetric A a task, by conjugate gradient (Hestenes & Stiefel 1952).

    matvec: (T, n) -> (T, n), the product with every task's A.   b: (T, n).
    metric: (T, n) -> (T, n), the product with a positive semidefinite K a task. Then A need only be symmetric for the
    inner product <x, K y>, norms of residuals are those of this product, and matvec is given p and K p. (A radius is of
    the plain norm, whatever the metric.)
    iterations: at most so many; None means n, which is exact but for rounding.
    radius: (T,) minimise x'Ax / 2 - b'x over |x| <= radius instead, by Steihaug's rule (1983): along the first
    direction of no positive curvature (p'Ap <= 0), and where x would leave the ball, go to its edge and stop there.
    Without it a task stops where it is at such a direction: its A isn't positive definite.
    value: (T, n).   residual: |b - A x| a task as the recurrence has it, which drifts from it by rounding; measured
    where a CPU found some task at the tolerance.
    at_edge: the tasks that stopped at such a place, bool.
    converged: residual <= tolerance |b|, or the rounding of so many steps, and not at_edge.
    """

    def times_A(p, Kp):
        return matvec(p) if metric is None else matvec(p, Kp)

    def times_K(p):
        return p if metric is None else metric(p)

    x, r, p = torch.zeros_like(b), b.clone(), b.clone()
    Kr = Kp = times_K(b)
    rr = bb = (r * Kr).sum(-1)  # (T,)
    target = tolerance**2 * bb
    at_edge = torch.zeros_like(rr, dtype=torch.bool)
    count = torch.zeros_like(rr, dtype=torch.long)
    free = meters.questions(b) == "free"
    for _ in range(b.shape[-1] if iterations is None else iterations):
        active = ~at_edge & (rr > target)
        if free and not active.any():
            break
        count += active
        Ap = times_A(p, Kp)
        curvature = (Kp * Ap).sum(-1)
        step = torch.where(curvature > 0, rr / curvature, 0.0)  # no number counts as no positive curvature
        leaves = active & ~(curvature > 0)
        if radius is not None:
            to_edge = _to_edge(x, p, radius)
            leaves = leaves | (active & (step > to_edge))
            step = torch.where(leaves, to_edge, step)
        at_edge = at_edge | leaves
        step = torch.where(active, step, 0.0)[:, None]
        x, r = torch.where(step > 0, x + step * p, x), torch.where(step > 0, r - step * Ap, r)
        Kr = r if metric is None else torch.where(step > 0, Kr - step * metric(Ap), Kr)
        rr_new = (r * Kr).sum(-1)
        momentum = (rr_new / torch.where(active, rr, 1.0))[:, None]
        p = torch.where(active[:, None], r + momentum * p, p)
        Kp = p if metric is None else torch.where(active[:, None], Kr + momentum * Kp, Kp)
        rr = rr_new
    if free and (~at_edge & (rr <= target)).any():
        r = b - times_A(x, times_K(x))
        rr = (r * times_K(r)).sum(-1)
    residual = rr.clamp(min=0).sqrt()
    slack = 10 * torch.finfo(b.dtype).eps * (1 + count)
    converged = ~at_edge & (residual <= (tolerance + slack) * bb.sqrt())
    return Solution(x, residual, count, converged, {"at_edge": at_edge})


def _to_edge(x: Tensor, p: Tensor, radius: Tensor) -> Tensor:
    """The positive t with |x + t p| = radius, a task.   (T,)"""
    pp, xp = p.square().sum(-1), (x * p).sum(-1)
    return (-xp + (xp.square() + pp * (radius.square() - x.square().sum(-1))).clamp(min=0).sqrt()) / pp


# On CUDA, torch's own functions of a Cholesky factor go through the matrices one by one, or through a library whose
# work can't be recorded; triangular systems do neither.


def inverse(A: Tensor, eye: Tensor) -> Tensor:
    """Of symmetric matrices with eigenvalues of 1 and more; no numbers (nan) where rounding has taken that from one."""
    L, failed = torch.linalg.cholesky_ex(A)
    if not A.is_cuda:
        if meters.questions(A) == "free" and failed.any():  # an incomplete factor would be refused
            L = torch.where(failed[..., None, None] > 0, torch.nan, L)
        return torch.cholesky_inverse(L)
    root = torch.linalg.solve_triangular(L, eye, upper=False)
    return root.mT @ root


def solve_positive(A: Tensor, b: Tensor) -> Tensor:
    """x of A x = b, for positive definite A."""
    L = torch.linalg.cholesky_ex(A).L
    if not A.is_cuda:
        return torch.cholesky_solve(b, L)
    return torch.linalg.solve_triangular(L.mT, torch.linalg.solve_triangular(L, b, upper=False), upper=True)
