"""Tables of the runs in results/: beside published figures, with many ways, across data sets, and all of them."""

import functools
import importlib
from pathlib import Path

from benchmarks import markdown
from common.options import flag, of_tests
from common.shards import ROOT
from reports.methods import ALGORITHMS, DATASETS, PAPER, PUBLISHED, THIS_PAPER, Algorithm
from reports.runs import Run, apart, defaults, in_order, settled
from reports.shown import shown_tests, shown_trainings
from reports.times import Times, tables_of_times

# What an option says has changed since some runs were made: convex_imaml.py's tolerance was of the inner gradient,
# relative to its start, and is of W. Their commands leave it out.
REDEFINED = {"tolerance"}


# Runs


@functools.cache
def runs() -> list[Run]:
    """Of the six scripts, trainings and tests of them again; runs of copied scripts have no place in these tables, nor
    have a reader's own tests, which `--evaluate results/NAME` puts into that folder."""
    found, _ = apart([ROOT / "results"])
    return [run for run in found if run.algorithm in ALGORITHMS and run.folder.parent == ROOT / "results"]


def tested() -> list[Run]:
    """Those that have a test, by the data set of that and by algorithm."""
    found = [run for run in runs() if run.result]
    datasets = [dataset for dataset, *_ in in_order(run.tested_on for run in found)]
    return sorted(found, key=lambda run: datasets.index(run.tested_on[0]))


def elsewhere(run: Run) -> bool:
    """Whether it was tested on another data set than it was trained on."""
    return run.tested_on[0] != run.trained_on[0]


@functools.cache
def times() -> Times:
    """What a step takes on an idle machine, where that has been measured."""
    return Times(tables_of_times())


def best(algorithm: str, dataset: str) -> Run | None:
    """The 5-way 1-shot training that is shown where only one is."""
    group = shown_trainings(runs()).get((dataset, 5, 1), {}).get(algorithm)
    return group[0] if group else None


def tested_again(run: Run, ways: int, shots: int) -> Run | None:
    """The same run's test with as many views, on another task."""
    for other in tested():
        same = (other.training, other.views) == (run.training, run.views)
        if same and other.tested_on == (run.tested_on[0], ways, shots):
            return other
    return None


def seeds_of(run: Run) -> list[Run]:
    """The run's training and those that differ from it in the seed alone, one a seed."""
    alike = {other.seed: other for other in tested() if other.rows and other.alike == run.alike}
    return [alike[seed] for seed in sorted(alike)]


def command(run: Run) -> str:
    """What trains or tests it: the options in which it differs from the script's settings of today."""
    script = importlib.import_module(run.algorithm)
    started = f"python {run.algorithm}.py"
    folder = f"runs/{run.training.name}"
    plain = defaults(run.algorithm)
    then = plain | {k: v for k, v in run.options.items() if k in plain}  # a newer option had its default
    if run.folder != run.training:
        differs = {k: run.result[k] for k in ("dataset", "ways", "shots", "seed") if run.result[k] != then[k]}
        told = [name for name in of_tests(script.Config) if name in run.result]  # a test from before it told has none
        differs |= {name: run.result[name] for name in told if run.result[name] not in (None, then[name])}
        if run.result.get("precision", run.config["precision"]) != run.config["precision"]:
            differs["precision"] = run.result["precision"]
        released = (run.training / "checkpoint.pt").exists()
        folder = f"results/{run.training.name}" if released else folder
        return " ".join([f"{started} --evaluate {folder}", *(written(k, v) for k, v in differs.items())])
    dataset = then["dataset"]
    now = plain | {"dataset": dataset} | script.SETTINGS.get(dataset, script.SETTINGS["other"])
    words = [] if dataset == plain["dataset"] else [written("dataset", dataset)]
    words += [written(k, then[k]) for k in ("steps", "minutes") if then[k] is not None]
    aside = {"dataset", "steps", "minutes", "precision", "device", "data_dir", "out", "resume", "evaluate"} | REDEFINED
    words += [written(k, v) for k, v in then.items() if k not in aside and v != now[k]]
    if then["device"] not in ("auto", "cpu"):
        words.append(written("device", then["device"]))
    if run.config["precision"] != settled(now["precision"], run.config["hardware"]):
        words.append(written("precision", run.config["precision"]))
    return " ".join([started, *words, f"--out {folder}"])


def written(name: str, value) -> str:
    """An option and its value as a command line has them."""
    if isinstance(value, bool):
        return flag(name) if value else flag(f"no_{name}")
    return f"{flag(name)} {value:g}" if isinstance(value, float) else f"{flag(name)} {value}"


# Tables of results


def link(folder: Path) -> str:
    return f"[{folder.name}](../results/{folder.name})"


def fraction(result: dict, kind: str = "") -> str:
    return f"{result['test_accuracy' + kind]:.4f} ± {result['test_ci95' + kind]:.4f}"


def per_cent(run: Run | None, kind: str = "") -> str:
    if run is None:
        return ""
    return f"{100 * run.result['test_accuracy' + kind]:.2f} ± {100 * run.result['test_ci95' + kind]:.2f}"


def filters(run: Run) -> str:
    first = run.options.get("first_width", 0)
    width = run.result["width"]
    return f"{width}, {first} in the first block" if first not in (0, width) else str(width)


def training(run: Run) -> str:
    options = run.options
    return f"{options['train_ways'] or options['ways']}w{options['train_shots'] or options['shots']}s"


