"""The final layer's exact optimum for T tasks at once, by Newton's method, and its implicit gradient.

N ways, S support images, d features (a constant 1 among them for the bias). Any float type and any device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from common import meters
from common.solvers import Solution, cg, inverse, solve_positive

# Newton's matrix is factored in S x S blocks. Above this many support images, batched factorisations cost more than
# conjugate gradient does (2 cores, float32, 16 tasks, 800 features: 5-way 5-shot 9 against 20 ms, 10-shot 24
# against 27, 20-way 3-shot 79 against 46; with fewer features conjugate gradient catches up earlier).
LARGEST_FACTOR = 40
# Newton's steps on a GPU before it is asked whether all tasks have converged. Trained and new networks take 3 to 5.
UNASKED_STEPS = 6
# A meta-gradient whose u (below) may be further off than this, relative to its length, is solved again in float64.
GRADIENT_TOLERANCE = 1e-3


def newton_head(
    features: Tensor,
    labels: Tensor,
    W0: Tensor,
    strength: Tensor,
    *,
    tolerance: float = 1e-4,
    iterations: int = 30,
    method: str = "auto",
) -> Solution:
    """The final layer's exact optimum for every task, with its implicit gradient (the paper's Eq 4-5, convex case).

        W* = argmin_W G(W),   G(W) = 1/S sum_s CE(W f_s, y_s) + strength/2 |W - W0|^2

    features: (T, S, d) rows f_s.   labels: (T, S) in 0..N-1.   W0: (N, d).   strength: () > 0.
    value: (T, N, d), differentiable in features, W0 and strength. For v = dL/dW*, with u the solution of
    (H + strength I) u = v and H the Hessian of the mean cross-entropy at W*:
        dL/dW0 = strength u,   dL/dfeatures = -d<u, grad G(W*)>/dfeatures,   dL/dstrength = -<u, W* - W0>.
    residual: |grad G(W)| a task. G is strongly convex, so |W - W*| <= residual / strength, the `certificate`.
    converged: certificate <= tolerance |W - W0|, or W0 is the optimum but for rounding.
    Once the meta-gradient has gone through, statistics() tells of u too: `gradient_error`, the largest that its error
    can be, relative to |u|, and `gradient_converged`, whether that is at most GRADIENT_TOLERANCE.

    Newton's method, each step as long as lowers G most: full ones overshoot on real features, and without a search
    they diverge. `method` says how its linear systems are solved: "cholesky" in sample space, where grad G = 0 puts
    W* - W0 into the span of the S features, so that N + 1 matrices of S x S are factored, whatever d is; "cg" with
    Hessian-vector products; "auto" picks "cg" where S > LARGEST_FACTOR. Where float32 doesn't converge, as when the
    features' Gram matrix is 1e6 times the strength, the batch is solved again in float64.

    A GPU is asked nothing that it would have to end its work for: there "auto" is "cholesky", all is in float64 at
    once, and of the `iterations` that remain UNASKED_STEPS are made, and as many more where some task needs them; while
    a step is recorded (common/capture.py), no more.

    Raises ValueError where strength isn't positive; on a GPU the optimum is no number then.
    """
    if free := meters.questions(features) == "free":
        if strength <= 0:
            raise ValueError(
                f"strength is {float(strength)}, expected a positive number: the optimum isn't unique otherwise"
            )
    else:
        strength = torch.where(strength > 0, strength, torch.nan)
    if method == "auto":
        method = "cg" if free and features.shape[1] > LARGEST_FACTOR else "cholesky"
    for dtype in (features.dtype, torch.float64) if free else (torch.float64,):
        problem = ProximalHead(
            features.detach().to(dtype), labels, W0.detach().to(dtype), strength.detach().to(dtype), method
        )
        W, residual, count, converged = problem.minimise(tolerance, iterations)
        if dtype == torch.float64 or features.device.type == "mps" or converged.all():  # mps has no float64
            break
    residual = residual.to(features.dtype)
    more = {"certificate": residual / strength.detach()}
    value = _AtOptimum.apply(features, W0, strength, W, problem, more)
    return Solution(value, residual, count, converged, more)


class ProximalHead:
    """G of `newton_head` for all tasks: its gradient, the solution of systems in its Hessian, and Newton's steps.

    All but `minimise` can be differentiated through. P: softmax rows (T, S, N) at W.
    """

    def __init__(self, features: Tensor, labels: Tensor, W0: Tensor, strength: Tensor, method: str = "cholesky"):
        self.F, self.W0, self.strength, self.method = features, W0, strength, method
        self.Y = F.one_hot(labels, W0.shape[0]).to(features.dtype)  # (T, S, N)
        tenths = torch.arange(21, dtype=features.dtype, device=features.device) / 10
        powers = 10.0 ** -torch.arange(2, 17, dtype=features.dtype, device=features.device)
        # that a line search tries: 0, 0.1, ..., 2, and 1e-2 to 1e-16 for saturated heads, as where the loss is all but
        # linear Newton's step is g / strength
        self.lengths = torch.cat([tenths, powers])
        if method == "cholesky":
            self.K = features @ features.mT / strength  # (T, S, S)
            self.eye = torch.eye(features.shape[1], dtype=features.dtype, device=features.device)

    def probabilities(self, W: Tensor) -> Tensor:
        return (self.F @ W.mT).softmax(-1)  # (T, S, N)

    def gradient(self, W: Tensor, P: Tensor) -> Tensor:
        proximal = self.strength * (W - self.W0)
        return torch.baddbmm(proximal, (P - self.Y).mT, self.F, alpha=1 / self.F.shape[1])  # (T, N, d)

    def times_hessian(self, P: Tensor, u: Tensor) -> Tensor:
        """(H + strength I) u, with H = 1/S sum_s (diag p_s - p_s p_s') x f_s f_s'.   (T, N, d)"""
        return _times_softmax_hessian(P, self.F @ u.mT).mT @ self.F / self.F.shape[1] + self.strength * u

    def solve(self, P: Tensor, v: Tensor, tolerance: float) -> Tensor:
        """u of (H + strength I) u = v.   (T, N, d)

        tolerance: of conjugate gradient, relative to |v|; the factorisation is exact.
        """
        S = self.F.shape[1]
        if self.method == "cg":

            def matvec(u):
                return self.times_hessian(P, u.view_as(v)).flatten(1)

            return cg(matvec, v.flatten(1), tolerance=tolerance, iterations=200).value.view_as(v)
        # H = F'MF with M = D - D R (R'D R)^-1 R'D, D = diag(p) / S and R summing over classes. Then, by Woodbury,
        # u = (v - F' Q F v / strength) / strength with Q = (M^-1 + FF' / strength)^-1 = E - E R (R'E R)^-1 R'E, where
        # E = (D^-1 + FF' / strength)^-1 has an S x S block a class (Rasmussen & Williams 2006, Algorithm 3.3).
        root = (P / S).clamp(min=torch.finfo(P.dtype).tiny).sqrt().mT  # (T, N, S), with a finite slope everywhere
        scale = root[..., :, None] * root[..., None, :]  # (T, N, S, S)
        A = torch.addcmul(self.eye, scale, self.K[:, None])
        E = scale * inverse(A, self.eye)
        Ex = torch.linalg.vecdot(E, (v @ self.F.mT)[:, :, None])  # (T, N, S)
        shared = solve_positive(E.sum(1), Ex.sum(1)[..., None])  # (T, S, 1)
        Qx = Ex - torch.linalg.vecdot(E, shared[:, None].mT)
        return (v - Qx @ self.F / self.strength) / self.strength

    def implicit(self, P: Tensor, v: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
        """(u of (H + strength I) u = v, the most that |error of u| can be a task, relative to |u|).

        A task whose u may be off by more than GRADIENT_TOLERANCE is factored in float64, one at a time; on a GPU all
        are in float64 already.
        """
        u = self.solve(P, v, tolerance=torch.finfo(v.dtype).eps ** 0.75)  # (T, N, d)
        error = self._error(P, v, u)
        exact = v.dtype == torch.float64 and self.method == "cholesky"
        if exact or v.device.type == "mps" or meters.questions(v) != "free":
            return u, error  # there is nothing better
        for task in (~(error <= GRADIENT_TOLERANCE)).nonzero().flatten().tolist():
            one = slice(task, task + 1)
            F_, W0, strength = (x.double() for x in (self.F[one], self.W0, self.strength))
            better = ProximalHead(F_, self.Y[one].argmax(-1), W0, strength)
            P_, v_ = better.probabilities(W[one].double()), v[one].double()
            u_ = better.solve(P_, v_, tolerance=0.0)
            u[one], error[one] = u_.to(u.dtype), better._error(P_, v_, u_).to(u.dtype)
        return u, error

    def _error(self, P: Tensor, v: Tensor, u: Tensor) -> Tensor:
        left = (v - self.times_hessian(P, u)).flatten(1).norm(dim=1)
        return torch.where(left == 0, 0.0, left / (self.strength * u.flatten(1).norm(dim=1)))

    def newton_step(self, W: Tensor) -> Tensor:
        """W after one step of Newton's method with line search; the step's length counts as a constant.   (T, N, d)"""
        Z = self.F @ W.mT
        P = Z.softmax(-1)
        g = self.gradient(W, P)
        D = -self.solve(P, g, tolerance=1e-4)
        length, _ = self.line_search(W, D, Z)
        return W + length[:, None, None] * D

    @torch.no_grad()
    def line_search(self, W: Tensor, D: Tensor, Z: Tensor) -> tuple[Tensor, Tensor]:
        """Of `lengths`, that of the step along D which lowers G most, or 1 where rounding can't tell.   (T,)

        Z: (T, S, N), the logits of W. Those of D, which it needs, are the second result.
        """
        ZD, t = self.F @ D.mT, self.lengths[:, None]  # (J, 1)
        logits = torch.addcmul(Z, t[..., None, None], ZD)  # (J, T, S, N), at every length
        loss = (logits.log_softmax(-1) * self.Y).sum((-1, -2)) / -self.F.shape[1]  # (J, T)
        cross, square = (torch.stack([W - self.W0, D]) * D).sum((-1, -2))  # (T,) each
        G = torch.addcmul(loss, self.strength * t, torch.addcmul(cross, t / 2, square))  # but for |W - W0|^2
        least, at = G.min(0)
        rounding = 4 * torch.finfo(Z.dtype).eps * (1 + torch.linalg.vector_norm(Z, torch.inf, (1, 2)))
        return torch.where(G[10] <= least + rounding, self.lengths[10], self.lengths[at]), ZD  # the 11th is 1

    def minimise(self, tolerance: float, iterations: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(W*, residual, iterations, converged) as in Solution."""
        asked = meters.questions(self.F)
        unasked = 0 if asked == "free" else UNASKED_STEPS
        W = self.W0.expand(len(self.F), *self.W0.shape)
        Z = self.F @ W.mT  # (T, S, N)
        count = torch.zeros(len(self.F), dtype=torch.long, device=W.device)
        for step in range(iterations + 1):
            P = Z.softmax(-1)
            g = self.gradient(W, P)
            residual = g.flatten(1).norm(dim=-1)
            if step == 0:  # W0 is the optimum already where its gradient is the rounding of the features' sums
                at_start = residual <= torch.finfo(W.dtype).eps * self.F.norm(dim=-1).mean(-1)
            moved = (W - self.W0).flatten(1).norm(dim=-1)
            converged = at_start | (residual < tolerance * self.strength * moved)  # False where it is no number
            if step == iterations:
                break
            if step % (unasked + 1) == unasked and (asked == "impossible" or converged.all()):
                break
            count += ~converged
            D = -self.solve(P, g, tolerance=1e-4)  # near the optimum each step gains at least these four digits
            length, ZD = self.line_search(W, D, Z)
            length = torch.where(converged, 0.0, length)[:, None, None]
            if asked == "free" and not length.any():
                break  # those left can't move, and are reported as not converged
            W, Z = torch.addcmul(W, length, D), torch.addcmul(Z, length, ZD)
        return W, residual, count, converged


class _AtOptimum(torch.autograd.Function):
    """W* as a function of features, W0 and strength, by the implicit function theorem at grad G = 0. The backward
    puts its own statistics into `more`."""

    @staticmethod
    def forward(ctx, features, W0, strength, W, problem, more):
        ctx.problem, ctx.more = problem, more
        ctx.save_for_backward(W)
        return W.to(features.dtype, copy=True)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, v):
        (W,), head, dtype = ctx.saved_tensors, ctx.problem, v.dtype
        P = head.probabilities(W)
        u, error = head.implicit(P, v.to(W.dtype), W)
        ctx.more.update(gradient_error=error, gradient_converged=error <= GRADIENT_TOLERANCE)
        # <u, grad G> depends on f_s through 1/S (p_s - y_s)' u f_s, where p_s = softmax(W f_s)
        to_features = -((P - head.Y) @ u + _times_softmax_hessian(P, head.F @ u.mT) @ W) / head.F.shape[1]
        to_strength = -(u * (W - head.W0)).sum()
        return to_features.to(dtype), (head.strength * u.sum(0)).to(dtype), to_strength.to(dtype), None, None, None


def _times_softmax_hessian(P: Tensor, x: Tensor) -> Tensor:
    """(diag p - p p') x, row by row."""
    return P * (x - (P * x).sum(-1, keepdim=True))
