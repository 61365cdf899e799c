"""Heads at their optimum in other libraries, one task after the other, as they have no batches of them."""

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import problems
from benchmarks.problems import Work


def task_after_task(solve: Callable[[Tensor, Tensor, float], Tensor], f: Tensor, y: Tensor) -> Work:
    """solve(x, labels, tol) in float64, with the first tol of 0.1, 0.01, ... that gets to TOLERANCE, as every library
    counts it otherwise."""
    images = f.double()

    def step(tol: float) -> Tensor:
        return torch.stack([solve(x, labels, tol) for x, labels in zip(images, y)])

    for digits in range(1, 12):
        reached = problems.relative_gradient(f, y, step(10.0**-digits))
        if reached <= problems.TOLERANCE:
            break
    return lambda: step(10.0**-digits), {"reached": reached}


def sklearn(solver: str, tasks: int, ways: int, shots: int, features: int) -> Work:
    """scikit-learn's logistic regression of the same objective: C = 1 / (S strength)."""
    from sklearn.linear_model import LogisticRegression

    warnings.simplefilter("ignore")  # that it stopped short shows in `reached`
    size = ways * features
    if solver == "newton-cholesky" and size > 8000:
        raise RuntimeError(f"not run: it would factor a Hessian of {size:,} x {size:,} in every step of every task")

    def solve(x, labels, tol):
        options = {"C": 1 / (len(x) * problems.STRENGTH), "fit_intercept": False, "tol": tol, "max_iter": 1000}
        fit = LogisticRegression(solver=solver, **options).fit(x.numpy(), labels.numpy())
        return torch.from_numpy(fit.coef_)

    return task_after_task(solve, *problems.head_problem(tasks, ways, shots, features))


def lbfgs(tasks: int, ways: int, shots: int, features: int) -> Work:
    """torch's L-BFGS, which stalls before the tolerance in float32."""

    def solve(x, labels, tol):
        W = torch.zeros(ways, features, dtype=x.dtype, requires_grad=True)
        options = {"tolerance_grad": tol, "tolerance_change": 0, "max_iter": 200}
        optimizer = torch.optim.LBFGS([W], line_search_fn="strong_wolfe", **options)

        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(x @ W.T, labels) + problems.STRENGTH / 2 * W.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return W.detach()

    return task_after_task(solve, *problems.head_problem(tasks, ways, shots, features))
