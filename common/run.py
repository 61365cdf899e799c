"""One run of a script: its data, its budget, its log and checkpoints. What an algorithm does is in its script.

A run folder holds config.json, script.py (the source as run), log.csv, checkpoint.pt, result.json, episodes.npz and
curves.png.
"""

import contextlib
import io
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import folder, lock, log, meters, ranks
from common.augment import Warp
from common.capture import Captured, as_it_is
from common.episodes import Episode, EpisodeLoader
from common.images import changes_to
from common.options import Options
from common.shards import ROOT, UsageError


class Run:
    """A run's device and processes, data, budget and folder. `main` of every script is written on it.

    progress: the share of the budget that is used up, 0..1, the same on every process.
    Nothing but `glyphs`, where it isn't built, is written before `open`, which comes after whatever may be refused.
    """

    def __init__(self, config: Options, script: str):
        self.config, self.script = config, Path(script)
        if config.keep_memory:
            meters.keep_memory()  # before torch makes its first tensor
        self.device = meters.settled_device(config.device)
        self.rank, self.world = ranks.start(self.device)
        self.batches = config.batches or self.world
        if not config.evaluate and (self.batches % self.world or config.tasks % self.batches):
            raise UsageError(
                f"--tasks {config.tasks} in {self.batches} batches over {self.world} processes: tasks must be a "
                "multiple of --batches, and --batches of the processes"
            )
        self.step, self.progress = 0, 0.0
        self.seconds, self.started, self.last_row_seconds = 0.0, 0.0, 0.0  # of training, evaluation left out
        self.best = (-1.0, 0.0)  # validation accuracy and its 95 % CI; these before the first validation
        self.best_state: dict[str, Tensor] = {}
        self.log = log.Log()
        self.folder: Path | None = None
        self.bar: tqdm | None = None
        self.launch = Captured() if self.device.type == "cuda" and config.capture else as_it_is  # a meta_step
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
            return (self._test_as_trained(tasks),) * 3
        ways, shots, queries = c.train_ways or c.ways, c.train_shots or c.shots, c.train_queries or c.queries
        named = tuple(
            f"--train-{name}" if getattr(c, f"train_{name}") else f"--{name}" for name in ("ways", "shots", "queries")
        )
        pool = (c.pool_classes, c.pool_images) if c.pool_classes else None
        train = self._loader(
            "train", ways, shots, queries, c.tasks // self.batches, seed=c.seed, pool=pool, warp=Warp.of(c), named=named
        )
        pool = (4 * c.ways, c.shots + c.queries)
        val = self._loader("val", c.ways, c.shots, c.queries, 4 * tasks, seed=-1, pool=pool)
        test = self._loader("test", c.ways, c.shots, c.queries, tasks, seed=-2)
        if c.half_size and min(train.image_shape[1:]) < 32:
            raise UsageError(f"--half-size {c.half_size}: {c.dataset}'s images are below 32x32, too small to halve")
        if len(shapes := {tuple(loader.image_shape) for loader in (train, val, test)}) > 1:
            raise UsageError(
                f"--dataset {c.dataset}: its splits' images are {sorted(shapes)}, expected one; rebuild it"
            )
        return train, val, test

    def _loader(self, split: str, *what: int, **options) -> EpisodeLoader:
        path = self.config.data_dir / self.config.dataset / f"{split}.h5"
        options |= {"memory": self.config.images, "image_size": self.config.image_size}
        options |= {"unequal": self.config.unequal_shots, "repeated": self.config.repeat_support}
        return EpisodeLoader(path, *what, self.device, offset=self.rank, stride=self.world, **options)

    def _test_as_trained(self, tasks: int) -> EpisodeLoader:
        """The test's episodes, for --evaluate: images of another data set are made as large as those that the run was
        trained on, and get as many channels, which is said."""
        c = self.config
        trained = folder.trained_shape(c.evaluate, c)
        loader = self._loader("test", c.ways, c.shots, c.queries, tasks, seed=-2, shape=trained)
        if changes := changes_to(loader.image_shape, loader.stored_shape):
            ranks.say(f"{c.dataset}'s images are {changes}, as {c.evaluate} was trained")
        return loader

    def _build_glyphs(self) -> None:
        c = self.config
        if c.dataset == "glyphs" and not (c.data_dir / "glyphs" / "test.h5").exists():
            if self.rank == 0:
                build = [sys.executable, str(ROOT / "data_prep" / "build.py"), "--dataset", "glyphs"]
                if status := subprocess.run([*build, "--data-dir", str(c.data_dir)]).returncode:
                    sys.exit(status)  # it has said why
            ranks.wait()

    # Folder and checkpoints

    def open(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Open the run folder: a new one, or with --resume or --evaluate what the last checkpoint holds."""
        c = self.config
        if c.resume:
            self._take_folder()
        if source := c.resume or c.evaluate:
            saved, self.log = folder.load(source, c, self.script, self.world, model, optimizer, self.device)
            self.step, self.seconds, self.best = saved["step"], saved["seconds"], tuple(saved["best"])
            self.best_state = saved["best_state"] if c.evaluate or self.best[0] >= 0 else {}  # not found best yet
        if not c.resume:
            self._take_folder()
        if self.rank == 0 and c.resume:
            folder.tell_changes(self.folder, c)
        elif self.rank == 0:
            files = {"config.json": folder.description(c, self.script, self.world, self.device)}
            if not c.evaluate:
                files |= {"script.py": self.script.read_bytes(), "log.csv": self.log.text()}
                files |= {"checkpoint.pt": self._checkpoint(model, optimizer)}
            folder.write_new(self.folder, files)
        if self.rank == 0 and not c.evaluate:
            unit, total, done = ("step", c.steps, self.step) if c.steps else ("s", 60 * c.minutes, self.seconds)
            self.bar = tqdm(
                total=total, initial=done, unit=unit, leave=True, mininterval=0.5 if sys.stderr.isatty() else 20,
                bar_format="{percentage:3.0f} %|{bar:12}| {elapsed} done, {remaining} left{postfix}",
            )  # fmt: skip
        self.last_row_seconds, self.started = self.seconds, meters.clock(self.device)
        self._measure_progress()

    def _take_folder(self) -> None:
        """Lock this run's folder, or make it, which the first process does for all; all raise what it does."""
        refused = ""
        if self.rank == 0:
            try:
                if self.config.resume:
                    lock.hold(self.config.resume)
                self.folder = self.config.resume or folder.create(self.config, self.script)
            except UsageError as error:
                refused = str(error)
        if refused := ranks.gathered(refused)[0]:
            raise UsageError(refused)

    def _checkpoint(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> bytes:
        state = {
            "model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": self.step,
            "seconds": self.seconds, "best": self.best, "best_state": self.best_state or model.state_dict(),
        }  # fmt: skip
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return buffer.getvalue()

    # Training

    def draw(self, loader: EpisodeLoader) -> Iterator[Episode]:
        """This process's batches of a meta-step: the same ones whenever the run comes to this step."""
        loader.position = self.step * self.batches + self.rank
        loader.halved = self.progress < self.config.half_size
        for _ in range(self.batches // self.world):
            yield loader.sample()

    @property
    def learning_rate(self) -> float:
        """Of the next step: a half cosine of progress, after 20 steps of warm-up."""
        warm_up, decay = min(1.0, (self.step + 1) / 20), (1 + math.cos(math.pi * self.progress)) / 2
        return self.config.learning_rate * warm_up * decay

    def count(self, batches: list[dict[str, Tensor]], gradient_norm: Tensor) -> None:
        """A meta-step has been made: keep its numbers for the log, and see how far the run has come."""
        self.log.keep(batches, gradient_norm)
        self.step += 1
        self._measure_progress()
        if self.bar:
            self.bar.update(self.bar.total * self.progress - self.bar.n)

    def _measure_progress(self) -> None:
        c = self.config
        shares = [] if c.steps is None else [self.step / c.steps]
        if c.minutes is not None:  # on the host's clock, without waiting for the device at every step
            seconds = self.seconds + time.perf_counter() - self.started
            shares.append(ranks.of_the_first(seconds) / (60 * c.minutes))
        self.progress = min(1.0, max(shares))

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

    def write_row_and_checkpoint(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, validation: dict | None
    ) -> None:
        """A row of log.csv from the steps since the last, and the checkpoint, which keeps the weights that validation,
        as `evaluate` returned it, found best.

        Raises UsageError, before anything is overwritten, where a loss or gradient was no finite number.
        """
        steps = len(self.log.pending)
        row = {"step": self.step, "seconds": round(self.seconds, 3), **self.log.summary(self.step)}
        if validation:
            accuracy, ci95 = meters.mean_ci95(validation["accuracy"])
            row |= {"val_accuracy": accuracy, "val_ci95": ci95}
            if accuracy >= self.best[0]:
                self.best = accuracy, ci95
                self.best_state = {k: v.clone() for k, v in model.state_dict().items()}
        row["step_ms"] = 1e3 * (self.seconds - self.last_row_seconds) / steps
        row["peak_mib"] = meters.peak_mib(self.device)
        self.last_row_seconds = self.seconds
        self.log.add(row)
        if self.rank == 0:
            folder.write_whole(self.folder / "log.csv", self.log.text())
            folder.write_whole(self.folder / "checkpoint.pt", self._checkpoint(model, optimizer))
            shown = [f"step {self.step}", f"{row['step_ms']:.0f} ms"]
            shown += [f"{key.removeprefix('train_')} {row[key]:.3f}" for key in log.RENAMED.values() if key in row]
            shown += [f"val {self.best[0]:.4f} ± {self.best[1]:.4f}"] if self.best_state else []
            self.bar.set_postfix_str(", ".join(shown), refresh=False)
            if self.progress >= 1:
                self.bar.close()


def outer_optimizer(model: nn.Module, config: Options) -> torch.optim.Optimizer:
    """AdamW or plain SGD; weight decay isn't for biases, batch norm's and single numbers."""
    decaying, others = ([p for p in model.parameters() if (p.dim() > 1) == decays] for decays in (True, False))
    groups = [{"params": decaying, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    kind = {"adam": torch.optim.AdamW, "sgd": torch.optim.SGD}[config.outer]
    fused = next(model.parameters()).is_cuda or None  # one launch for all weights
    return kind(groups, lr=config.learning_rate, fused=fused)
