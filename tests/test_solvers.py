"""The solvers against dense references, an independent optimiser and finite differences."""

import pytest
import torch
import torch.nn.functional as F

from common.newton import newton_head
from common.solvers import cg

METHODS = ("cholesky", "cg")


def a_problem(tasks=3, ways=5, shots=2, d=17, dtype=torch.float64, seed=0):
    """Features (T, S, d) and labels (T, S) that a linear head can't fit without effort."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.stack([torch.randperm(ways * shots, generator=generator) % ways for _ in range(tasks)])
    features = torch.randn(tasks, ways * shots, d, generator=generator, dtype=dtype)
    W0 = torch.randn(ways, d, generator=generator, dtype=dtype) / 10
    return features, labels, W0, torch.tensor(0.05, dtype=dtype)


def objective(W, features, labels, W0, strength):
    """G of one task, from torch's own cross-entropy."""
    return F.cross_entropy(features @ W.T, labels) + strength / 2 * (W - W0).square().sum()


def lbfgs_optimum(features, labels, W0, strength):
    """One task's minimiser by torch's L-BFGS, run until its gradient is below 1e-10."""
    W = W0.clone().requires_grad_()
    # The line search compares values, which rounding makes equal near the optimum; unit steps finish from there.
    for line_search in ("strong_wolfe", None):
        optimizer = torch.optim.LBFGS([W], 1.0, 500, None, 1e-12, 0.0, 50, line_search)

        def closure():
            optimizer.zero_grad()
            loss = objective(W, features, labels, W0, strength)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert torch.autograd.grad(objective(W, features, labels, W0, strength), W)[0].norm() < 1e-10
    return W.detach()


def dense_optimum(features, labels, W0, strength):
    """One task's minimiser by Newton's method on autograd's full Hessian, halving the step until the value falls."""
    W = W0.clone()
    for _ in range(20):
        value = objective(W, features, labels, W0, strength)
        gradient = torch.func.grad(objective)(W, features, labels, W0, strength).flatten()
        H = torch.func.hessian(objective)(W, features, labels, W0, strength).reshape(W.numel(), W.numel())
        step = torch.linalg.solve(H, gradient).view_as(W)
        while objective(W - step, features, labels, W0, strength) > value and step.norm() > 1e-14:
            step = step / 2
        W = W - step
    return W


def trained_features(tasks=2, ways=5, shots=2):
    """Float64 features of a small backbone that learned 8 patterns: correlated, non-negative, not centred."""
    from common.conv4 import Conv4

    torch.manual_seed(0)
    patterns = torch.randn(8, 1, 16, 16)
    net, head = Conv4((1, 16, 16), 16, "norm-pool"), torch.nn.Linear(16, 8)
    optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()], 1e-2)
    for _ in range(30):
        y = torch.arange(64) % 8
        optimizer.zero_grad()
        F.cross_entropy(head(net(patterns[y] + torch.randn(64, 1, 16, 16) / 2, "batch")), y).backward()
        optimizer.step()
    labels = torch.stack([torch.randperm(ways * shots) % ways for _ in range(tasks)])
    with torch.no_grad():
        images = patterns[labels.flatten()] + torch.randn(labels.numel(), 1, 16, 16) / 2
        return net(images, "running").double().view(tasks, ways * shots, 16), labels


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("features_of", ("made", "trained"))
def test_newton_head_equals_a_dense_reference_and_lbfgs(method, features_of):
    features, labels, W0, strength = a_problem()
    if features_of == "trained":
        features, labels = trained_features()
        W0 = torch.randn(5, features.shape[-1], dtype=torch.float64) / 10
    solution = newton_head(features, labels, W0, strength, tolerance=1e-12, method=method)
    assert solution.converged.all()
    for task, W in enumerate(solution.value):
        problem = features[task], labels[task], W0, strength
        assert (W - W0).norm() > 0.1
        torch.testing.assert_close(W, dense_optimum(*problem), rtol=0, atol=1e-10)
        torch.testing.assert_close(W, lbfgs_optimum(*problem), rtol=0, atol=1e-8)


@pytest.mark.parametrize("method", ("cholesky", pytest.param("cg", marks=pytest.mark.slow)))
def test_implicit_gradient_equals_finite_differences_in_features_start_and_strength(method):
    features, labels, W0, strength = a_problem(tasks=2, shots=1, d=7)
    towards = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def query_loss(features, W0, strength):
        return (newton_head(features, labels, W0, strength, tolerance=1e-13, method=method).value * towards).sum()

    inputs = [features.requires_grad_(), W0.requires_grad_(), strength.requires_grad_()]
    gradients = torch.autograd.grad(query_loss(*inputs), inputs)
    for i, (x, gradient) in enumerate(zip(inputs, gradients)):
        assert gradient.norm() > 1e-3
        numeric = torch.zeros_like(x).flatten()
        for k in range(x.numel()):
            shifted = [torch.zeros_like(x).flatten() for _ in range(2)]
            shifted[0][k], shifted[1][k] = 1e-5, -1e-5
            up, down = (query_loss(*inputs[:i], (x + s.view_as(x)).detach(), *inputs[i + 1 :]) for s in shifted)
            numeric[k] = ((up - down) / 2e-5).detach()
        torch.testing.assert_close(gradient.flatten(), numeric, rtol=1e-6, atol=1e-8)


