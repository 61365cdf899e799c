"""The benchmarks behind the paper's claims: what they time, compare and certify."""

import dataclasses
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import convex_imaml
from benchmarks import SCRIPTS, alike, certificate, compare, imbalance, paths, real, settings, steps, widths
from common import meters
from common.command import parse
from common.newton import newton_head
from common.shards import UsageError
from reports.runs import Run
from reports.times import Times
from tests.runs import TINY, state_of
from tests.test_benchmarks import benchmark

# Path independence


@pytest.fixture(scope="module")
def heads(data_dir):
    return next(real.heads(real.Options(dataset="toy", data_dir=data_dir), tasks=3))


@pytest.mark.slow
def test_every_routine_leads_to_the_same_head_and_the_same_meta_gradient(data_dir, heads, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)  # isn't installed
    options = paths.Options(dataset="toy", data_dir=data_dir, digits=6, repeats=1)
    rows = paths.measure(heads, options)
    assert "scikit-learn is left out" in capsys.readouterr().err
    by_routine = {name: [row for row in rows if row["routine"] == name] for name in paths.ROUTINES}
    assert [len(its) for its in by_routine.values()] == [6, 6, 6, 6, 6, 0]
    for its in filter(None, by_routine.values()):
        assert its[-1]["distance"] < 1.5e-6 and its[-1]["gradient_distance"] < 1e-4
        assert its[0]["distance"] > 10 * its[-1]["distance"] and all(row["ms"] > 0 for row in its)
        assert all(row["distance"] <= 2 * row["tolerance"] for row in its)
    assert paths.plot(rows, "title")[:4] == b"\x89PNG"
    assert "| L-BFGS | 1e-06 |" in paths.as_table(rows)


