"""This project beside its peers and the machine's limit: one table of meta-step, backbone, head, episodes and memory.

    python benchmarks/run.py --quick                      ours against a plain step and the contiguous float32 network
    pip install -r benchmarks/requirements.txt
    python benchmarks/run.py                              and against the peers, into results/benchmarks/

Every piece of work runs in a process of its own (worker.py). Those that are compared take turns, a step each; the
first turns are left out; a ratio is of two neighbouring turns, and its median and quartiles over the turns are shown.
A peer counts only if its meta-gradient on the same weights and episode is ours, to float32 rounding.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import meters  # noqa: E402
from common.run import command  # noqa: E402

WIDTHS = {"omniglot": 64, "miniimagenet": 32}
HEADS = ((5, 1, 64), (5, 5, 800), (20, 1, 64), (20, 5, 1600))  # ways, shots, features
MAML = {"inner_steps": 5, "inner_rate": 0.01}
# Strong enough for the inner optimum to be reached: elsewhere libraries part company with each other's gradients.
IMAML = {"inner_steps": 16, "inner_rate": 0.02, "strength": 20.0, "cg_steps": 5, "tolerance": 0.0}
OURS = {  # what each script's meta-step is told; the rest is its default
    "convex_imaml": {},
    "convex_maml": {},
    "maml": MAML,
    "maml, first order": {**MAML, "first_order": True},
    "imaml": IMAML,
    "reptile": {"inner_steps": 5, "inner_batch": 10},
    "cavia": {},
}
PEERS = {  # algorithm -> the peers of it: function of peers.py, and what it is told
    "maml": {
        "learn2learn": {"peer": "learn2learn"},
        "higher": {"peer": "higher"},
        "TorchOpt": {"peer": "torchopt"},
        "TorchOpt, our allocator setting": {"peer": "torchopt", "keep_memory": True},
        "learn2learn, our allocator setting": {"peer": "learn2learn", "keep_memory": True},
    },
    "maml, first order": {"learn2learn": {"peer": "learn2learn", "first_order": True}},
    "imaml": {
        "TorchOpt": {"peer": "torchopt_implicit"},
        "TorchOpt, our allocator setting": {"peer": "torchopt_implicit", "keep_memory": True},
    },
}
NOT_RUN = {  # peers that can't be started here, and why
    "imaml": {"hypertorch": "not run: its repository has to be cloned (the package index's hypertorch is another)"},
}


@dataclass
class Options:
    quick: bool = False
    """without peers; meta-steps on Omniglot with 4 tasks alone"""
    measures: tuple[str, ...] = ("meta_step", "backbone", "head", "episodes", "memory")
    turns: int = 12
    """of each piece of work, that count"""
    warmup: int = 4
    """turns before those"""
    out: Path = ROOT / "results" / "benchmarks"
    """folder for table.md and table.json"""


class Worker:
    """A process of worker.py; `error` says why there is none."""

    def __init__(self, spec: dict):
        self.spec, self.seconds, self.error = spec, [], None
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py")), json.dumps(spec)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip
        self.info = self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.log.seek(0)
        lines = [line.strip() for line in self.log.read().splitlines() if line.strip()]
        self.error = lines[-1][:160] if lines else f"ended with status {self.process.wait()}"
        return {}

    def turn(self) -> None:
        if self.error is None:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            self.seconds.append(self._answer())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


def side_by_side(specs: dict, options: Options) -> dict:
    """A worker for each spec, by the same names, that took turns; a failed one has an `error` instead of seconds."""
    workers = {name: Worker(spec) for name, spec in specs.items()}  # one starts after the other
    for _ in range(options.warmup + options.turns):
        for worker in workers.values():
            worker.turn()
    for worker in workers.values():
        worker.close()
        worker.seconds = [] if worker.error else worker.seconds[options.warmup :]
    return workers


def row(measure: str, algorithm: str, setting: str, ours: Worker, theirs: Worker, against: str, note: str = "") -> dict:
    """A row of the table; in milliseconds, or for a worker that draws episodes in episodes a second."""
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


def single(
    measure: str, algorithm: str, setting: str, ours: float, theirs: float, against: str, unit: str, note: str = ""
) -> dict:
    """A row of what was measured once."""
    made = {"measure": measure, "algorithm": algorithm, "setting": setting, "ours": ours, "theirs": theirs}
    ratio = theirs / ours
    made |= {"against": against, "unit": unit, "ratio": ratio, "ratio_low": ratio, "ratio_high": ratio}
    return made | {"note": note}


def operations(algorithm: str, dataset: str, config: dict) -> float:
    """Convolutions' operations of a meta-step's task over those of a plain step on its images (5 support, 75 query).

    In forwards of an image: a gradient costs 3, and where it is differentiated again 9.
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
        return (3 * Q + 3 * k * S + 3 * S + 6 * config["cg_steps"] * S) / plain
    if algorithm == "reptile":
        return (3 * k * config["inner_batch"] + S + Q) / plain  # and its accuracy, a forward
    side = {"omniglot": 28, "miniimagenet": 84}[dataset]
    channels, width = {"omniglot": 1, "miniimagenet": 3}[dataset], WIDTHS[dataset]
    layers = [c * width * (side >> i) ** 2 for i, c in enumerate((channels, width, width, width))]
    last = layers[3] / sum(layers)  # CAVIA: what depends on the context
    return (3 * (S + Q) * (1 - last) + (3 * Q + 9 * 2 * S) * last) / plain


