"""This project beside its peers, the machine's limit and itself; every module is a command."""

import json
from pathlib import Path

import torch

from common import meters

SCRIPTS = ("convex_imaml", "convex_maml", "maml", "imaml", "reptile", "cavia")


def save(out: Path, name: str, content: dict, table: str, device: str = "cpu") -> None:
    """Write OUT/NAME.json, of `content` and the machine, and OUT/NAME.md."""
    out.mkdir(parents=True, exist_ok=True)
    machine = {"torch": torch.__version__, **meters.hardware(torch.device(device))}
    (out / f"{name}.json").write_text(json.dumps(machine | content, indent=1))
    (out / f"{name}.md").write_text(table.rstrip("\n") + "\n")
