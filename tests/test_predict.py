"""predict.py labels pictures of one's own exactly as a script's test would, and says in one line what it can't do."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import cavia
import convex_imaml
import convex_maml
import imaml
import maml
import reptile
from common.episodes import EpisodeLoader
from predictions import folders, task, trained
from tests.labels import draw, refused

SCRIPTS = [
    convex_imaml, *(pytest.param(s, marks=pytest.mark.slow) for s in (convex_maml, maml, imaml, reptile, cavia))
]  # fmt: skip
CPU = torch.device("cpu")


def equals_the_scripts_own(script, run, data_dir, tmp_path, image_size=0):
    """Whether a test episode's pictures, written as files and read again, get the very logits that the test gives."""
    learner = trained.Learner(trained.read(run, None), 5, CPU)
    test = data_dir / "toy" / "test.h5"
    stored = EpisodeLoader(test, 5, 2, 3, 1, seed=-2).pixels
    loader = EpisodeLoader(test, 5, 2, 3, 1, seed=-2, image_size=image_size)
    episode = loader.sample()
    files = []
    for number, row in enumerate(episode.rows):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(stored[row, 0].numpy()).save(files[-1])
    images = torch.from_numpy(folders.Prepared(learner.trained, None).images(files))
    support, query = images[episode.support[0]], images[episode.query[0]]
    ours = learner.logits(support, episode.y_support[0], query)

    model = script.Model(loader.image_shape, learner.config, CPU)
    model.load_state_dict(torch.load(run / "checkpoint.pt", weights_only=True)["best_state"])
    model.eval()
    order = torch.cat([episode.support[0], episode.query[0]])
    episode.images, n = episode.images[order], episode.support.shape[1]
    episode.support, episode.query = torch.arange(n)[None], torch.arange(n, len(order))[None]
    expected = script.predict(model, episode, learner.config)[0]
    return torch.equal(ours, expected.detach()) and ours.std() > 1e-3


@pytest.mark.parametrize("script", SCRIPTS)
def test_logits_equal_the_scripts_own_on_a_test_episode(script, train, data_dir, tmp_path):
    assert equals_the_scripts_own(script, train(script), data_dir, tmp_path)


def test_logits_of_a_run_whose_images_were_resized_equal_its_own(train, data_dir, tmp_path):
    run = train(options="--image-size 20 --keep-border --steps 20")
    assert equals_the_scripts_own(convex_imaml, run, data_dir, tmp_path, image_size=20)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_picture_gets_the_same_probabilities_whatever_else_is_asked_and_however_many_each_class_has(
    script, train, predicted, data_dir, tmp_path, monkeypatch
):
    run = train(script)
    support = draw(tmp_path / "support", (1, 3, 2, 1, 4), data_dir)
    query = draw(tmp_path / "query", (4, 4, 4, 4, 4), data_dir, first=10)
    _, _, rows = predicted(run, "--support", support, "--query", query)
    monkeypatch.setattr(trained, "PIXELS_AT_A_TIME", 28 * 28 * 3)  # in parts of three pictures
    _, _, parts = predicted(run, "--support", support, "--query", query)
    _, _, alone = predicted(run, "--support", support, "--query", query / "class3" / "2.png")
    assert [row["file"] for row in rows] == [f"class{c}/{i}.png" for c in range(5) for i in range(4)]
    probabilities, in_parts = (
        np.array([[float(row[f"p(class{c})"]) for c in range(5)] for row in of_rows]) for of_rows in (rows, parts)
    )
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(probabilities, in_parts, atol=2e-2)  # bfloat16 rounds by batch
    assert [row["predicted"] for row in rows] == [f"class{c}" for c in probabilities.argmax(1)]
    one = [float(alone[0][f"p(class{c})"]) for c in range(5)]
    np.testing.assert_allclose(one, probabilities[14], atol=2e-2)


@pytest.mark.slow
def test_a_class_is_no_likelier_for_having_more_pictures(train, predicted, data_dir, tmp_path):
    """Copies of one picture teach nothing, so they may change nothing."""
    run = train(options="--steps 20")
    support = draw(tmp_path / "support", (1, 1, 1), data_dir)
    query = draw(tmp_path / "query", (4, 4, 4), data_dir, first=10)
    _, said, once = predicted(run, "--support", support, "--query", query)
    assert "support pictures; those of smaller" not in said
    for i in range(1, 9):
        shutil.copy(support / "class1" / "0.png", support / "class1" / f"{i}.png")
    status, said, often = predicted(run, "--support", support, "--query", query)
    assert status == 0 and "note: the classes have 1 to 9 support pictures" in said
    values = [np.array([[float(row[f"p(class{c})"]) for c in range(3)] for row in rows]) for rows in (once, often)]
    np.testing.assert_allclose(*values, atol=2e-3)
    assert np.ptp(values[0], axis=1).mean() > 0.05


def test_smaller_classes_are_repeated_and_equal_ones_keep_their_order():
    assert trained.evenly(torch.tensor([2, 0, 1, 1, 2, 0])).tolist() == list(range(6))
    labels = torch.tensor([0, 1, 1, 2, 2, 2, 2, 2])
    places = trained.evenly(labels)
    assert labels[places].bincount().tolist() == [5, 5, 5]
    assert places.bincount().tolist() == [5, 3, 2, 1, 1, 1, 1, 1]
    many = torch.tensor([0] * 2000 + [1])
    assert many[trained.evenly(many)].bincount().tolist() == [2000, trained.MOST_SUPPORT // 2]


def test_accuracy_and_confusion_are_those_of_the_table(train, predicted, data_dir, tmp_path):
    run = train()
    support = draw(tmp_path / "support", (2, 2, 2), data_dir)
    query = draw(tmp_path / "query", (5, 6, 7, 2), data_dir, first=10)  # of class3 nothing was shown
    status, said, rows = predicted(run, "--support", support, "--query", query)
    known = [row for row in rows if not row["file"].startswith("class3/")]
    right = sum(row["file"].startswith(row["predicted"]) for row in known)
    assert status == 0 and len(rows) == 20 and f"accuracy {right / 18:.4f}: {right} of 18 pictures" in said
    taken = [
        sum(row["file"].startswith("class1/") and row["predicted"] == f"class{c}" for row in rows) for c in range(3)
    ]
    line = next(line for line in said.splitlines() if line.startswith("class1"))
    assert list(map(int, line.split()[2:5])) == taken and sum(taken) == 6


@pytest.mark.slow
def test_a_saved_task_labels_alike_without_the_run_and_its_data(train, predicted, data_dir, tmp_path):
    run = train()
    support = draw(tmp_path / "support", (1, 2, 3), data_dir)
    query = draw(tmp_path / "query", (3, 3, 3), data_dir, first=10)
    _, _, before = predicted(run, "--support", support, "--query", query, "--save", tmp_path / "kept" / "task.pt")
    shutil.rmtree(run)
    shutil.rmtree(support)
    status, said, after = predicted(tmp_path / "kept" / "task.pt", "--query", query)
    assert status == 0 and before == after and "6 support pictures of 3 classes" in said
    assert task.load(tmp_path / "kept" / "task.pt").classes == ["class0", "class1", "class2"]
    said = refused(predicted, tmp_path / "kept" / "task.pt", "--query", query, "--support", query)
    assert "has its own support set" in said
    (tmp_path / "junk.pt").write_bytes(b"junk")
    assert "that predict.py --save wrote" in refused(predicted, tmp_path / "junk.pt", "--query", query)
