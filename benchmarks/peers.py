"""The same work in torch alone and in other libraries, as tutorials and their own examples write it.

A meta-step is of the textbook network; its meta-gradient is on the same weights and episode as ours.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import problems
from benchmarks.problems import Work
from common.meters import keep_memory


def with_our_allocator(piece: Callable[[], Work]) -> Work:
    """The piece with this project's allocator setting."""
    keep_memory()
    return piece()


def _a_task_at_a_time(meta_step: Callable, dataset: str, width: int, tasks: int) -> Work:
    """meta_step(net, x, y, x_query, y_query) -> query loss of a task, whose backward reaches net's parameters."""
    net, episode = problems.textbook_of(dataset, width), problems.random_episode(dataset, tasks)

    def backward():
        for task in zip(episode.x_support, episode.y_support, episode.x_query, episode.y_query):
            (meta_step(net, *task) / tasks).backward()

    return problems.adam_steps(net, episode, backward)


def learn2learn(inner_steps: int, inner_rate: float, first_order: bool = False, **network) -> Work:
    from learn2learn.algorithms import MAML

    def meta_step(net: problems.Textbook, x, y, x_query, y_query):
        learner = MAML(net, lr=inner_rate, first_order=first_order).clone()
        for _ in range(inner_steps):
            learner.adapt(F.cross_entropy(learner(x), y))
        return F.cross_entropy(learner(x_query), y_query)

    return _a_task_at_a_time(meta_step, **network)


def learn2learn_anil(inner_steps: int, inner_rate: float, dataset: str, width: int, tasks: int) -> Work:
    """The head alone adapts, from zero, on features divided by sqrt d, as convex_maml.py has it. All tasks' images are
    one batch: its example embeds a task's images at a time, which batch norm would tell from ours."""
    from learn2learn.algorithms import MAML

    net, episode = problems.textbook_of(dataset, width), problems.random_episode(dataset, tasks)
    head = torch.nn.Linear(net.head.in_features, 5)
    for p in head.parameters():
        torch.nn.init.zeros_(p)

    def backward():
        f = net.features(episode.images) / head.in_features**0.5
        head.to(f.dtype)
        losses = []
        for support, y, query, y_query in zip(episode.support, episode.y_support, episode.query, episode.y_query):
            learner = MAML(head, lr=inner_rate).clone()
            for _ in range(inner_steps):
                learner.adapt(F.cross_entropy(learner(f[support]), y))
            losses.append(F.cross_entropy(learner(f[query]), y_query))
        torch.stack(losses).mean().backward()

    return problems.adam_steps(torch.nn.ModuleDict({"features": net.features}), episode, backward)


def higher(inner_steps: int, inner_rate: float, **network) -> Work:
    import higher

    def meta_step(net: problems.Textbook, x, y, x_query, y_query):
        inner = torch.optim.SGD(net.parameters(), lr=inner_rate)
        with higher.innerloop_ctx(net, inner, copy_initial_weights=False) as (learner, steps):
            for _ in range(inner_steps):
                steps.step(F.cross_entropy(learner(x), y))
            return F.cross_entropy(learner(x_query), y_query)

    return _a_task_at_a_time(meta_step, **network)


def torchopt(inner_steps: int, inner_rate: float, **network) -> Work:
    import torchopt

    inner = {}  # by type: the first meta-gradient is in float64

    def meta_step(net: problems.Textbook, x, y, x_query, y_query):
        if x.dtype not in inner:
            inner[x.dtype] = torchopt.MetaSGD(net, lr=inner_rate)
        optimizer = inner[x.dtype]
        start = torchopt.extract_state_dict(net, by="reference")
        optimizer_start = torchopt.extract_state_dict(optimizer, by="reference")
        for _ in range(inner_steps):
            optimizer.step(F.cross_entropy(net(x), y))
        loss = F.cross_entropy(net(x_query), y_query)
        torchopt.recover_state_dict(net, start)
        torchopt.recover_state_dict(optimizer, optimizer_start)
        return loss

    return _a_task_at_a_time(meta_step, **network)


