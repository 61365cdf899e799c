"""On a CUDA device, where there is one: what the CPU computes, and whole runs."""

import csv
import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from common.capture import Captured
from common.conv4 import BLOCKS
from common.derivatives import batch_norm, convolve, max_pool
from common.episodes import EpisodeLoader
from common.newton import newton_head
from common.run import outer_optimizer
from common.shards import ROOT
from tests.gradients import a_model, an_episode, gradients_of
from tests.test_scripts import every_script

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
CUDA = torch.device("cuda")
every_layout = pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))


def moved(episode):
    """The same episode on the CUDA device."""
    values = vars(episode).items()
    return dataclasses.replace(episode, **{k: v.to(CUDA) for k, v in values if isinstance(v, Tensor)})


def on_both(script, data_dir, **options):
    """A script's settings, and for CPU and CUDA the same model and episode, in float64."""
    config = script.Config(width=8, precision="float32", **options)
    model, episode = a_model(script, config).double(), an_episode(data_dir, torch.float64, shots=2)
    other = a_model(script, config, device=CUDA).double()
    other.load_state_dict(model.state_dict())
    return config, (model, episode), (other, moved(episode))


@every_script
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("channels_last", (False, True))
def test_a_meta_gradient_is_the_cpus(script, block, channels_last, data_dir):
    config, cpu, cuda = on_both(script, data_dir, block=block, channels_last=channels_last)
    expected = gradients_of(script, *cpu, config)
    for name, gradient in gradients_of(script, *cuda, config).items():
        assert gradient.is_cuda and gradient.norm() > 1e-9, name
        torch.testing.assert_close(gradient.cpu(), expected[name], rtol=1e-7, atol=1e-10, msg=name)


@every_script
@pytest.mark.parametrize("transductive", (False, True))
def test_a_prediction_is_the_cpus(script, transductive, data_dir):
    config, cpu, cuda = on_both(script, data_dir)
    logits, others = (script.predict(model.eval(), episode, config, transductive) for model, episode in (cpu, cuda))
    torch.testing.assert_close(others.cpu(), logits, rtol=1e-7, atol=1e-9)


@every_script
@pytest.mark.parametrize("precision", ("float32", "bfloat16"))
def test_a_captured_step_is_the_step_on_other_episodes_and_other_shapes(script, precision, data_dir):
    """Recorded once a shape; gradients, what is told and running averages are those of the step that isn't recorded."""
    config = script.Config(width=8, precision=precision)
    ours, other = (a_model(script, config, device=CUDA) for _ in range(2))
    loader, captured = EpisodeLoader(data_dir / "toy" / "train.h5", 5, 2, 3, 4, CUDA), Captured()
    for shots in (2, 2, 2, 3, 2):
        loader.shots = loader.most_shots = shots
        episode = loader.sample()
        told, expected = captured(script.meta_step, ours, episode, config), script.meta_step(other, episode, config)
        assert told.keys() == expected.keys()
        torch.testing.assert_close(told["loss"], expected["loss"], rtol=1e-3, atol=1e-4)
        for (name, p), q in zip(ours.named_parameters(), other.parameters()):
            assert (p.grad - q.grad).norm() <= 0.05 * q.grad.norm() + 1e-6, name  # kernels add in any order
        for (name, b), c in zip(ours.named_buffers(), other.buffers()):
            torch.testing.assert_close(b, c, rtol=1e-2, atol=1e-3, msg=name)
        ours.zero_grad()
        other.zero_grad()
    assert len(captured.recordings) == 2


@pytest.mark.slow
@every_script
def test_the_memory_of_captured_steps_stays_flat(script, data_dir):
    """Over 2,000 steps with all of main's loop: the optimiser's step, and the numbers that the log keeps for a row."""
    config = script.Config(width=8)
    model, captured = a_model(script, config, device=CUDA), Captured()
    loader, optimizer = EpisodeLoader(data_dir / "toy" / "train.h5", 5, 2, 3, 4, CUDA), outer_optimizer(model, config)
    kept, used = [], []
    for step in range(2000):
        optimizer.zero_grad()
        kept.append(captured(script.meta_step, model, loader.sample(), config))
        optimizer.step()
        if step % 50 == 49:
            kept.clear()
            used.append(torch.cuda.memory_allocated())
    assert max(used[2:]) <= used[2]


