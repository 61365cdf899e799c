"""The README says what the committed results and the tree say."""

import dataclasses
import importlib
import json
import re
import sys

import pytest

from common.command import parse
from common.shards import ROOT

README = (ROOT / "README.md").read_text()
RESULTS = sorted((ROOT / "results").glob("*/result.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_every_committed_result_stands_in_the_table_as_it_was_measured(path):
    result = json.loads(path.read_text())
    rows = [line for line in README.splitlines() if f"results/{path.parent.name})" in line and line.startswith("|")]
    assert len(rows) == 1
    for key in ("test", "test_transductive"):
        accuracy = result["test_accuracy" + key.removeprefix("test")]
        ci95 = result["test_ci95" + key.removeprefix("test")]
        assert f"{accuracy:.4f} ± {ci95:.4f}" in rows[0]
    assert f"{result['ways']}w{result['shots']}s" in rows[0] and result["dataset"] in rows[0]
    files = [path.parent / name for name in ("config.json", "log.csv", "curves.png")]
    assert "--evaluate" in rows[0] or all(file.exists() for file in files)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_a_rows_command_means_what_was_run(path, monkeypatch):
    if not (path.parent / "config.json").exists():
        pytest.skip("another row's run, tested again")
    saved = json.loads((path.parent / "config.json").read_text())
    (row,) = (line for line in README.splitlines() if f"results/{path.parent.name})" in line and line[0] == "|")
    monkeypatch.setattr(sys, "argv", re.search(r"`python ([^`]+)`", row)[1].split())
    script = importlib.import_module(saved["options"]["algorithm"])
    now = dataclasses.asdict(parse(script.Config, script.SETTINGS))
    then = dataclasses.asdict(script.Config()) | saved["options"]  # an option that is newer had its default
    then |= {"device": "cpu", "precision": saved.get("precision", "float32")}
    now |= {"precision": then["precision"]}  # which is the machine's
    assert {k: then[k] for k in now if k not in ("data_dir", "out")} == {
        k: v for k, v in now.items() if k not in ("data_dir", "out")
    }


def test_there_are_results():
    assert RESULTS


def test_every_file_and_picture_that_the_readme_names_exists():
    names = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"^\| `([\w./]+)`", README, re.M)
    assert len(names) > 10
    for name in names:
        assert (ROOT / name).exists() or name in ("glyphs",), name


def test_every_option_that_the_readme_names_is_one_of_a_command():
    from benchmarks import SCRIPTS, compare, costs, heads, memory, meta_step, run, steady, tasks

    benchmarks = (compare, costs, heads, memory, meta_step, run, steady, tasks)
    options = [importlib.import_module(name).Config for name in SCRIPTS] + [b.Options for b in benchmarks]
    known = {name.replace("_", "-") for option in options for name in option.__dataclass_fields__}
    known |= set(re.findall(r'"--([a-z-]+)"', (ROOT / "data_prep" / "build.py").read_text())) | {"nproc-per-node"}
    assert {name.removeprefix("no-") for name in re.findall(r"--([a-z][a-z-]+)", README)} <= known
