"""This project beside its peers and the machine's limit: one table of meta-step, backbone, head, episodes and memory.

    python benchmarks/run.py --quick                      ours against a plain step and the contiguous float32 network
    pip install -r benchmarks/requirements.txt
    python benchmarks/run.py                              and against the peers, into results/benchmarks/

Every piece of work runs in a process of its own (worker.py). Those that are compared do it in rounds, one after the
other, each round beginning with another; the first rounds are left out. A ratio is of two times of the same round; its
median and quartiles over the rounds are shown. A peer's time counts only if its meta-gradient on the same weights and
episode is ours, in float64, or if its heads get to the same gradient norm.

A command that was stopped goes on, given again at the same commit, behind the last part of the table that was done.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import origin, save  # noqa: E402
from common import meters  # noqa: E402
from common.command import command  # noqa: E402
from common.conv4 import BLOCKS  # noqa: E402
from common.shards import UsageError  # noqa: E402

WIDTHS = {"omniglot": 64, "miniimagenet": 32}
HEADS = ((5, 1, 64), (5, 5, 800), (20, 1, 64), (20, 5, 1600))  # ways, shots, features
ANIL = {"inner_steps": 5, "inner_rate": 1.0}
MAML = {"inner_steps": 5, "inner_rate": 0.01}
# Strong enough for the inner optimum to be reached: elsewhere libraries part company with each other's gradients.
IMAML = {"inner_steps": 16, "inner_rate": 0.005, "strength": 50.0, "cg_steps": 5, "tolerance": 0.0}
OURS = {  # what each script's meta-step is told; the rest is its default
    "convex_imaml": {},
    "convex_maml": ANIL,
    "maml": MAML,
    "maml, first order": {**MAML, "first_order": True},
    "imaml": IMAML,
    "reptile": {"inner_steps": 5, "inner_batch": 10},
    "cavia": {},
}
PEERS = {  # algorithm -> name of the peer: function of peers.py; each is also run with our allocator setting
    "convex_maml": {"learn2learn, ANIL": "learn2learn_anil"},
    "maml": {"learn2learn": "learn2learn", "higher": "higher", "TorchOpt": "torchopt"},
    "maml, first order": {"learn2learn": "learn2learn"},
    "imaml": {"TorchOpt": "torchopt_implicit"},
}
NOT_RUN = {  # peers that can't be compared, and why
    "imaml": {"hypertorch": "not run: its repository has to be cloned (the package index's hypertorch is another)"},
    "cavia": {"CAVIA's repository": "not run: no package, and a task's images alone normalise its layers there"},
}
LIMIT = 60  # seconds that a turn may take


@dataclass
class Options:
    quick: bool = False
    """without peers and other blocks; at most 6 rounds; meta-steps in float32 on Omniglot with 4 tasks alone"""
    measures: tuple[str, ...] = ("backbone", "episodes", "head", "memory", "meta_step")
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
        known = [*MEASURES, "meta_step"]
        if self.turns < 2 or not set(self.measures) <= set(known):
            raise UsageError(
                f"--turns {self.turns}, --measures {' '.join(self.measures)}: expected 2 turns or more, and measures "
                f"of {', '.join(known)}"
            )
        if self.quick and (self.tasks != Options.tasks or not self.variants):
            raise UsageError("--quick measures 4 tasks without variants: leave --tasks and --no-variants out")


class Worker:
    """A process of worker.py; `error` says why there is none."""

    def __init__(self, spec: dict):
        self.seconds, self.error = [], None
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py")), json.dumps(spec)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip
        self.info = self._answer(10 * LIMIT) or {}

    def _answer(self, limit: float) -> dict | float | None:
        watch = threading.Timer(limit, self.process.kill)
        watch.start()
        line = self.process.stdout.readline()
        watch.cancel()
        if line:
            return json.loads(line)
        self.log.seek(0)
        lines = [line.strip() for line in self.log.read().splitlines() if line.strip()]
        killed = f"ended with status {self.process.wait()}: no answer in {limit:.0f} s, or no memory"
        said = lines[-1] if lines and self.process.returncode > 0 else killed
        self.error = re.sub(r" \(/[^)]*\)", "", said)[:160]  # a library's path on this machine left out
        return None

    def turn(self) -> None:
        if self.error is None:
            time.sleep(0.02)  # the threads of the turn before wait for more work for some milliseconds, at full speed
            with contextlib.suppress(BrokenPipeError):  # and so there is no answer
                self.process.stdin.write("\n")
                self.process.stdin.flush()
            self.seconds.append(self._answer(LIMIT))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):  # what a killed process didn't read
            self.process.stdin.close()
        self.process.stdout.close()
        self.log.close()


def side_by_side(specs: dict, options: Options) -> dict:
    """A worker for each spec, by the same names, that took turns; a failed one has an `error` instead of seconds."""
    workers = {name: Worker(spec) for name, spec in specs.items()}  # one starts after the other
    order = list(workers.values())
    for _ in range(options.warmup + options.turns):
        for worker in order:
            worker.turn()
        order = order[1:] + order[:1]
    for worker in order:
        worker.close()
        worker.seconds = [] if worker.error else worker.seconds[options.warmup :]
    return workers


def row(measure: str, algorithm: str, setting: str, ours: Worker, theirs: Worker, against: str, note: str = "") -> dict:
    """A row of the table; in milliseconds, or for a worker that draws episodes in episodes a second.

    Raises SystemExit where ours failed.
    """
    if ours.error:
        raise SystemExit(f"{measure}, {algorithm}, {setting}: {ours.error}")
    made = {"measure": measure, "algorithm": algorithm, "setting": setting, "against": against, "unit": "ms"}
    drawn = ours.info.get("episodes")
    if drawn:
        made["unit"] = "episodes/s"
    values = [drawn / statistics.median(w.seconds) if drawn else 1e3 * statistics.median(w.seconds)
              for w in (ours, theirs) if not w.error]  # fmt: skip
    made["ours"] = values[0]
    made |= {"theirs": None, "ratio": None, "ratio_low": None, "ratio_high": None, "note": theirs.error or note}
    if not theirs.error:
        low, median, high = statistics.quantiles([t / o for o, t in zip(ours.seconds, theirs.seconds)], n=4)
        made |= {"theirs": values[1], "ratio": median, "ratio_low": low, "ratio_high": high}
    return made


def uncounted(made: dict, note: str) -> dict:
    """The row without what a comparison would say."""
    return made | dict.fromkeys(("theirs", "ratio", "ratio_low", "ratio_high")) | {"note": note}


def single(
    measure: str, algorithm: str, setting: str, ours: float, theirs: float, against: str, unit: str, note: str = ""
) -> dict:
    """A row of what was measured once, so that its spread isn't known."""
    made = {"measure": measure, "algorithm": algorithm, "setting": setting, "ours": ours, "theirs": theirs}
    made |= {"against": against, "unit": unit, "ratio": theirs / ours, "ratio_low": None, "ratio_high": None}
    return made | {"note": note}


