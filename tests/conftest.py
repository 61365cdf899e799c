"""Small data sets that the tests make themselves."""

import csv
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import convex_imaml
import predict
from benchmarks import start
from common import command as command_line
from common import folder, lock, meters, shards
from data_prep import output
from tests.runs import TINY

# The tests' networks are too small to share out, and two threads each of what runs at a time are in each other's way.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start


def write_set(data_dir: Path, name: str, classes=(12, 8, 9), counts=(20, 24), shape=(1, 28, 28), seed=0) -> Path:
    """A data set of coarse random patterns: `classes` a split, sizes cycling through `counts`, images a class's pattern
    with noise, so that it can be learned."""
    generator = np.random.default_rng(seed)

    def split(name, n):
        sizes = [counts[c % len(counts)] for c in range(n)]
        coarse = generator.integers(0, 2, (n, shape[0], shape[1] // 4, shape[2] // 4)) * 200
        patterns = coarse.repeat(4, axis=2).repeat(4, axis=3)
        blocks = (
            np.clip(p + generator.normal(0, 40, (k, *shape)), 0, 255).astype(np.uint8) for p, k in zip(patterns, sizes)
        )
        return shards.Split([f"{name}/class{c:02d}" for c in range(n)], sizes, blocks)

    return output.write(data_dir, name, {s: split(s, n) for s, n in zip(shards.SPLITS, classes)}, "made by the tests")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """A folder with the data set `toy`: 12, 8 and 9 classes of 20 or 24 images, 28x28."""
    folder = tmp_path_factory.mktemp("data")
    write_set(folder, "toy")
    return folder


@pytest.fixture(scope="session")
def first_run(tmp_path_factory) -> Path:
    """A folder in which a script has run as a newcomer's first does, with few steps: data/glyphs, which it has built,
    run/, and said.txt, what it printed. Made once for all of pytest's processes."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    base = tmp_path_factory.getbasetemp()
    folder = (base if alone else base.parent) / "first-run"
    folder.mkdir(exist_ok=True)
    while True:
        try:
            lock.hold(folder)
            break
        except shards.UsageError:  # another process is at it
            time.sleep(0.2)
    try:
        if not (folder / "said.txt").exists():
            words = "--steps 1 --tasks 1 --val-episodes 2 --test-episodes 2 --out run --data-dir data".split()
            script = [sys.executable, convex_imaml.__file__, *words]
            done = subprocess.run(script, cwd=folder, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-2000:]
            (folder / "said.txt").write_text(done.stdout)
    finally:
        lock.release()
    return folder


@pytest.fixture(scope="session")
def glyphs_folder(first_run) -> Path:
    """The whole set `glyphs`."""
    return first_run / "data" / "glyphs"


@pytest.fixture(scope="session")
def toy(data_dir) -> dict[str, np.ndarray]:
    """The arrays of toy's train.h5."""
    with h5py.File(data_dir / "toy" / "train.h5") as file:
        return {"images": file["images"][:], "start": file["class_start"][:]}


@pytest.fixture
def command(monkeypatch, data_dir, tmp_path):
    """Runs a script's command in this process, in an empty folder, and returns its exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folder, "ROOT", tmp_path)

    def call(options, script=convex_imaml, data=data_dir):
        monkeypatch.setattr(sys, "argv", [script.__file__, "--data-dir", str(data), *options.split()])
        try:
            command_line.command(script.main)
            return 0
        except SystemExit as stop:
            return stop.code

    return call


@pytest.fixture
def in_this_process(monkeypatch):
    """Runs a command of benchmarks/ in this process, and the scripts that it starts too, as another one takes seconds
    to import torch. `started` has the words that each script was started with."""
    run = subprocess.run

    def of_script(words, **how):
        if words[0] != sys.executable:  # such as git
            return run(words, **how)
        call.started.append(list(map(str, words[1:])))
        monkeypatch.setattr(sys, "argv", call.started[-1])
        importlib.import_module(Path(words[1]).stem).main()
        lock.release()

    def call(name, words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        benchmark = importlib.import_module(f"benchmarks.{name}")
        start(benchmark.main, benchmark.Options)

    call.started = []
    monkeypatch.setattr(meters, "keep_memory", lambda: None)  # which can't be taken back
    monkeypatch.setattr(subprocess, "run", of_script)
    return call


@pytest.fixture
def train(command, tmp_path):
    """Trains a script for two steps on `toy`; returns the run folder."""

    def call(script=convex_imaml, options=""):
        assert command(f"{TINY} --steps 2 --out {tmp_path / script.__name__} {options}", script) == 0
        return tmp_path / script.__name__

    return call


@pytest.fixture
def predicted(monkeypatch, tmp_path, capsys):
    """Runs predict.py; returns its exit status, what it printed, and the rows of predictions.csv."""

    def call(*words):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, words), "--device", "cpu"])
        monkeypatch.chdir(tmp_path)
        try:
            command_line.command(predict.main)
            status = 0
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        file = tmp_path / "predicted" / "predictions.csv"
        rows = list(csv.DictReader(open(file))) if file.exists() else []
        return status, captured.out if status == 0 else captured.err, rows

    return call


def pytest_terminal_summary(terminalreporter):
    """Print what tests recorded as a table."""
    reports = terminalreporter.getreports("passed")
    for line in [value for report in reports for name, value in report.user_properties if name == "table"]:
        terminalreporter.write_line(line)
