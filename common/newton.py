"""The final layer's exact optimum for T tasks at once, by Newton's method, and its implicit gradient.

N ways, S support images, d features (a constant 1 among them for the bias). Any float type and any device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from common import meters
from common.solvers import Solution, cg, inverse, solve_positive

# Newton's matrix is factored in S x S blocks. Above this many support images, batched factorisations cost more than
# conjugate gradient does (a core without bfloat16, float32, 16 tasks, 800 features, with the implicit gradient: 5-way
# 5-shot 28 against 34 ms, 8-shot 52 against 46; 512 features: 20-way 2-shot 91 against 49, 3-shot 209 against 73).
LARGEST_FACTOR = 30
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
    they diverge. `method` says how its linear systems are solved, in sample space whatever d is: "cholesky" factors
    N + 1 matrices of S x S, "cg" is conjugate gradient; "auto" picks "cg" where S > LARGEST_FACTOR. Where float32
    doesn't converge, as when the features' Gram matrix is 1e6 times the strength, the batch is solved again in float64.

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

    grad G = 0 puts W* - W0 into the span of the S features, so that Newton's steps are made for B (T, N, S) of

        W = W0 + B F / (S strength),   logits Z = W F' = W0 F' + B K   with   K = F F' / (S strength)   (T, S, S),

    whatever d is. Then grad G = R F / S with R = B - Y + P, where a column of P (T, N, S) is the softmax of Z's, and of
    Y one-hot. All but `minimise` can be differentiated through.
    """

    def __init__(self, features: Tensor, labels: Tensor, W0: Tensor, strength: Tensor, method: str = "cholesky"):
        self.F, self.W0, self.strength, self.method = features, W0, strength, method
        self.Y = F.one_hot(labels, W0.shape[0]).to(features.dtype).mT  # (T, N, S)
        self.scaled = features / (features.shape[1] * strength)
        if method == "cholesky" or features.shape[1] <= features.shape[2]:
            self.K = self.scaled @ features.mT
            self.eye = torch.eye(features.shape[1], dtype=features.dtype, device=features.device)
        else:
            self.K = None  # its products cost more than those of F and F'
        tenths = torch.arange(21, dtype=features.dtype, device=features.device) / 10
        powers = 10.0 ** -torch.arange(2, 17, dtype=features.dtype, device=features.device)
        # that a line search tries: 0, 0.1, ..., 2, and 1e-2 to 1e-16 for saturated heads, as where the loss is all but
        # linear Newton's step is g / strength
        self.lengths = torch.cat([tenths, powers])[:, None]  # (J, 1)
        self.half_squares = self.lengths.square() / 2

    def times_K(self, x: Tensor) -> Tensor:
        return x @ self.K if self.K is not None else x @ self.scaled @ self.F.mT  # (T, N, S)

    def probabilities(self, W: Tensor) -> Tensor:
        return (W @ self.F.mT).softmax(1)  # (T, N, S)

    def gradient(self, W: Tensor, P: Tensor) -> Tensor:
        proximal = self.strength * (W - self.W0)
        return torch.baddbmm(proximal, P - self.Y, self.F, alpha=1 / self.F.shape[1])  # (T, N, d)

    def times_hessian(self, P: Tensor, u: Tensor) -> Tensor:
        """(H + strength I) u, with H = 1/S sum_s (diag p_s - p_s p_s') x f_s f_s'.   (T, N, d)"""
        return _times_softmax_hessian(P, u @ self.F.mT) @ self.F / self.F.shape[1] + self.strength * u

    def solve(self, P: Tensor, v: Tensor, tolerance: float) -> Tensor:
        """u of (H + strength I) u = v, by Woodbury's identity.   (T, N, d)"""
        return (v - self.times_Q(P, v @ self.F.mT, tolerance) @ self.scaled) / self.strength

    def direction(self, P: Tensor, R: Tensor, RK: Tensor) -> Tensor:
        """Newton's, for B: D of (I + M K) D = -R, where M is diag p - p p' for each column p of P.   (T, N, S)"""
        tolerance = 1e-4  # near the optimum each step gains at least these four digits
        return -self._by_cg(P, R, tolerance) if self.method == "cg" else self.times_Q(P, RK, tolerance) - R

    def times_Q(self, P: Tensor, x: Tensor, tolerance: float) -> Tensor:
        """(M^-1 + K)^-1 x = (I + M K)^-1 M x.   (T, N, S)

        tolerance: of conjugate gradient, relative to its right side; the factorisation is exact.
        """
        if self.method == "cg":
            return self._by_cg(P, _times_softmax_hessian(P, x), tolerance)
        # E - E R (R'E R)^-1 R'E with R summing over classes, where E = (diag(p)^-1 + K)^-1 has an S x S block a class
        # (Rasmussen & Williams 2006, Algorithm 3.3).
        root = P.clamp(min=torch.finfo(P.dtype).tiny).sqrt()  # with a finite slope everywhere
        scale = root[..., :, None] * root[..., None, :]  # (T, N, S, S)
        E = scale * inverse(torch.addcmul(self.eye, scale, self.K[:, None]), self.eye)
        shared = solve_positive(E.sum(1), (E @ x[..., None]).sum(1))  # (T, S, 1)
        return (E @ (x[..., None] - shared[:, None]))[..., 0]

    def _by_cg(self, P: Tensor, b: Tensor, tolerance: float) -> Tensor:
        """(I + M K)^-1 b. That matrix is symmetric for the inner product <x, y K>, which is that of x F and y F."""

        def times_K(x):
            return self.times_K(x.view_as(b)).flatten(1)

        def matvec(x, Kx):
            return x + _times_softmax_hessian(P, Kx.view_as(b)).flatten(1)

        solution = cg(matvec, b.flatten(1), tolerance=tolerance, iterations=200, metric=times_K)
        return solution.value.view_as(b)

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
            better = ProximalHead(F_, self.Y[one].argmax(1), W0, strength)
            P_, v_ = better.probabilities(W[one].double()), v[one].double()
            u_ = better.solve(P_, v_, tolerance=0.0)
            u[one], error[one] = u_.to(u.dtype), better._error(P_, v_, u_).to(u.dtype)
        return u, error

    def _error(self, P: Tensor, v: Tensor, u: Tensor) -> Tensor:
        left = (v - self.times_hessian(P, u)).flatten(1).norm(dim=1)
        return torch.where(left == 0, 0.0, left / (self.strength * u.flatten(1).norm(dim=1)))

    def start(self) -> tuple[Tensor, Tensor]:
        """B and Z of W0."""
        Z = (self.F @ self.W0.mT).mT
        return torch.zeros_like(Z), Z

    def weights(self, B: Tensor) -> Tensor:
        return self.W0 + B @ self.scaled  # (T, N, d)

    def newton_step(self, B: Tensor, Z: Tensor) -> tuple[Tensor, Tensor]:
        """B and Z after one step of Newton's method with line search; the step's length counts as a constant."""
        P, C = Z.softmax(1), B - self.Y
        D = self.direction(P, C + P, self.times_K(C + P))
        ZD = self.times_K(D)
        length = self.line_search(C, D, Z, ZD)[:, None, None]
        return B + length * D, Z + length * ZD

    @torch.no_grad()
    def line_search(self, C: Tensor, D: Tensor, Z: Tensor, ZD: Tensor) -> Tensor:
        """Of `lengths`, that of the step along D which lowers G most, or 1 where rounding can't tell.   (T,)

        C: B - Y.   Z, ZD: the logits of B, and their change along D. As every column of C sums to -1,
        S G = <C, log softmax(Z + t ZD)> + t^2/2 <D, ZD>, but for what doesn't depend on t.
        """
        logits = torch.addcmul(Z, self.lengths[..., None, None], ZD)  # (J, T, N, S), at every length
        losses = logits.log_softmax(2).mul_(C).sum((2, 3))  # (J, T)
        G = torch.addcmul(losses, self.half_squares, (D * ZD).sum((1, 2)))
        rounding = 1 + torch.linalg.vector_norm(Z, torch.inf, (1, 2))
        G[10].sub_(rounding, alpha=4 * torch.finfo(Z.dtype).eps * self.F.shape[1])  # the 11th length is 1
        return self.lengths[G.min(0).indices, 0]

    def minimise(self, tolerance: float, iterations: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(W*, residual, iterations, converged) as in Solution."""
        asked = meters.questions(self.F)
        unasked = 0 if asked == "free" else UNASKED_STEPS
        B, Z0 = self.start()
        Z, made = Z0, 0
        at_rest = torch.zeros(len(Z), dtype=torch.long, device=Z.device)  # steps that a task made no more
        for step in range(iterations + 1):
            P, C = Z.softmax(1), B - self.Y
            R = C + P
            RK = self.times_K(R)
            left, moved = (R * RK).sum((1, 2)), (B * (Z - Z0)).sum((1, 2))  # |grad G|^2, |strength (W - W0)|^2, scaled
            if step == 0:  # W0 is the optimum already where its gradient is the rounding of the features' sums
                rounding = torch.finfo(Z.dtype).eps * self.F.norm(dim=-1).mean(-1)
                at_start = self.residual(left) <= rounding
            converged = at_start | (left < tolerance**2 * moved)  # False where it is no number
            if step == iterations:
                break
            if step % (unasked + 1) == unasked and (asked == "impossible" or converged.all()):
                break
            made, at_rest = made + 1, at_rest + converged
            D = self.direction(P, R, RK)
            ZD = self.times_K(D)
            length = torch.where(converged, 0.0, self.line_search(C, D, Z, ZD))[:, None, None]
            if asked == "free" and not length.any():
                break  # those left can't move, and are reported as not converged
            B, Z = torch.addcmul(B, length, D), torch.addcmul(Z, length, ZD)
        return self.weights(B), self.residual(left), made - at_rest, converged

    def residual(self, left: Tensor) -> Tensor:
        """|grad G| = |R F| / S of <R, R K>.   (T,)"""
        return (left.clamp(min=0) * self.strength / self.F.shape[1]).sqrt()


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
        of_logits = _times_softmax_hessian(P, u @ head.F.mT)
        to_features = -((P - head.Y).mT @ u + of_logits.mT @ W) / head.F.shape[1]
        to_strength = -(u * (W - head.W0)).sum()
        return to_features.to(dtype), (head.strength * u.sum(0)).to(dtype), to_strength.to(dtype), None, None, None


def _times_softmax_hessian(P: Tensor, x: Tensor) -> Tensor:
    """(diag p - p p') x, column by column."""
    return P * (x - (P * x).sum(1, keepdim=True))