def operations(algorithm: str, dataset: str, config: dict) -> float:
    """Convolutions' operations of a meta-step's task over those of a plain step on its images (5 support, 75 query).

    In forwards of an image: a gradient costs 3, and where it is differentiated again 9. The plain step has 3 a task's
    image. Batch norm, pooling and what else is no convolution aren't counted.
    """
    S, Q, plain = 5, 75, 3 * 80
    k = config.get("inner_steps", 0)
    if algorithm in ("convex_imaml", "convex_maml"):
        return 1.0
    if algorithm == "maml":
        return (3 * Q + 9 * k * S) / plain
    if algorithm == "maml, first order":
        return (3 * Q + 3 * k * S) / plain
    if algorithm == "imaml":
        return (3 * Q + 3 * k * S + 3 * S + 6 * (config["cg_steps"] + 1) * S) / plain  # one product for the residual
    if algorithm == "reptile":
        return 3 * k * config["inner_batch"] / plain
    side = {"omniglot": 28, "miniimagenet": 84}[dataset]
    channels, width = {"omniglot": 1, "miniimagenet": 3}[dataset], WIDTHS[dataset]
    layers = [c * width * (side >> i) ** 2 for i, c in enumerate((channels, width, width, width))]
    last = layers[3] / sum(layers)  # CAVIA: what depends on the context, whose gradient alone is taken, in 2 steps
    return (3 * (S + Q) * (1 - last) + (3 * Q + 6 * 2 * S) * last) / plain


def meta_steps(options: Options) -> Iterator[tuple]:
    """Arguments of beside_plain, a part of the table each."""
    if options.quick:  # one start of each process, all in turns
        yield "omniglot", 4, [name for name in OURS if name != "maml, first order"], {}, options
        return
    few = dataclasses.replace(options, turns=min(options.turns, 4), warmup=2)
    for tasks, dataset, name in itertools.product(options.tasks, WIDTHS, OURS):
        yield dataset, tasks, [name], {}, options if tasks == 4 else few
    for variant, dataset, name in itertools.product(variants() if options.variants else [], WIDTHS, OURS):
        yield dataset, 4, [name], variant, few


