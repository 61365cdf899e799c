"""log.csv: what happened in the steps since the last row. Every key that a script's meta_step returns is a column."""

import csv
import io
from pathlib import Path

import torch
from torch import Tensor

from common import ranks
from common.shards import UsageError

COLUMNS = (
    "step", "seconds", "train_loss", "train_accuracy", "gradient_norm", "val_accuracy", "val_ci95", "step_ms",
    "peak_mib",
)  # fmt: skip
RENAMED = {"loss": "train_loss", "accuracy": "train_accuracy"}
# What a row says of all tasks since the last one; of anything that isn't named here, the mean.
SUMMARY = {
    "iterations": Tensor.median, "residual": Tensor.max, "certificate": Tensor.max, "gradient_error": Tensor.max,
    "inner_gradient": Tensor.median,
}  # fmt: skip
Row = dict[str, str | int | float]


class Log:
    """The rows of a log.csv, and the numbers of the steps since the last of them."""

    def __init__(self, rows: list[dict[str, str]] | None = None):
        self.rows = rows or []  # as the file has them, empty cells left out
        self.pending: list[dict[str, Tensor]] = []  # a dictionary a step; detached, so that no graph is kept alive

    def keep(self, batches: list[dict[str, Tensor]], gradient_norm: Tensor) -> None:
        """A step's numbers: what meta_step returned of each batch, means () or values a task (T,). Doesn't wait for
        the device. Raises UsageError for a key that is a column of the log's own."""
        step = {"gradient_norm": gradient_norm.detach()}
        for key in {key: None for batch in batches for key in batch}:  # in their order
            if key in COLUMNS:
                raise UsageError(f"meta_step returns {key!r}, which is a column of log.csv already; name it otherwise")
            try:
                values = torch.stack([torch.as_tensor(batch[key]).detach() for batch in batches if key in batch])
            except (TypeError, ValueError, RuntimeError):
                raise UsageError(f"meta_step returns {key!r}, which is no number, or no tensor of one shape") from None
            step[key] = values.flatten() if values.dim() > 1 else values.float().mean()
        self.pending.append(step)

    def summary(self, last_step: int) -> Row:
        """Of the steps since the last row, on all processes; they are forgotten.

        Raises UsageError where a loss or a gradient's norm was no finite number. Others may be none.
        """
        steps, self.pending = _of_all_ranks(self.pending), []
        for number, step in enumerate(steps, last_step - len(steps) + 1):
            if not all(step[key].isfinite().all() for key in ("loss", "gradient_norm") if key in step):
                raise UsageError(
                    f"step {number}: a loss or gradient is no finite number; the checkpoint is from before it; try a "
                    "smaller --learning-rate, or --inner-rate where there is one"
                )
        row: Row = {}
        for key in {key: None for step in steps for key in step}:
            values = torch.cat([step[key].flatten().float() for step in steps if key in step])
            row[RENAMED.get(key, key)] = float(SUMMARY.get(key, Tensor.mean)(values))
            if key == "converged":
                row["not_converged"] = int(values.numel() - values.sum())
        norms = torch.stack([step["gradient_norm"] for step in steps]).float()
        if len(norms) > 1:  # how much it oscillates within the row
            row["gradient_log_sd"] = float(norms.clamp(min=1e-30).log().std())
        return row

    def add(self, row: Row) -> None:
        """A row, its numbers with six digits as the file has them."""
        self.rows.append({k: f"{v:.6g}" if isinstance(v, float) and k != "seconds" else str(v) for k, v in row.items()})

    def text(self) -> str:
        """The file's content: COLUMNS, and behind them the script's own."""
        columns = list(dict.fromkeys([*COLUMNS, *(key for row in self.rows for key in row)]))
        content = io.StringIO()
        writer = csv.DictWriter(content, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return content.getvalue()


def read(path: Path, last_step: int) -> Log:
    """A log.csv, without what a process that was killed may have left: rows that aren't whole, or that came after the
    checkpoint, at `last_step`, and will be written again. Raises OSError or ValueError for what is no log."""
    written = path.read_text().replace("\0", "")  # as a machine that lost its power leaves them
    whole, _, _ = written.rpartition("\n")  # what follows the last line's end was cut off, or is nothing
    columns, *lines = csv.reader(io.StringIO(whole)) if whole else [[]]
    if columns[: len(COLUMNS)] != list(COLUMNS):
        raise ValueError(f"its columns are {columns[:3]}..., expected {list(COLUMNS[:3])}...")
    rows, step = [], 0
    for cells in lines:
        if len(cells) == len(columns) and cells[0].isdigit() and all(map(_is_number, filter(None, cells))):
            if step < int(cells[0]) <= last_step:  # no row twice, and none after the checkpoint
                step = int(cells[0])
                rows.append({k: v for k, v in zip(columns, cells) if v})
    return Log(rows)


def _of_all_ranks(steps: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Means () are averaged over the processes, values a task (T,) put side by side."""
    everyones = ranks.gathered([{key: value.cpu() for key, value in step.items()} for step in steps])
    if len(everyones) == 1:
        return everyones[0]
    together = []
    for same in zip(*everyones):  # a step, as each process has it
        step = {}
        for key in {key: None for own in same for key in own}:
            values = [own[key] for own in same if key in own]
            step[key] = torch.cat(values) if values[0].dim() else torch.stack(values).mean(0)
        together.append(step)
    return together


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
