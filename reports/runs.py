"""Run folders, as a report reads them: trainings, also unfinished ones, and tests that --evaluate made of them."""

import dataclasses
import functools
import importlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common import log
from common.options import Options
from common.shards import ROOT, UsageError
from data_prep.files import walk
from reports.methods import ALGORITHMS, DATASETS, method_of

# Options that say nothing of how a run was trained. Runs that differ in no others are one, with other seeds.
ASIDE = {
    "seed", "out", "data_dir", "device", "resume", "evaluate", "images", "test_episodes", "print_config", "precision",
    "capture",
}  # fmt: skip
Task = tuple[str, int, int]  # data set, ways, shots


@dataclass(eq=False)
class Run:
    """A training's folder, or that of a test of it again, which has the training's config and no rows."""

    folder: Path
    config: dict
    result: dict = field(default_factory=dict)
    """empty while it trains"""
    rows: list[dict[str, str]] = field(default_factory=list)
    """of log.csv"""
    again: Path | None = None
    """the folder of the training that this tests again, unless it is a training"""
    differing: dict = field(default_factory=dict)
    """options that this test had otherwise than the training, as far as it tells them, with what they were"""

    @property
    def training(self) -> Path:
        """The folder of the training."""
        return self.again or self.folder

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def options(self) -> dict:
        return self.config["options"]

    @property
    def algorithm(self) -> str:
        return self.options["algorithm"]

    @property
    def method(self) -> str:
        return method_of(self.options)

    @property
    def trained_on(self) -> Task:
        return self.options["dataset"], self.options["ways"], self.options["shots"]

    @property
    def tested_on(self) -> Task:
        return self.result["dataset"], self.result["ways"], self.result["shots"]

    @property
    def seed(self) -> int:
        return self.options["seed"]

    @property
    def views(self) -> int:
        """Of a test image; older results don't tell them, and have the training's."""
        return self.result.get("views", self.options.get("views", 1))

    @property
    def alike(self) -> str:
        """The same for runs that differ in nothing but the seed, and in what the script's default precision is on their
        machines. An option that is newer than a run had its default."""
        by_default = defaults(self.algorithm)
        kept = {name: value for name, value in (by_default | self.options).items() if name not in ASIDE}
        machine = {"device": "cpu", "avx512_bf16": False, "amx_bf16": False} | self.config.get("hardware", {})
        precision = self.config["precision"]
        kept["is"] = "by default" if precision == settled(by_default["precision"], machine) else precision
        return json.dumps(kept, sort_keys=True)

    def column(self, name: str) -> np.ndarray:
        """log.csv's column, no number (nan) where a row has none."""
        return np.array([float(row.get(name, "nan")) for row in self.rows])


@functools.cache
def defaults(algorithm: str) -> dict[str, object]:
    """Of a script's options; of a copied script's, of those that all have."""
    config = importlib.import_module(algorithm).Config if algorithm in ALGORITHMS else Options
    return {each.name: each.default for each in dataclasses.fields(config)}


def settled(precision: str, hardware: dict) -> str:
    """What "auto" became on the machine of a run."""
    if precision != "auto":
        return precision
    multiplies = hardware["device"] == "cpu" and (hardware["avx512_bf16"] or hardware["amx_bf16"])
    return "bfloat16" if multiplies else "float32"


def like_for_like(folders: Iterable[Path], named: Iterable[Path] = ()) -> list[Run]:
    """Runs that differ in the inner loop alone: those in folders `alike`, at any depth of these, and in `named`. One in
    which no training has begun to log counts as none."""
    inside = [
        below
        for folder in folders
        for below, _ in _below(folder)
        if below.name == "alike" and below != folder and any("log.csv" in names for _, names in _below(below))
    ]
    return find([*inside, *named]) if inside or named else []


def apart(folders: Iterable[Path], named: Iterable[Path] = ()) -> tuple[list[Run], list[Run]]:
    """(the runs in folders that aren't like for like, those that are)."""
    alike = like_for_like(folders, named)
    aside = {run.folder.resolve() for run in alike}
    return [run for run in find(folders) if run.folder.resolve() not in aside], alike