def meta_steps(options: Options) -> list[dict]:
    if options.quick:  # one start of each process, all in turns
        return beside_peers("omniglot", 4, [name for name in OURS if name != "maml, first order"], options)
    return [
        made
        for dataset in WIDTHS
        for tasks in (4, 16)
        for name in OURS
        for made in beside_peers(dataset, tasks, [name], options)
    ]


def beside_peers(dataset: str, tasks: int, algorithms: list[str], options: Options) -> list[dict]:
    """Rows of these algorithms' meta-steps, against the plain step, the operation count and each peer."""
    width, bfloat16 = WIDTHS[dataset], meters.has_bfloat16(torch.device("cpu"))
    specs = {("", "plain"): {"work": "plain"}, ("", "plain, in chunks"): {"work": "plain", "chunk": 80}}
    for algorithm in algorithms:
        told = OURS[algorithm]
        ours = {"work": "ours", "algorithm": algorithm.split(",")[0], "options": told}
        specs[algorithm, "ours"] = ours
        if not options.quick:
            specs |= {(algorithm, n): {"work": "peer", **told, **s} for n, s in PEERS.get(algorithm, {}).items()}
            specs[algorithm, "ours, pool-norm"] = ours | {"options": {**told, "block": "pool-norm"}}
        if bfloat16 and not options.quick:
            specs[algorithm, "ours, bfloat16"] = ours | {"options": {**told, "precision": "bfloat16"}}
    base = {"dataset": dataset, "width": width, "tasks": tasks}
    workers = side_by_side({key: base | spec for key, spec in specs.items()}, options)
    plain = min((workers.pop(key) for key in list(specs)[:2]), key=lambda w: statistics.median(w.seconds))
    setting = f"{dataset} Conv4-{width}, {tasks} tasks"
    rows = []
    for algorithm in algorithms:
        us = workers.pop((algorithm, "ours"))
        if us.error:
            raise SystemExit(f"{algorithm}: {us.error}")

        def add(against, theirs, note):
            rows.append(row("meta_step", algorithm, setting, us, theirs, against, note))

        add("plain", plain, "one forward and backward of the same images, the best of two chunkings")
        share = operations(algorithm, dataset, OURS[algorithm])
        if share != 1:
            add("operation count", plain, f"the plain step's speed times {share:.2f}")
            rows[-1] |= {key: share * rows[-1][key] for key in ("theirs", "ratio", "ratio_low", "ratio_high")}
        for (_, name), worker in ((key, w) for key, w in workers.items() if key[0] == algorithm):
            same = abs(worker.info.get("norm", 0) / us.info["norm"] - 1) < 1e-3
            norms = f"gradient norms {us.info['norm']:.6g}, {worker.info.get('norm', 0):.6g}"
            add(name, worker, norms if same or name.startswith("ours") else f"not the same work: {norms}")
        for name, reason in {} if options.quick else NOT_RUN.get(algorithm, {}).items():
            rows.append(rows[-1] | dict.fromkeys(("theirs", "ratio", "ratio_low", "ratio_high")))
            rows[-1] |= {"against": name, "note": reason}
    return rows


def backbones(options: Options) -> list[dict]:
    rows = []
    for dataset, width in WIDTHS.items():
        base = {"dataset": dataset, "width": width, "tasks": 4 if dataset == "omniglot" else 2}
        specs = {"contiguous float32": {"work": "contiguous"}}
        for block in ("norm-pool", "pool-norm"):
            specs[f"{block}, float32"] = {"work": "plain", "block": block}
            if meters.has_bfloat16(torch.device("cpu")):
                specs[f"{block}, bfloat16"] = {"work": "plain", "block": block, "precision": "bfloat16"}
        workers = side_by_side({name: base | spec for name, spec in specs.items()}, options)
        theirs = workers.pop("contiguous float32")
        setting = f"{dataset} Conv4-{width}, {80 * base['tasks']} images"
        for name, us in workers.items():
            note = "another function with the same parameters" if name.startswith("pool-norm") else "the same function"
            rows.append(row("backbone", name, setting, us, theirs, "contiguous float32", note))
    return rows


