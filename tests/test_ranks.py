"""Several processes, as torchrun starts them."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from common import ranks
from common.shards import ROOT
from tests.runs import SMALL, rows_of, state_of
from tests.test_commands import SCRIPTS


def test_a_test_is_shared_out_to_any_number_of_processes(train, command, monkeypatch, capsys):
    run = train()
    monkeypatch.setattr(ranks, "start", lambda device: (0, 3))
    assert command(f"{SMALL} --steps 2") == 2
    assert "--tasks 4 in 3 batches over 3 processes" in capsys.readouterr().err
    assert command(f"--evaluate {run}") == 0


@pytest.mark.slow
def test_two_ranks_with_half_the_tasks_equal_one_rank_with_all_and_leave_no_thread(command, tmp_path, data_dir):
    """Of every script, over gloo: weights, running averages and log as of one process with the same two batches.

    A thread that outlived the process group would abort, now and then, a process that ends: it asks for an interpreter
    that is gone.
    """
    words = {}
    for script, own in SCRIPTS.items():
        # Few steps, and float32, because Adam makes much of rounding where a gradient is next to nothing.
        options = f"{SMALL} {own} --steps 4 --precision float32"
        assert command(f"{options} --batches 2 --out one/{script.__name__}", script) == 0
        words[script.__name__] = f"{options} --data-dir {data_dir} --out {tmp_path / 'two' / script.__name__}".split()
    (tmp_path / "words.json").write_text(json.dumps(words))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    runs = ["-m", "tests.two_ranks", tmp_path / "words.json"]
    done = subprocess.run([*torchrun, *runs], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]  # the ranks' own words come before the launcher's
    for name in words:
        is_as_one_rank_left_it(tmp_path / "one" / name, tmp_path / "two" / name)


def is_as_one_rank_left_it(one, two):
    before, after = state_of(one), state_of(two)
    for key, value in before["model"].items():
        torch.testing.assert_close(after["model"][key], value, rtol=1e-3, atol=2e-5, msg=f"{two} {key}")
    first, second = (np.load(folder / "episodes.npz") for folder in (one, two))
    for key in ("classes", "support_rows", "query_rows"):
        np.testing.assert_array_equal(first[key], second[key])
    (logged,), (also,) = rows_of(one), rows_of(two)
    compared = ["train_loss", "train_accuracy", "gradient_norm", "val_accuracy"]
    compared += [key for key in ("converged", "not_converged", "gradient_converged") if key in logged]
    assert set(logged) == set(also)
    for key in compared:
        assert float(also[key]) == pytest.approx(float(logged[key]), rel=1e-3, abs=1e-3), (two, key)
    assert json.loads((two / "config.json").read_text())["processes"] == 2
