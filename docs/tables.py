"""Fill the tables of README.md and docs/*.md from results/, and draw docs/accuracy.png.

    python docs/tables.py            write what has changed
    python docs/tables.py --check    write nothing; name the files that are stale, and end with status 1

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, where NAME is a key of TABLES or a file of results/.
A run folder added to results/ gets its rows, and its line in the picture, by itself.
"""

import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a script, from anywhere

from benchmarks import markdown
from common.options import flag
from common.shards import ROOT
from reports.curves import line
from reports.methods import ALGORITHMS, DATASETS, PAPER, PUBLISHED, THIS_PAPER, Algorithm
from reports.runs import find
from reports.times import Times

PICTURE = ROOT / "docs" / "accuracy.png"
PAGES = (
    "README.md", "docs/results.md", "docs/evidence.md", "docs/speed.md", "docs/data.md", "docs/maths.md",
    "docs/predict.md",
)  # fmt: skip
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
    """All of results/, by data set and algorithm."""
    folders = {path.parent.name: path.parent for path in (ROOT / "results").glob("*/result.json")}
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
    return Times(sorted((ROOT / "results" / "benchmarks").glob("steps-*.json")))


def minutes(row: Row) -> float:
    """Of the training, on an idle machine where that has been measured, else by the run's own clock."""
    (run,) = [run for run in find([ROOT / "results" / row.trained]) if run.rows]
    return times().total(run)


def best(algorithm: str, dataset: str) -> Row | None:
    """The 5-way 1-shot training with the highest validation accuracy."""
    trainings = [row for row in rows() if row.name == row.trained and row.result["algorithm"] == algorithm]
    trainings = [row for row in trainings if task(row) == (dataset, 5, 1)]
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
        if row.views != then.get("views", 1):
            differs["views"] = row.views
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


def settled(precision: str, hardware: dict) -> str:
    """What "auto" became on the machine of a run."""
    if precision != "auto":
        return precision
    multiplies = hardware["device"] == "cpu" and (hardware["avx512_bf16"] or hardware["amx_bf16"])
    return "bfloat16" if multiplies else "float32"


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
                lines.append([method, f"**ours**, [{row.name}](../results/{row.name})", *cells])
        for p in PUBLISHED:
            if (p.dataset, p.method) == (dataset, method):
                figures = ["" if value is None else str(value) for value in (p.one_shot, p.five_shot)]
                lines.append([method, p.source, *figures, p.query, p.filters, p.views, "", ""])
    return markdown(heads, lines)


def many_ways(dataset: str, ways: int) -> str:
    """The runs of a data set that were tested with more classes, in per cent, inductive."""
    lines = []
    for row in rows():
        one, five = tested_again(row, ways, 1), tested_again(row, ways, 5)
        if row.name == row.trained and task(row) == (dataset, 5, 1) and (one or five):
            name = ALGORITHMS[row.result["algorithm"]].name
            lines.append([name, f"[{row.name}](../results/{row.name})", training(row), per_cent(one), per_cent(five)])
    return markdown(["method", "run", "trained on", f"{ways}-way 1-shot", f"{ways}-way 5-shot"], lines)


def across() -> str:
    """Runs that were tested on other data sets too: 5-way accuracy with 1 / 5 shots in per cent, inductive."""
    trainings = list(dict.fromkeys(row.trained for row in rows() if elsewhere(row)))
    sets = list(DATASETS) + sorted({row.result["dataset"] for row in rows()} - set(DATASETS))
    lines = []
    for name in trainings:
        of_run = [row for row in rows() if row.trained == name]
        dataset = of_run[0].config["options"]["dataset"]
        method = ALGORITHMS[of_run[0].result["algorithm"]].name
        cells = []
        for other in sets:
            tests = [row for shots in (1, 5) for row in of_run if task(row) == (other, 5, shots)]
            cells.append(" / ".join(per_cent(row) for row in tests))
        lines.append([DATASETS.get(dataset, dataset), f"{method}, [{name}](../results/{name})", *cells])
    return markdown(["trained on", "run", *(f"tested on {DATASETS.get(s, s)}" for s in sets)], lines)


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