def test_the_meta_gradient_at_the_optimum_is_that_of_the_solver(heads):
    f, W0, strength = (x.clone().requires_grad_() for x in (heads.features, heads.W0, heads.strength))
    W = newton_head(f, heads.labels, W0, strength, tolerance=1e-14, iterations=100).value
    logits = heads.scale * heads.f_query @ W.mT
    F.cross_entropy(logits.flatten(0, 1), heads.y_query.flatten()).backward()
    mine = paths.meta_gradient(heads, W.detach())
    to_features, to_W0, to_strength = mine.split([f[0].numel(), W0.numel(), 1], 1)
    assert f.grad.norm() > 0 and W0.grad.norm() > 0 and strength.grad.abs() > 0
    torch.testing.assert_close(to_features, f.grad.flatten(1), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(to_W0.sum(0), W0.grad.flatten(), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(to_strength.sum(), strength.grad, rtol=1e-8, atol=1e-12)


def test_heads_of_a_run_are_those_that_it_solves(command, data_dir, tmp_path):
    assert command(f"{TINY} --steps 2 --strength 0.5 --out run") == 0
    heads = next(real.heads(real.Options(dataset="toy", data_dir=data_dir, run=tmp_path / "run"), tasks=2))
    best = state_of(tmp_path / "run")["best_state"]
    assert float(heads.strength) == pytest.approx(float(best["log_strength"].exp()))
    assert heads.features.dtype == torch.float64 and heads.f_query.shape == (2, 75, heads.W0.shape[1])
    with pytest.raises(UsageError, match="is no whole run folder"):
        next(real.heads(real.Options(dataset="toy", data_dir=data_dir, run=tmp_path), tasks=2))


# The certificate


@pytest.mark.slow
def test_residual_over_strength_bounds_the_distance_at_every_newton_step(data_dir):
    options = certificate.Options(dataset="toy", data_dir=data_dir, episodes=40, tasks=20, checked=20, steps=6)
    found, distances = certificate.measure(options)
    assert found.shape == (7, 40) and distances.shape == (7, 20)
    assert (found[:, :20] >= distances * (1 - 1e-9) - 1e-12).all()
    assert distances[0] == pytest.approx(np.ones(20)) and distances[-1].max() < 1e-10
    rows = certificate.rows_of(found, distances, 1e-4)
    assert [row["false"] for row in rows] == [0] * 7 and rows[0]["share"] == 0 and rows[-1]["share"] == 1
    assert rows[2]["q50"] == pytest.approx(np.median(found[2])) and rows[2]["q100"] == found[2].max()
    assert certificate.plot(rows, "title", 1e-4)[:4] == b"\x89PNG"


def test_a_certificate_below_the_distance_is_counted():
    found = np.array([[1.0, 1.0, 1.0]])
    assert certificate.rows_of(found, np.array([[1.1, 0.9]]), 1e-4)[0]["false"] == 1
    with pytest.raises(UsageError, match="--episodes 10 and --checked 20"):
        certificate.Options(episodes=10, tasks=5, checked=20)


# Times of steps


@pytest.mark.parametrize("as_alike", (False, True))
def test_a_run_with_a_scripts_settings_finds_its_line_of_the_table_of_times(as_alike, tmp_path, monkeypatch):
    """And one with another width doesn't. Steps on images of half the side have a time of their own."""

    def measured(pieces, turns, warmup):
        assert {progress for _, progress in pieces} == ({1.0} if as_alike else {0.0, 1.0})
        order = {key: 0.01 * (i + 1) for i, key in enumerate(pieces)}
        return {key: SimpleNamespace(error=None, seconds=[s, s, s]) for key, s in order.items()}

    monkeypatch.setattr(steps, "side_by_side", measured)
    steps.main(steps.Options(dataset="miniimagenet", alike=as_alike, out=tmp_path))
    (path,) = tmp_path.glob("steps-miniimagenet*.json")
    times = Times([path])
    assert len(times.rows) == (6 if as_alike else 12)
    for name in SCRIPTS:
        given = alike.options_of(name, "miniimagenet") if as_alike else {}
        _, config = settings(name, "miniimagenet", seed=5, learning_rate=0.5, **given)
        options = {"algorithm": name, **dataclasses.asdict(config)}
        precision = meters.settled_precision(config.precision, torch.device("cpu"))
        row = times.row(Run(tmp_path, {"options": options, "precision": precision}))
        assert row["algorithm"] == name and row["shots"] == 1
        assert (row["half_ms"] is None) == (not config.half_size)
        assert times.row(Run(tmp_path, {"options": options | {"width": 7}, "precision": precision})) is None
    assert f"| {times.rows[0]['ms']:.1f} (" in path.with_suffix(".md").read_text()


def test_steps_in_some_minutes_are_counted_with_both_sizes_of_images():
    row = {"ms": 100.0, "half_ms": 50.0, "options": {"half_size": 0.4}}
    assert steps.steps_in(8, row) == 8 * 60 * 1000 // 80
    assert steps.steps_in(1, {"ms": 100.0, "half_ms": None, "options": {"half_size": 0.0}}) == 600


@pytest.mark.slow
def test_whole_steps_of_several_scripts_are_timed_in_turns(data_dir, tmp_path):
    options = "--dataset toy --algorithms maml reptile --shots 1 --turns 3 --warmup 1"
    benchmark("steps", tmp_path, f"--data-dir {data_dir} {options}")
    table = json.loads((tmp_path / "steps-toy.json").read_text())
    assert [row["algorithm"] for row in table["rows"]] == ["maml", "reptile"] and table["processor"]
    assert all(0 < row["ms_low"] <= row["ms"] <= row["ms_high"] for row in table["rows"])


# Like for like


@pytest.mark.parametrize("dataset", ("omniglot", "miniimagenet"))
def test_like_for_like_all_scripts_have_one_network_and_the_same_images_a_step(dataset, monkeypatch):
    """As a command line, which a script reads; and SETTINGS of a data set leave nothing of their own behind."""
    configs = {}
    for name in SCRIPTS:
        words = [f"--{word}" for word in alike.words(alike.options_of(name, dataset))]
        script, _ = settings(name, dataset)
        monkeypatch.setattr(sys, "argv", [name, "--dataset", dataset, "--device", "cpu", *words])
        configs[name] = parse(script.Config, script.SETTINGS)
    own = {"train_shots", "train_queries", "steps", "eval_every", "learning_rate", "outer", "clip"}
    first = dataclasses.asdict(configs["maml"])
    shared = {field.name for field in dataclasses.fields(convex_imaml.Options)} - own
    for name, config in configs.items():
        assert {k: getattr(config, k) for k in shared} == {k: first[k] for k in shared}, name
        assert getattr(config, "views", 1) == 1
        shots, queries = config.train_shots or config.shots, config.train_queries
        trained = shots if name == "reptile" else shots + queries
        assert trained == 1 + configs["maml"].train_queries and config.tasks == configs["maml"].tasks


def test_the_rate_is_that_with_the_highest_mean_validation_accuracy(tmp_path, monkeypatch):
    accuracies = {"0.001": (0.5, 0.9), "0.003": (0.8, 0.8), "0.01": (0.9, 0.6)}

    def train(options, script, variant, seed):
        assert "precision=float32" in options.options and "no-flip" in options.options
        result = {"algorithm": "maml", "seed": seed, "steps": 1, "step_ms": 1.0, "config": {}, "test_accuracy": 0.5}
        return result | {"val_accuracy": accuracies[variant.removeprefix("learning-rate=")][seed]}

    monkeypatch.setattr(compare, "train", train)
    options = alike.Options(dataset="omniglot", seeds=(0, 1), out=tmp_path)
    assert alike.best_rate("maml", options) == 0.003
    assert (tmp_path / "rates-maml-omniglot.md").exists()


@pytest.mark.slow
def test_like_for_like_trains_with_the_chosen_rate_and_is_not_repeated(data_dir, tmp_path, in_this_process):
    words = f"--dataset toy --data-dir {data_dir} --algorithms convex_imaml --steps 4 --eval-every 2 --rate-steps 1"
    words += f" --seeds 0 --val-episodes 2 --test-episodes 2 --device cpu --runs {tmp_path / 'runs'}"
    words = [*words.split(), "--out", tmp_path]
    in_this_process("alike", words)
    saved = json.loads((tmp_path / "runs" / "convex_imaml-toy" / "config.json").read_text())["options"]
    runs = json.loads((tmp_path / "rates-convex_imaml-toy.json").read_text())["runs"]
    best = max(runs, key=lambda run: run["val_accuracy"])
    assert len(runs) == 3 and f"learning-rate={saved['learning_rate']:g}" in {
        run["variant"] for run in runs if run["val_accuracy"] == best["val_accuracy"]
    }
    assert len(in_this_process.started) == 4
    in_this_process("alike", words)
    assert len(in_this_process.started) == 4


# Imbalance and width


def test_accuracy_is_told_by_the_number_of_support_images_of_a_querys_class(tmp_path):
    np.savez(
        tmp_path / "episodes.npz", classes=np.zeros((2, 2)), support_labels=[[0, 0, 0, 1], [0, 1, 1, 1]],
        query_labels=[[0, 0, 1, 1], [0, 0, 1, 1]], predicted=[[0, 0, 1, 0], [1, 1, 1, 1]],
    )  # fmt: skip
    found = imbalance.by_shots(tmp_path)
    assert {shots: mean for shots, (mean, _) in found.items()} == {1: 0.25, 3: 1.0}


@pytest.mark.slow
def test_runs_with_equal_and_unequal_shots_are_each_tested_with_both(data_dir, tmp_path, in_this_process):
    words = f"--dataset toy --data-dir {data_dir} --algorithms convex_imaml --steps 2 --test-episodes 4 --device cpu"
    words += f" --shots 3 --queries 3 --runs {tmp_path / 'runs'} --out {tmp_path}"
    in_this_process("imbalance", words.split())
    (row,) = json.loads((tmp_path / "imbalance-toy.json").read_text())["rows"]
    tests = ("equal", "unequal", "repeated")
    assert set(row["tests"]) == {f"{a}, {b}" for a in ("equal", "unequal") for b in tests}
    assert set(row["by_shots"]) <= set("12345") and "3" in row["by_shots"]
    run = tmp_path / "runs" / "convex_imaml-toy-unequal"
    for tested, several in (("equal", False), ("unequal", True)):
        with np.load(run / f"test-{tested}" / "episodes.npz") as kept:
            counts = [np.bincount(labels, minlength=5).tolist() for labels in kept["support_labels"]]
        assert any(of_task != [3] * 5 for of_task in counts) == several
    with np.load(run / "test-repeated" / "episodes.npz") as repeated:
        assert repeated["support_labels"].shape[1] == 25
    trained = json.loads((run / "config.json").read_text())["options"]
    assert trained["unequal_shots"] and trained["views"] == 1
    assert (tmp_path / "imbalance-toy.png").read_bytes()[:4] == b"\x89PNG"
    run.with_name("convex_imaml-toy-equal").rename(tmp_path / "released")
    words = words.replace(f"{tmp_path / 'runs'}", f"{tmp_path / 'tests'} --of {tmp_path / 'released'}")
    in_this_process("imbalance", words.split())
    (again,) = json.loads((tmp_path / "imbalance-toy-released.json").read_text())["rows"]
    assert again["tests"] == {name: result for name, result in row["tests"].items() if name.startswith("equal")}
    table = (tmp_path / "imbalance-toy-released.md").read_text()
    assert "| Convex iMAML, released | 2 | equal |" in table and table.count("| 2 |") == 1


def test_widths_are_compared_with_steps_in_turns_and_the_solvers_iterations_beside_them(tmp_path, monkeypatch):
    def train(options, script, variant, seed):
        assert "first-width=0" in options.options
        width = int(variant.removeprefix("width="))
        result = {"algorithm": script.removesuffix(".py"), "seed": seed, "steps": 1, "step_ms": 1.0}
        result |= {"width": width, "val_accuracy": width / 100 + seed / 10, "test_accuracy": 0.5, "config": {}}
        return result | ({"iterations": 5.0} if script == "convex_imaml.py" else {})

    def in_turns(pieces, turns, warmup):
        assert all(piece.args[-1]["width"] == width for (_, width), piece in pieces.items())
        return {key: SimpleNamespace(error=None, seconds=[1e-3 * key[1] * n for n in (1, 2, 3)]) for key in pieces}

    monkeypatch.setattr(compare, "train", train)
    monkeypatch.setattr(widths, "side_by_side", in_turns)
    for seeds in ((0, 1, 2), (0, 1)):  # the third stays in the JSON
        widths.main(widths.Options(dataset="omniglot", widths=(8, 16), seeds=seeds, out=tmp_path))
    saved = json.loads((tmp_path / "widths-omniglot.json").read_text())
    assert len(saved["runs"]) == 12 and [row["ms"] for row in saved["times"]["rows"]] == pytest.approx([16, 32] * 2)
    table = (tmp_path / "widths-omniglot.md").read_text()
    assert "| Convex iMAML | 16 | 0.1600 | 0.2600 | 0.2100 | 5 | 32 (16 to 48) |" in table
    assert "| Convex MAML | 8 | 0.0800 | 0.1800 | 0.1300 |  | 16 (8 to 24) |" in table
    assert (tmp_path / "widths-omniglot.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UsageError, match="expected two or more"):
        widths.Options(widths=(8, 8))
    with pytest.raises(UsageError, match="--turns 1"):
        widths.Options(turns=1)