def test_a_step_that_asks_the_host_isnt_recorded_and_says_what_to_do():
    """In a process of its own: after a recording that failed, torch draws no more random numbers on the device."""
    code = (
        "import torch; from common.capture import recorded; x = torch.ones(3).cuda(); recorded(lambda: float(x.sum()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "UsageError: meta_step can't be recorded" in done.stderr and "--no-capture" in done.stderr


@every_layout
def test_the_backbones_own_derivatives_are_right(layout):
    """Against finite differences, once and twice."""
    torch.manual_seed(0)
    x = torch.randn(3, 4, 4, 6, dtype=torch.float64, device=CUDA).contiguous(memory_format=layout).requires_grad_()
    weight, bias = (v.requires_grad_() for v in torch.randn(2, 4, dtype=torch.float64, device=CUDA))
    filters = torch.randn(4, 2, 3, 3, dtype=torch.float64, device=CUDA).requires_grad_()
    far_apart = torch.randperm(x.numel(), device=CUDA).double().view_as(x).contiguous(memory_format=layout)
    for function, inputs in (
        (lambda x, w, b: batch_norm(x, w, b, None, None, 0.0, 1e-5)[0], (x, weight, bias)),
        (lambda x, filters: convolve(x, filters, 2).sin(), (x, filters)),
        (lambda x: max_pool(x, False).sin(), (far_apart.requires_grad_(),)),
    ):
        assert torch.autograd.gradcheck(function, inputs, nondet_tol=1e-9)
        assert torch.autograd.gradgradcheck(function, inputs, nondet_tol=1e-9)


@pytest.mark.parametrize("method", ("cholesky", "cg"))
def test_a_head_is_the_cpus_and_what_float32_cant_solve_is_solved_in_float64(method):
    generator = torch.Generator().manual_seed(0)
    f = 30 * torch.randn(4, 10, 65, generator=generator)
    y = torch.arange(5).repeat(4, 2)
    for dtype, rtol in ((torch.float64, 1e-8), (torch.float32, 1e-3)):
        W0, strength = torch.zeros(5, 65, dtype=dtype), torch.tensor(0.002, dtype=dtype)
        problem = f.to(dtype), y, W0, strength
        ours = newton_head(*(v.to(CUDA) for v in problem), method=method, tolerance=1e-8)
        assert ours.converged.all()
        expected = newton_head(*problem, method=method, tolerance=1e-8)
        torch.testing.assert_close(ours.value.cpu(), expected.value, rtol=rtol, atol=rtol)


def test_episodes_keep_the_promises_of_the_cpus(data_dir):
    """The same every time, on the device; of a mapped file the CPU's; and support and query share no image."""
    path = data_dir / "toy" / "train.h5"
    first, again, mapped, on_cpu = (
        EpisodeLoader(path, 5, 2, 3, 8, device, seed=3, memory=memory).sample()
        for device, memory in ((CUDA, "device"), (CUDA, "device"), (CUDA, "mapped"), ("cpu", "mapped"))
    )
    for name, value in vars(first).items():
        assert value.is_cuda and torch.equal(value, getattr(again, name))
        assert getattr(mapped, name).is_cuda
        torch.testing.assert_close(getattr(mapped, name).cpu(), getattr(on_cpu, name))
    for support, query in zip(first.rows[first.support], first.rows[first.query]):
        assert len(set(support.tolist()) | set(query.tolist())) == 5 * (2 + 3)


@pytest.mark.slow
@every_script
def test_a_script_trains_and_its_checkpoint_is_read_again_and_tested(script, data_dir, tmp_path):
    def run(*words):
        command = [sys.executable, str(ROOT / f"{script.__name__}.py"), "--data-dir", str(data_dir), *words]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return json.loads((tmp_path / "run" / "result.json").read_text())

    run("--dataset=toy", "--device=cuda", "--queries=3", "--train-queries=3", "--width=8", "--steps=40", "--tasks=4",
        "--eval-every=20", "--val-episodes=20", "--test-episodes=40", f"--out={tmp_path / 'run'}")  # fmt: skip
    result = run(f"--resume={tmp_path / 'run'}")
    assert result["device"] == "cuda:0" and result["steps"] == 40 and 0 < result["peak_mib"] < 2000
    rows = list(csv.DictReader(open(tmp_path / "run" / "log.csv")))
    assert [row["step"] for row in rows] == ["20", "40"] and all(float(row["val_accuracy"]) > 0.1 for row in rows)