def test_gradient_at_the_optimum_is_the_proximal_identity():
    """Eq 4: grad L(W*) + strength (W* - W0) = 0; Eq 5: (I + H / strength) dW*/dW0 = I, applied to a vector."""
    features, labels, W0, strength = a_problem(tasks=1)
    W0.requires_grad_()
    W = newton_head(features, labels, W0, strength, tolerance=1e-13).value[0]
    loss = lambda w: F.cross_entropy(features[0] @ w.T, labels[0])  # noqa: E731
    gradient = torch.func.grad(loss)(W.detach())
    assert gradient.norm() > 1e-3
    torch.testing.assert_close(gradient, -strength * (W - W0).detach(), rtol=0, atol=1e-12)

    v = torch.randn_like(W)
    u = torch.autograd.grad(W, W0, v)[0]  # (I + H / strength)^-1 v, H being symmetric
    H = torch.func.hessian(loss)(W.detach()).reshape(W.numel(), W.numel())
    torch.testing.assert_close(u.flatten() + H @ u.flatten() / strength, v.flatten(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ("separable", "duplicated", "zero", "huge"))
def test_hard_features_converge_or_say_that_they_did_not(method, kind):
    features, labels, W0, strength = a_problem(dtype=torch.float32)
    if kind == "separable":
        features = F.one_hot(labels, 17).float() * 30
    elif kind == "duplicated":
        features = features[:, :1].expand_as(features).contiguous()  # the same image under every label
    elif kind == "zero":
        features = torch.zeros_like(features)
    else:
        features = features * 1e4
    features.requires_grad_()
    solution = newton_head(features, labels, W0, strength, method=method)
    assert solution.value.isfinite().all() and solution.value.dtype == torch.float32
    solution.value.sum().backward()
    assert features.grad.isfinite().all()
    for task, W in enumerate(solution.value.detach().double()):
        problem = features[task].detach().double(), labels[task], W0.double(), strength.double()
        gradient = torch.func.grad(objective)(W, *problem).norm()
        # float32 can't say less than its rounding of the terms that cancel
        rounding = 1e-6 * (problem[0].norm() + 1)
        assert solution.residual[task] == pytest.approx(float(gradient), abs=float(rounding))
    if kind != "huge":
        assert solution.converged.all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", (0.1, 1.0, 100.0))
def test_converged_bounds_the_error_of_w_whatever_the_size_of_the_features(method, scale):
    """Against the optimum in float64; relative to the first gradient, features of norm 100 left W 5 % off."""
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(8, 5, 64, generator=generator) * scale / 8
    labels, W0, strength = torch.arange(5).expand(8, 5), torch.zeros(5, 64), torch.tensor(0.002)
    solution = newton_head(features, labels, W0, strength, tolerance=1e-3, method=method)
    exact = newton_head(features.double(), labels, W0.double(), strength.double(), tolerance=1e-9)
    assert solution.converged.all() and exact.converged.all()
    error = (solution.value - exact.value).flatten(1).norm(dim=1)
    certificate = solution.statistics()["certificate"]
    torch.testing.assert_close(certificate, solution.residual / strength)
    rounding = 1e-6 * exact.value.flatten(1).norm(dim=1)  # of W itself, in float32
    assert (error <= certificate + rounding).all()
    assert (error <= 1e-3 * exact.value.flatten(1).norm(dim=1)).all()


@pytest.mark.parametrize("shots", (2, 12))
@pytest.mark.parametrize("scale", (1.0, 5.0, 30.0))
@pytest.mark.slow
def test_the_implicit_gradient_says_how_well_it_was_solved_and_is_solved_well(scale, shots):
    """Also by conjugate gradient, which is taken for 60 support images, and runs out of steps for large features."""
    features, labels, W0, strength = a_problem(shots=shots, d=50, dtype=torch.float32)
    means = torch.randn(5, 50, generator=torch.Generator().manual_seed(2))
    features = torch.relu(features + means[labels]) * scale
    v = torch.randn(3, 5, 50, generator=torch.Generator().manual_seed(1))

    def solved(dtype, **options):
        inputs = [x.detach().to(dtype).requires_grad_() for x in (features, W0, strength / 20)]
        solution = newton_head(*inputs[:1], labels, *inputs[1:], iterations=100, **options)
        assert "gradient_converged" not in solution.statistics()
        solution.value.backward(v.to(dtype))
        return solution.statistics(), [x.grad for x in inputs]

    told, gradients = solved(torch.float32)
    _, exact = solved(torch.float64, tolerance=1e-12, method="cholesky")
    assert told["gradient_converged"].all() and (told["gradient_error"] <= 1e-3).all()
    for gradient, expected in zip(gradients, exact):
        assert expected.norm() > 0
        assert (gradient - expected).norm() <= 0.01 * expected.norm()


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("scale", (0.1, 1.0, 10.0, 30.0))
def test_newtons_steps_are_few_however_large_the_features_are(scale, dtype):
    """As each is as long as helps most: steps of length 1, halved where they don't help, are up to three times as
    many."""
    features, labels, _, strength = a_problem(tasks=8, d=65, dtype=dtype)
    solution = newton_head(scale * features, labels, torch.zeros(5, 65, dtype=dtype), strength, method="cholesky")
    assert solution.converged.all() and solution.iterations.max() <= 6


def test_saturated_heads_find_a_step_that_helps_however_short_it_must_be():
    """A head that is sure of a wrong label has a loss without curvature: Newton's step is 1e10 times too long."""
    features, labels, W0, _ = a_problem(tasks=16, ways=2, shots=2, d=5)
    solution = newton_head(1000 * features, labels, W0, torch.tensor(1e-6, dtype=torch.float64))
    assert solution.converged.all()


def test_features_that_leave_float32_no_digits_are_solved_in_float64():
    """Without float64 Newton's step is no descent direction here: the solver would stall far from the optimum."""
    features, labels, W0, strength = a_problem(dtype=torch.float32)
    features, W0 = features + 100, W0 * 0  # one large common component, as ReLU features have
    solution = newton_head(features, labels, W0, strength / 100)
    assert solution.converged.all()
    exact = newton_head(features.double(), labels, W0.double(), strength.double() / 100, tolerance=1e-9)
    assert exact.converged.all()
    error = (solution.value - exact.value).flatten(1).norm(dim=1)
    assert (error < 1e-3 * exact.value.flatten(1).norm(dim=1)).all()


def test_a_matrix_that_float32_cant_factor_is_solved_in_float64():
    """Of equal images, whose Gram matrix is far larger than the strength."""
    features, labels, W0, strength = a_problem(dtype=torch.float32)
    features, strength = features[:, :1].expand_as(features).clone().requires_grad_(), strength * 1e-6
    A = torch.eye(features.shape[1]) + features.detach() @ features.detach().mT / strength
    assert (torch.linalg.cholesky_ex(A).info > 0).any()
    solution = newton_head(features, labels, W0, strength)
    assert solution.converged.all() and solution.value.isfinite().all()
    (solution.value**2).sum().backward()
    assert features.grad.isfinite().all() and features.grad.norm() > 0


def test_too_few_iterations_are_reported_as_not_converged():
    features, labels, W0, strength = a_problem()
    solution = newton_head(features * 10, labels, W0, strength, iterations=1)
    assert not solution.converged.any() and solution.iterations.tolist() == [1, 1, 1]
    certificate = solution.residual / strength
    exact = newton_head(features * 10, labels, W0, strength, tolerance=1e-12)
    assert exact.converged.all()
    distance = (solution.value - exact.value).flatten(1).norm(dim=1)
    assert (distance > 0).all() and (distance <= certificate).all()


def test_a_strength_of_zero_is_refused():
    features, labels, W0, strength = a_problem()
    with pytest.raises(ValueError, match="strength"):
        newton_head(features, labels, W0, strength * 0)


def test_cg_equals_a_dense_solve():
    generator = torch.Generator().manual_seed(0)
    B = torch.randn(4, 12, 12, dtype=torch.float64, generator=generator)
    A, b = B @ B.mT + torch.eye(12, dtype=torch.float64), torch.randn(4, 12, dtype=torch.float64, generator=generator)
    solution = cg(lambda x: (A @ x[..., None])[..., 0], b, tolerance=1e-12, iterations=50)
    assert solution.converged.all()
    torch.testing.assert_close(solution.value, torch.linalg.solve(A, b), rtol=0, atol=1e-10)
    torch.testing.assert_close(solution.residual, (b - (A @ solution.value[..., None])[..., 0]).norm(dim=-1))


def test_cg_with_a_metric_solves_what_is_symmetric_for_it_alone():
    """(I + M K) x = b with K of less than full rank: x is right but for what K doesn't see."""
    generator = torch.Generator().manual_seed(0)
    roots = [torch.randn(4, 12, size, dtype=torch.float64, generator=generator) for size in (5, 12)]
    K, M = (root @ root.mT for root in roots)
    A, b = torch.eye(12, dtype=torch.float64) + M @ K, torch.randn(4, 12, dtype=torch.float64, generator=generator)
    assert (A - A.mT).norm() > 1

    def times(matrix, x):
        return (matrix @ x[..., None])[..., 0]

    how = {"tolerance": 1e-12, "iterations": 50, "metric": lambda x: times(K, x)}
    solution = cg(lambda x, Kx: x + times(M, Kx), b, **how)
    assert solution.converged.all() and solution.iterations.max() <= 7  # in exact arithmetic the rank of K, and one
    torch.testing.assert_close(times(K, solution.value), times(K, torch.linalg.solve(A, b)), rtol=0, atol=1e-8)
    left = b - times(A, solution.value)
    torch.testing.assert_close(solution.residual, (left * times(K, left)).sum(-1).clamp(min=0).sqrt())


def test_cg_reports_a_matrix_that_is_not_positive_definite():
    A = torch.stack([torch.diag(torch.tensor([1.0, 2.0, 3.0])), torch.diag(torch.tensor([1.0, -2.0, 3.0]))])
    b = torch.ones(2, 3)
    solution = cg(lambda x: (A @ x[..., None])[..., 0], b)
    assert solution.converged.tolist() == [True, False]
    torch.testing.assert_close(solution.value[0], b[0] / A[0].diagonal())


def test_cg_stops_where_it_meets_no_positive_curvature():
    """Its value is what it had before that direction: nothing, or the step before; a task beside it goes on."""
    diagonals = torch.tensor([[-1.0, 2.0, 3.0], [4.0, 1.0, -0.5], [1.0, 2.0, 3.0]])
    b = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    matvec = lambda x: diagonals * x
    solution, one_step = cg(matvec, b), cg(matvec, b, iterations=1)
    assert solution.converged.tolist() == [False, False, True] and solution.iterations.tolist() == [1, 2, 3]
    assert torch.equal(solution.value[0], torch.zeros(3))
    assert torch.equal(solution.value[1], one_step.value[1]) and one_step.value[1].norm() > 0
    torch.testing.assert_close(solution.value[2], b[2] / diagonals[2])
    torch.testing.assert_close(solution.residual, (b - diagonals * solution.value).norm(dim=1))


def test_cg_within_a_radius_goes_to_the_edge_where_a_minimum_would_lie_beyond_or_nowhere():
    """Steihaug's rule: negative curvature at once, after a step, a solution too far out, no number; one that fits."""
    nan = float("nan")
    diagonals = torch.tensor([[-1.0, 2.0, 3.0], [4.0, 1.0, -0.5], [0.5, 0.5, 0.1], [nan, nan, nan], [1.0, 2.0, 3.0]])
    b = torch.tensor([[1.0, 0.0, 0.0]] + [[1.0, 1.0, 1.0]] * 4)
    solution = cg(lambda x: diagonals * x, b, radius=b.norm(dim=1))
    assert solution.more["at_edge"].tolist() == [True, True, True, True, False]
    assert solution.converged.tolist() == [False, False, False, False, True]
    torch.testing.assert_close(solution.value[:4].norm(dim=1), b[:4].norm(dim=1))
    torch.testing.assert_close(solution.value[[0, 3]], b[[0, 3]])  # the way to the edge along b is b
    torch.testing.assert_close(solution.value[4], b[4] / diagonals[4])
    # Past the last place before the edge, along the direction that conjugate gradient takes there.
    before = cg(lambda x: diagonals * x, b, iterations=1).value[1]
    residual = b[1] - diagonals[1] * before
    direction = residual + residual.square().sum() / b[1].square().sum() * b[1]
    torch.testing.assert_close(F.cosine_similarity(solution.value[1] - before, direction, dim=0), torch.tensor(1.0))
    known = [0, 1, 2, 4]
    torch.testing.assert_close(solution.residual[known], (b - diagonals * solution.value).norm(dim=1)[known])


def test_cg_stopped_early_is_reported_as_not_converged():
    A = torch.diag(torch.linspace(1, 100, 20, dtype=torch.float64))[None]
    solution = cg(lambda x: (A @ x[..., None])[..., 0], torch.ones(1, 20, dtype=torch.float64), iterations=3)
    assert solution.iterations == 3 and not solution.converged.any() and solution.residual > 1e-3


def test_cg_in_float32_counts_as_converged_at_the_tolerance_whatever_the_size():
    scales = torch.linspace(1, 6, 100_000)[None]
    b = torch.ones(1, 100_000)
    for iterations, enough in ((5, False), (50, True)):
        solution = cg(lambda x: scales * x, b, tolerance=1e-6, iterations=iterations)
        assert solution.converged.tolist() == [enough]
        assert (solution.residual < 1e-5 * b.norm()) == enough