def heads(options: Options) -> list[dict]:
    rows = []
    for ways, shots, features in HEADS[:2] if options.quick else HEADS:
        for tasks in (16,) if options.quick else (16, 256):
            base = {"ways": ways, "shots": shots, "features": features, "tasks": tasks}
            specs = {
                "ours": {"work": "our_heads", "tolerance": 1e-5},
                "torch LBFGS": {"work": "lbfgs_heads", "tol": 1e-7},
            }
            if not options.quick:
                specs["scikit-learn, lbfgs"] = {"work": "sklearn_heads", "solver": "lbfgs", "tol": 1e-6}
                specs["scikit-learn, newton-cholesky"] = {
                    "work": "sklearn_heads", "solver": "newton-cholesky", "tol": 1e-6
                }  # fmt: skip
            few = dataclasses.replace(options, turns=5, warmup=1)
            workers = side_by_side({name: base | spec for name, spec in specs.items()}, few)
            us = workers.pop("ours")
            setting = f"{tasks} tasks, {ways} ways, {shots} shots, {features} features"
            for name, worker in workers.items():
                note = f"relative gradient norms {us.info['reached']:.1e}, {worker.info.get('reached', 0):.1e}"
                rows.append(row("head", "newton_head", setting, us, worker, name, note))
    return rows


def episodes(options: Options) -> list[dict]:
    path = ROOT / "data" / "glyphs" / "train.h5"
    if not path.exists():
        subprocess.run([sys.executable, str(ROOT / "data_prep" / "build.py"), "--dataset", "glyphs"], check=True)
    specs = {
        "ours": {"work": "our_episodes"},
        "plain indexing": {"work": "indexed_episodes"},
        "torch DataLoader": {"work": "loader_episodes", "workers": 0},
        "torch DataLoader, 2 workers": {"work": "loader_episodes", "workers": 2},
    }
    if not options.quick:
        specs |= {
            name: {"work": "peer", "peer": f"{name}_episodes"} for name in ("easyfsl", "learn2learn", "torchmeta")
        }
    base = {"tasks": 16, "path": str(path)}
    workers = side_by_side({name: base | spec for name, spec in specs.items()}, options)
    us = workers.pop("ours")
    setting = "glyphs, 5 ways, 1 shot, 15 queries, 16 at a time"
    rows = [row("episodes", "EpisodeLoader", setting, us, worker, name) for name, worker in workers.items()]
    for key, unit, setting in (
        ("start_ms", "ms", "glyphs, from the .h5 to the first 16 episodes"),
        ("mib", "MiB", "glyphs, host memory taken until the first 16 episodes"),
    ):
        for name, worker in workers.items():
            if not worker.error:
                values = us.info[key], worker.info[key]
                rows.append(single("episodes", "EpisodeLoader", setting, *values, name, unit, "one process each"))
    return rows


def memory(options: Options) -> list[dict]:
    """Peaks at the most inner steps over those at one, as benchmarks/memory.py measures them."""
    most = 20 if options.quick else 50
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").symlink_to(ROOT / "data")
        arguments = ["--dataset", "glyphs", "--inner-steps", "1", str(most), "--out", folder]
        arguments += ["--processes", "1", "--algorithms", "maml", "convex_imaml"] if options.quick else []
        benchmark = [sys.executable, str(Path(__file__).with_name("memory.py")), *arguments]
        subprocess.run(benchmark, check=True, stdout=subprocess.DEVNULL)
        cells = json.loads((Path(folder) / "memory-glyphs.json").read_text())["cells"]
    note = "1 is a peak that doesn't grow with the inner steps"
    setting, against = f"glyphs, 4 tasks, {most} inner steps", "itself, 1 inner step"
    return [
        single("memory", one["algorithm"], setting, many["peak_mib"], one["peak_mib"], against, "MiB", note)
        for one, many in zip(cells[::2], cells[1::2])
    ]


MEASURES = {"meta_step": meta_steps, "backbone": backbones, "head": heads, "episodes": episodes, "memory": memory}


def as_table(rows: list[dict], machine: dict) -> str:
    names = ("measure", "algorithm", "setting", "ours", "theirs", "unit", "against", "ratio", "note")
    lines = [", ".join(f"{k}: {v}" for k, v in machine.items()), ""]
    lines += ["| " + " | ".join(names) + " |", "| --- " * len(names) + "|"]
    for r in rows:
        shown = r | {k: "" if r[k] is None else f"{r[k]:.4g}" for k in ("ours", "theirs")}
        spread = "" if r["ratio"] is None else f"**{r['ratio']:.2f}** ({r['ratio_low']:.2f}-{r['ratio_high']:.2f})"
        lines.append("| " + " | ".join(str(shown[name]) if name != "ratio" else spread for name in names) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    options = tyro.cli(Options)
    if options.quick:
        options = dataclasses.replace(options, turns=min(options.turns, 6), warmup=min(options.warmup, 3))
    rows = []
    for name in tqdm(options.measures):
        rows += MEASURES[name](options)
    machine = {**meters.hardware(torch.device("cpu")), "torch": torch.__version__, "cores": os.cpu_count()}
    table = as_table(rows, machine)
    print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.md").write_text(table)
    (options.out / "table.json").write_text(json.dumps({**machine, "quick": options.quick, "rows": rows}, indent=1))


if __name__ == "__main__":
    command(main)