def torchopt_implicit(
    inner_steps: int, inner_rate: float, strength: float, cg_steps: int, tolerance: float, **network
) -> Work:
    import torchopt
    from torchopt.diff.implicit import ImplicitMetaGradientModule

    class Learner(
        ImplicitMetaGradientModule,
        linear_solve=torchopt.linear_solve.solve_cg(maxiter=cg_steps, rtol=tolerance, atol=0.0),
    ):
        def __init__(self, meta_net):
            super().__init__()
            self.meta_net = meta_net
            self.net = torchopt.module_clone(meta_net, by="deepcopy", detach_buffers=True)
            for p, start in zip(self.net.parameters(), self.meta_net.parameters()):
                p.data.copy_(start.data)
                p.detach_().requires_grad_()

        def forward(self, x):
            return self.net(x)

        def objective(self, x, y):
            distance = sum(
                (p - start).square().sum() for p, start in zip(self.net.parameters(), self.meta_net.parameters())
            )
            return F.cross_entropy(self(x), y) + strength / 2 * distance

        def solve(self, x, y):
            inner = torch.optim.SGD(self.net.parameters(), lr=inner_rate)
            with torch.enable_grad():
                for _ in range(inner_steps):
                    loss = self.objective(x, y)
                    inner.zero_grad()
                    loss.backward(inputs=tuple(self.net.parameters()))
                    inner.step()
            return self

    def meta_step(net: problems.Textbook, x, y, x_query, y_query):
        learner = Learner(net)
        learner.solve(x, y)
        return F.cross_entropy(learner(x_query), y_query)

    return _a_task_at_a_time(meta_step, **network)


def contiguous(dataset: str, width: int, tasks: int) -> Work:
    """Forward and backward as users run it: one contiguous float32 batch, the allocator left alone."""
    net = problems.textbook_of(dataset, width).features
    return problems.forward_and_backward(net, net.parameters(), (problems.random_episode(dataset, tasks).images,))


def at_the_loosest(solve: Callable[[float], Tensor], f: Tensor, y: Tensor) -> Work:
    """solve(tol) with the first of 0.1, 0.01, ... that gets to TOLERANCE, as every library counts tol otherwise."""
    for digits in range(1, 12):
        reached = problems.relative_gradient(f, y, solve(10.0**-digits))
        if reached <= problems.TOLERANCE:
            break
    return lambda: solve(10.0**-digits), {"reached": reached}


def sklearn_heads(solver: str, tasks: int, ways: int, shots: int, features: int) -> Work:
    """scikit-learn's logistic regression, task after task: the same objective, C = 1 / (S strength), in float64."""
    import warnings

    from sklearn.linear_model import LogisticRegression

    warnings.simplefilter("ignore")  # that it stopped short shows in `reached`
    size = ways * features
    if solver == "newton-cholesky" and size > 8000:
        raise RuntimeError(f"not run: it would factor a Hessian of {size:,} x {size:,} in every step of every task")
    f, y = problems.head_problem(tasks, ways, shots, features)
    images, labels = f.double().numpy(), y.numpy()

    def solve(tol):
        options = {"C": 1 / (f.shape[1] * problems.STRENGTH), "fit_intercept": False, "tol": tol, "max_iter": 1000}
        fits = [LogisticRegression(solver=solver, **options).fit(x, t) for x, t in zip(images, labels)]
        return torch.stack([torch.from_numpy(fit.coef_) for fit in fits])

    return at_the_loosest(solve, f, y)


def lbfgs_heads(tasks: int, ways: int, shots: int, features: int) -> Work:
    """torch's L-BFGS, task after task, in float64: in float32 it stalls before the tolerance."""
    f, y = problems.head_problem(tasks, ways, shots, features)

    def solve_task(x, labels, tol):
        W = torch.zeros(ways, features, dtype=x.dtype, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [W], max_iter=200, tolerance_grad=tol, tolerance_change=0, line_search_fn="strong_wolfe"
        )

        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(x @ W.T, labels) + problems.STRENGTH / 2 * W.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return W.detach()

    return at_the_loosest(lambda tol: torch.stack([solve_task(x, t, tol) for x, t in zip(f.double(), y)]), f, y)


def dataloader_episodes(path: Path, tasks: int, workers: int) -> Work:
    """torch's DataLoader over a dataset of single images and a sampler of tasks, as most tutorials have it."""
    from torch.utils.data import DataLoader, TensorDataset

    source = problems.loader_of(path)

    class Tasks:
        def __iter__(self):
            while True:
                classes = torch.randperm(len(source.count))[:5].tolist()
                yield [
                    int(source.start[c]) + i
                    for c in classes
                    for i in torch.randperm(int(source.count[c]))[:16].tolist()
                ]

    data = TensorDataset(*problems.images_and_labels(source))
    drawn = iter(DataLoader(data, batch_sampler=Tasks(), num_workers=workers))
    return lambda: [next(drawn) for _ in range(tasks)], {"episodes": tasks}


def learn2learn_episodes(path: Path, tasks: int) -> Work:
    from learn2learn.data import MetaDataset, TaskDataset
    from learn2learn.data.transforms import ConsecutiveLabels, KShots, LoadData, NWays, RemapLabels
    from torch.utils.data import TensorDataset

    data = MetaDataset(TensorDataset(*problems.images_and_labels(problems.loader_of(path))))
    how = [NWays(data, 5), KShots(data, 16), LoadData(data), RemapLabels(data), ConsecutiveLabels(data)]
    drawn = TaskDataset(data, how, num_tasks=-1)
    return lambda: [drawn.sample() for _ in range(tasks)], {"episodes": tasks}
