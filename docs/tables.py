"""Fill the tables of README.md and docs/*.md from results/, and draw the pictures of docs/.

    python docs/tables.py            write what has changed
    python docs/tables.py --check    write nothing; name the files that are stale, and end with status 1

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, where NAME is a key of TABLES or a file of results/.
A run folder added to results/ gets its rows, and its line in the picture, by itself.
"""

import hashlib
import inspect
import io
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
from PIL import Image, PngImagePlugin

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a script, from anywhere

from common.shards import ROOT
from docs import of_claims, of_results, of_speed
from reports import curves
from reports.drawing import png
from reports.methods import ALGORITHMS, DATASETS

PAGES = (
    "README.md", "docs/claims.md", "docs/results.md", "docs/evidence.md", "docs/speed.md", "docs/data.md",
    "docs/maths.md", "docs/predict.md",
)  # fmt: skip


def included(file: str) -> str:
    """A table that a benchmark wrote, with what it says of the machine and the settings below."""
    lines = (ROOT / file).read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    about = [re.sub(r"(commit: \w{10})\w+", r"\1", line) for line in lines if line and not line.startswith("|")]
    text = "".join(f"{line}\n" for line in table)
    return text + "\n" * bool(table) + "".join(f"`{line}`\n\n" for line in about).removesuffix("\n")


TABLES = {
    "algorithms": of_results.algorithms,
    "omniglot": lambda: of_results.beside_published("omniglot"),
    "miniimagenet": lambda: of_results.beside_published("miniimagenet"),
    "omniglot-20way": lambda: of_results.many_ways("omniglot", 20),
    "seeds": of_results.seeds,
    "across": of_results.across,
    "every_run": of_results.every_run,
    "table_2": of_claims.table_2,
    "time-omniglot": lambda: of_claims.time_to_accuracy("omniglot"),
    "time-miniimagenet": lambda: of_claims.time_to_accuracy("miniimagenet"),
    "alike-omniglot": lambda: of_claims.alike("omniglot"),
    "alike-miniimagenet": lambda: of_claims.alike("miniimagenet"),
    "smoothness-omniglot": lambda: of_claims.smoothness("omniglot"),
    "smoothness-miniimagenet": lambda: of_claims.smoothness("miniimagenet"),
    "smoothness-alike-omniglot": lambda: of_claims.smoothness_alike("omniglot"),
    "smoothness-alike-miniimagenet": lambda: of_claims.smoothness_alike("miniimagenet"),
    "meta_steps": of_speed.meta_steps,
    "peers": of_speed.peers,
    "goals": of_speed.goals,
}


def filled(text: str) -> str:
    """The text of a page with its tables as results/ have them."""

    def table(match: re.Match) -> str:
        name = match[1]
        content = included(name) if name.startswith("results/") else TABLES[name]() + "\n"
        return f"<!-- table: {name} -->\n\n{content}\n<!-- end -->"

    return re.sub(r"<!-- table: (\S+) -->\n.*?<!-- end -->", table, text, flags=re.S)


# The pictures


def validations() -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Minutes of training and validation accuracy (per cent) of the best run, by data set and algorithm. Minutes are
    those of an idle machine where there is a table of them. Rounded, as a change of the last digit alone is none."""
    lines = {}
    for dataset in ("omniglot", "miniimagenet"):
        lines[dataset] = {}
        for script in ALGORITHMS:
            if run := of_results.best(script, dataset):
                steps, accuracy = curves.line(run, "val_accuracy", of_results.times())
                minutes = of_results.times().minutes(run, steps)
                lines[dataset][script] = minutes.round(4).tolist(), (100 * accuracy).round(4).tolist()
    return lines


def draw(lines: dict) -> bytes:
    """A panel a data set, a line an algorithm, its name at the line's end."""
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
    return png(figure, dpi=130)


class Picture(NamedTuple):
    shows: dict
    draw: Callable[[], bytes]
    code: object
    """the function or module that draws it"""

    @property
    def fingerprint(self) -> str:
        """Of what is drawn and how; the picture's bytes would differ with the version of matplotlib."""
        drawn = json.dumps(self.shows) + str(ALGORITHMS) + inspect.getsource(self.code)
        return hashlib.sha256(drawn.encode()).hexdigest()


def pictures() -> dict[str, Picture]:
    lines = validations()
    shown = {"docs/accuracy.png": Picture(lines, partial(draw, lines), draw)}
    for dataset in ("omniglot", "miniimagenet"):
        drawing = partial(of_claims.figure, dataset)
        shown[f"docs/curves-{dataset}-5w1s.png"] = Picture(of_claims.drawn(dataset), drawing, curves)
    return shown


def is_stale(file: Path, picture: Picture) -> bool:
    if not file.exists():
        return True
    with Image.open(file) as drawn:
        return drawn.info.get("Description") != picture.fingerprint


def write(file: Path, picture: Picture) -> None:
    """Draw it; its file carries the fingerprint."""
    about = PngImagePlugin.PngInfo()
    about.add_text("Description", picture.fingerprint)
    with Image.open(io.BytesIO(picture.draw())) as drawn:
        drawn.save(file, pnginfo=about)


def stale(shown: dict[str, Picture] | None = None) -> list[str]:
    """The files that aren't as results/ have them; shown: `pictures()`, where they are there already."""
    shown = shown or pictures()
    pages = [name for name in PAGES if filled((ROOT / name).read_text()) != (ROOT / name).read_text()]
    return pages + [name for name, picture in shown.items() if is_stale(ROOT / name, picture)]


def main() -> None:
    shown = pictures()
    names = stale(shown)
    if sys.argv[1:] == ["--check"]:
        if names:
            raise SystemExit(f"stale: {', '.join(names)}; write them anew with python docs/tables.py")
        return
    if sys.argv[1:]:
        raise SystemExit(f"{' '.join(sys.argv[1:])}: expected nothing or --check")
    for name in names:
        if name.endswith(".png"):
            write(ROOT / name, shown[name])
        else:
            (ROOT / name).write_text(filled((ROOT / name).read_text()))
        print(f"{name}: written")


if __name__ == "__main__":
    main()
