"""This project beside its peers and the machine's limit: one table of meta-step, backbone, head, episodes and memory.

    python -m benchmarks.run --quick                      ours against a plain step and the contiguous float32 network
    pip install -r benchmarks/requirements.txt
    python -m benchmarks.run                              and against the peers, into results/benchmarks/

docs/speed.md says how it is measured. A peer's time counts only if its meta-gradient on the same weights and episode is
ours, in float64, or if its heads get to the same gradient norm; of the authors' CAVIA, whose gradient can't be ours,
the row says so. Peers without a package are cloned (benchmarks/cloned.py). A command that was stopped goes on, given
again at the same commit, behind the last part of the table that was done.
"""

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from benchmarks import memory, origin, ours, peer_heads, peers, save, start
from benchmarks.meta_step_rows import OURS, WIDTHS, meta_steps
from benchmarks.rows import Row, as_table, compared
from benchmarks.worker import side_by_side
from common import meters
from common.conv4 import BLOCKS
from common.shards import ROOT, UsageError

HEADS = ((5, 1, 64), (5, 5, 800), (20, 1, 64), (20, 5, 1600))  # ways, shots, features


@dataclass
class Options:
    quick: bool = False
    """without peers and variants; at most 6 rounds; meta-steps on Omniglot with 4 tasks alone"""
    measures: tuple[Literal["backbone", "episodes", "head", "memory", "meta_step"], ...] = (
        "backbone", "episodes", "head", "memory", "meta_step",
    )  # fmt: skip
    tasks: tuple[int, ...] = (4, 16)
    """of the meta-steps"""
    variants: bool = True
    """meta-steps of ours in other blocks and bfloat16 too, with 4 tasks"""
    turns: int = 10
    """rounds that count, at most: 4 of meta-steps with other than 4 tasks or of variants, 6 of heads"""
    warmup: int = 3
    """rounds before those: 2 of such meta-steps, 1 of heads"""
    out: Path = ROOT / "results" / "benchmarks"
    """folder for table.md and table.json"""

    def __post_init__(self):
        if self.turns < 2:
            raise UsageError(f"--turns {self.turns}: expected 2 or more, as a ratio has quartiles")
        if self.quick and (self.tasks != Options.tasks or not self.variants):
            raise UsageError("--quick measures 4 tasks without variants: leave --tasks and --no-variants out")
        if self.quick:
            self.turns, self.tasks, self.variants = min(self.turns, 6), (4,), False


def meta_step_parts(options: Options) -> dict[str, partial]:
    """What measures the rows of meta-steps, by the names of the table's parts."""
    settings = [(tasks, {}) for tasks in options.tasks]
    if options.variants:
        settings.append((4, {"block": "pool-norm"}))
        if meters.has_bfloat16():
            settings += [(4, {"precision": "bfloat16"}), (4, {"block": "pool-norm", "precision": "bfloat16"})]
    made = {}
    datasets = ("omniglot",) if options.quick else WIDTHS
    for (tasks, variant), dataset, algorithm in itertools.product(settings, datasets, OURS):
        rounds = {"turns": options.turns, "warmup": options.warmup}
        if tasks != 4 or variant:
            rounds = {"turns": min(options.turns, 4), "warmup": 2}
        name = " ".join(("meta_step", dataset, f"{tasks} tasks", algorithm, *variant.values()))
        made[name] = partial(meta_steps, dataset, tasks, algorithm, variant, options.quick, **rounds)
    return made


def backbones(options: Options) -> Iterator[Row]:
    precisions = ("float32", "bfloat16") if meters.has_bfloat16() else ("float32",)
    for dataset, width in WIDTHS.items():
        network = {"dataset": dataset, "width": width, "tasks": 4 if dataset == "omniglot" else 2}
        pieces = {"contiguous float32": partial(peers.contiguous, **network)}
        for block, precision in itertools.product(BLOCKS[:1] if options.quick else BLOCKS, precisions):
            pieces[f"{block}, {precision}"] = partial(ours.plain, **network, block=block, precision=precision)
        workers = side_by_side(pieces, options.turns, options.warmup)
        theirs = workers.pop("contiguous float32")
        setting = f"{dataset} Conv4-{width}, {80 * network['tasks']} images"
        for name, us in workers.items():
            note = "another function with the same parameters" if name.startswith("pool-norm") else "the same function"
            yield compared("backbone", name, setting, us, "contiguous float32", theirs, note)


