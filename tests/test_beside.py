"""Trainings beside a peer: that ours are the scripts' own, when they end, and what the table says of them."""

import dataclasses
import importlib.util
import json

import pytest
import torch

import maml
from benchmarks import beside
from benchmarks.trainings import of_script
from common.meters import mean_ci95
from common.shards import UsageError
from tests.runs import rows_of
from tests.test_benchmarks import benchmark

CURVE = [
    {"step": 20, "inductive": (0.85, 0.01), "transductive": (0.91, 0.01)},
    {"step": 22, "inductive": (0.92, 0.01), "transductive": (0.96, 0.01)},
    {"step": 25, "inductive": (0.955, 0.01), "transductive": (0.94, 0.01)},
]


@pytest.mark.slow
def test_a_script_trains_here_as_its_command_does(command, data_dir, tmp_path, monkeypatch):
    """With the learning rate's schedule, so that validations after the same steps have the same accuracy."""
    options = dict(steps=10, tasks=2, width=4, train_queries=2, eval_every=5, val_episodes=10, keep_memory=False)
    monkeypatch.setitem(maml.SETTINGS, "toy", options)
    assert command("--dataset toy --out run --test-episodes 2 --device cpu", maml) == 0
    training = of_script("maml", "toy", data_dir=data_dir, device="cpu")
    assert training.budget == 10
    accuracies = []
    for _ in range(2):
        for _ in range(5):
            training.step()
        accuracies.append(mean_ci95(training.validate()["inductive"])[0])
    logged = [float(row["val_accuracy"]) for row in rows_of(tmp_path / "run")]
    assert accuracies == pytest.approx(logged) and accuracies[0] != accuracies[1]


TIMES = [{"algorithm": "maml", "ms": 500.0, "half_ms": 250.0, "options": {"half_size": 0.4}}]


def test_the_table_has_the_seconds_of_the_first_validation_that_reached_an_accuracy():
    """The first 20 of 50 steps take half the time of the others."""
    rows = [
        {"algorithm": "maml", "budget": 50, "curve": CURVE},
        {"algorithm": "learn2learn", "reason": "not run: it isn't there"},
    ]
    table = beside.as_table(rows, TIMES, beside.Options(levels=(0.90, 0.95, 0.98)))
    shown = "| maml | 500 | 6 · 5 | 8 · 6 | > 8 · > 8 | 25 | 8 | 0.9550 ± 0.0100 inductive · 0.9400 ± 0.0100 "
    assert f"{shown}transductive |" in table
    assert "| learn2learn | not run: it isn't there |  |  |  |  |  |  |" in table


class Found:
    """A training that validates as the curve has it, and counts its steps, each of which takes a second."""

    budget, device = 25, torch.device("cpu")

    def __init__(self):
        self.steps, self.validations = 0, iter(CURVE)

    def step(self):
        self.steps += 1

    def validate(self):
        at = next(self.validations)
        return {way: [at[way][0]] * 2 for way in ("inductive", "transductive")}


@pytest.mark.parametrize(
    ("options", "steps"),
    [({"until": 0.92}, [20, 22]), ({"until": 0.99}, [20, 22, 25]), ({"until": 0.99, "minutes": 0.35}, [20, 21])],
    ids=("reached both ways", "its budget", "its minutes"),
)
def test_a_training_ends_with_the_accuracy_in_both_ways_its_budget_or_its_minutes(options, steps, monkeypatch):
    monkeypatch.setattr(beside, "begin", lambda name, options: Found())
    monkeypatch.setattr(beside, "seconds_of", lambda step, device: [step(), 1.0][1])
    row = beside.train("maml", beside.Options(**options))
    assert [at["step"] for at in row["curve"]] == steps
    assert [at["inductive"][0] for at in row["curve"]] == [at["inductive"][0] for at in CURVE[: len(row["curve"])]]
    assert row["budget"] == 25 and row["torch"]


def test_a_stopped_command_goes_on_and_an_absent_peer_is_a_row_with_its_reason(tmp_path, monkeypatch):
    """And one that had made its trainings measures the times of steps alone."""
    asked, timed, stops = [], [], [False, True]

    def trained(measure, name, options):
        asked.append(name)
        if stops and stops.pop(0):
            raise KeyboardInterrupt
        return {"algorithm": name, "budget": 50, "curve": CURVE}

    def measure(shots, options):
        timed.append(options.algorithms)
        return [TIMES[0] | {"algorithm": name, "ms": 500.0 * len(timed)} for name in options.algorithms]

    monkeypatch.setattr(beside, "in_own_process", trained)
    monkeypatch.setattr(beside.steps, "measure", measure)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    options = beside.Options(algorithms=("learn2learn", "maml", "cavia"), out=tmp_path)
    alone = dataclasses.replace(options, algorithms=("maml",))
    path = tmp_path / "beside-omniglot-5w1s.json"
    with pytest.raises(KeyboardInterrupt):
        beside.main(options)
    absent, done = json.loads(path.read_text())["rows"]
    assert "isn't installed" in absent["reason"] and done["algorithm"] == "maml" and not timed
    beside.main(options)
    assert asked == ["maml", "cavia", "cavia"]
    assert [row["algorithm"] for row in json.loads(path.read_text())["rows"]] == ["learn2learn", "maml", "cavia"]
    beside.main(options)
    beside.main(alone)
    assert asked[3:] == [] and timed == [("maml", "cavia")] * 3
    assert "| cavia | 1500 |" in path.with_suffix(".md").read_text()
    beside.main(dataclasses.replace(alone, until=0.9))
    assert asked[3:] == ["maml"] and timed[3:] == [("maml",)]  # other options' trainings are made anew
    with pytest.raises(UsageError, match="--algorithms protonet: expected some of learn2learn, convex_imaml"):
        beside.Options(algorithms=("protonet",))
    with pytest.raises(UsageError, match="--eval-growth 0: expected more than 0"):
        beside.Options(eval_growth=0)


@pytest.mark.slow
def test_trainings_have_processes_of_their_own_and_are_validated_in_both_ways(data_dir, tmp_path):
    words = f"--dataset toy --data-dir {data_dir} --algorithms learn2learn convex_maml --val-episodes 2"
    benchmark("beside", tmp_path, f"{words} --minutes 0.001 --turns 2")
    table = json.loads((tmp_path / "beside-toy-5w1s.json").read_text())
    peer, ours = table["rows"]
    assert "isn't installed" in peer.get("reason", "") or set(peer["curve"][0]) == {"step", "transductive"}
    end = ours["curve"][-1]
    assert ours["algorithm"] == "convex_maml" and end["step"] >= 1 and table["processor"]
    assert [row["algorithm"] for row in table["times"] if row["ms"] > 0][-1] == "convex_maml"
    assert all(0 <= end[way][0] <= 1 for way in ("inductive", "transductive"))
    assert (tmp_path / "beside-toy-5w1s.md").read_text().count("| ") > 20
