"""What several tests of meta-gradients share."""

import torch

from common.episodes import EpisodeLoader

CPU = torch.device("cpu")


def a_model(script, config, shape=(1, 28, 28), seed=0, device=CPU):
    torch.manual_seed(seed)
    return script.Model(shape, config, device)


def an_episode(data_dir, dtype=torch.float32, name="toy", ways=5, shots=1, queries=3, tasks=3, **options):
    episode = EpisodeLoader(data_dir / name / "test.h5", ways, shots, queries, tasks, **options).sample()
    episode.images = episode.images.to(dtype)
    return episode


def gradients_of(script, model, episode, config):
    model.zero_grad()
    script.meta_step(model, episode, config)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_gradients_are_those_of_the_loss(script, model, episode, config, rtol=1e-5):
    """Every parameter's meta-gradient is non-zero, and along a random direction the central difference of the loss.

    The steps are short, so that no ReLU or maximum changes sides.
    """
    for name, gradient in gradients_of(script, model, episode, config).items():
        parameter = model.get_parameter(name)
        assert gradient.norm() > 1e-6, f"{name}: {gradient.norm()}"
        direction = torch.randn_like(parameter)
        losses = []
        for step in (1e-7, -1e-7):
            with torch.no_grad():
                parameter += step * direction
            losses.append(script.meta_step(model, episode, config)["loss"])
            with torch.no_grad():
                parameter -= step * direction
        numeric = (losses[0] - losses[1]) / 2e-7
        along = (gradient * direction).sum()
        torch.testing.assert_close(along, numeric, rtol=rtol, atol=1e-7, msg=lambda said: f"{name}: {said}")


def differences(values, parameters):
    """Jacobian of values() (m,) in float64 parameters, by central differences.   (m, n)"""
    columns = []
    for parameter in parameters:
        before = parameter.data
        for i in range(parameter.numel()):
            ends = []
            for step in (1e-6, -1e-6):
                moved = before.reshape(-1).clone()
                moved[i] += step
                parameter.data = moved.view_as(before)
                ends.append(values())
            columns.append((ends[0] - ends[1]) / 2e-6)
        parameter.data = before
    return torch.stack(columns, 1)


def hessian(loss, parameters):
    """Dense Hessian of loss() in float64 parameters, by central differences of its gradient.   (n, n)"""

    def gradient():
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss(), parameters)])

    return differences(gradient, parameters)
