"""What a test leaves: result.json, episodes.npz, curves.png and the line for people."""

import io
import json

import numpy as np
from torch import Tensor, nn

from common import meters, ranks
from common.episodes import Episode
from common.folder import write_whole
from common.options import of_tests
from common.run import Run


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
    in_order = [batch for turn in zip(*ranks.gathered(batches)) for batch in turn]
    return {k: np.concatenate([batch[k] for batch in in_order])[:episodes] for k in in_order[0]}


def report(run: Run, model: nn.Module, inductive: dict, transductive: dict) -> None:
    """Write result.json, episodes.npz and curves.png, and print the line for people."""
    if run.rank > 0:
        return
    if run.bar:
        run.bar.close()
    c, rows = run.config, run.log.rows
    accuracy, ci95 = meters.mean_ci95(inductive["accuracy"])
    accuracy_transductive, ci95_transductive = meters.mean_ci95(transductive["accuracy"])
    val_accuracy, val_ci95 = run.best if run.best[0] >= 0 else (None, None)  # of a run that is tested before it has any
    peaks = [] if c.evaluate else [float(row["peak_mib"]) for row in rows]
    result = {
        "algorithm": run.script.stem, "dataset": c.dataset, "ways": c.ways, "shots": c.shots,
        "test_accuracy": accuracy, "test_ci95": ci95, "test_accuracy_transductive": accuracy_transductive,
        "test_ci95_transductive": ci95_transductive, "test_episodes": len(inductive["accuracy"]),
        "steps": run.step, "train_seconds": run.seconds,
        "step_ms": float(np.median([float(row["step_ms"]) for row in rows])) if rows else None,
        "peak_mib": max([meters.peak_mib(run.device), *peaks]),
        "parameters": sum(p.numel() for p in model.parameters()), "device": str(run.device), "seed": c.seed,
        "val_accuracy": val_accuracy, "val_ci95": val_ci95, "width": c.width, "block": c.block,
        "views": getattr(c, "views", 1), "precision": c.precision,
        "processor": meters.hardware(run.device)["processor"],
        **{name: getattr(c, name) for name in of_tests(type(c))},
    }  # fmt: skip
    write_whole(run.folder / "result.json", json.dumps(result, indent=1, default=str))  # a path of a script's own
    arrays = io.BytesIO()
    kept = {k: v for k, v in inductive.items() if k != "accuracy"}
    np.savez_compressed(arrays, **kept, predicted_transductive=transductive["predicted"])
    write_whole(run.folder / "episodes.npz", arrays.getvalue())
    if not c.evaluate:
        title = f"{run.script.stem}, {c.dataset} {c.ways}-way {c.shots}-shot"
        write_whole(run.folder / "curves.png", curves(rows, title))
    print(f"run folder {run.folder}")
    trained = "trained for " if c.evaluate else ""
    print(
        f"test {accuracy:.4f} ± {ci95:.4f} (95 % CI, {result['test_episodes']} episodes, inductive) · "
        f"{trained}{run.seconds:.0f} s · {result['peak_mib']:.0f} MiB"
    )


def curves(rows: list[dict[str, str]], title: str) -> bytes:
    """A picture (PNG) of loss and accuracy against minutes of training."""
    from matplotlib.figure import Figure  # which needs no display, whatever MPLBACKEND says
    from matplotlib.ticker import LogFormatter

    def numbers(key, rows):
        return [float(row[key]) for row in rows]

    def minutes(rows):
        return [seconds / 60 for seconds in numbers("seconds", rows)]

    trained = {key: [row for row in rows if key in row] for key in ("train_loss", "train_accuracy", "val_accuracy")}
    figure = Figure(figsize=(10, 3.6))
    left, right = figure.subplots(1, 2, gridspec_kw=dict(left=0.07, right=0.99, bottom=0.14, top=0.91, wspace=0.16))
    left.plot(minutes(trained["train_loss"]), numbers("train_loss", trained["train_loss"]), color="tab:gray")
    left.set(xlabel="minutes of training", ylabel="training loss", title=title, yscale="log")
    left.yaxis.set_major_formatter("{x:g}")  # 0.1, where a logarithmic axis has 10^-1
    left.yaxis.set_minor_formatter(LogFormatter())
    with_accuracy, validated = trained["train_accuracy"], trained["val_accuracy"]
    right.plot(
        minutes(with_accuracy), numbers("train_accuracy", with_accuracy), color="tab:gray", label="training tasks"
    )
    right.errorbar(
        minutes(validated), numbers("val_accuracy", validated), numbers("val_ci95", validated), color="tab:blue",
        capsize=2, label="validation (95 % CI)",
    )  # fmt: skip
    right.set(xlabel="minutes of training", ylabel="accuracy")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()
