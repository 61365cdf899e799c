"""Convex routines for the final layer's problem: this project's two, and four that know nothing of it.

Each takes heads and how near to the optimum every task shall come, relative to the way from the start, and gives W
(T, N, d) in float64. The optimum is where grad G = 0, and |W - W*| <= |grad G(W)| / strength.
"""

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.real import Heads
from common.newton import ProximalHead, newton_head


def newton(heads: Heads, way: Tensor, tolerance: float, method: str = "cholesky") -> Tensor:
    f, y, W0, strength = heads.features, heads.labels, heads.W0, heads.strength
    return newton_head(f, y, W0, strength, tolerance=tolerance, iterations=100, method=method).value


def newton_cg(heads: Heads, way: Tensor, tolerance: float) -> Tensor:
    return newton(heads, way, tolerance, "cg")


def accelerated(heads: Heads, way: Tensor, tolerance: float, begin: float = 0.0) -> Tensor:
    """Nesterov's accelerated gradient for strongly convex functions (Nesterov 2004, section 2.2.1), all tasks at once.

    The softmax Hessian is at most half the identity, so G's is between strength and that plus |FF'| / 2S. begin: the
    size of the random numbers, beside W0, that W starts from.
    """
    problem = ProximalHead(heads.features, heads.labels, heads.W0, heads.strength, "cg")
    S, strength = heads.features.shape[1], heads.strength
    largest = torch.linalg.matrix_norm(heads.features @ heads.features.mT, 2) / (2 * S) + strength  # (T,)
    root = (largest / strength).sqrt()[:, None, None]
    momentum, rate = (root - 1) / (root + 1), 1 / largest[:, None, None]
    generator = torch.Generator().manual_seed(0)
    W = begin * torch.randn(len(heads.features), *heads.W0.shape, generator=generator, dtype=heads.W0.dtype) + heads.W0
    ahead = W
    for step in range(1_000_000):
        g = problem.gradient(ahead, problem.probabilities(ahead))
        if step % 10 == 0 and (g.flatten(1).norm(dim=1) <= tolerance * strength * way).all():
            break
        W, before = ahead - rate * g, W
        ahead = W + momentum * (W - before)
    return ahead


def accelerated_elsewhere(heads: Heads, way: Tensor, tolerance: float) -> Tensor:
    return accelerated(heads, way, tolerance, begin=1.0)


def lbfgs(heads: Heads, way: Tensor, tolerance: float) -> Tensor:
    """torch's L-BFGS with a line search, task after task."""

    def solve(x: Tensor, y: Tensor, least: float) -> Tensor:
        W = heads.W0.clone().requires_grad_()
        options = {"tolerance_grad": least, "tolerance_change": 0, "max_iter": 1000, "history_size": 20}
        optimizer = torch.optim.LBFGS([W], line_search_fn="strong_wolfe", **options)

        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(x @ W.mT, y) + heads.strength / 2 * (W - heads.W0).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return W.detach()

    return one_by_one(solve, heads, way, tolerance)


def scikit_learn(heads: Heads, way: Tensor, tolerance: float) -> Tensor:
    """LogisticRegression, by L-BFGS too, of the same objective: C = 1 / (S strength). Raises ImportError without it."""
    from sklearn.linear_model import LogisticRegression

    def solve(x: Tensor, y: Tensor, least: float) -> Tensor:
        options = {"C": 1 / (len(x) * float(heads.strength)), "fit_intercept": False, "tol": least, "max_iter": 10_000}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it stopped short shows in the distance
            W = torch.from_numpy(LogisticRegression(**options).fit(x.numpy(), y.numpy()).coef_)
        return torch.cat([-W, W]) / 2 if len(W) < len(heads.W0) else W  # with two classes it has one row

    return one_by_one(solve, heads, way, tolerance)


def one_by_one(solve: Callable[[Tensor, Tensor, float], Tensor], heads: Heads, way: Tensor, tolerance: float) -> Tensor:
    """solve(x, labels, the largest entry that a gradient may have) of every task."""
    least = tolerance * heads.strength * way / heads.W0.numel() ** 0.5  # (T,)
    return torch.stack([solve(*task) for task in zip(heads.features, heads.labels, least.tolist())])


ROUTINES = {
    "Newton, Cholesky": newton,
    "Newton-CG": newton_cg,
    "L-BFGS": lbfgs,
    "accelerated gradient": accelerated,
    "accelerated gradient, random start": accelerated_elsewhere,
    "scikit-learn": scikit_learn,
}
