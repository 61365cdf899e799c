"""Tables of the runs in results/: beside published figures, with many ways, across data sets, and all of them."""

import dataclasses
import functools
import importlib
import json
from typing import NamedTuple

from benchmarks import markdown
from common.options import flag, of_tests
from common.shards import ROOT
from reports.methods import ALGORITHMS, DATASETS, PAPER, PUBLISHED, THIS_PAPER, Algorithm, as_published, method_of
from reports.runs import Run, find
from reports.times import Times, settled, tables_of_times

# What an option says has changed since some runs were made: convex_imaml.py's tolerance was of the inner gradient,
# relative to its start, and is of W. Their commands leave it out.
REDEFINED = {"tolerance"}


# Runs


class Row(NamedTuple):
    """A folder of results/: a training's, or one whose run was tested again with --evaluate."""

    name: str
    result: dict
    config: dict  # of the training
    trained: str  # name of the training's folder, which for an evaluation is another one

    @property
    def views(self) -> int:
        """Older results don't have them: then they are the training's."""
        return self.result.get("views", self.config["options"].get("views", 1))


@functools.cache
def rows() -> list[Row]:
    """All of results/, by data set and algorithm; runs of copied scripts have no place in tables of the six."""
    folders = {path.parent.name: path.parent for path in (ROOT / "results").glob("[!.]*/result.json")}
    trainings = [name for name, folder in folders.items() if (folder / "log.csv").exists()]
    found = []
    for name, folder in folders.items():
        begins = [training for training in trainings if name == training or name.startswith(f"{training}-")]
        if not begins:
            raise SystemExit(
                f"results/{name} has no log.csv; expected the folder of its training, whose name begins it"
            )
        trained = max(begins, key=len)
        config = json.loads((folders[trained] / "config.json").read_text())
        if config["options"]["algorithm"] in ALGORITHMS:
            found.append(Row(name, json.loads((folder / "result.json").read_text()), config, trained))
    order = [*DATASETS, *sorted({row.result["dataset"] for row in found} - set(DATASETS))]
    scripts = list(ALGORITHMS)
    return sorted(found, key=lambda r: (order.index(r.result["dataset"]), scripts.index(r.result["algorithm"]), r.name))


def task(row: Row) -> tuple[str, int, int]:
    return row.result["dataset"], row.result["ways"], row.result["shots"]


def elsewhere(row: Row) -> bool:
    """Whether it was tested on another data set than it was trained on."""
    return row.result["dataset"] != row.config["options"]["dataset"]


@functools.cache
def times() -> Times:
    """What a step takes on an idle machine, where that has been measured."""
    return Times(tables_of_times())


@functools.cache
def trained(name: str) -> Run:
    """The training in a folder of results/, as report.py reads it."""
    (run,) = [run for run in find([ROOT / "results" / name]) if run.rows]
    return run


def minutes(row: Row) -> float:
    """Of the training, on an idle machine where that has been measured, else by the run's own clock."""
    return times().total(trained(row.trained))


def best(algorithm: str, dataset: str) -> Row | None:
    """The 5-way 1-shot training of the method as published with the highest validation accuracy."""
    trainings = [row for row in rows() if row.name == row.trained and row.result["algorithm"] == algorithm]
    trainings = [row for row in trainings if task(row) == (dataset, 5, 1) and as_published(row.config["options"])]
    return max(trainings, key=lambda row: row.result["val_accuracy"], default=None)


def tested_again(row: Row, ways: int, shots: int) -> Row | None:
    """The same run's test with as many views, on another task."""
    for other in rows():
        same = (other.trained, other.views) == (row.trained, row.views)
        if same and task(other) == (row.result["dataset"], ways, shots):
            return other
    return None


