"""A task in one file: a run's model, and the support set that it adapts to."""

import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.folder import write_whole
from common.shards import UsageError
from predictions.trained import Trained

FORM = "few-shot task, 1"


@dataclass
class Task:
    """What labelling needs: the model, and the support set, prepared, in the order in which it is adapted to.

    How a method adapts, and what it then keeps, is its script's own affair, so the pictures are what is kept: adapting
    to them again takes a moment and gives the same model.
    """

    trained: Trained
    classes: list[str]
    support: Tensor  # (S, C, H, W) uint8
    labels: Tensor  # (S,)
    invert: bool | None
    """as it was given with the support set"""


def save(task: Task, file: Path) -> None:
    """Write the file, which needs neither the run nor its data set. Raises DiskError, or UsageError where there can't
    be such a file."""
    content = io.BytesIO()
    values = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    torch.save(values | {"form": FORM, "trained": dataclasses.asdict(task.trained)}, content)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--save {file}: {error.strerror}; name a file in a folder that can be made") from None
    if file.is_dir():
        raise UsageError(f"--save {file}: a folder, expected the name of a file, such as {file / 'task.pt'}")
    write_whole(file, content.getvalue())


def load(file: Path) -> Task:
    """What `save` wrote. Raises UsageError for any other file."""
    try:
        values = torch.load(file, map_location="cpu", weights_only=True)
        if values.pop("form") != FORM:
            raise ValueError
        trained = Trained(**values.pop("trained"))
        return Task(dataclasses.replace(trained, name=str(file)), **values)
    except Exception:  # of another file, torch raises what it comes upon
        raise UsageError(
            f"{file}: expected a run folder, not a file in it, or a file that predict.py --save wrote; "
            "runs are under runs/"
        ) from None
