"""What the benchmarks claim of memory and of equal work."""

import itertools
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

import maml
from benchmarks import at_test, compare, gpu, meta_step_rows, ours, problems, run, steady, worker
from benchmarks.rows import Row, with_gradients
from common import meters
from common.shards import ROOT, UsageError


def benchmark(name: str, out: Path, options: str, *further: str) -> None:
    words = [sys.executable, "-m", f"benchmarks.{name}", *options.split(), *further, "--out", str(out)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_memory_grows_with_mamls_inner_steps_and_stays_flat_for_the_implicit_methods(data_dir, tmp_path):
    options = f"--data-dir {data_dir} --dataset toy --algorithms maml imaml convex_imaml"
    benchmark("memory", tmp_path, f"{options} --sizes 1 20 --meta-steps 2 --width 32")
    cells = json.loads((tmp_path / "memory-toy.json").read_text())["cells"]
    few, many = ({c["algorithm"]: c for c in cells if c["inner_steps"] == k} for k in (1, 20))
    growth = {name: many[name]["peak_mib"] - few[name]["peak_mib"] for name in few}
    assert growth["maml"] > 0.15 * few["maml"]["peak_mib"]
    for name in ("imaml", "convex_imaml"):
        assert growth[name] < 0.02 * few[name]["peak_mib"], growth
    assert many["convex_imaml"]["taken"] > few["convex_imaml"]["taken"] == 1
    assert (tmp_path / "memory-toy.md").read_text().count("| ") > 10
    assert (tmp_path / "memory-toy.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_memory_over_tasks_and_over_steps_is_read_from_the_process(data_dir, tmp_path):
    toy = f"--data-dir {data_dir} --dataset toy"
    few = "--over tasks --algorithms convex_imaml --sizes 1 16 --meta-steps 2 --width 16"
    benchmark("memory", tmp_path, f"{toy} {few}")
    one, many = json.loads((tmp_path / "memory-tasks-toy.json").read_text())["cells"]
    assert (one["tasks"], many["tasks"]) == (1, 16) and many["peak_mib"] > one["peak_mib"] + 100
    benchmark("steady", tmp_path, f"{toy} --algorithms convex_maml maml --steps 20 --width 4")
    for cell in json.loads((tmp_path / "steady-toy.json").read_text())["cells"]:
        assert len(cell["resident_mib"]) == 5 and len(cell["faults_a_step"]) == 4
        assert abs(cell["resident_mib"][-1] / cell["resident_mib"][0] - 1) < 0.05


@pytest.mark.slow
def test_the_largest_costs_of_a_step_are_named(data_dir, tmp_path):
    options = "--algorithms convex_imaml reptile --warmup 1 --steps 2 --operations 10"
    benchmark("costs", tmp_path, f"--data-dir {data_dir} --dataset toy {options}")
    for row in json.loads((tmp_path / "costs-toy.json").read_text())["rows"]:
        shares = [share for _, _, share in row["operations"]]
        assert row["ms"] > 0 and shares == sorted(shares, reverse=True) and 0 < sum(shares) < 1
        assert any("conv" in name for name, _, _ in row["operations"])


def test_a_wrong_word_of_a_benchmark_is_one_line(in_this_process, capfd):
    with pytest.raises(SystemExit) as stop:
        in_this_process("heads", ["--repeat", "3"])
    said = capfd.readouterr().err
    assert stop.value.code == 2 and "--repeat" in said and said.startswith("error: ") and said.count("\n") == 1


@pytest.mark.slow
def test_the_heads_time_grows_by_an_exponent_that_is_fitted(tmp_path):
    benchmark("heads", tmp_path, "--repeats 1 --most 64")
    rows = {row["grows"]: row for row in json.loads((tmp_path / "heads.json").read_text())["rows"]}
    assert rows["ways"]["sizes"] == [2, 4, 8, 16, 32, 64] and all(ms > 0 for ms in rows["ways"]["ms"])
    slopes = np.diff(np.log(rows["ways"]["ms"][3:])) / np.log(2)
    assert slopes.min() <= rows["ways"]["exponent"] <= slopes.max()
    assert (tmp_path / "heads.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_a_loop_vmap_and_groups_give_the_same_meta_gradient(data_dir, tmp_path):
    """The benchmark of their speed refuses to time anything else."""
    options = "--dataset toy --tasks 3 --width 8 --warmup 1 --repeats 1 --inner-steps 2"
    benchmark("tasks", tmp_path, f"--data-dir {data_dir} {options}")
    rows = json.loads((tmp_path / "tasks-toy.json").read_text())["rows"]
    measured = [(row["first_order"], row["precision"]) for row in rows]
    assert measured == [(False, "float32"), (False, "bfloat16"), (True, "float32"), (True, "bfloat16")]
    for row in rows:
        ways = {"loop", "groups"} | ({"vmap"} if row["precision"] == "float32" else set())
        assert set(row["ms"]) == set(row["relative_error"]) == ways and max(row["relative_error"].values()) < 1e-9


@pytest.mark.slow
def test_the_table_beside_peers_holds_what_was_measured_in_turns(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "glyphs", lambda: data_dir / "toy" / "train.h5")
    run.main(run.Options(quick=True, turns=2, warmup=1, measures=("head", "episodes"), out=tmp_path))
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["processor"] and table["torch"]
    keys = "measure algorithm setting ours theirs against unit ratio ratio_low ratio_high note"
    for row in table["rows"]:
        assert set(row) == set(keys.split())
        assert row["ratio_low"] is None or row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    heads = [row for row in table["rows"] if row["measure"] == "head"]
    assert len(heads) == 2 and all(row["ratio"] > 1 for row in heads)
    ours, theirs = (float(word) for word in heads[0]["note"].removeprefix("relative gradient norms ").split(", "))
    assert 0 < ours <= 1.2e-5 and 0 < theirs <= 1.2e-5
    assert {row["unit"] for row in table["rows"]} == {"ms", "episodes/s", "MiB"}
    assert (tmp_path / "table.md").read_text().count("| head |") == 2


def test_a_table_that_was_stopped_goes_on_and_a_whole_one_is_made_anew(tmp_path, monkeypatch):
    asked, stops = [], [True]

    def measured(name):
        def rows(options):
            asked.append(name)
            if name == "memory" and stops.pop():
                raise KeyboardInterrupt
            return [Row(name, "maml", f"{options.turns} turns", "itself", "ms", 1.0, 2.0)]

        return rows

    monkeypatch.setattr(run, "MEASURES", {name: measured(name) for name in ("head", "memory")})

    def command(**further):
        run.main(run.Options(measures=("head", "memory"), out=tmp_path, **further))
        return [row["measure"] for row in json.loads((tmp_path / "table.json").read_text())["rows"]]

    with pytest.raises(KeyboardInterrupt):
        command()
    stops += [False] * 3
    assert command() == ["head", "memory"] and asked == ["head", "memory", "memory"]
    assert command() == ["head", "memory"] and asked[3:] == ["head", "memory"]
    stops[:] = [False, True]
    with pytest.raises(KeyboardInterrupt):
        command()
    assert command(turns=3) == ["head", "memory"] and asked[-2:] == ["head", "memory"]
    stops[:] = [False, True]
    with pytest.raises(KeyboardInterrupt):
        command()
    monkeypatch.setattr(meters, "commit", lambda folder: "another")
    assert command() == ["head", "memory"] and asked[-2:] == ["head", "memory"]
    assert json.loads((tmp_path / "table.json").read_text())["commit"] == "another"


def test_a_table_of_one_round_which_has_no_quartiles_is_refused():
    with pytest.raises(UsageError, match="--turns 1"):
        run.Options(turns=1)


def test_growth_by_quarters_asks_for_a_multiple_of_four_steps():
    with pytest.raises(UsageError, match="--steps 6: expected a multiple of 4"):
        steady.Options(steps=6)


@pytest.mark.slow
def test_a_worker_that_was_killed_is_an_error_and_not_an_exception():
    """As where memory ran out, between two turns."""
    heads = worker.Worker(partial(ours.heads, tasks=2, ways=2, shots=1, features=4), least=0.01)
    heads.turn()
    os.kill(heads.process.submit(os.getpid).result(), signal.SIGKILL)
    heads.turn()
    assert heads.seconds[0] > 0 and "terminated abruptly" in heads.error


def test_a_peer_counts_only_with_our_meta_gradient():
    """Second-order MAML written out on the textbook network has ours; in another direction, at equal length, not."""
    _, config, model = problems.our_model("maml", "omniglot", 8, inner_steps=2, inner_rate=0.01)
    episode, net = problems.random_episode("omniglot", 2), problems.textbook_of("omniglot", 8).double()
    g = problems.gradient_in_float64(model, episode, lambda: maml.meta_step(model, episode, config))
    assert {p.dtype for p in model.parameters()} == {episode.images.dtype} == {torch.float32}
    episode.images = episode.images.double()
    for x, y, x_query, y_query in zip(episode.x_support, episode.y_support, episode.x_query, episode.y_query):
        phi = dict(net.named_parameters())
        for _ in range(2):
            loss = F.cross_entropy(functional_call(net, phi, x), y)
            gradients = torch.autograd.grad(loss, tuple(phi.values()), create_graph=True)
            phi = {name: p - 0.01 * g for (name, p), g in zip(phi.items(), gradients)}
        (F.cross_entropy(functional_call(net, phi, x_query), y_query) / 2).backward()
    row = Row("meta_step", "maml", "", "written out", "ms", ours=1.0, theirs=2.0, ratio=2.0)
    counted = with_gradients(row, g, problems.shared_gradient(net))
    assert counted.ratio == 2 and float(counted.note.split()[-1]) < 1e-9
    net.head.weight.grad = net.head.weight.grad.flip(0)
    turned = problems.shared_gradient(net)
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(g))
    uncounted = with_gradients(row, g, turned)
    assert uncounted.ratio is uncounted.theirs is None and float(uncounted.note.split()[-1]) > 0.1


def test_operations_of_a_meta_step_are_counted():
    """Against the plain step's 3 x 80 forwards a task: 5 support images, 75 queries."""
    assert meta_step_rows.operations("convex_imaml", "omniglot", {}) == 1
    assert meta_step_rows.operations("maml", "omniglot", {"inner_steps": 1}) == pytest.approx((3 * 75 + 9 * 5) / 240)
    assert meta_step_rows.operations("maml, first order", "omniglot", {"inner_steps": 2}) == pytest.approx(
        (3 * 75 + 6 * 5) / 240
    )
    assert meta_step_rows.operations("imaml", "omniglot", {"inner_steps": 1, "cg_steps": 1}) == pytest.approx(
        (3 * 75 + 3 * 5 + 3 * 5 + 2 * 6 * 5) / 240
    )
    assert meta_step_rows.operations("reptile", "omniglot", {"inner_steps": 5, "inner_batch": 10}) == pytest.approx(
        150 / 240
    )
    assert 1 <= meta_step_rows.operations("cavia", "miniimagenet", {}) < 1.02


def test_settings_are_compared_on_validation_each_script_against_its_own_first(tmp_path, monkeypatch):
    accuracies = {"maml.py": (0.5, 0.75), "cavia.py": (0.25, 0.125)}

    def train(options, script, variant, seed):
        accuracy = accuracies[script][options.variants.index(variant)] + seed / 8
        result = {"algorithm": script.removesuffix(".py"), "seed": seed, "steps": 1, "step_ms": 1.0, "config": {}}
        return result | {"val_accuracy": accuracy, "val_ci95": 0.0, "test_accuracy": 1 - accuracy, "test_ci95": 0.0}

    monkeypatch.setattr(compare, "train", train)
    wanted = {"scripts": tuple(accuracies), "variants": ("width=4", "width=8"), "seeds": (0, 1)}
    compare.main(compare.Options(name="scripts", out=tmp_path, **wanted))
    runs = json.loads((tmp_path / "scripts.json").read_text())["runs"]
    order = [(run["seed"], run["algorithm"] + ".py", run["variant"]) for run in runs]
    assert order == list(itertools.product((0, 1), accuracies, ("width=4", "width=8")))
    rows = (tmp_path / "scripts.md").read_text().strip().splitlines()[-4:]
    assert rows[1].startswith("| maml.py width=8 |") and "| 0.8125 | +0.2500 (+0.2500, +0.2500) | 0.1875 |" in rows[1]
    assert rows[3].startswith("| cavia.py width=8 |") and "| 0.1875 | -0.1250 (-0.1250, -0.1250) | 0.8125 |" in rows[3]


@pytest.mark.slow
def test_options_of_a_test_are_compared_on_the_same_validation_tasks_of_a_trained_run(
    train, data_dir, tmp_path, capsys
):
    run = train(options="--flip --val-episodes 40 --eval-every 2")
    saved = json.loads((run / "result.json").read_text())
    about = (run / "config.json").read_text()
    (run / "config.json").write_text(about.replace('"device": "cpu"', '"device": "cuda"', 1))  # a run may come from one
    options = at_test.Options(run, ("views=1", "views=2", "plain-averages=2"), (1,), 40, data_dir, tmp_path)
    at_test.main(options)
    (written,) = tmp_path.glob("at_test-*-plain-averages-views.json")
    first, views, plain = (row["accuracies"]["1"] for row in json.loads(written.read_text())["variants"])
    assert first == pytest.approx(saved["val_accuracy"])  # which has the run's own single view
    a, b = (at_test.accuracies(options, variant, 1) for variant in ("views=1", "views=2"))
    difference, ci95 = meters.mean_ci95(b - a)
    assert views - first == pytest.approx(difference, abs=1e-6) and (a != b).any() and plain != first
    assert f"| {difference:+.4f} ± {ci95:.4f} |" in capsys.readouterr().out.splitlines()[-2]


@pytest.mark.slow
def test_options_of_the_training_cant_be_compared_once_a_run_is_trained(train, data_dir):
    run = train(options="--plain-averages 1")
    for variant, named in ("width=8", "--width"), ("dataset=glyphs", "--dataset"), ("plain-averages=0", "lost"):
        with pytest.raises(UsageError, match=named):
            at_test.accuracies(at_test.Options(run, (variant,), (1,), 4, data_dir), variant, 1)
    with pytest.raises(UsageError, match="is no whole run folder"):
        at_test.accuracies(at_test.Options(data_dir, ("views=1",), (1,), 4, data_dir), "views=1", 1)


@pytest.mark.slow
def test_settings_are_compared_over_seeds_and_a_stopped_comparison_goes_on(data_dir, tmp_path, in_this_process):
    shared = f"dataset=toy data-dir={data_dir} steps=2 tasks=2 val-episodes=2 test-episodes=4 flip".split()
    variants = ["width=4", "width=8,block=norm-pool"]
    for seeds, trained in (["0"], 2), (["0", "1"], 4):
        words = ["--name", "widths", "--options", *shared, "--variants", *variants, "--seeds", *seeds]
        in_this_process("compare", [*words, "--out", tmp_path])
        assert len(in_this_process.started) == trained
    runs = json.loads((tmp_path / "widths.json").read_text())["runs"]
    assert [(run["variant"], run["seed"]) for run in runs] == [(v, s) for s in (0, 1) for v in variants]
    assert [(run["width"], run["block"]) for run in runs[:2]] == [(4, "pool-norm"), (8, "norm-pool")]
    row = (tmp_path / "widths.md").read_text().strip().splitlines()[-1]
    gain = sum(r["val_accuracy"] * (1 if r["width"] == 8 else -1) for r in runs) / 2
    assert row.startswith("| width=8,block=norm-pool |") and f"| {gain:+.4f} (" in row


@pytest.mark.slow
def test_beside_a_gpus_steps_are_those_of_peers_whose_gradient_is_ours(monkeypatch):
    def peer(times, **given):
        step, info = ours.meta_steps("maml", **given)
        return step, {"gradient": times * info["gradient"]}

    def absent(**given):
        raise ImportError("No module named 'absent'")

    monkeypatch.setattr(gpu, "WIDTHS", {"omniglot": 4})
    pieces = {"same": partial(peer, 1), "twice": partial(peer, 2), "absent": absent}
    monkeypatch.setattr(gpu, "PEERS", {"maml": pieces})
    options = gpu.Options(peer_tasks=(1,), turns=1, repeats=1)
    rows = gpu.measure(options, "maml", "omniglot", 1, "float32", torch.device("cpu"))
    assert [(row["step"], row["peer"]) for row in rows[1:]] == [("maml", name) for name in ("", *pieces)]
    assert [row.get("error") for row in rows[3:]] == [
        "not ours: the gradients are apart by 1e+00",
        "No module named 'absent'",
    ]
    lines = [line.strip("| ").split(" | ") for line in gpu.as_table(rows).splitlines()]
    assert lines[4][0] == "maml, same" and lines[4][-2] == f"{rows[2]['ms'] / rows[1]['ms']:.2f}"
    assert not any(row["peer"] for row in gpu.measure(options, "maml", "omniglot", 2, "float32", torch.device("cpu")))


@pytest.mark.slow
def test_the_gpus_command_measures_meta_steps_against_the_plain_step(tmp_path):
    words = "--device cpu --parts steps --tasks 2 --precisions float32 --datasets omniglot --turns 2 --repeats 1"
    benchmark("gpu", tmp_path, words, "--contiguous", "--algorithms", "convex_imaml", "reptile")
    rows = json.loads((tmp_path / "gpu-steps.json").read_text())["rows"]
    layouts = ["", "", "contiguous"] * 2
    names = [name for of in ("convex_imaml", "reptile") for name in ("plain step", of, of)]
    assert [(row["step"], row["peer"]) for row in rows] == list(zip(names, layouts))
    assert all(len(row["seconds"]) == 2 and row["ms"] > 0 and not row["captured"] for row in rows)
    lines = (tmp_path / "gpu-steps.md").read_text().splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")][2:]
    of_reptile = ["reptile", "reptile, contiguous"]
    assert [row[0] for row in cells] == ["plain step", "convex_imaml", "convex_imaml, contiguous", *of_reptile]
    plain, _, contiguous, *_ = cells
    assert plain[6] == "1.00" and float(contiguous[7]) == pytest.approx(rows[2]["ms"] / rows[1]["ms"], abs=0.006)
