"""What report.py says of runs is what their folders hold."""

import base64
import csv
import dataclasses
import importlib
import io
import json
import re
import sys

import h5py
import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image

import report
from common.command import command as run_command
from common.shards import UsageError
from reports import curves, drawing, errors, sections, smoothness, tables
from reports.runs import apart, find, like_for_like
from reports.shown import shown_tests, shown_trainings
from reports.times import Times, half_steps
from tests.conftest import write_set
from tests.runs import SMALL


def write_run(
    folder, algorithm="maml", accuracies=(0.4, 0.6, 0.8), every=100, ms=60.0, test=0.75, norms=None, **options
):
    """A training's folder with a validation every so many steps, each of `ms` by its own clock."""
    script = importlib.import_module(algorithm)
    saved = dataclasses.asdict(script.Config()) | {"dataset": "omniglot", "steps": every * len(accuracies)} | options
    saved = {k: str(v) if k == "data_dir" else v for k, v in saved.items() if k != "print_config"}
    config = {"options": {"algorithm": algorithm, **saved}, "commit": "0123456789abcdef", "precision": "float32"}
    rows = []
    for i, accuracy in enumerate(accuracies, 1):
        row = {"step": every * i, "seconds": every * i * ms / 1e3, "train_loss": 1 / i, "train_accuracy": accuracy}
        row |= {"gradient_norm": 1.0 if norms is None else norms[i - 1], "val_accuracy": accuracy, "val_ci95": 0.01}
        rows.append(row | {"step_ms": ms, "peak_mib": 100 + i})
    result = {
        "algorithm": algorithm, "dataset": saved["dataset"], "ways": saved["ways"], "shots": saved["shots"],
        "test_accuracy": test, "test_ci95": 0.01, "test_accuracy_transductive": test + 0.02,
        "test_ci95_transductive": 0.01, "test_episodes": 100, "steps": rows[-1]["step"],
        "train_seconds": rows[-1]["seconds"], "step_ms": ms, "peak_mib": 103.0, "seed": saved["seed"], "views": 1,
        "val_accuracy": max(accuracies),
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "result.json").write_text(json.dumps(result))
    with open(folder / "log.csv", "w") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def write_test(folder, of, **result):
    folder.mkdir()
    told = json.loads((of / "result.json").read_text()) | result
    (folder / "result.json").write_text(json.dumps(told))
    return folder


def write_times(path, *rows, threads=2, bfloat16=False):
    """A table of benchmarks/steps.py, of scripts with their plain options but for what a row says."""
    made = []
    for algorithm, ms, half_ms, options in rows:
        plain = dataclasses.asdict(importlib.import_module(algorithm).Config()) | {"dataset": "omniglot"} | options
        plain["data_dir"] = ""
        made.append({"algorithm": algorithm, "ms": ms, "half_ms": half_ms, "alike": False, "options": plain})
    machine = {"processor": "P", "device": "cpu", "threads": threads, "avx512_bf16": bfloat16, "amx_bf16": False}
    path.write_text(json.dumps(machine | {"rows": made}))
    return path


def make_report(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["report.py", *map(str, words)])
    try:
        run_command(report.main)
        return 0
    except SystemExit as stop:
        return stop.code


# Which runs are shown


def test_of_several_trainings_the_best_on_validation_is_shown_with_all_its_seeds(tmp_path):
    write_run(tmp_path / "wide", accuracies=(0.5, 0.7), test=0.9, width=128)
    for seed, best in ((1, 0.8), (0, 0.7)):
        write_run(tmp_path / f"s{seed}", accuracies=(0.6, best), test=0.2, seed=seed)
    write_run(tmp_path / "five", shots=5)
    shown = shown_trainings(find([tmp_path]))
    assert [run.name for run in shown["omniglot", 5, 1]["maml"]] == ["s0", "s1"]
    assert list(shown) == [("omniglot", 5, 1), ("omniglot", 5, 5)]


