"""Solvers of the inner problems, batched over tasks: conjugate gradient, and the exact optimum of a final layer.

Every solver is a pure function that returns a Solution; a task that did not converge is reported in it, never hidden.
Any float type and any device. T tasks, N ways, S support images, d features (a constant 1 among them for the bias).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Newton's matrix is factored in S x S blocks. Above this many support images, batched factorisations cost more than
# conjugate gradient does (2 cores, float32, 16 tasks, 800 features: 5-way 5-shot 9 against 20 ms, 10-shot 24
# against 27, 20-way 3-shot 79 against 46; with fewer features conjugate gradient catches up earlier).
LARGEST_FACTOR = 40


class Solution(NamedTuple):
    """What a solver returns. `value` may carry gradients; the rest is for the log."""

    value: Tensor
    residual: Tensor  # (T,) norm of what should be zero at the solution
    iterations: Tensor  # (T,) steps until the task converged, or until the solver stopped
    converged: Tensor  # (T,) bool

    def statistics(self) -> dict[str, Tensor]:
        """The columns of log.csv, a value a task."""
        return {"iterations": self.iterations, "residual": self.residual, "converged": self.converged}


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


def newton_head(
    features: Tensor,
    labels: Tensor,
    W0: Tensor,
    strength: Tensor,
    *,
    tolerance: float = 1e-5,
    iterations: int = 30,
    method: str = "auto",
) -> Solution:
    """The final layer's exact optimum for every task, with its implicit gradient (the paper's Eq 4-5, convex case).

        W* = argmin_W G(W),   G(W) = 1/S sum_s CE(W f_s, y_s) + strength/2 |W - W0|^2

    features: (T, S, d) rows f_s.   labels: (T, S) in 0..N-1.   W0: (N, d).   strength: () > 0.
    value: (T, N, d), differentiable in features, W0 and strength. For v = dL/dW*, with u the solution of
    (H + strength I) u = v and H the Hessian of the mean cross-entropy at W*:
        dL/dW0 = strength u,   dL/dfeatures = -d<u, grad G(W*)>/dfeatures,   dL/dstrength = -<u, W* - W0>.
    residual: |grad G(W*)| a task; G is strongly convex, so |W - W*| <= residual / strength.
    converged: residual <= tolerance |grad G(W0)|, or the rounding of 1. The larger the features, the less that says of
    W*: for five random ones of norm 100 and strength 0.002, a tolerance of 1e-5 leaves W some 5 % away from it.

    Newton's method with a backtracking line search: without one it diverges on real features. `method` says how its
    linear systems are solved: "cholesky" in sample space, where grad G = 0 puts W* - W0 into the span of the S
    features, so that N + 1 matrices of S x S are factored, whatever d is; "cg" with Hessian-vector products; "auto"
    picks "cg" where S > LARGEST_FACTOR. Where float32 doesn't converge, as when the features' Gram matrix is
    1e6 times the strength, the batch is solved again in float64.

    Raises ValueError where strength isn't positive.
    """
    if strength <= 0:
        raise ValueError(
            f"strength is {float(strength)}, expected a positive number: the optimum isn't unique otherwise"
        )
    if method == "auto":
        method = "cg" if features.shape[1] > LARGEST_FACTOR else "cholesky"
    for dtype in (features.dtype, torch.float64):
        problem = ProximalHead(
            features.detach().to(dtype), labels, W0.detach().to(dtype), strength.detach().to(dtype), method
        )
        W, residual, count, converged = problem.minimise(tolerance, iterations)
        if converged.all() or dtype == torch.float64 or features.device.type == "mps":  # which has no float64
            break
    residual = residual.to(features.dtype)
    return Solution(_AtOptimum.apply(features, W0, strength, W, problem), residual, count, converged)


class ProximalHead:
    """G of `newton_head` for all tasks: its gradient, the solution of systems in its Hessian, and Newton's steps.

    All but `minimise` can be differentiated through. P: softmax rows (T, S, N) at W.
    """

    def __init__(self, features: Tensor, labels: Tensor, W0: Tensor, strength: Tensor, method: str = "cholesky"):
        self.F, self.W0, self.strength, self.method = features, W0, strength, method
        self.Y = F.one_hot(labels, W0.shape[0]).to(features.dtype)  # (T, S, N)
        if method == "cholesky":
            self.K = features @ features.mT / strength  # (T, S, S)
            self.eye = torch.eye(features.shape[1], dtype=features.dtype, device=features.device)

    def probabilities(self, W: Tensor) -> Tensor:
        return (self.F @ W.mT).softmax(-1)  # (T, S, N)

    def gradient(self, W: Tensor, P: Tensor) -> Tensor:
        proximal = self.strength * (W - self.W0)
        return torch.baddbmm(proximal, (P - self.Y).mT, self.F, alpha=1 / self.F.shape[1])  # (T, N, d)

    def solve(self, P: Tensor, v: Tensor, tolerance: float) -> Tensor:
        """u of (H + strength I) u = v, with H = 1/S sum_s (diag p_s - p_s p_s') x f_s f_s'.   (T, N, d)

        tolerance: of conjugate gradient, relative to |v|; the factorisation is exact.
        """
        S = self.F.shape[1]
        if self.method == "cg":

            def matvec(u):
                u = u.view_as(v)
                return (_times_softmax_hessian(P, self.F @ u.mT).mT @ self.F / S + self.strength * u).flatten(1)

            return cg(matvec, v.flatten(1), tolerance=tolerance, iterations=200).value.view_as(v)
        # H = F'MF with M = D - D R (R'D R)^-1 R'D, D = diag(p) / S and R summing over classes. Then, by Woodbury,
        # u = (v - F' Q F v / strength) / strength with Q = (M^-1 + FF' / strength)^-1 = E - E R (R'E R)^-1 R'E, where
        # E = (D^-1 + FF' / strength)^-1 has an S x S block a class (Rasmussen & Williams 2006, Algorithm 3.3).
        root = (P / S).clamp(min=torch.finfo(P.dtype).tiny).sqrt().mT  # (T, N, S), with a finite slope everywhere
        scale = root[..., :, None] * root[..., None, :]  # (T, N, S, S)
        A = torch.addcmul(self.eye, scale, self.K[:, None])
        E = scale * _inverse(A, self.eye)
        Ex = torch.linalg.vecdot(E, (v @ self.F.mT)[:, :, None])  # (T, N, S)
        shared = torch.cholesky_solve(Ex.sum(1)[..., None], torch.linalg.cholesky_ex(E.sum(1)).L)  # (T, S, 1)
        Qx = Ex - torch.linalg.vecdot(E, shared[:, None].mT)
        return (v - Qx @ self.F / self.strength) / self.strength

    def newton_step(self, W: Tensor) -> Tensor:
        """W after one step of Newton's method with line search; the step's length counts as a constant.   (T, N, d)"""
        Z = self.F @ W.mT
        P = Z.softmax(-1)
        g = self.gradient(W, P)
        D = -self.solve(P, g, tolerance=1e-4)
        length, _ = self.line_search(W, g, D, Z)
        return W + length[:, None, None] * D

    @torch.no_grad()
    def line_search(self, W: Tensor, g: Tensor, D: Tensor, Z: Tensor) -> tuple[Tensor, Tensor]:
        """Longest step along D that lowers G by 1e-4 of what its slope promises (Armijo), or 0.   (T,)

        Z: (T, S, N), the logits of W. Those of D, which it needs, are the second result.
        """
        ZD = self.F @ D.mT
        slope, cross, square = (torch.stack([g, W - self.W0, D]) * D).sum((-1, -2))  # (T,) each
        rounding = 4 * torch.finfo(Z.dtype).eps * (1 + Z.abs().amax((1, 2)))  # of the difference of two losses

        def longest(*steps: float) -> Tensor:
            t = W.new_tensor([0.0, *steps])[:, None]  # (1 + J, 1)
            logits = torch.addcmul(Z, t[..., None, None], ZD)  # (1 + J, T, S, N), at none and every step
            loss = (logits.log_softmax(-1) * self.Y).sum((-1, -2)) / -self.F.shape[1]  # (1 + J, T)
            change = loss - loss[0] + self.strength * t * (cross + t * square / 2)
            return torch.where(change <= 1e-4 * t * slope + rounding, t, 0.0).amax(0)

        length = longest(1.0)
        if not length.all():  # rarely
            length = longest(*(0.5 ** (j * (j + 1) / 2) for j in range(9)))  # 1, 1/2, 1/8, ...: saturated need 1e-8
        return length, ZD

    def minimise(self, tolerance: float, iterations: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(W*, residual, iterations, converged) as in Solution."""
        W = self.W0.expand(len(self.F), *self.W0.shape)
        Z = self.F @ W.mT  # (T, S, N)
        target, count = None, torch.zeros(len(self.F), dtype=torch.long, device=W.device)
        for step in range(iterations + 1):
            P = Z.softmax(-1)
            g = self.gradient(W, P)
            residual = g.flatten(1).norm(dim=-1)
            if target is None:
                target = (tolerance * residual).clamp_min(torch.finfo(W.dtype).eps)  # or W0 was the optimum
            converged = residual <= target  # False for a residual that is no number
            if step == iterations or converged.all():
                break
            count += ~converged
            D = -self.solve(P, g, tolerance=1e-4)  # near the optimum each step gains at least these four digits
            length, ZD = self.line_search(W, g, D, Z)
            length = torch.where(converged, 0.0, length)[:, None, None]
            if not length.any():
                break  # those left can't move, and are reported as not converged
            W, Z = torch.addcmul(W, length, D), torch.addcmul(Z, length, ZD)
        return W, residual, count, converged


class _AtOptimum(torch.autograd.Function):
    """W* as a function of features, W0 and strength, by the implicit function theorem at grad G = 0."""

    @staticmethod
    def forward(ctx, features, W0, strength, W, problem):
        ctx.problem = problem
        ctx.save_for_backward(W)
        return W.to(features.dtype, copy=True)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, v):
        (W,), head = ctx.saved_tensors, ctx.problem
        S = head.F.shape[1]
        v, dtype = v.to(W.dtype), v.dtype
        P = head.probabilities(W)
        u = head.solve(P, v, tolerance=torch.finfo(v.dtype).eps ** 0.75)  # (T, N, d)
        # <u, grad G> depends on f_s through 1/S (p_s - y_s)' u f_s, where p_s = softmax(W f_s)
        to_features = -((P - head.Y) @ u + _times_softmax_hessian(P, head.F @ u.mT) @ W) / S
        to_strength = -(u * (W - head.W0)).sum()
        return to_features.to(dtype), (head.strength * u.sum(0)).to(dtype), to_strength.to(dtype), None, None


def _inverse(A: Tensor, eye: Tensor) -> Tensor:
    """Of symmetric matrices with eigenvalues of 1 and more."""
    L = torch.linalg.cholesky_ex(A).L
    if A.device.type != "cuda":
        return torch.cholesky_inverse(L)
    root = torch.linalg.solve_triangular(L, eye, upper=False)
    return root.mT @ root  # where cholesky_inverse goes through the matrices one by one


def _times_softmax_hessian(P: Tensor, x: Tensor) -> Tensor:
    """(diag p - p p') x, row by row."""
    return P * (x - (P * x).sum(-1, keepdim=True))
