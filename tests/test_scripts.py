"""What holds for all six algorithms."""

import ast
import copy
import dataclasses
import inspect

import pytest
import torch

import cavia
import convex_imaml
import convex_maml
import imaml
import maml
import reptile
from common import meters, options
from common.augment import Warp, views
from common.conv4 import backbone
from common.episodes import EpisodeLoader
from common.shards import ROOT
from tests.gradients import a_model, an_episode, gradients_of

SCRIPTS = (convex_imaml, convex_maml, maml, imaml, reptile, cavia)
every_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.__name__)
SHARED_BACKBONE = (convex_imaml, convex_maml)  # whose backbone knows no task
UNADAPTED = {
    convex_imaml: dict(newton_steps=0, learn_start=True),
    convex_maml: dict(test_inner_steps=0, learn_start=True),
}


def test_evaluate_and_main_are_the_same_in_every_script_byte_for_byte():
    for name in ("evaluate", "main"):
        assert len({inspect.getsource(getattr(script, name)) for script in SCRIPTS}) == 1, name
    ends = {open(s.__file__).read().partition("# From here on all scripts are the same.")[2] for s in SCRIPTS}
    assert len(ends) == 1 and "def main" in ends.pop()


@every_script
def test_a_script_is_short(script):
    assert len(open(script.__file__).readlines()) <= 220


def folder_of(name, data_dir, glyphs_folder):
    """Where a data set is: toy and glyphs are made by the tests, others built in the project's data folder."""
    return {"toy": data_dir / "toy", "glyphs": glyphs_folder}.get(name, ROOT / "data" / name)


@pytest.mark.slow
@every_script
@pytest.mark.parametrize(
    "name",
    [
        "toy", "glyphs",
        *(pytest.param(name, marks=pytest.mark.skipif(not (ROOT / "data" / name / "test.h5").exists(),
          reason=f"{name} isn't built; see python data_prep/build.py")) for name in ("omniglot", "miniimagenet")),
    ],
)  # fmt: skip
def test_before_training_and_adaptation_accuracy_is_chance_on_every_data_set(name, script, data_dir, glyphs_folder):
    """A model that is neither trained nor adapted knows nothing of which class has which label."""
    config = script.Config(width=16, **UNADAPTED.get(script, dict(test_inner_steps=0)))
    loader = EpisodeLoader(folder_of(name, data_dir, glyphs_folder) / "test.h5", 5, 1, 5, 50, seed=1, pool=(9, 6))
    model = a_model(script, config, loader.image_shape).eval()
    if hasattr(model, "W0"):
        torch.nn.init.normal_(model.W0)
    correct = []
    for _ in range(3):
        episode = loader.sample()
        correct.append((script.predict(model, episode, config).argmax(-1) == episode.y_query).float().mean(1))
    accuracy = torch.cat(correct)
    assert abs(accuracy.mean() - 0.2) < 4 * accuracy.std() / len(accuracy) ** 0.5 + 0.005