def test_seeds_are_one_trainings_on_machines_whose_precision_is_another_by_default(tmp_path):
    machines = ({"device": "NVIDIA H200"}, {"device": "cpu", "avx512_bf16": True})
    for name, seed, machine, precision in (
        ("gpu", 1, machines[0], "float32"), ("cpu", 0, machines[1], "bfloat16"), ("asked", 2, machines[1], "float32"),
    ):  # fmt: skip
        config = write_run(tmp_path / name, seed=seed, accuracies=(0.5, 0.6 - seed / 10)) / "config.json"
        about = json.loads(config.read_text()) | {"hardware": machine, "precision": precision}
        if name == "cpu":
            del about["options"]["plain_averages"], about["options"]["learn_rates"]  # as before there were these
        config.write_text(json.dumps(about))
    shown = shown_trainings(find([tmp_path]))["omniglot", 5, 1]["maml"]
    assert [run.name for run in shown] == ["cpu", "gpu"]
    for seed, machine in enumerate(machines):  # iMAML's default is float32 on both
        config = write_run(tmp_path / f"i{seed}", "imaml", seed=seed) / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"hardware": machine}))
    assert [run.name for run in shown_trainings(find([tmp_path]))["omniglot", 5, 1]["imaml"]] == ["i0", "i1"]


def test_of_a_seeds_trainings_the_one_that_came_furthest_is_shown(tmp_path):
    write_run(tmp_path / "copy")
    (write_run(tmp_path / "killed", accuracies=(0.4,), steps=300) / "result.json").unlink()
    write_run(tmp_path / "whole")
    (run,) = shown_trainings(find([tmp_path]))["omniglot", 5, 1]["maml"]
    assert run.result and len(run.rows) == 3


def test_a_test_in_another_place_has_the_training_that_its_config_names(tmp_path):
    run = write_run(tmp_path / "runs" / "run")
    test = write_test(tmp_path / "elsewhere", run, shots=5, test_accuracy=0.9)
    config = json.loads((run / "config.json").read_text())
    config["options"] |= {"shots": 5, "evaluate": str(run)}
    (test / "config.json").write_text(json.dumps(config))
    for folders in ([tmp_path], [test]):
        (shown,) = shown_tests(find(folders))["omniglot", 5, 5]["maml"]
        assert (shown.name, shown.trained_on) == ("elsewhere", ("omniglot", 5, 1))
    assert {run.training.name for run in find([tmp_path])} == {"run"}
    test.rename(run / "test-5")
    (tmp_path / "runs").rename(tmp_path / "moved")  # so that the path which the test names is gone
    assert [run.training.name for run in find([tmp_path])] == ["run", "run"]


def test_a_test_of_more_episodes_is_shown_in_place_of_the_trainings_own(tmp_path):
    run = write_run(tmp_path / "run", test=0.5)
    write_test(run / "test-few", run, test_accuracy=0.6, test_episodes=50)
    write_test(run / "test-steps", run, test_accuracy=0.8, test_episodes=2000, test_inner_steps=9)
    assert [r.name for r in shown_tests(find([tmp_path]))["omniglot", 5, 1]["maml"]] == ["run"]
    write_test(run / "test-many", run, test_accuracy=0.7, test_episodes=1000)
    assert [r.name for r in shown_tests(find([tmp_path]))["omniglot", 5, 1]["maml"]] == ["test-many"]


def test_errors_are_those_of_a_test_with_the_same_options(tmp_path):
    run = write_run(tmp_path / "run")
    others = {"a-steps": {"test_inner_steps": 9}, "b-shots": {"shots": 5}, "c-again": {}}
    for name, result in others.items():
        (write_test(run / name, run, **result) / "episodes.npz").touch()
    runs = find([tmp_path])
    assert sections.with_episodes(next(r for r in runs if r.folder == run), runs).name == "c-again"
    fewer = write_test(run / "d-steps", run, test_inner_steps=1)  # not the 9 that a-steps has
    runs = find([tmp_path])
    assert sections.with_episodes(next(r for r in runs if r.folder == fewer), runs).name == "d-steps"


def test_a_method_with_learned_rates_has_a_name_of_its_own_and_is_shown_where_it_isnt_there_as_published(tmp_path):
    write_run(tmp_path / "learned", accuracies=(0.8, 0.9), learn_rates="layer")
    (run,) = shown_trainings(find([tmp_path]))["omniglot", 5, 1]["maml"]
    assert run.method == "MAML, learned rates"
    write_run(tmp_path / "plain", accuracies=(0.5, 0.6))
    (run,) = shown_trainings(find([tmp_path]))["omniglot", 5, 1]["maml"]
    assert (run.name, run.method) == ("plain", "MAML")
    beside = shown_trainings(find([tmp_path]), varied=True)["omniglot", 5, 1]
    assert {name: run.name for name, (run,) in beside.items()} == {"maml": "plain", "MAML, learned rates": "learned"}
    table, _ = tables.like_for_like(("omniglot", 5, 1), beside, Times([]))
    assert sorted(row[0] for row in table.rows) == ["MAML", "MAML, learned rates"] and all(row[3] for row in table.rows)
    times = Times([write_times(tmp_path / "steps.json", ("maml", 30.0, None, {}))])
    table, said = tables.like_for_like(("omniglot", 5, 1), beside, times)
    assert {row[0]: row[3:7] for row in table.rows}["MAML, learned rates"] == ["", "", "", ""]
    assert {row[0]: row[3] for row in table.rows}["MAML"] == "30.0"
    assert said.startswith("A step of MAML, learned rates hasn't been timed. Of the options")