def command(row: Row) -> str:
    """What trains or tests the row: the options in which it differs from the script's settings of today."""
    script = importlib.import_module(row.config["options"]["algorithm"])
    started = f"python {row.config['options']['algorithm']}.py"
    folder = f"runs/{row.trained}"
    plain = dataclasses.asdict(script.Config())
    then = plain | {k: v for k, v in row.config["options"].items() if k in plain}  # a newer option had its default
    if row.name != row.trained:
        differs = {k: row.result[k] for k in ("dataset", "ways", "shots", "seed") if row.result[k] != then[k]}
        told = [name for name in of_tests(script.Config) if name in row.result]  # a test from before it told has none
        differs |= {name: row.result[name] for name in told if row.result[name] not in (None, then[name])}
        released = (ROOT / "results" / row.trained / "checkpoint.pt").exists()
        folder = f"results/{row.trained}" if released else folder
        return " ".join([f"{started} --evaluate {folder}", *(written(k, v) for k, v in differs.items())])
    dataset = then["dataset"]
    now = plain | {"dataset": dataset} | script.SETTINGS.get(dataset, script.SETTINGS["other"])
    words = [] if dataset == plain["dataset"] else [written("dataset", dataset)]
    words += [written(k, then[k]) for k in ("steps", "minutes") if then[k] is not None]
    aside = {"dataset", "steps", "minutes", "precision", "device", "data_dir", "out", "resume", "evaluate"} | REDEFINED
    words += [written(k, v) for k, v in then.items() if k not in aside and v != now[k]]
    if then["device"] not in ("auto", "cpu"):
        words.append(written("device", then["device"]))
    if row.config["precision"] != settled(now["precision"], row.config["hardware"]):
        words.append(written("precision", row.config["precision"]))
    return " ".join([started, *words, f"--out {folder}"])


def written(name: str, value) -> str:
    """An option and its value as a command line has them."""
    if isinstance(value, bool):
        return flag(name) if value else flag(f"no_{name}")
    return f"{flag(name)} {value:g}" if isinstance(value, float) else f"{flag(name)} {value}"


# Tables of results


def fraction(result: dict, kind: str = "") -> str:
    return f"{result['test_accuracy' + kind]:.4f} ± {result['test_ci95' + kind]:.4f}"


def per_cent(row: Row | None, kind: str = "") -> str:
    if row is None:
        return ""
    return f"{100 * row.result['test_accuracy' + kind]:.2f} ± {100 * row.result['test_ci95' + kind]:.2f}"


def filters(row: Row) -> str:
    first = row.config["options"].get("first_width", 0)
    width = row.result["width"]
    return f"{width}, {first} in the first block" if first not in (0, width) else str(width)


def training(row: Row) -> str:
    options = row.config["options"]
    return f"{options['train_ways'] or options['ways']}w{options['train_shots'] or options['shots']}s"


def machine(row: Row) -> str:
    hardware = row.config["hardware"]
    if hardware["device"] != "cpu":
        return f"{hardware['device']}, {row.config['precision']}"
    cores = f"{hardware['threads']} threads"
    family = f", family {hardware['cpu_family']} model {hardware['cpu_model']}" if "cpu_family" in hardware else ""
    return f"{hardware['processor']}{family}, {hardware['cpu_capability']}, {cores}, {row.config['precision']}"


def algorithms() -> str:
    """README: a line each, with the cells of the best run, and in brackets what the method's paper has."""
    lines = []
    for script, algorithm in ALGORITHMS.items():
        cells = []
        for dataset in ("omniglot", "miniimagenet"):
            row = best(script, dataset)
            tests = [row, row and tested_again(row, 5, 5)]
            ours = " / ".join(f"{100 * t.result['test_accuracy']:.1f}" for t in tests if t) or "not run"
            cells.append(f"{ours} ({its_paper(algorithm, dataset)})")
        what = [algorithm.adapts, algorithm.gradient, f"{algorithm.equation}; {algorithm.paper}"]
        lines.append([f"`{script}.py`", *what, *cells])
    heads = ["script", "a task adapts", "meta-gradient", "equation; paper", "Omniglot", "mini-ImageNet"]
    return markdown(heads, lines)


def its_paper(algorithm: Algorithm, dataset: str) -> str:
    """The first figures published for a method with 1 / 5 shots, by others than this paper where there are others."""
    alike = [p for p in PUBLISHED if (p.dataset, p.method) == (dataset, algorithm.name)]
    first = min(alike, key=lambda p: p.source == PAPER and algorithm.paper != THIS_PAPER)
    if first.source == PAPER and algorithm.paper != THIS_PAPER:
        return "none"
    return " / ".join("none" if value is None else str(value) for value in (first.one_shot, first.five_shot))