def find(folders: Iterable[Path]) -> list[Run]:
    """The runs in folders, or that folders are, in the order of methods, data sets and names; each once, and also where
    it is a link. Hidden folders are left out; so are runs with unequal shots, and tests with another number of queries
    than in training: what they ask is something else.

    Raises UsageError where there are none, or where a test's training isn't there.
    """
    folders = [Path(folder) for folder in folders]
    below = [each for folder in folders for each in _below(folder)]
    there = {folder.resolve(): folder for folder, names in below if {"config.json", "result.json"} & {*names}}.values()
    trained = {folder: _config(folder) for folder in there if _is_training(folder)}
    runs = []
    for folder in there:
        result = _read(folder / "result.json") if (folder / "result.json").exists() else {}
        if folder in trained:
            runs.append(Run(folder, trained[folder], result, _rows(folder / "log.csv", result)))
        elif result:
            own = _config(folder) if (folder / "config.json").exists() else None
            again = _training_of(folder, own, trained)
            config = trained[again] if again else _config_without(folder, own)
            differing = _differing(own, result, config)
            if not differing.keys() & {"queries", "unequal_shots"}:
                runs.append(Run(folder, config, result, again=again, differing=differing))
    runs = [run for run in runs if not run.options.get("unequal_shots")]
    if not runs:
        names = ", ".join(map(str, folders)) or "no folder is named"
        raise UsageError(f"{names}: no run is there (config.json with log.csv or result.json); name folders of runs")
    return sorted(
        runs, key=lambda run: (_place(run.algorithm, ALGORITHMS), _place(run.trained_on[0], DATASETS), run.name)
    )


def task_name(task: Task) -> str:
    dataset, ways, shots = task
    return f"{DATASETS.get(dataset, dataset)}, {ways}-way {shots}-shot"


def in_order(tasks: Iterable[Task]) -> list[Task]:
    """Each once: data sets as they are always shown, few shots first."""
    return sorted(set(tasks), key=lambda task: (_place(task[0], DATASETS), *task))


def _below(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """The folder and those below it, but for hidden ones, each with the names of its files."""
    for root, folders, names in walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield root, names


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UsageError(f"{path} is damaged ({error}); leave {path.parent} out") from None


def _config(folder: Path) -> dict:
    about = _read(folder / "config.json")
    if not isinstance(about, dict) or "options" not in about:
        raise UsageError(f"{folder / 'config.json'} is no run's; leave {folder} out")
    return about


def _rows(path: Path, result: dict) -> list[dict[str, str]]:
    try:
        return log.read(path, result.get("steps", 10**12)).rows
    except ValueError as error:
        raise UsageError(f"{path} is damaged ({error}); leave {path.parent} out") from None


def _is_training(folder: Path) -> bool:
    return (folder / "config.json").exists() and (folder / "log.csv").exists()


def _training_of(folder: Path, own: dict | None, trained: Iterable[Path]) -> Path | None:
    """A test's training is the folder that `own`, its config.json, names, or else, as where both have moved since, that
    which it lies in or whose name begins its own."""
    if named := _named_training(own):
        if there := [t for t in trained if t.resolve() == named.resolve()]:
            return there[0]
    mine = [
        t for t in trained if t == folder.parent or (t.parent == folder.parent and folder.name.startswith(f"{t.name}-"))
    ]
    return max(mine, key=lambda t: len(str(t)), default=None)


def _named_training(own: dict | None) -> Path | None:
    named = own["options"].get("evaluate") if own else None
    return ROOT / named if named else None


def _config_without(folder: Path, own: dict | None) -> dict:
    """Of a test whose training isn't among the folders: the training's, where it is elsewhere, or the test's own."""
    if (named := _named_training(own)) and (named / "config.json").exists():
        return _config(named)
    if own is None:
        raise UsageError(f"{folder} is a test without its training; name the folder of the run that was tested too")
    return own


def _differing(own: dict | None, result: dict, training: dict) -> dict:
    """The options that a test's config.json, `own`, if it has one, or its result says it had otherwise."""
    asked = (own["options"] if own else {}) | result
    trained = {"unequal_shots": False} | training["options"]  # which older runs don't tell
    compared = set(trained) - ASIDE - {"steps"}
    return {name: asked[name] for name in compared if asked.get(name, trained[name]) != trained[name]}


def _place(name: str, order: Iterable[str]) -> tuple[int, str]:
    order = list(order)
    return (order.index(name) if name in order else len(order)), name