def test_a_cell_without_a_training_of_its_own_has_the_test_of_the_shown_one_with_its_options(tmp_path):
    run = write_run(tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    centred = write_test(run / "test-1-centred", run, shots=5, test_accuracy=0.99)  # whose result doesn't say how
    config["options"] |= {"shots": 5, "position_mean": 1.0}
    (centred / "config.json").write_text(json.dumps(config))
    worse = write_run(tmp_path / "worse", accuracies=(0.1, 0.2), width=8)
    write_test(run / "test-5", run, shots=5, test_accuracy=0.9)
    write_test(tmp_path / "worse-5", worse, shots=5, test_accuracy=0.99)
    shown = shown_tests(find([tmp_path]))
    assert [r.name for r in shown["omniglot", 5, 5]["maml"]] == ["test-5"]
    row = tables.table_2(("omniglot", 5, 5), shown["omniglot", 5, 5], Times([])).rows[0]
    assert row[:3] == ["MAML", "0.91", "0.9000 ± 0.0100"] and "Omniglot, 5-way 1-shot" in row


def test_what_asks_something_else_than_a_balanced_test_is_left_out(tmp_path):
    run = write_run(tmp_path / "run")
    write_run(tmp_path / "unequal", shots=5, unequal_shots=True)
    config = json.loads((run / "config.json").read_text())
    older = {name: value for name, value in config["options"].items() if name != "unequal_shots"}
    (run / "config.json").write_text(json.dumps(config | {"options": older}))
    for name, differs in (("other", {"queries": 10}), ("uneven", {"unequal_shots": True}), ("same", {})):
        folder = write_test(run / f"test-{name}", run, shots=5)
        (folder / "config.json").write_text(json.dumps(config | {"options": config["options"] | differs}))
    assert [run.name for run in find([tmp_path])] == ["run", "test-same"]


def test_hidden_folders_such_as_a_release_in_the_making_are_left_out(tmp_path):
    write_run(tmp_path / "run")
    write_run(tmp_path / ".maml.partial")
    assert [run.name for run in find([tmp_path])] == ["run"]
    assert [run.name for run in find([tmp_path / ".maml.partial"])] == [".maml.partial"]  # but for one that is named


def test_a_run_that_is_a_link_counts_and_none_counts_twice(tmp_path):
    run = write_run(tmp_path / "elsewhere" / "run")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "linked").symlink_to(run)
    (tmp_path / "runs" / "loop").symlink_to(tmp_path)
    assert [run.name for run in find([tmp_path / "runs"])] == ["linked"]
    assert len(find([tmp_path, tmp_path / "runs", run])) == 1
    (tmp_path / "runs" / "alike").symlink_to(write_run(tmp_path / "others" / "other").parent)
    runs, alike = apart([tmp_path / "runs", tmp_path / "others"])
    assert [run.name for run in runs] == ["linked"] and [run.name for run in alike] == ["other"]