def heads(options: Options) -> Iterator[Row]:
    sizes, counts = (HEADS[:2], (16,)) if options.quick else (HEADS, (16, 256))
    for (ways, shots, features), tasks in itertools.product(sizes, counts):
        problem = {"ways": ways, "shots": shots, "features": features}
        few = 1 if ways * features > 2000 else 16  # newton-cholesky takes seconds a task
        pieces = {
            "ours": partial(ours.heads, tasks, **problem),
            "torch LBFGS": partial(peer_heads.lbfgs, 16, **problem),
            "scikit-learn, lbfgs": partial(peer_heads.sklearn, "lbfgs", 16, **problem),
            "scikit-learn, newton-cholesky": partial(peer_heads.sklearn, "newton-cholesky", few, **problem),
        }
        if options.quick:
            pieces = {name: pieces[name] for name in ("ours", "torch LBFGS")}
        workers = side_by_side(pieces, min(options.turns, 6), warmup=1, least=0.2)
        us = workers.pop("ours")
        setting = f"{tasks} tasks, {ways} ways, {shots} shots, {features} features"
        for name, worker in workers.items():
            some = few if name.endswith("cholesky") else 16  # tasks, which a library goes through one after the other
            worker.seconds = [tasks // some * seconds for seconds in worker.seconds]
            row = compared("head", "newton_head", setting, us, name, worker)
            if not worker.error:
                reached = us.info["reached"], worker.info["reached"]
                note = "relative gradient norms {:.1e}, {:.1e}".format(*reached)
                note += f"; {tasks // some} times the time of {some}" if tasks > some else ""
                row = replace(row, note=note) if max(reached) < 1.2e-5 else row.uncounted(f"not as far: {note}")
            yield row


def glyphs() -> Path:
    """The data set that anyone can build, built."""
    path = ROOT / "data" / "glyphs" / "train.h5"
    if not path.exists():
        subprocess.run([sys.executable, str(ROOT / "data_prep" / "build.py"), "--dataset", "glyphs"], check=True)
    return path


def episodes(options: Options) -> Iterator[Row]:
    drawn = {"path": glyphs(), "tasks": 16}
    pieces = {
        "ours": partial(ours.episodes, **drawn),
        "plain indexing": partial(ours.indexed_episodes, **drawn, select=False),
        "plain index_select": partial(ours.indexed_episodes, **drawn, select=True),
        "torch DataLoader": partial(peers.dataloader_episodes, **drawn, workers=0),
        "torch DataLoader, 2 workers": partial(peers.dataloader_episodes, **drawn, workers=2),
    }
    if not options.quick:
        pieces["learn2learn"] = partial(peers.learn2learn_episodes, **drawn)
    workers = side_by_side(pieces, options.turns, options.warmup, least=0.2)
    us = workers.pop("ours")
    setting = "glyphs, 5 ways, 1 shot, 15 queries, 16 at a time"
    for name, worker in workers.items():
        yield compared("episodes", "EpisodeLoader", setting, us, name, worker)
    until = {"start_ms": ("ms", "from the .h5 to the first 16 episodes")}
    until["mib"] = ("MiB", "host memory taken until the first 16 episodes")
    for key, (unit, what) in until.items():
        for name in ("plain indexing", "torch DataLoader"):  # the others import their library in between
            if not workers[name].error:
                mine, theirs = us.info[key], workers[name].info[key]
                row = Row("episodes", "EpisodeLoader", f"glyphs, {what}", name, unit, mine, theirs, theirs / mine)
                yield replace(row, note="one process each")


def memories(options: Options) -> Iterator[Row]:
    """Peaks at the most inner steps over those at one, as benchmarks/memory.py measures them."""
    glyphs()
    most = 20 if options.quick else 50
    algorithms = ("maml", "convex_imaml") if options.quick else memory.SCRIPTS
    cells = memory.measure_all(memory.Options(dataset="glyphs", algorithms=algorithms, sizes=(1, most)))
    setting, against = f"glyphs, 4 tasks, {most} inner steps", "itself, 1 inner step"
    note = "1 is a peak that doesn't grow with the inner steps"
    for one, many in zip(cells[::2], cells[1::2]):
        few, peak = one["peak_mib"], many["peak_mib"]
        yield Row("memory", one["algorithm"], setting, against, "MiB", peak, few, few / peak, note=note)


MEASURES = {"backbone": backbones, "head": heads, "episodes": episodes, "memory": memories}


def parts(options: Options) -> dict[str, Callable[[], Iterable[Row]]]:
    """What the table is made of, in order: a name, and what measures its rows."""
    made = {}
    for measure in options.measures:
        made |= meta_step_parts(options) if measure == "meta_step" else {measure: partial(MEASURES[measure], options)}
    return made


def begun(table: Path, about: dict, wanted: Iterable[str]) -> tuple[list[Row], dict[str, float]]:
    """Rows, and parts with their minutes, of a table that was stopped; none of one that is whole or about something
    else."""
    before = json.loads(table.read_text()) if table.exists() else {}
    whole = set(wanted) <= set(before.get("parts", wanted))
    if whole or {key: before.get(key) for key in about} != about:
        return [], {}
    return [Row(**row) for row in before["rows"]], before["parts"]


def main(options: Options) -> None:
    about = {"quick": options.quick, "turns": options.turns, "warmup": options.warmup}
    about |= {"command": ["benchmarks.run", *sys.argv[1:]], **origin()}
    wanted = parts(options)
    rows, done = begun(options.out / "table.json", about, wanted)
    for name in tqdm([name for name in wanted if name not in done]):
        begin = time.perf_counter()
        rows += wanted[name]()
        done[name] = (time.perf_counter() - begin) / 60
        minutes = sum(done.values())
        what = f"{'--quick, ' if options.quick else ''}{options.turns} rounds (at most 4 of meta-steps with "
        what += f"other than 4 tasks and of variants, 6 of heads), {minutes:.1f} minutes: "
        what += ", ".join(dict.fromkeys(row.measure for row in rows))
        content = about | {"minutes": minutes, "parts": done, "rows": [asdict(row) for row in rows]}
        save(options.out, "table", content, f"{what}\n\n{as_table(rows)}")
    print((options.out / "table.md").read_text())


if __name__ == "__main__":
    start(main, Options)