def variants() -> list[dict]:
    """Options of ours other than the float32 network that peers have too."""
    wanted = [{"block": "pool-norm"}]
    if meters.has_bfloat16():
        wanted += [{"precision": "bfloat16"}, {"block": "pool-norm", "precision": "bfloat16"}]
    return wanted


@functools.cache
def fastest_plain(dataset: str, tasks: int, block: str, precision: str) -> dict:
    """The spec of one forward and backward of the same images, at the best of layouts and batches, all at once too."""
    base = {"work": "plain", "dataset": dataset, "width": WIDTHS[dataset], "tasks": tasks, "block": block}
    ways = [{"chunk": chunk} for chunk in sorted({16, 80, 320, 80 * tasks})] + [{"chunk": 320, "channels_last": False}]
    specs = {i: base | {"precision": precision, "channels_last": True} | way for i, way in enumerate(ways)}
    workers = side_by_side(specs, Options(turns=7, warmup=2))
    return specs[min(workers, key=lambda i: statistics.median(workers[i].seconds or [math.inf]))]


def beside_plain(dataset: str, tasks: int, algorithms: list[str], variant: dict, options: Options) -> list[dict]:
    """Rows of these algorithms' meta-steps, against the plain step, the operation count and each peer; of a variant of
    ours against the plain step of the same kind and the network that peers have."""
    block, precision = variant.get("block", "norm-pool"), variant.get("precision", "float32")
    base = {"dataset": dataset, "width": WIDTHS[dataset], "tasks": tasks}
    # More tasks' weights and large images at a time don't fit into 24 GiB beside the peers.
    parts = -(-tasks // 4) if dataset == "miniimagenet" and algorithms[0].startswith(("maml", "imaml")) else 1
    specs = {("", "plain"): fastest_plain(dataset, tasks, block, precision)}
    for algorithm in algorithms:
        told = OURS[algorithm]
        ours = {"work": "ours", "algorithm": algorithm.split(",")[0], "options": told, "batches": parts}
        specs[algorithm, "ours"] = ours | {"options": {**told, **variant}}
        if variant:
            specs[algorithm, "the same in float32, norm-pool"] = ours
        elif not options.quick:
            for name, function in PEERS.get(algorithm, {}).items():
                specs[algorithm, name] = {"work": "peer", "peer": function, **told}
                # of ANIL on large images three don't fit into 24 GiB
                if algorithm != "convex_maml" or dataset == "omniglot" or tasks <= 4:
                    specs[algorithm, f"{name}, our allocator setting"] = specs[algorithm, name] | {"keep_memory": True}
    workers = side_by_side({key: base | spec for key, spec in specs.items()}, options)
    plain = workers.pop(("", "plain"))
    how = specs["", "plain"]
    layout = "channels_last" if how["channels_last"] else "contiguous"
    best = f"one forward and backward of 80 images a task, {layout}, {min(how['chunk'], 80 * tasks)} at a time"
    kind = "".join(f", {value}" for value in variant.values())
    setting = f"{dataset} Conv4-{WIDTHS[dataset]}, {tasks} tasks{f' (--batches {parts})' if parts > 1 else ''}{kind}"
    rows = []
    for algorithm in algorithms:
        us = workers.pop((algorithm, "ours"))

        def add(against, theirs, note):
            rows.append(row("meta_step", algorithm, setting, us, theirs, against, note))

        add("plain", plain, best)
        share = operations(algorithm, dataset, OURS[algorithm])
        if share != 1 and not variant and not plain.error:
            add("operation count", plain, f"the plain step's speed times {share:.2f}")
            rows[-1] |= {key: share * rows[-1][key] for key in ("theirs", "ratio", "ratio_low", "ratio_high")}
        for (_, name), worker in ((key, w) for key, w in workers.items() if key[0] == algorithm):
            add(name, worker, "")
            if not worker.error and not variant:
                error = relative_error(us.info, worker.info)
                norms = f"gradient norms {us.info['norm']:.6g}, {worker.info['norm']:.6g}, apart by {error:.0e}"
                rows[-1] = rows[-1] | {"note": norms} if error < 1e-6 else uncounted(rows[-1], f"not ours: {norms}")
        for name, reason in {} if options.quick or variant else NOT_RUN.get(algorithm, {}).items():
            rows.append(uncounted(rows[-1] | {"against": name}, reason))
    return rows


def relative_error(ours: dict, theirs: dict) -> float:
    """|g - g'| / |g| of two gradients, as worker.signature's random products estimate it (to a sixth)."""
    apart = [a - b for a, b in zip(ours["products"], theirs["products"])]
    return math.sqrt(statistics.fmean(d * d for d in apart)) / ours["norm"]


def backbones(options: Options) -> list[dict]:
    rows = []
    for dataset, width in WIDTHS.items():
        base = {"dataset": dataset, "width": width, "tasks": 4 if dataset == "omniglot" else 2}
        specs = {"contiguous float32": {"work": "contiguous"}}
        for block in BLOCKS[:1] if options.quick else BLOCKS:
            specs[f"{block}, float32"] = {"work": "plain", "block": block}
            if meters.has_bfloat16():
                specs[f"{block}, bfloat16"] = {"work": "plain", "block": block, "precision": "bfloat16"}
        workers = side_by_side({name: base | spec for name, spec in specs.items()}, options)
        theirs = workers.pop("contiguous float32")
        setting = f"{dataset} Conv4-{width}, {80 * base['tasks']} images"
        for name, us in workers.items():
            note = "another function with the same parameters" if name.startswith("pool-norm") else "the same function"
            rows.append(row("backbone", name, setting, us, theirs, "contiguous float32", note))
    return rows


def heads(options: Options) -> Iterator[dict]:
    for (ways, shots, features), tasks in itertools.product(
        HEADS[:2] if options.quick else HEADS, (16,) if options.quick else (16, 256)
    ):
        base = {"ways": ways, "shots": shots, "features": features, "least": 0.2}
        peers = {"torch LBFGS": {"work": "lbfgs_heads", "tasks": 16}}
        if not options.quick:
            for solver in ("lbfgs", "newton-cholesky"):  # seconds a task, where a Hessian is large
                slow = solver == "newton-cholesky" and ways * features > 2000
                spec = {"work": "sklearn_heads", "solver": solver, "tasks": 1 if slow else 16}
                peers[f"scikit-learn, {solver}"] = spec
        specs = {"ours": base | {"work": "our_heads", "tasks": tasks}}
        specs |= {name: base | spec for name, spec in peers.items()}
        workers = side_by_side(specs, dataclasses.replace(options, turns=min(options.turns, 6), warmup=1))
        us = workers.pop("ours")
        setting = f"{tasks} tasks, {ways} ways, {shots} shots, {features} features"
        for name, worker in workers.items():
            some = peers[name]["tasks"]  # which a library goes through one after the other
            worker.seconds = [tasks / some * s for s in worker.seconds]
            made = row("head", "newton_head", setting, us, worker, name)
            if not worker.error:
                reached = us.info["reached"], worker.info["reached"]
                note = "relative gradient norms {:.1e}, {:.1e}".format(*reached)
                note += f"; {tasks // some} times the time of {some}" if tasks > some else ""
                made = made | {"note": note} if max(reached) < 1.2e-5 else uncounted(made, f"not as far: {note}")
            yield made


def glyphs() -> Path:
    """The data set that anyone can build, built."""
    path = ROOT / "data" / "glyphs" / "train.h5"
    if not path.exists():
        subprocess.run([sys.executable, str(ROOT / "data_prep" / "build.py"), "--dataset", "glyphs"], check=True)
    return path


def episodes(options: Options) -> list[dict]:
    specs = {
        "ours": {"work": "our_episodes"},
        "plain indexing": {"work": "indexed_episodes", "select": False},
        "plain index_select": {"work": "indexed_episodes", "select": True},
        "torch DataLoader": {"work": "loader_episodes", "workers": 0},
        "torch DataLoader, 2 workers": {"work": "loader_episodes", "workers": 2},
    }
    if not options.quick:
        specs |= {
            name: {"work": "peer", "peer": f"{name}_episodes"} for name in ("easyfsl", "learn2learn", "torchmeta")
        }
    base = {"tasks": 16, "path": str(glyphs()), "least": 0.2}
    workers = side_by_side({name: base | spec for name, spec in specs.items()}, options)
    us = workers.pop("ours")
    setting = "glyphs, 5 ways, 1 shot, 15 queries, 16 at a time"
    rows = [row("episodes", "EpisodeLoader", setting, us, worker, name) for name, worker in workers.items()]
    for key, unit, setting in (
        ("start_ms", "ms", "glyphs, from the .h5 to the first 16 episodes"),
        ("mib", "MiB", "glyphs, host memory taken until the first 16 episodes"),
    ):
        for name in ("plain indexing", "torch DataLoader"):  # the others import their library in between
            if workers[name].error:
                continue
            values = us.info[key], workers[name].info[key]
            rows.append(single("episodes", "EpisodeLoader", setting, *values, name, unit, "one process each"))
    return rows


def memory(options: Options) -> list[dict]:
    """Peaks at the most inner steps over those at one, as benchmarks/memory.py measures them."""
    glyphs()
    most = 20 if options.quick else 50
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--dataset", "glyphs", "--inner-steps", "1", str(most), "--out", folder]
        arguments += ["--algorithms", "maml", "convex_imaml"] if options.quick else []
        benchmark = [sys.executable, str(Path(__file__).with_name("memory.py")), *arguments]
        subprocess.run(benchmark, check=True, stdout=subprocess.DEVNULL)
        cells = json.loads((Path(folder) / "memory-glyphs.json").read_text())["cells"]
    note = "1 is a peak that doesn't grow with the inner steps"
    setting, against = f"glyphs, 4 tasks, {most} inner steps", "itself, 1 inner step"
    return [
        single("memory", one["algorithm"], setting, many["peak_mib"], one["peak_mib"], against, "MiB", note)
        for one, many in zip(cells[::2], cells[1::2])
    ]


MEASURES = {"backbone": backbones, "head": heads, "episodes": episodes, "memory": memory}


def parts(options: Options) -> dict[str, Callable[[], Iterable[dict]]]:
    """What the table is made of, in order: a name, and what measures its rows."""
    made = {}
    for measure in options.measures:
        if measure == "meta_step":
            for dataset, tasks, algorithms, variant, how in meta_steps(options):
                name = " ".join((measure, dataset, f"{tasks} tasks", *algorithms, *variant.values()))
                made[name] = functools.partial(beside_plain, dataset, tasks, algorithms, variant, how)
        else:
            made[measure] = functools.partial(MEASURES[measure], options)
    return made


def begun(table: Path, about: dict, wanted: Iterable[str]) -> tuple[list[dict], dict[str, float]]:
    """Rows, and parts with their minutes, of a table that was stopped; none of one that is whole or about something
    else."""
    before = json.loads(table.read_text()) if table.exists() else {}
    whole = set(wanted) <= set(before.get("parts", wanted))
    if whole or {key: before.get(key) for key in about} != about:
        return [], {}
    return before["rows"], before["parts"]


def as_table(rows: list[dict]) -> str:
    names = ("measure", "algorithm", "setting", "ours", "theirs", "unit", "against", "ratio", "note")
    lines = ["| " + " | ".join(names) + " |", "| --- " * len(names) + "|"]
    for r in rows:
        shown = r | {k: "" if r[k] is None else f"{r[k]:.4g}" for k in ("ours", "theirs")}
        spread = "" if r["ratio_low"] is None else f" ({r['ratio_low']:.2f}-{r['ratio_high']:.2f})"
        shown["ratio"] = "" if r["ratio"] is None else f"**{r['ratio']:.2f}**{spread}"
        lines.append("| " + " | ".join(str(shown[name]).replace("|", "/") for name in names) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    options = tyro.cli(Options)
    if options.quick:
        options = dataclasses.replace(options, turns=min(options.turns, 6), warmup=min(options.warmup, 3))
    about = {"quick": options.quick, "turns": options.turns, "warmup": options.warmup}
    about |= {"command": ["benchmarks/run.py", *sys.argv[1:]], **origin()}
    wanted = parts(options)
    rows, done = begun(options.out / "table.json", about, wanted)
    for name in tqdm([name for name in wanted if name not in done]):
        start = time.perf_counter()
        rows += wanted[name]()
        done[name] = (time.perf_counter() - start) / 60
        minutes = sum(done.values())
        what = f"{'--quick, ' if options.quick else ''}{options.turns} rounds (at most 4 of meta-steps with "
        what += f"other than 4 tasks and of variants, 6 of heads), {minutes:.1f} minutes: "
        what += ", ".join(dict.fromkeys(row["measure"] for row in rows))
        content = about | {"minutes": minutes, "parts": done, "rows": rows}
        save(options.out, "table", content, f"{what}\n\n{as_table(rows)}")
    print((options.out / "table.md").read_text())


if __name__ == "__main__":
    command(main)
