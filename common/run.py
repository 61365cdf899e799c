"""What surrounds an algorithm: run folder, checkpoints, resume, progress, and several processes.

A run folder holds config.json, script.py (the source as run), log.csv, checkpoint.pt, result.json, episodes.npz and
curves.png. What is the same for all scripts is here; what an algorithm does is in its script.
"""

import contextlib
import csv
import dataclasses
import importlib
import io
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from common import meters
from common.augment import Warp
from common.episodes import Episode, EpisodeLoader
from common.options import Options
from common.shards import ROOT, UsageError

COLUMNS = (
    "step", "seconds", "train_loss", "train_accuracy", "gradient_norm", "val_accuracy", "val_ci95", "step_ms",
    "peak_mib", "iterations", "residual", "converged", "not_converged", "first_order",
)  # fmt: skip


def command(main: Callable[[], None]) -> None:
    """Run a script's main; a person's mistake is one line on standard error and exit status 2."""
    try:
        main()
    except UsageError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("interrupted; --resume RUN goes on from the last checkpoint")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


class Run:
    """One run of a script: its device and processes, data, folder and budget. `main` of every script is written on it.

    Nothing but `glyphs`, where it isn't built, is written before `restore`, which comes after whatever may be refused.
    """

    def __init__(self, config: Options, script: str):
        self.config, self.script = config, Path(script)
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if config.keep_memory:
            meters.keep_memory()  # before torch makes its first tensor
        self.device = meters.settled_device(config.device)
        self.batches = config.batches or self.world
        if self.batches % self.world or config.tasks % self.batches:
            raise UsageError(
                f"--tasks {config.tasks} in {self.batches} batches over {self.world} processes: tasks must be a "
                "multiple of --batches, and --batches of the processes"
            )
        if self.world > 1 and not dist.is_initialized():
            # An optimiser imports this too, and after the group is made its functions' defaults would keep it, and its
            # threads, beyond destroy_process_group: these now and then abort a process that ends.
            importlib.import_module("torch.distributed.nn.functional")
            # Test runs on all ranks, but a rank may wait for another's validation: nothing here takes an hour.
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=timedelta(hours=1))
        self.step, self.seconds, self.best = 0, 0.0, (-1.0, 0.0)  # best: validation accuracy and its CI
        self.progress, self.last_row_seconds, self.started = 0.0, 0.0, 0.0
        self.pending: list[dict[str, Tensor]] = []  # detached statistics of the steps since the last row of log.csv
        self.best_state: dict[str, Tensor] = {}
        self.folder: Path | None = None
        self.bar: tqdm | None = None
        self._build_glyphs()

    # Data

    def loaders(self) -> tuple[EpisodeLoader, EpisodeLoader, EpisodeLoader]:
        """Episodes of the three splits; with --evaluate thrice the test's. Training draws this rank's share of the
        meta-batch. Validation and test are the same for every run and dealt out to the ranks in turn. Validation's
        tasks share images, each serving some four, so that its accuracy is known less well than its interval, which
        takes tasks for independent, says."""
        c = self.config
        tasks = max(1, 320 // (c.ways * (c.shots + c.queries)))  # some 320 images a batch
        if c.evaluate:
            return (self._loader("test", c.ways, c.shots, c.queries, tasks, seed=-2),) * 3
        ways, shots, queries = c.train_ways or c.ways, c.train_shots or c.shots, c.train_queries or c.queries
        pool = (c.pool_classes, c.pool_images) if c.pool_classes else None
        own = {"seed": c.seed, "pool": pool, "warp": Warp.of(c)}
        own["named"] = tuple(
            f"--train-{name}" if getattr(c, f"train_{name}") else f"--{name}" for name in ("ways", "shots", "queries")
        )
        train = self._loader("train", ways, shots, queries, c.tasks // self.batches, **own)
        val = self._loader(
            "val", c.ways, c.shots, c.queries, 4 * tasks, seed=-1, pool=(4 * c.ways, c.shots + c.queries)
        )
        if c.half_size and min(train.image_shape[1:]) < 32:
            raise UsageError(f"--half-size {c.half_size}: {c.dataset}'s images are below 32x32, too small to halve")
        test = self._loader("test", c.ways, c.shots, c.queries, tasks, seed=-2)
        if len(shapes := {tuple(loader.image_shape) for loader in (train, val, test)}) > 1:
            raise UsageError(
                f"--dataset {c.dataset}: its splits' images are {sorted(shapes)}, expected one; rebuild it"
            )
        return train, val, test

    def _loader(self, split: str, *what: int, **options) -> EpisodeLoader:
        path = self.config.data_dir / self.config.dataset / f"{split}.h5"
        rank = {"offset": self.rank, "stride": self.world}
        how = {"memory": self.config.images, "image_size": self.config.image_size}
        return EpisodeLoader(path, *what, self.device, **how, **rank, **options)

    def _build_glyphs(self) -> None:
        c = self.config
        if c.dataset == "glyphs" and not (c.data_dir / "glyphs" / "test.h5").exists():
            if self.rank == 0:
                build = [sys.executable, str(ROOT / "data_prep" / "build.py"), "--dataset", "glyphs"]
                if status := subprocess.run([*build, "--data-dir", str(c.data_dir)]).returncode:
                    sys.exit(status)  # it has said why
            if self.world > 1:
                dist.barrier()

    # The folder, and what is in it

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Open the run folder: a new one, or with --resume or --evaluate what the last checkpoint holds."""
        c = self.config
        source = c.resume or c.evaluate
        log = self._read_checkpoint(source, model, optimizer) if source else ",".join(COLUMNS) + "\n"
        if self.rank == 0:
            name = f"{c.dataset}-{c.ways}w{c.shots}s-s{c.seed}"
            if c.resume:
                self.folder = c.resume
            elif c.evaluate:
                self.folder = _new_folder(c.out, c.evaluate / f"test-{name}")
            else:
                self.folder = _new_folder(c.out, ROOT / "runs" / f"{self.script.stem}-{name}")
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(f"--out {self.folder}: {error.strerror}; name a folder that can be made") from None
            if not c.resume:
                _write(self.folder / "config.json", json.dumps(self._description(), indent=1))
            if not source:
                shutil.copyfile(self.script, self.folder / "script.py")
                self._checkpoint(model, optimizer)
            if not c.evaluate:
                _write(self.folder / "log.csv", log)
        if not c.evaluate:
            total = c.steps if c.minutes is None else 60 * c.minutes
            done = self.step if c.minutes is None else self.seconds
            self.bar = tqdm(
                total=total, initial=done, unit="step" if c.minutes is None else "s", disable=self.rank > 0,
                mininterval=0.5 if sys.stderr.isatty() else 20, leave=True,
                bar_format="{percentage:3.0f} %|{bar:12}| {elapsed}<{remaining}{postfix}",
            )  # fmt: skip
        self.last_row_seconds, self.started = self.seconds, meters.clock(self.device)
        self._set_progress(optimizer)

    def _read_checkpoint(self, source: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
        """Take over what a run folder holds; return its log.csv without rows after the checkpoint, which will be
        written again. Raises UsageError for one that isn't whole, or is of another script, processes or shapes."""
        c = self.config
        try:
            about = json.loads((source / "config.json").read_text())
            head, *rows = (source / "log.csv").read_text().splitlines()
            saved = torch.load(source / "checkpoint.pt", map_location=self.device, weights_only=True)
            weights = saved["model"] if c.resume else saved["best_state"]
            self.step, self.seconds, self.best = saved["step"], saved["seconds"], tuple(saved["best"])
            self.best_state = saved["best_state"]
            log = "\n".join([head, *(row for row in rows if int(row.split(",")[0]) <= self.step)]) + "\n"
        except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            reason = f"{type(error).__name__}: {str(error)[:80]}"
            raise UsageError(f"{source} is no whole run folder ({reason}); start the run again") from None
        if c.resume and about["options"].get("algorithm") != self.script.stem:
            raise UsageError(
                f"--resume {source}: a run of {about['options'].get('algorithm')}.py, expected one of "
                f"{self.script.name}; go on with the script that started it"
            )
        if c.resume and not c.batches and about.get("processes") != self.world:
            raise UsageError(
                f"--resume {source}: {self.world} processes, expected the {about.get('processes')} it was started "
                "with, as a meta-step has a batch for each; use as many"
            )
        shapes, others = ({k: v.shape for k, v in state.items()} for state in (model.state_dict(), weights))
        if shapes != others:
            wrong = min(k for k in shapes | others if shapes.get(k) != others.get(k))
            if about["options"].get("algorithm") != self.script.stem:
                raise UsageError(f"{source}: a run of {about['options'].get('algorithm')}.py, whose {wrong} differs")
            raise UsageError(
                f"{source}: its {wrong} has another shape; expected images of as many channels and pixels, and as "
                "many --ways, as it was trained on"
            )
        model.load_state_dict(weights)
        if c.resume:
            optimizer.load_state_dict(saved["optimizer"])
        return log

    def _description(self) -> dict:
        c = self.config
        options = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(c).items()}
        data_dir = c.data_dir.absolute()  # or relative to the project, so that a run folder may move with it
        options["data_dir"] = str(data_dir.relative_to(ROOT) if data_dir.is_relative_to(ROOT) else data_dir)
        return {
            "options": {"algorithm": self.script.stem, **options},
            "command": [self.script.name, *sys.argv[1:]],
            "versions": {"python": sys.version.split()[0], "torch": torch.__version__, "numpy": np.__version__},
            "commit": meters.commit(self.script.resolve().parent),
            "processes": self.world,
            "precision": meters.settled_precision(c.precision, self.device),
            "hardware": meters.hardware(self.device),
        }

    def _checkpoint(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        state = {
            "model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": self.step,
            "seconds": self.seconds, "best": self.best, "best_state": self.best_state or model.state_dict(),
        }  # fmt: skip
        buffer = io.BytesIO()
        torch.save(state, buffer)
        _write(self.folder / "checkpoint.pt", buffer.getvalue())

    # Training

    def draw(self, loader: EpisodeLoader, model: nn.Module) -> Iterator[Episode]:
        """This rank's batches of a meta-step. After the last, gradients and buffers (running averages) are means over
        all batches of all ranks, so that two ranks with half the tasks each do what one with two batches does."""
        loader.position = self.step * self.batches + self.rank
        loader.halved = self.progress < self.config.half_size
        if self.batches == 1:
            yield loader.sample()
            return
        buffers = list(model.buffers())
        before, sums = [b.clone() for b in buffers], [torch.zeros_like(b) for b in buffers]
        for _ in range(self.batches // self.world):
            yield loader.sample()
            for b, start, total in zip(buffers, before, sums):
                total += b
                b.copy_(start)
        for b, total in zip(buffers, sums):
            b.copy_(total)
        for tensor in [p.grad for p in model.parameters() if p.grad is not None] + buffers:
            if self.world > 1:
                dist.all_reduce(tensor)
            tensor /= self.batches

    def count(self, optimizer: torch.optim.Optimizer, batches: list[dict[str, Tensor]], gradient_norm: Tensor) -> None:
        """End a meta-step: keep its batches' statistics, means () or values a task (T,), as one (detached; no wait for
        the device), and set the next step's rate."""
        values = {k: torch.stack([batch[k].detach() for batch in batches]) for k in batches[0]}
        step = {k: v.flatten() if v.dim() > 1 else v.mean() for k, v in values.items()}
        self.pending.append({"gradient_norm": gradient_norm.detach(), **step})
        self.step += 1
        self._set_progress(optimizer)
        self.bar.update(self.bar.total * self.progress - self.bar.n)

    def _set_progress(self, optimizer: torch.optim.Optimizer) -> None:
        """`progress`: share of the budget used up, 0..1, the same on every rank. The learning rate is
        a half cosine of it, after 20 steps of warm-up."""
        c = self.config
        shares = [] if c.steps is None else [self.step / c.steps if c.steps else 1.0]
        if c.minutes is not None:
            seconds = torch.tensor(self.seconds + time.perf_counter() - self.started, device=self.device)
            if self.world > 1:
                dist.broadcast(seconds, 0)
            shares.append(float(seconds) / (60 * c.minutes) if c.minutes else 1.0)
        self.progress = min(1.0, max(shares))
        rate = c.learning_rate * min(1.0, (self.step + 1) / 20) * (1 + math.cos(math.pi * self.progress)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate

    @property
    def validation_due(self) -> bool:
        return self.step % self.config.eval_every == 0 or self.progress >= 1

    @property
    def row_due(self) -> bool:
        """Whether a row of log.csv and a checkpoint are due: every 50 steps, at each validation, and at the end."""
        return self.step % 50 == 0 or self.validation_due

    @contextlib.contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """What happens inside isn't training time."""
        self.seconds += meters.clock(self.device) - self.started
        yield
        self.started = meters.clock(self.device)

    def write_row(self, model: nn.Module, optimizer: torch.optim.Optimizer, validation: dict | None) -> None:
        """A row of log.csv from the steps since the last, and the checkpoint; `validation` is what `evaluate` returned.

        Raises UsageError, before the checkpoint is overwritten, where a loss or gradient was no finite number.
        """
        columns = self._gathered({k: torch.stack([s[k].float() for s in self.pending]) for k in self.pending[0]})
        finite = torch.stack(
            [v.flatten(1).isfinite().all(1) if v.dim() > 1 else v.isfinite() for v in columns.values()]
        )
        if not finite.all():
            bad = self.step - len(self.pending) + 1 + int(finite.all(0).logical_not().nonzero()[0])
            raise UsageError(
                f"step {bad}: a loss or gradient is no finite number; {self.folder}/checkpoint.pt is from before it; "
                f"try a smaller --learning-rate{' or --inner-rate' if hasattr(self.config, 'inner_rate') else ''}"
            )
        row = {
            "step": self.step, "seconds": round(self.seconds, 3), "train_loss": columns["loss"].mean(),
            "train_accuracy": columns["accuracy"].mean(), "gradient_norm": columns["gradient_norm"].mean(),
            "step_ms": 1e3 * (self.seconds - self.last_row_seconds) / len(self.pending),
            "peak_mib": meters.peak_mib(self.device),
        }  # fmt: skip
        if "iterations" in columns:
            solved = columns["converged"]  # (steps, T)
            row |= {"iterations": columns["iterations"].median(), "residual": columns["residual"].max()}
            row |= {"converged": solved.mean(), "not_converged": int(solved.numel() - solved.sum())}
        if "first_order" in columns:
            row["first_order"] = columns["first_order"].mean()
        if validation:
            row["val_accuracy"], row["val_ci95"] = meters.mean_ci95(validation["accuracy"])
            if row["val_accuracy"] >= self.best[0]:
                self.best = row["val_accuracy"], row["val_ci95"]
                self.best_state = {k: v.clone() for k, v in model.state_dict().items()}
        self.pending, self.last_row_seconds = [], self.seconds
        if self.rank == 0:
            with open(self.folder / "log.csv", "a", newline="") as file:
                cells = {k: f"{float(v):.6g}" if isinstance(v, Tensor | float) else v for k, v in row.items()}
                csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(cells)
            self._checkpoint(model, optimizer)
            best = f"val {self.best[0]:.4f} ± {self.best[1]:.4f}" if self.best_state else ""
            self.bar.set_postfix_str(
                f"step {self.step}, {row['step_ms']:.0f} ms, loss {row['train_loss']:.3f}, "
                f"accuracy {row['train_accuracy']:.3f}, {best}",
                refresh=False,
            )
            if self.progress >= 1:
                self.bar.close()

    def _gathered(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of all ranks: means (steps,) are averaged, values a task (steps, T) put side by side."""
        if self.world == 1:
            return columns
        ranks = [None] * self.world
        dist.all_gather_object(ranks, {k: v.cpu() for k, v in columns.items()})
        return {k: torch.cat([r[k] for r in ranks], 1) if v.dim() > 1 else torch.stack([r[k] for r in ranks]).mean(0)
                for k, v in columns.items()}  # fmt: skip

    # The end

    def report(self, model: nn.Module, inductive: dict, transductive: dict) -> None:
        """Write result.json, episodes.npz and curves.png, and print the line for people."""
        if self.rank > 0:
            return
        if self.bar:
            self.bar.close()
        c = self.config
        accuracy, ci95 = meters.mean_ci95(inductive["accuracy"])
        accuracy_transductive, ci95_transductive = meters.mean_ci95(transductive["accuracy"])
        rows = list(csv.DictReader(open((c.evaluate or self.folder) / "log.csv")))
        peaks = [] if c.evaluate else [float(row["peak_mib"]) for row in rows]
        result = {
            "algorithm": self.script.stem, "dataset": c.dataset, "ways": c.ways, "shots": c.shots,
            "test_accuracy": accuracy, "test_ci95": ci95, "test_accuracy_transductive": accuracy_transductive,
            "test_ci95_transductive": ci95_transductive, "test_episodes": len(inductive["accuracy"]),
            "steps": self.step, "train_seconds": self.seconds,
            "step_ms": float(np.median([float(row["step_ms"]) for row in rows])) if rows else None,
            "peak_mib": max([meters.peak_mib(self.device), *peaks]),
            "parameters": sum(p.numel() for p in model.parameters()), "device": str(self.device), "seed": c.seed,
            "val_accuracy": self.best[0], "val_ci95": self.best[1], "width": c.width, "block": c.block,
            "views": getattr(c, "views", 1),
            "processor": meters.hardware(self.device)["processor"],
        }  # fmt: skip
        _write(self.folder / "result.json", json.dumps(result, indent=1))
        arrays = {k: v for k, v in inductive.items() if k != "accuracy"}
        np.savez_compressed(self.folder / "episodes.npz", **arrays, predicted_transductive=transductive["predicted"])
        if not c.evaluate:
            curves(rows, self.folder / "curves.png", f"{self.script.stem}, {c.dataset} {c.ways}-way {c.shots}-shot")
        print(f"run folder {self.folder}")
        print(
            f"test {accuracy:.4f} ± {ci95:.4f} (95 % CI, {result['test_episodes']} episodes, inductive) · "
            f"{self.seconds:.0f} s · {result['peak_mib']:.0f} MiB"
        )


def outcome(episode: Episode, logits: Tensor) -> dict[str, np.ndarray]:
    """What episodes.npz keeps of T tasks: accuracy (T,), classes (T, N), rows of the data file (T, S) and (T, Q),
    labels and predictions. logits: (T, Q, N)."""
    predicted = logits.argmax(-1)
    kept = {
        "accuracy": (predicted == episode.y_query).float().mean(-1), "classes": episode.classes,
        "support_rows": episode.rows[episode.support], "support_labels": episode.y_support,
        "query_rows": episode.rows[episode.query], "query_labels": episode.y_query, "predicted": predicted,
    }  # fmt: skip
    return {k: v.cpu().numpy() for k, v in kept.items()}


def gather(batches: list[dict[str, np.ndarray]], episodes: int) -> dict[str, np.ndarray]:
    """The first `episodes` tasks of all ranks' batches, in the order in which one process would have had them."""
    ranks = [batches]
    if dist.is_initialized():
        ranks = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, batches)
    in_order = [batch for turn in zip(*ranks) for batch in turn]
    return {k: np.concatenate([batch[k] for batch in in_order])[:episodes] for k in in_order[0]}


def outer_optimizer(model: nn.Module, config: Options) -> torch.optim.Optimizer:
    """AdamW or plain SGD; weight decay isn't for biases, batch norm's and single numbers."""
    groups = [[p for p in model.parameters() if (p.dim() > 1) == decays] for decays in (True, False)]
    kind = {"adam": torch.optim.AdamW, "sgd": torch.optim.SGD}[config.outer]
    return kind(
        [{"params": groups[0], "weight_decay": config.weight_decay}, {"params": groups[1], "weight_decay": 0.0}],
        lr=config.learning_rate,
    )


def curves(rows: list[dict[str, str]], picture: Path, title: str) -> None:
    """Draw loss and accuracy against minutes of training from the rows of a log.csv."""
    import matplotlib.pyplot as plt

    minutes = [float(row["seconds"]) / 60 for row in rows]
    validated = [i for i, row in enumerate(rows) if row["val_accuracy"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    left.plot(minutes, [float(row["train_loss"]) for row in rows], color="tab:gray")
    left.set(xlabel="minutes of training", ylabel="training loss", title=title, yscale="log")
    right.plot(minutes, [float(row["train_accuracy"]) for row in rows], color="tab:gray", label="training tasks")
    right.errorbar(
        [minutes[i] for i in validated], [float(rows[i]["val_accuracy"]) for i in validated],
        [float(rows[i]["val_ci95"]) for i in validated], color="tab:blue", capsize=2, label="validation (95 % CI)",
    )  # fmt: skip
    right.set(xlabel="minutes of training", ylabel="accuracy")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def _new_folder(wanted: Path | None, default: Path) -> Path:
    """The folder asked for, which may not hold a run, or the default one with the first free number behind it."""
    if wanted is None:
        candidates = (default.with_name(f"{default.name}-{i}") if i > 1 else default for i in range(1, 10_000))
        return next(folder for folder in candidates if not folder.exists())
    if above := [path for path in (wanted, *wanted.parents) if path.is_file()]:
        raise UsageError(f"--out {wanted}: {above[0]} is a file, expected a folder or a new name")
    if (wanted / "config.json").exists():
        raise UsageError(f"--out {wanted} holds a run already; go on with --resume {wanted}, or name another folder")
    return wanted


def _write(path: Path, content: str | bytes) -> None:
    """Write beside and rename, so that the file is never half there."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(partial, path)