# Tables of speed, from results/benchmarks/table.json

COLUMNS = {
    "Omniglot, 4 tasks": ("omniglot", 4),
    "Omniglot, 16 tasks": ("omniglot", 16),
    "mini-ImageNet, 4 tasks": ("miniimagenet", 4),
    "mini-ImageNet, 16 tasks": ("miniimagenet", 16),
}
STEPS = {
    "convex_imaml": "Convex iMAML",
    "convex_maml": "Convex MAML",
    "maml": "MAML, second order, 5 steps",
    "maml, first order": "MAML, first order, 5 steps",
    "imaml": "iMAML, 16 steps",
    "reptile": "Reptile, 50 images a task for 80",
    "cavia": "CAVIA",
}
OURS_TOO = ", our allocator setting"  # a peer run with it


@functools.cache
def measured() -> list[dict]:
    return json.loads((ROOT / "results" / "benchmarks" / "table.json").read_text())["rows"]


def found(measure: str, algorithm: str, setting: str, against: str) -> list[dict]:
    """Rows with a ratio whose setting and peer match these regular expressions."""
    alike = [row for row in measured() if (row["measure"], row["algorithm"]) == (measure, algorithm)]
    alike = [row for row in alike if re.fullmatch(setting, row["setting"]) and re.fullmatch(against, row["against"])]
    return [row for row in alike if row["ratio"] is not None]


def meta_step_rows(algorithm: str, column: str, against: str) -> list[dict]:
    """In float32 and norm-pool, which peers have too."""
    dataset, tasks = COLUMNS[column]
    return found("meta_step", algorithm, rf"{dataset} Conv4-\d+, {tasks} tasks( \(--batches \d+\))?", against)


def spread(low: float, middle: float, high: float, digits: int = 2) -> str:
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def over_plain(row: dict) -> tuple[float, float, float]:
    """Our time over theirs: quartile, median, quartile."""
    return 1 / row["ratio_high"], 1 / row["ratio"], 1 / row["ratio_low"]


def meta_steps() -> str:
    lines = []
    for algorithm, name in STEPS.items():
        cells = [[spread(*over_plain(r)) for r in meta_step_rows(algorithm, c, "plain")] for c in COLUMNS]
        lines.append([name, *(" ".join(cell) or "not run" for cell in cells)])
    return markdown(["our meta-step / plain step", *COLUMNS], lines)


def fastest(algorithm: str, column: str, ending: str) -> dict | None:
    """The row of the peer that takes the least time, among those that users run as they are, or with our setting."""
    peers = meta_step_rows(algorithm, column, r"(?!plain|operation).*")
    peers = [row for row in peers if row["against"].endswith(OURS_TOO) == bool(ending)]
    return min(peers, key=lambda row: row["ratio"], default=None)


def peers() -> str:
    lines = []
    for algorithm, name in STEPS.items():
        cells, names = [], set()
        for column in COLUMNS:
            both = [fastest(algorithm, column, ending) for ending in ("", OURS_TOO)]
            names |= {row["against"] for row in meta_step_rows(algorithm, column, r"(?!plain|operation).*")}
            cells.append(" · ".join(f"{row['ratio']:.2f}" if row else "not run" for row in both))
        if names:
            who = ", ".join(sorted(name for name in names if not name.endswith(OURS_TOO)))
            lines.append([f"{name}: {who}", *cells])
    return markdown(["peer / ours", *COLUMNS], lines)


class Goal(NamedTuple):
    text: str
    rows: list[dict | None]
    least: float | None = None  # of how many times longer the other takes
    most: float | None = None  # of our time over the other's