@pytest.mark.parametrize("pool", (None, (9, 6)))
def test_neither_a_class_nor_a_place_in_the_query_tells_a_label(pool, data_dir):
    """Who knew an image's class, its rank among the task's classes, or its place in the query would be at chance."""
    loader = EpisodeLoader(data_dir / "toy" / "test.h5", 5, 1, 5, 400, seed=1, pool=pool)
    episode = loader.sample()
    T, Q = episode.y_query.shape
    own = episode.classes.gather(1, episode.y_query)  # (T, Q) the data set's class of each query image
    ranks = (own[:, :, None] > episode.classes[:, None]).sum(-1)  # 0..4
    guesses = {"class": own % 5, "rank of the class": ranks, "order in the query": torch.arange(Q).expand(T, Q) // 5}
    for name, guess in guesses.items():
        accuracy = (guess == episode.y_query).float().mean(1)
        assert abs(accuracy.mean() - 0.2) < 4 * accuracy.std() / T**0.5 + 0.002, name


@pytest.mark.parametrize(
    ("script", "several"),
    [*((script, {}) for script in SCRIPTS), *((script, dict(views=3)) for script in SHARED_BACKBONE)],
    ids=lambda value: getattr(value, "__name__", "several-views" if value else "one-view"),
)
def test_a_shuffled_or_single_query_gives_the_same_inductive_prediction(script, several, data_dir):
    """And the transductive prediction does depend on the other query images."""
    fewer_steps = {"test_inner_steps": 10} if script is reptile else {}
    config = script.Config(width=8, zoom=0.2, shift=0.1, **several, **fewer_steps)
    model, episode = a_model(script, config), an_episode(data_dir, shots=3)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    averaged = any("running" in name for name, _ in model.named_buffers())
    for _ in range(60 if averaged else 1):  # so that running averages are of this data
        gradients_of(script, model, episode, config)
        optimizer.step()
    model.eval()
    logits, loud = (script.predict(model, episode, config, transductive) for transductive in (False, True))
    assert logits.std() > 0.01 and not logits.requires_grad and not loud.requires_grad
    order = torch.randperm(15)
    for kept in (order, [0], [7], [3, 4]):
        alone = script.predict(model, only(episode, kept), config)
        torch.testing.assert_close(alone, logits[:, kept], rtol=1e-3, atol=1e-4)
    few = only(episode, list(range(8)))
    assert not torch.allclose(script.predict(model, few, config, transductive=True), loud[:, :8], atol=1e-3)


@pytest.mark.parametrize("script", SHARED_BACKBONE, ids=lambda s: s.__name__)
@pytest.mark.parametrize("statistics", ("running", "batch"))
def test_outside_training_features_are_means_over_an_images_views(script, statistics, data_dir):
    one, three = (script.Config(width=8, views=n, rotate=10.0, shift=0.1, flip=True) for n in (1, 3))
    model, plain, images = a_model(script, three), a_model(script, one), an_episode(data_dir).images
    torch.testing.assert_close(model.features(images, "batch"), plain.features(images, "batch"))
    model.eval(), plain.eval()
    each = plain.features(views(images, 3, Warp.of(one)), statistics).view(3, len(images), -1)
    torch.testing.assert_close(model.features(images, statistics), each.mean(0))
    assert (each[0] - each[1]).abs().max() > 0.01


@pytest.mark.parametrize("script", (maml, imaml, reptile), ids=lambda s: s.__name__)
def test_statistics_of_the_inductive_test_are_the_supports_at_the_adapted_weights(script, data_dir):
    """Asked for its support images, a task gives what those images, normalised together, are given at phi."""
    config = script.Config(width=8, inner_rate=0.05)
    model, episode = a_model(script, config).eval(), an_episode(data_dir, shots=3)
    episode.query, episode.y_query = episode.support, episode.y_support
    alone, together = (script.predict(model, episode, config, transductive) for transductive in (False, True))
    torch.testing.assert_close(alone, together, rtol=1e-3, atol=1e-4)
    unadapted = torch.stack([model(x, "batch") for x in episode.x_support])
    assert (together - unadapted).abs().max() > 0.1


def only(episode, kept):
    """The same episode with those of its query images alone, in this order; no other image is left in it."""
    T, S, Q = len(episode.query), episode.support.shape[1], len(kept)
    images = torch.cat([episode.x_support, episode.x_query[:, kept]], 1).flatten(0, 1)
    places = torch.arange(len(images)).view(T, S + Q)
    return dataclasses.replace(
        episode, images=images, support=places[:, :S], query=places[:, S:], y_query=episode.y_query[:, kept]
    )


@every_script
def test_gradients_are_a_mean_over_tasks(script, data_dir):
    """The same tasks twice give the same meta-gradient as once."""
    config = script.Config(width=4)
    model, episode = a_model(script, config).double(), an_episode(data_dir, torch.float64)
    once = gradients_of(script, copy.deepcopy(model), episode, config)
    for field in ("support", "query", "y_support", "y_query", "classes"):
        setattr(episode, field, getattr(episode, field).repeat(2, 1))
    for name, gradient in gradients_of(script, model, episode, config).items():
        assert gradient.norm() > 0
        torch.testing.assert_close(gradient, once[name], rtol=1e-5, atol=1e-8)


@every_script
def test_every_evaluation_of_a_loader_has_the_same_episodes(script, data_dir):
    """So that validations compare weights, and the transductive test has the inductive one's tasks."""
    config = script.Config(width=4)
    loader = EpisodeLoader(data_dir / "toy" / "test.h5", 5, 1, 3, 2, seed=-2)
    first, second = (script.evaluate(a_model(script, config), loader, 3, config) for _ in range(2))
    for key in ("classes", "support_rows", "query_rows", "query_labels", "predicted"):
        assert len(first[key]) == 3 and (first[key] == second[key]).all(), key


@every_script
def test_testing_leaves_the_model_as_it_was(script, data_dir):
    config = script.Config(width=4)
    model, episode = a_model(script, config).eval(), an_episode(data_dir)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for transductive in (False, True):
        script.predict(model, episode, config, transductive)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@every_script
def test_precision_is_by_default_bfloat16_where_the_processor_multiplies_it_but_for_imaml(script, monkeypatch):
    for multiplies in (True, False):
        monkeypatch.setattr(meters, "has_bfloat16", lambda multiplies=multiplies: multiplies)
        expected = "bfloat16" if multiplies and script is not imaml else "float32"
        for device, precision in (("cpu", expected), ("cuda", "float32")):
            assert meters.settled_precision(script.Config().precision, torch.device(device)) == precision
        assert meters.settled_precision("bfloat16", torch.device("cuda")) == "bfloat16"
        assert backbone((1, 28, 28), script.Config(width=4), torch.device("cpu")).precision == getattr(torch, expected)


@pytest.mark.parametrize("script", (convex_maml, maml, imaml, reptile, cavia), ids=lambda s: s.__name__)
def test_a_test_task_adapts_by_the_tests_number_of_steps_not_the_trainings(script, data_dir):
    def predictions(**steps):
        config = script.Config(width=4, precision="float32", inner_rate=0.05, **steps)
        return script.predict(a_model(script, config).eval(), an_episode(data_dir, shots=2), config)

    two = predictions(inner_steps=1, test_inner_steps=2)
    assert torch.equal(two, predictions(inner_steps=4, test_inner_steps=2))
    assert not torch.allclose(two, predictions(inner_steps=1, test_inner_steps=4), rtol=1e-3, atol=1e-5)


@every_script
def test_every_help_text_is_one_line_of_whole_sentences(script):
    for module, name in ((script, "Config"), (options, "Options")):
        (config,) = (
            node
            for node in ast.parse(open(module.__file__).read()).body
            if isinstance(node, ast.ClassDef) and node.name == name
        )
        for field, text in zip(config.body, config.body[1:]):
            if isinstance(field, ast.AnnAssign):
                said = ast.literal_eval(text.value)
                assert said.endswith(".") and "\n" not in said, field.target.id
