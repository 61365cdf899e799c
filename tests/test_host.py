"""The way that a GPU takes, on the CPU: a step that asks the host nothing, and is recorded once and replayed."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from common import capture, meters
from common.capture import Captured
from common.episodes import EpisodeLoader, Warp
from common.newton import UNASKED_STEPS, newton_head
from tests.gradients import a_model, an_episode
from tests.test_scripts import every_script

aten = torch.ops.aten
ASKS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten.lift_fresh}


class Unasked(TorchDispatchMode):
    """Raises where a GPU would wait: for a number's value, for how many are true, or for what comes from the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        masks = function.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and [
            i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)
        ]
        if masks or function.overloadpacket in ASKS:
            raise AssertionError(f"asks the host: {function}")
        return function(*args, **(kwargs or {}))


class Counted(TorchDispatchMode):
    """Counts the operations that are no views: a GPU launches a kernel or more for each."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        views = [r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns]
        self.count += not any(views) and function.overloadpacket != aten._unsafe_view
        return function(*args, **(kwargs or {}))


def one_hot(labels, ways):
    """F.one_hot, which asks on the CPU alone."""
    return (labels[..., None] == torch.arange(ways)).long()


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(meters, "questions", lambda x: "impossible")
    monkeypatch.setattr(F, "one_hot", one_hot)


def step(script, model, episode, config):
    """What a step tells, and leaves in gradients and buffers."""
    model.zero_grad()
    told = script.meta_step(model, episode, config)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return told, gradients | {name: b.clone() for name, b in model.named_buffers()}


@pytest.mark.parametrize(
    "asking",
    [
        lambda x: x.sum().item(), lambda x: bool((x > 0).all()), lambda x: x[x > 0], lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: (x > 0).nonzero(), lambda x: F.one_hot(x.long()), lambda x: x.masked_select(x > 0),
        lambda x: torch.equal(x, x),
    ],
)  # fmt: skip
def test_the_host_is_noticed_where_it_is_asked(asking):
    with Unasked(), pytest.raises(AssertionError, match="asks the host"):
        asking(torch.ones(3))


@every_script
def test_the_host_is_asked_nothing_by_a_meta_step_which_tells_what_the_cpus_own_does(script, data_dir, as_on_a_gpu):
    """Also where a script is told of ways and shots beyond which its solver takes another way."""
    config = script.Config(width=8, precision="float32")
    for ways, shots in ((5, 2), (5, 9)):
        model, episode = a_model(script, config), an_episode(data_dir, shots=shots, queries=3, ways=ways)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        step(script, model, episode, config)  # once, for constants that are made at their first use
        model.load_state_dict(state)
        with Unasked():
            told, left = step(script, model, episode, config)
        with pytest.MonkeyPatch.context() as own:
            own.setattr(meters, "questions", lambda x: "free")
            model.load_state_dict(state)
            expected, left_there = step(script, model, episode, config)
        assert set(told) == set(expected)
        for name in left:
            assert (left[name] - left_there[name]).norm() <= 1e-3 * left_there[name].norm(), name
        for name in set(told) - {"residual", "certificate", "gradient_error", "iterations"}:
            torch.testing.assert_close(told[name], expected[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("pool", (None, (10, 8)))
def test_the_host_is_asked_nothing_by_a_loader(data_dir, as_on_a_gpu, pool):
    how = Warp(flip=True, rotate=10, zoom=0.1, shift=0.1, flip_class=True, rotate_class=45, jitter=0.3)
    loader = EpisodeLoader(data_dir / "toy" / "train.h5", 5, 2, 3, 4, pool=pool, warp=how, unequal=True)
    with Unasked():
        loader.sample()


def test_a_head_is_asked_about_after_the_steps_that_are_enough_or_while_it_is_recorded_never(monkeypatch):
    """What takes 5 steps is found unasked; what takes more only where it can be asked about."""
    generator = torch.Generator().manual_seed(0)
    f, y = torch.randn(4, 10, 65, generator=generator), torch.arange(5).repeat(4, 2)
    rest, negative = (y, torch.zeros(5, 65), torch.tensor(0.002)), torch.tensor(-1.0)
    expected = {size: newton_head(size * f, *rest, tolerance=1e-6) for size in (2, 1000)}
    assert expected[2].iterations.max() <= UNASKED_STEPS < expected[1000].iterations.max()
    for answer, enough in (("impossible", False), ("dear", True)):
        monkeypatch.setattr(meters, "questions", lambda x: answer)
        for size, solution in expected.items():
            ours = newton_head(size * f, *rest, tolerance=1e-6)
            if size == 2 or enough:
                assert ours.converged.all() and ours.iterations.equal(solution.iterations)
                torch.testing.assert_close(ours.value, solution.value, rtol=1e-3, atol=1e-6)
            else:
                assert not ours.converged.all() and ours.iterations.max() == UNASKED_STEPS
        without = newton_head(f, *rest[:2], negative)
        assert without.value.isnan().all() and not without.converged.any()


def test_a_newton_step_is_few_operations(as_on_a_gpu):
    f = torch.randn(4, 10, 65, generator=torch.Generator().manual_seed(0))
    counts = []
    for steps in (3, 4):
        with Counted() as counted:
            newton_head(f, torch.arange(5).repeat(4, 2), torch.zeros(5, 65), torch.tensor(0.002), iterations=steps)
        counts.append(counted.count)
    assert counts[1] - counts[0] <= 45


def replaying(model):
    """`recorded`, but that what is replayed is the step itself, whose results are written into the first ones; like a
    graph's replay it leaves alone which tensors are the model's gradients."""

    def recorded(step):
        results = step()

        def replay():
            gradients = [p.grad for p in model.parameters()]
            for static, new in zip(results, step()):
                for name in static:
                    static[name].copy_(new[name])
            for p, gradient in zip(model.parameters(), gradients):
                p.grad = gradient

        return replay, results

    return recorded


@pytest.mark.slow
@every_script
def test_a_captured_step_gives_what_the_step_does_on_other_episodes_and_shapes(script, data_dir, monkeypatch):
    config = script.Config(width=8, precision="float32")
    ours, other = a_model(script, config), a_model(script, config)
    monkeypatch.setattr(capture, "recorded", replaying(ours))
    captured = Captured()
    loader = EpisodeLoader(data_dir / "toy" / "train.h5", 5, 2, 3, 4)
    kept = []
    for shots in (2, 2, 3, 2):
        loader.shots = loader.most_shots = shots
        for _ in range(2):  # two batches of a meta-step, whose gradients add up
            episode = loader.sample()
            kept.append((captured(script.meta_step, ours, episode, config), script.meta_step(other, episode, config)))
        for (name, p), q in zip(ours.named_parameters(), other.parameters()):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-7, msg=name)
        for (name, b), c in zip(ours.named_buffers(), other.buffers()):
            torch.testing.assert_close(b, c, msg=name)
        ours.zero_grad()
        other.zero_grad()
    assert len(captured.recordings) == 2
    for told, expected in kept:  # nothing that was told before has been written over
        assert told.keys() == expected.keys()
        for name in told:
            torch.testing.assert_close(told[name], expected[name], msg=name)