def test_what_is_no_run_is_one_line(tmp_path, monkeypatch, capsys):
    assert make_report(monkeypatch, tmp_path, "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "out").exists()
    assert make_report(monkeypatch, tmp_path) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--out" in said
    run = write_run(tmp_path / "run")
    assert make_report(monkeypatch, tmp_path, run, "--like-for-like", run, "--out", tmp_path / "out") == 2
    assert "all 1 runs are like for like; name folders that hold others" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert make_report(monkeypatch, tmp_path, run, "--out", tmp_path / "file" / "out") == 2
    assert "file is a file, expected a folder or a new name" in capsys.readouterr().err
    write_test(tmp_path / "alone", run)
    with pytest.raises(UsageError, match="a test without its training"):
        find([tmp_path / "alone"])


# Time


def test_minutes_are_steps_times_the_tables_milliseconds_and_the_runs_own_clock_without_one(tmp_path):
    run = find([write_run(tmp_path / "run", ms=60.0)])[0]
    steps = np.array([100.0, 300.0])
    assert Times([]).minutes(run, steps) == pytest.approx([0.1, 0.3])
    table = write_times(tmp_path / "steps.json", ("maml", 600.0, None, {"tasks": 999}), ("maml", 30.0, None, {}))
    times = Times([table])
    assert times.minutes(run, steps) == pytest.approx([0.05, 0.15]) and times.total(run) == pytest.approx(0.15)
    assert times.step_ms(run) == pytest.approx([30, 30, 30]) and "P, 2 threads" in times.of([run])
    other = find([write_run(tmp_path / "other", width=8)])[0]  # not the table's
    assert times.row(other) is None and "by the clock of each run's own machine" in times.of([other])
    elsewhere = write_times(tmp_path / "elsewhere.json", ("maml", 20.0, None, {"dataset": "glyphs"}), threads=4)
    assert "(cpu, P, 2 threads)" in Times([table, elsewhere]).of([run])
    with pytest.raises(UsageError, match="expected cpu, P, 2 threads as the others of omniglot"):
        Times([table, write_times(tmp_path / "again.json", ("maml", 20.0, None, {}), threads=4)])


def test_a_step_in_another_precision_isnt_the_runs(tmp_path):
    run = find([write_run(tmp_path / "run")])[0]  # in float32
    for bfloat16, found in ((True, False), (False, True)):
        times = Times([write_times(tmp_path / "steps.json", ("maml", 30.0, None, {}), bfloat16=bfloat16)])
        assert (times.row(run) is not None) == found


@pytest.mark.parametrize("bfloat16", (False, True))
def test_a_gpus_steps_have_the_time_that_they_take_on_the_tables_machine_by_default(bfloat16, tmp_path):
    folder = write_run(tmp_path / "run")
    about = json.loads((folder / "config.json").read_text()) | {"hardware": {"device": "NVIDIA H200"}}
    for told, precision, found in (
        ("auto", "float32", True), ("auto", "bfloat16", bfloat16), ("float32", "float32", True),
        ("bfloat16", "float32", False),
    ):  # fmt: skip
        line = ("maml", 30.0, None, {"precision": told})
        times = Times([write_times(tmp_path / "steps.json", line, bfloat16=bfloat16)])
        (folder / "config.json").write_text(json.dumps(about | {"precision": precision}))
        assert (times.row(find([folder])[0]) is not None) == found


def test_what_changes_no_steps_cost_finds_the_tables_row(tmp_path):
    run = find([write_run(tmp_path / "run", learning_rate=0.5, seed=3, train_shots=1)])[0]
    assert Times([write_times(tmp_path / "steps.json", ("maml", 30.0, None, {}))]).row(run)["ms"] == 30
    times = Times([write_times(tmp_path / "other.json", ("maml", 30.0, None, {"zoom": 0.25}))])
    assert times.row(run) is None  # as without zoom no image is sampled anew
    assert times.row(find([write_run(tmp_path / "zoomed", zoom=0.1)])[0])["ms"] == 30


def test_a_table_that_is_older_than_learned_rates_has_no_step_with_them(tmp_path):
    table = write_times(tmp_path / "steps.json", ("maml", 30.0, None, {}))
    rows = json.loads(table.read_text())
    del rows["rows"][0]["options"]["learn_rates"]
    table.write_text(json.dumps(rows))
    plain, learned = (find([write_run(tmp_path / how, learn_rates=how)])[0] for how in ("no", "layer"))
    assert Times([table]).row(plain)["ms"] == 30 and Times([table]).row(learned) is None


def test_runs_that_are_compared_have_their_times_from_the_table_that_has_most_of_them(tmp_path):
    write_run(tmp_path / "a", "imaml")
    write_run(tmp_path / "b", "maml", tasks=5)
    own = write_times(tmp_path / "own.json", ("imaml", 400.0, None, {}), ("maml", 30.0, None, {}))
    alike = write_times(tmp_path / "alike.json", ("imaml", 500.0, None, {}), ("maml", 40.0, None, {"tasks": 5}))
    times, runs = Times([own, alike]), find([tmp_path])
    assert [times.row(run)["ms"] for run in runs] == [40, 400]
    assert [times.together(runs).row(run)["ms"] for run in runs] == [40, 500]


def test_steps_on_images_of_half_the_side_count_with_their_own_time(tmp_path):
    run = find([write_run(tmp_path / "run", "convex_imaml", half_size=0.5)])[0]  # 150 of 300 steps
    times = Times([write_times(tmp_path / "steps.json", ("convex_imaml", 60.0, 20.0, {"half_size": 0.5}))])
    assert half_steps(run) == 150
    assert times.minutes(run, np.array([100.0, 300.0])) == pytest.approx([2 / 60, (150 * 20 + 150 * 60) / 60e3])
    assert list(times.step_ms(run)) == [20, 60, 60]
    by_the_clock = find([write_run(tmp_path / "other", "convex_imaml", half_size=0.5, minutes=1.0)])[0]
    assert times.row(by_the_clock) is None  # so that its own counts: where half its minutes ended isn't known


def test_time_to_accuracy_is_the_first_validation_that_is_as_high(tmp_path):
    write_run(tmp_path / "a", "maml", (0.3, 0.5, 0.55, 0.6), ms=60)  # 95 % of its last: 0.57, at step 400
    write_run(tmp_path / "b", "convex_imaml", (0.65, 0.7, 0.7, 0.7), ms=6)
    write_run(tmp_path / "c", "reptile", (0.2, 0.61, 0.5, 0.5), ms=120)
    write_run(tmp_path / "d", "cavia", (0.1, 0.2, 0.2, 0.2))
    shown = shown_trainings(find([tmp_path]))["omniglot", 5, 1]
    rows = {row[0]: row[1:] for row in tables.time_to_accuracy(shown, Times([])).rows}
    assert rows["MAML"] == ["0.5700", "0.40", "1.00", "0.6000", "0.40", "1.00"]
    assert rows["Convex iMAML"] == ["0.6650", "0.02", "20.00", "0.6000", "at most 0.01", "at least 40.00"]
    assert rows["Reptile"][3:] == ["0.6000", "0.40", "1.00"] and rows["CAVIA"][3:] == ["0.6000", "never", ""]


# Table 2 and smoothness


def test_bold_is_what_lies_above_all_others_with_its_interval():
    interval = tables.Interval
    assert tables.bold([interval(0.9, 0.01), interval(0.87, 0.01)]) == ["**0.9000 ± 0.0100**", "0.8700 ± 0.0100"]
    assert not any("**" in cell for cell in tables.bold([interval(0.9, 0.02), interval(0.87, 0.02)]))
    assert not any("**" in cell for cell in tables.bold([interval(0.9, 0.01)]))


def test_table_2_holds_the_papers_number_and_whether_ours_is_above_it(tmp_path):
    write_run(tmp_path / "s0", test=0.765)  # the paper has .76, within the interval
    write_run(tmp_path / "s1", test=0.70, seed=1)
    write_run(tmp_path / "c", "cavia", test=0.85)
    of_task = shown_tests(find([tmp_path]))["omniglot", 5, 1]
    table = tables.table_2(("omniglot", 5, 1), of_task, Times([]))
    maml, cavia = ({head: cell for head, cell in zip(table.heads, row)} for row in table.rows)
    assert (maml["paper"], maml["inductive"], maml["above the paper"]) == ("0.76", "0.7650 ± 0.0100", "no")
    assert maml["seeds"] == "0.7000 to 0.7650 (2)" and "98.7" in maml["published by others, %"]
    assert (cavia["paper"], cavia["inductive"], cavia["above the paper"]) == ("0.72", "**0.8500 ± 0.0100**", "yes")
    assert cavia["transductive"] == "**0.8700 ± 0.0100**" and cavia["peak MiB"] == "103"


def test_oscillation_is_the_spread_of_the_log_norm_whatever_its_size_and_trend(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.3, 600)
    trend = np.linspace(8, 0, 600)
    measured = []
    for name, size in (("small", 1e-3), ("large", 1e3)):
        norms = size * np.exp(trend + noise)
        run = find([write_run(tmp_path / name, accuracies=np.full(600, 0.5), every=50, norms=norms)])[0]
        measured.append(smoothness.root_mean_square(smoothness.deviations(run)))
    value, low, high = measured[0]
    assert measured[1] == pytest.approx(measured[0], rel=1e-3)
    assert low < 0.3 < high and high - low < 0.1 and value == pytest.approx(0.3, rel=0.1)
    assert smoothness.root_mean_square(np.ones(20)) is None


def test_a_log_has_the_oscillation_within_a_row(command, tmp_path):
    assert command(f"{SMALL} --width 4 --steps 3 --val-episodes 2 --test-episodes 2 --out run") == 0
    run = find([tmp_path / "run"])[0]
    (deviation,) = smoothness.within_rows(run)
    assert 0 < deviation < 2


def test_like_for_like_says_in_which_options_runs_still_differ(tmp_path):
    write_run(tmp_path / "a", "maml", learning_rate=0.01, tasks=4, block="norm-pool")
    write_run(tmp_path / "b", "convex_imaml", learning_rate=0.001, tasks=4, block="norm-pool", eval_every=100)
    shown = shown_trainings(find([tmp_path]))["omniglot", 5, 1]
    table, said = tables.like_for_like(("omniglot", 5, 1), shown, Times([]))
    assert "--eval-every (" in said and "--tasks" not in said and "--learning-rate" not in said
    assert "MAML has --inner-steps 1, " in said and "Convex iMAML has " in said and said.count("--strength ") == 1
    maml = shown["maml"][0]
    assert tables.differences([maml, maml]) == "Of the options that all have, beside the rate, they differ in none."
    said = tables.not_run([group[0] for group in shown.values()])
    assert said == "Not run: Convex MAML, iMAML, Reptile, CAVIA. " and tables.not_run(shown["maml"]) == ""
    assert [row[-1] for row in table.rows] == ["0.001", "0.01"]


# Pictures


def test_names_at_the_ends_of_lines_stay_apart_and_inside():
    figure, axes = plt.subplots(figsize=(5, 3))
    axes.set(xlim=(0, 1), ylim=(0, 1))
    ends = {f"line {i}": (1.0, y, "black") for i, y in enumerate((0.0, 0.001, 0.002, 0.5, 0.501, 1.0))}
    drawing.name_lines(axes, ends)
    heights = sorted(text.xyann[1] for text in axes.texts)
    inches = axes.get_position().height * 3
    assert min(np.diff(heights)) * inches > 0.15 and heights[0] >= 0 and heights[-1] <= 1
    plt.close(figure)


def test_seeds_are_a_band_from_the_least_to_the_most(tmp_path):
    write_run(tmp_path / "s0", accuracies=(0.2, 0.4, 0.8))
    write_run(tmp_path / "s1", accuracies=(0.4, 0.4), seed=1)
    group = find([tmp_path])
    steps, middle, low, high = curves.band(group, "val_accuracy", Times([]))
    assert list(steps) == [100, 200] and middle == pytest.approx([0.3, 0.4])
    assert low == pytest.approx([0.2, 0.4]) and high == pytest.approx([0.4, 0.4])
    _, middle, low, high = curves.band(group[:1], "val_accuracy", Times([]))
    assert high - middle == pytest.approx([0.01] * 3) and middle - low == pytest.approx([0.01] * 3)


# Errors


def outcomes_of(predicted, classes, queries, support=None, names="abcdefgh", images=None):
    """Episodes of one support image a class, whose rows are classes, and queries that are given by their class."""
    classes = np.array(classes)
    labels = np.array([[list(its).index(c) for c in q] for its, q in zip(classes, queries)])
    images = np.zeros((len(names), 1, 2, 2), np.uint8) if images is None else images
    support = np.tile(np.arange(classes.shape[1]), (len(classes), 1))
    return errors.Outcomes(
        images, list(names), classes, classes, support, np.array(queries), labels, np.array(predicted)
    )


def test_confusion_is_a_share_of_the_queries_of_episodes_that_had_both_classes():
    outcomes = outcomes_of([[0, 1, 1], [0, 0, 1]], [[0, 1], [0, 2]], [[0, 0, 1], [0, 0, 2]], names="abc")
    share, offered = errors.confusion(outcomes)
    assert share[0, 1] == 0.5 and offered[0, 1] == 2  # of class 0 in the first episode alone
    assert offered[0, 2] == 2 and share[0, 2] == 0 and offered[1, 2] == 0 and offered[0, 0] == 4
    assert errors.confused_pairs(outcomes, 5, least=1) == [("a", "b", 0.5, 2)]
    assert errors.of_classes(outcomes) == [("a", 0.75, 4), ("b", 1.0, 1), ("c", 1.0, 1)]
    rows, accuracy, count = errors.of_pictures(outcomes)
    assert list(rows) == [0, 1, 2] and list(accuracy) == [0.75, 1, 1] and list(count) == [4, 1, 1]


@pytest.mark.parametrize("by_colour", (True, False))
def test_colour_has_a_part_in_errors_where_they_go_to_the_nearest_colour_and_none_where_not(by_colour):
    """Pictures of one grey each, 3 classes an episode: half of the queries go astray, by colour or anywhere."""
    generator = np.random.default_rng(0)
    E, Q, n = 300, 6, 60
    greys = generator.integers(0, 256, n)
    images = np.broadcast_to(greys[:, None, None, None], (n, 1, 2, 2)).astype(np.uint8)
    classes = np.stack([generator.permutation(20)[:3] for _ in range(E)])
    labels = generator.integers(0, 3, (E, Q))
    support_rows, query_rows = classes + 20, np.take_along_axis(classes, labels, 1) + 40
    distance = np.abs(greys[query_rows][:, :, None].astype(int) - greys[support_rows][:, None])
    nearest = np.where(np.arange(3) == labels[..., None], 999, distance).argmin(2)
    anywhere = (labels + generator.integers(1, 3, labels.shape)) % 3
    predicted = np.where(generator.random((E, Q)) < 0.5, labels, nearest if by_colour else anywhere)
    support_labels = np.tile(np.arange(3), (E, 1))
    outcomes = errors.Outcomes(
        images, [str(i) for i in range(20)], classes, support_rows, support_labels, query_rows, labels, predicted
    )
    found = errors.colour(outcomes)
    share, low, high = found.more
    assert found.errors == (predicted != labels).sum() and low < share < high and high - low < 0.2
    assert (low > 0.05) if by_colour else (low < 0 < high)
    assert found.nearer[0] - found.by_chance[0] == pytest.approx(share)
    assert found.alone[0] == pytest.approx((distance.argmin(2) == labels).mean(), abs=0.02)  # but for ties
    none = errors.colour(outcomes, np.zeros((E, Q), dtype=bool))
    assert none.errors == 0


# The page


@pytest.mark.slow
def test_a_page_of_one_run_holds_its_pictures_and_what_its_files_say(command, tmp_path, data_dir, monkeypatch):
    assert command(f"{SMALL} --width 4 --steps 4 --val-episodes 2 --test-episodes 8 --eval-every 2 --out run") == 0
    assert make_report(monkeypatch, tmp_path / "run", "--out", tmp_path / "out", "--times") == 0
    page, text = ((tmp_path / "out" / name).read_text() for name in ("index.html", "report.md"))
    assert not re.search(r"https?:|<link|<script|src=\"(?!data:)", page)
    kinds = "curves-toy-5w1s accuracy-toy-5w1s-convex_imaml episodes-toy-5w1s-convex_imaml"
    kinds += " pictures-toy-5w1s-convex_imaml confusion-toy-5w1s-convex_imaml"
    pictures = {path.stem: path.read_bytes() for path in (tmp_path / "out").glob("*.png")}
    assert set(pictures) == set(kinds.split()) == set(re.findall(r"!\[[^]]*\]\((.+?)\.png\)", text))
    inlined = [base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    assert sorted(inlined) == sorted(pictures.values())
    assert all(min(Image.open(io.BytesIO(picture)).size) > 200 for picture in inlined)

    result = json.loads((tmp_path / "run" / "result.json").read_text())
    with np.load(tmp_path / "run" / "episodes.npz") as kept, h5py.File(data_dir / "toy" / "test.h5") as file:
        names = file["class_names"].asstr()[:]
        true = np.take_along_axis(kept["classes"], kept["query_labels"], 1)
        right = kept["predicted"] == kept["query_labels"]
    assert f"{result['test_accuracy']:.4f} ± {result['test_ci95']:.4f}" in text
    for c, name in enumerate(names):
        if (true == c).any():
            line = f"| {name} | {right[true == c].mean():.3f} | {(true == c).sum()} |"
            assert line in text, line
            assert line.strip("| ").replace(" | ", "</td><td>") in page


def test_runs_in_folders_alike_are_like_for_like_once_they_log(tmp_path):
    write_run(tmp_path / "runs" / "maml")
    begun = tmp_path / "runs" / "alike" / "cavia"
    begun.mkdir(parents=True)
    (begun / "config.json").write_text("{}")
    assert like_for_like([tmp_path]) == []
    alike = [write_run(begun.parent / name, name) for name in ("convex_imaml", "maml")]
    assert [run.folder for run in like_for_like([tmp_path])] == alike


@pytest.mark.slow
def test_a_page_of_many_runs_has_a_section_a_task_and_says_what_it_lacks(tmp_path, monkeypatch):
    for algorithm in ("maml", "convex_imaml"):
        write_run(tmp_path / "runs" / algorithm, algorithm)
        write_run(tmp_path / "alike" / algorithm, algorithm, test=0.6)
    write_run(tmp_path / "runs" / "five", shots=5)
    words = [tmp_path / "runs", "--out", tmp_path / "out", "--like-for-like", tmp_path / "alike", "--times"]
    assert make_report(monkeypatch, *words) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    (tmp_path / "alike").rename(tmp_path / "runs" / "alike")
    for named in ((), ("--like-for-like", tmp_path / "runs" / "alike")):
        assert make_report(monkeypatch, tmp_path / "runs", "--out", tmp_path / "again", *named, "--times") == 0
        assert (tmp_path / "again" / "report.md").read_text() == text, "a folder of that name is found by itself"
    heads = [line for line in text.splitlines() if line.startswith("## ")]
    one, five = "Omniglot, 5-way 1-shot", "Omniglot, 5-way 5-shot"
    assert heads == [
        "## Table 2: test accuracy", "## Like for like", f"## Training: {one}", f"## Training: {five}",
        f"## Errors: {one}", f"## Errors: {five}",
    ]  # fmt: skip
    assert "0.6000 ± 0.0100" in text.split("## Like for like")[1].split("## Training")[0]
    assert "Not shown of Convex iMAML, MAML, as of the first" in text and "--evaluate" in text
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        "curves-omniglot-5w1s.png", "curves-omniglot-5w5s.png", "like-for-like-omniglot-5w1s.png",
    }  # fmt: skip


def test_episodes_of_another_data_set_are_refused(command, tmp_path, data_dir):
    assert command(f"{SMALL} --width 4 --steps 1 --val-episodes 2 --test-episodes 2 --out run") == 0
    run = find([tmp_path / "run"])[0]
    assert errors.read(run, data_dir).right.shape == (2, 40)
    write_set(tmp_path / "other", "toy", counts=(30, 31))
    with pytest.raises(UsageError, match="was made with another"):
        errors.read(run, tmp_path / "other")
    whole = (run.folder / "episodes.npz").read_bytes()
    for part in (0, 40, len(whole) // 2):
        (run.folder / "episodes.npz").write_bytes(whole[:part])
        with pytest.raises(UsageError, match="episodes.npz is damaged .*--evaluate"):
            errors.read(run, data_dir)


@pytest.mark.parametrize("name", ("config.json", "result.json", "log.csv"))
def test_a_damaged_file_of_a_run_is_named(name, tmp_path):
    run = write_run(tmp_path / "run")
    (run / name).write_text("{")
    with pytest.raises(UsageError, match=f"{name} is damaged .*leave .*run out"):
        find([tmp_path])
    if name == "config.json":
        (run / name).write_text('{"model_type": "bert"}')
        with pytest.raises(UsageError, match="config.json is no run's; leave .*run out"):
            find([tmp_path])


def test_a_script_that_returns_no_loss_is_in_the_other_panels(tmp_path, monkeypatch):
    write_run(tmp_path / "runs" / "maml")
    run = write_run(tmp_path / "runs" / "mine")
    about = json.loads((run / "config.json").read_text())
    about["options"]["algorithm"] = "mine"
    (run / "config.json").write_text(json.dumps(about))
    rows = list(csv.DictReader(open(run / "log.csv")))
    lines = [",".join("" if name == "train_loss" else cell for name, cell in row.items()) for row in rows]
    (run / "log.csv").write_text("\n".join([",".join(rows[0]), *lines, ""]))
    assert make_report(monkeypatch, tmp_path / "runs", "--out", tmp_path / "out", "--times") == 0
    assert (tmp_path / "out" / "curves-omniglot-5w1s.png").exists()


def test_a_test_on_another_data_set_is_no_cell_of_that_one(tmp_path):
    run = write_run(tmp_path / "run")
    write_test(run / "test-mini", run, dataset="miniimagenet")
    assert list(shown_tests(find([tmp_path]))) == [("omniglot", 5, 1)]