def goals() -> str:
    """What the project set out for on two cores, and what was found."""

    def plain(algorithm, columns=COLUMNS):
        return [row for column in columns for row in meta_step_rows(algorithm, column, "plain")]

    def fastest_peers(algorithm):
        return [fastest(algorithm, column, "") for column in COLUMNS]

    def backbone(kind):
        return found("backbone", kind, ".*", "contiguous float32")

    mini = [column for column in COLUMNS if column.startswith("mini")]
    heads = found("head", "newton_head", ".*", ".*")
    small = [
        min(found("head", "newton_head", f"16 tasks, {ways} ways, 1 shots, 64 features", "scikit-learn.*"),
            key=lambda row: row["ratio"])
        for ways in (5, 20)
    ]  # fmt: skip
    wanted = [
        Goal("Convex iMAML takes at most 1.10 times the plain step", plain("convex_imaml"), most=1.10),
        Goal("Convex MAML takes at most 1.15 times the plain step", plain("convex_maml"), most=1.15),
        Goal("second-order MAML at most 2.5 times, on mini-ImageNet", plain("maml", mini), most=2.5),
        Goal("the fastest peer takes 2 times as long for MAML", fastest_peers("maml"), least=2),
        Goal("the fastest peer takes 3 times as long for iMAML", fastest_peers("imaml"), least=3),
        Goal("contiguous float32 takes 2.7 times as long, on Omniglot", backbone("norm-pool, float32")[:1], least=2.7),
        Goal("and 3.2 times, on mini-ImageNet", backbone("norm-pool, float32")[1:], least=3.2),
        Goal("and 3 times as long as bfloat16 on both", backbone("norm-pool, bfloat16"), least=3),
        Goal("no library solves heads faster: the closest", [min(heads, key=lambda row: row["ratio"])], least=1),
        Goal("scikit-learn takes 20 times as long for 16 small heads of 5 and 20 ways", small, least=20),
        Goal(
            "episodes are drawn at 0.8 times the speed of plain indexing",
            found("episodes", "EpisodeLoader", ".*16 at a time", "plain indexing"), least=0.8,
        ),
    ]  # fmt: skip
    lines = []
    for goal in wanted:
        values = [(row["ratio_low"], row["ratio"], row["ratio_high"]) for row in goal.rows if row]
        if goal.most is not None:
            values = [over_plain(row) for row in goal.rows]
        met = [v[1] >= goal.least if goal.most is None else v[1] <= goal.most for v in values]
        reached = "yes" if all(met) else f"in {sum(met)} of {len(met)}" if any(met) else "no"
        lines.append([goal.text, "; ".join(spread(*v) for v in values), reached])
    return markdown(["goal", "measured", "reached"], lines)


def included(file: str) -> str:
    """A table that a benchmark wrote, with what it says of the machine and the settings below."""
    lines = (ROOT / file).read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    about = [re.sub(r"(commit: \w{10})\w+", r"\1", line) for line in lines if line and not line.startswith("|")]
    text = "".join(f"{line}\n" for line in table)
    return text + "\n" * bool(table) + "".join(f"`{line}`\n\n" for line in about).removesuffix("\n")


TABLES = {
    "algorithms": algorithms,
    "omniglot": lambda: beside_published("omniglot"),
    "miniimagenet": lambda: beside_published("miniimagenet"),
    "omniglot-20way": lambda: many_ways("omniglot", 20),
    "across": across,
    "every_run": every_run,
    "meta_steps": meta_steps,
    "peers": peers,
    "goals": goals,
}


def filled(text: str) -> str:
    """The text of a page with its tables as results/ have them."""

    def table(match: re.Match) -> str:
        name = match[1]
        content = included(name) if name.startswith("results/") else TABLES[name]() + "\n"
        return f"<!-- table: {name} -->\n\n{content}\n<!-- end -->"

    return re.sub(r"<!-- table: (\S+) -->\n.*?<!-- end -->", table, text, flags=re.S)


# The picture