def beside_published(dataset: str) -> str:
    """Ours and others' figures by method, 5-way, in per cent."""
    heads = ["method", "whose", "1 shot", "5 shots", "query normalised", "filters", "views", "trained on", "for"]
    methods = list(dict.fromkeys([a.name for a in ALGORITHMS.values()] + [p.method for p in PUBLISHED]))
    lines = []
    for method in methods:
        for row in rows():
            tested = task(row) == (dataset, 5, 1) and not elsewhere(row) and row.result["algorithm"] in ALGORITHMS
            if not tested or ALGORITHMS[row.result["algorithm"]].name != method:
                continue
            result = row.result
            how = [filters(row), str(row.views), training(row)]
            spent = f"{result['steps']:,} steps, {minutes(row):.0f} min"
            five = tested_again(row, 5, 5)
            for query, kind in (("inductive", ""), ("transductive", "_transductive")):
                cells = [per_cent(row, kind), per_cent(five, kind), query, *how, spent]
                lines.append(
                    [method_of(row.config["options"]), f"**ours**, [{row.name}](../results/{row.name})", *cells]
                )
        for p in PUBLISHED:
            if (p.dataset, p.method) == (dataset, method):
                figures = ["" if value is None else str(value) for value in (p.one_shot, p.five_shot)]
                lines.append([method, p.source, *figures, p.query, p.filters, p.views, "", ""])
    return markdown(heads, lines)


def many_ways(dataset: str, ways: int) -> str:
    """The tests of a data set's runs with so many classes, in per cent."""
    lines = []
    for row in rows():
        if task(row) == (dataset, ways, 1) and not elsewhere(row):
            run = f"[{row.trained}](../results/{row.trained})"
            for query, kind in (("inductive", ""), ("transductive", "_transductive")):
                cells = [per_cent(row, kind), per_cent(tested_again(row, ways, 5), kind), query]
                method = ALGORITHMS[row.result["algorithm"]].name
                lines.append([method, run, *cells, filters(row), str(row.views), training(row)])
    heads = ["method", "run", f"{ways}-way 1-shot", f"{ways}-way 5-shot", "query normalised", "filters", "views"]
    return markdown([*heads, "trained on"], lines)


def across() -> str:
    """Runs that were tested on other data sets too: 5-way accuracy with 1 / 5 shots in per cent, inductive."""
    sets = [*DATASETS, *sorted({row.result["dataset"] for row in rows()} - set(DATASETS))]
    lines = []
    for name, views in dict.fromkeys((row.trained, row.views) for row in rows() if elsewhere(row)):
        of_run = [row for row in rows() if (row.trained, row.views) == (name, views)]
        dataset, method = of_run[0].config["options"]["dataset"], ALGORITHMS[of_run[0].result["algorithm"]].name
        cells = []
        for other in sets:
            tests = [row for shots in (1, 5) for row in of_run if task(row) == (other, 5, shots)]
            cells.append(" / ".join(per_cent(row) for row in tests))
        lines.append([DATASETS.get(dataset, dataset), f"{method}, [{name}](../results/{name})", str(views), *cells])
    return markdown(["trained on", "run", "views", *(f"tested on {DATASETS.get(s, s)}" for s in sets)], lines)


def every_run() -> str:
    """A line for each folder of results/, as its result.json has it."""
    heads = ["run", "algorithm", "task", "inductive", "transductive", "filters", "views", "trained on", "steps"]
    heads += ["minutes", "machine", "seed", "command"]
    lines = []
    for row in rows():
        result = row.result
        what = f"{DATASETS.get(result['dataset'], result['dataset'])} {result['ways']}w{result['shots']}s"
        accuracy = [fraction(result), fraction(result, "_transductive")]
        spent = [f"{result['steps']:,}", f"{minutes(row):.0f}"]
        name = ALGORITHMS[result["algorithm"]].name
        line = [f"[{row.name}](../results/{row.name})", name, what, *accuracy, filters(row), str(row.views)]
        line += [training(row), *spent, machine(row), str(result["seed"]), f"`{command(row)}`"]
        lines.append(line)
    return markdown(heads, lines)