def machine(run: Run) -> str:
    hardware = run.config["hardware"]
    if hardware["device"] != "cpu":
        return f"{hardware['device']}, {run.config['precision']}"
    cores = f"{hardware['threads']} threads"
    family = f", family {hardware['cpu_family']} model {hardware['cpu_model']}" if "cpu_family" in hardware else ""
    return f"{hardware['processor']}{family}, {hardware['cpu_capability']}, {cores}, {run.config['precision']}"


def by_whose_clock(run: Run) -> str:
    """The GPU whose clock a run's minutes are by, if they are."""
    device = run.config["hardware"]["device"]
    return "" if device == "cpu" or times().row(run) else f" on an {device}"


def algorithms() -> str:
    """README: a line each, with the cells that Table 2 has, and in brackets what the method's paper has."""
    lines, shown = [], shown_tests(runs())
    for script, algorithm in ALGORITHMS.items():
        cells = []
        for dataset in ("omniglot", "miniimagenet"):
            tests = [of_seeds[0] for shots in (1, 5) if (of_seeds := shown[dataset, 5, shots].get(script))]
            ours = " / ".join(f"{100 * test.result['test_accuracy']:.1f}" for test in tests) or "not run"
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
        for run in tested():
            asked = run.tested_on == (dataset, 5, 1) and not elsewhere(run)
            if not asked or ALGORITHMS[run.algorithm].name != method:
                continue
            if any(other.seed < run.seed for other in seeds_of(run)):
                continue
            result = run.result
            how = [filters(run), str(run.views), training(run)]
            spent = f"{result['steps']:,} steps, {times().total(run):.0f} min{by_whose_clock(run)}"
            five = tested_again(run, 5, 5)
            for query, kind in (("inductive", ""), ("transductive", "_transductive")):
                cells = [per_cent(run, kind), per_cent(five, kind), query, *how, spent]
                lines.append([run.method, f"**ours**, {link(run.folder)}", *cells])
        for p in PUBLISHED:
            if (p.dataset, p.method) == (dataset, method):
                figures = ["" if value is None else str(value) for value in (p.one_shot, p.five_shot)]
                lines.append([method, p.source, *figures, p.query, p.filters, p.views, "", ""])
    return markdown(heads, lines)


def many_ways(dataset: str, ways: int) -> str:
    """The tests of a data set's runs with so many classes, in per cent."""
    lines = []
    for run in tested():
        if run.tested_on == (dataset, ways, 1) and not elsewhere(run):
            for query, kind in (("inductive", ""), ("transductive", "_transductive")):
                cells = [per_cent(run, kind), per_cent(tested_again(run, ways, 5), kind), query]
                method = ALGORITHMS[run.algorithm].name
                lines.append([method, link(run.training), *cells, filters(run), str(run.views), training(run)])
    heads = ["method", "run", f"{ways}-way 1-shot", f"{ways}-way 5-shot", "query normalised", "filters", "views"]
    return markdown([*heads, "trained on"], lines)


def seeds() -> str:
    """Trainings that were repeated with other seeds, and their own tests, in per cent."""
    lines = []
    for first in (run for run in tested() if run.rows):
        group = seeds_of(first)
        if len(group) > 1 and group[0] is first:
            links = ", ".join(link(run.folder) for run in group)
            tests = [", ".join(per_cent(run, kind) for run in group) for kind in ("", "_transductive")]
            lines.append([first.method, links, ", ".join(str(run.seed) for run in group), *tests])
    return markdown(["method", "runs", "seeds", "inductive", "transductive"], lines)


def across() -> str:
    """Runs that were tested on other data sets too: 5-way accuracy with 1 / 5 shots in per cent, inductive."""
    sets = [*DATASETS, *sorted({run.result["dataset"] for run in tested()} - set(DATASETS))]
    lines = []
    for training, views in dict.fromkeys((run.training, run.views) for run in tested() if elsewhere(run)):
        of_run = [run for run in tested() if (run.training, run.views) == (training, views)]
        dataset, method = of_run[0].trained_on[0], ALGORITHMS[of_run[0].algorithm].name
        cells = []
        for other in sets:
            tests = [run for shots in (1, 5) for run in of_run if run.tested_on == (other, 5, shots)]
            cells.append(" / ".join(per_cent(run) for run in tests))
        lines.append([DATASETS.get(dataset, dataset), f"{method}, {link(training)}", str(views), *cells])
    return markdown(["trained on", "run", "views", *(f"tested on {DATASETS.get(s, s)}" for s in sets)], lines)


def every_run() -> str:
    """A line for each folder of results/, as its result.json has it."""
    heads = ["run", "algorithm", "task", "inductive", "transductive", "filters", "views", "trained on", "steps"]
    heads += ["minutes", "machine", "seed", "command"]
    lines = []
    for run in tested():
        result = run.result
        what = f"{DATASETS.get(result['dataset'], result['dataset'])} {result['ways']}w{result['shots']}s"
        accuracy = [fraction(result), fraction(result, "_transductive")]
        spent = [f"{result['steps']:,}", f"{times().total(run):.0f}{by_whose_clock(run)}"]
        line = [link(run.folder), ALGORITHMS[run.algorithm].name, what, *accuracy, filters(run), str(run.views)]
        line += [training(run), *spent, machine(run), str(result["seed"]), f"`{command(run)}`"]
        lines.append(line)
    return markdown(heads, lines)