def validations() -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Minutes of training and validation accuracy (per cent) of the best run, by data set and algorithm. Minutes are
    those of an idle machine where there is a table of them."""
    lines = {}
    for dataset in ("omniglot", "miniimagenet"):
        lines[dataset] = {}
        for script in ALGORITHMS:
            if row := best(script, dataset):
                (run,) = [run for run in find([ROOT / "results" / row.name]) if run.rows]
                steps, accuracy = line(run, "val_accuracy", times())
                lines[dataset][script] = times().minutes(run, steps).tolist(), (100 * accuracy).tolist()
    return lines


def draw(lines: dict, picture: Path, fingerprint: str) -> None:
    """A panel a data set, a line an algorithm, its name at the line's end. The picture carries the fingerprint."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained", width_ratios=(1.15, 1))
    for axes, (dataset, of_algorithms) in zip(panels, lines.items()):
        for script, (minutes, accuracy) in of_algorithms.items():
            algorithm = ALGORITHMS[script]
            axes.plot(minutes, accuracy, color=algorithm.colour, dashes=algorithm.dashes, linewidth=1.8)
            axes.plot(minutes[-1], accuracy[-1], "o", color=algorithm.colour, markersize=4)
        start = min(minutes[0] for minutes, _ in of_algorithms.values())
        end = max(minutes[-1] for minutes, _ in of_algorithms.values())
        axes.set(
            xscale="log", xlabel="minutes of training", ylabel="validation accuracy, %", xlim=(0.8 * start, end * 4.5)
        )
        axes.set_title(f"{DATASETS[dataset]}, 5-way 1-shot", loc="left")
        axes.set_xticks([t for t in (0.5, 1, 2, 5, 10, 20, 60) if 0.8 * start <= t <= 1.01 * end])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        bottom, top = axes.get_ylim()
        apart = (top - bottom) / 20  # so that names beside each other don't overlap
        height = top
        for script, (minutes, accuracy) in sorted(of_algorithms.items(), key=lambda item: -item[1][1][-1]):
            height = min(height - apart, accuracy[-1])
            axes.annotate(
                ALGORITHMS[script].name, (minutes[-1], accuracy[-1]), (1.35 * end, height), va="center", fontsize=10,
                annotation_clip=False,
                arrowprops={
                    "arrowstyle": "-", "color": ALGORITHMS[script].colour, "linewidth": 1.2, "relpos": (0, 0.5),
                },
            )  # fmt: skip
    figure.savefig(picture, dpi=130, metadata={"Description": fingerprint})
    plt.close(figure)


def fingerprint_of(lines: dict) -> str:
    """Of what is drawn and how; the picture's bytes would differ with the version of matplotlib."""
    drawn = json.dumps(lines) + str(ALGORITHMS) + inspect.getsource(draw)
    return hashlib.sha256(drawn.encode()).hexdigest()


def picture_is_stale(lines: dict) -> bool:
    if not PICTURE.exists():
        return True
    with Image.open(PICTURE) as picture:
        return picture.info.get("Description") != fingerprint_of(lines)


def stale() -> list[str]:
    """The files that aren't as results/ have them."""
    pages = [name for name in PAGES if filled((ROOT / name).read_text()) != (ROOT / name).read_text()]
    return pages + [str(PICTURE.relative_to(ROOT))] * picture_is_stale(validations())


def main() -> None:
    names = stale()
    if sys.argv[1:] == ["--check"]:
        if names:
            raise SystemExit(f"stale: {', '.join(names)}; write them anew with python docs/tables.py")
        return
    if sys.argv[1:]:
        raise SystemExit(f"{' '.join(sys.argv[1:])}: expected nothing or --check")
    for name in names:
        if name.endswith(".png"):
            lines = validations()
            draw(lines, PICTURE, fingerprint_of(lines))
        else:
            (ROOT / name).write_text(filled((ROOT / name).read_text()))
        print(f"{name}: written")


if __name__ == "__main__":
    main()
