"""Runs of several scripts, one after the other, in each of the processes that torchrun starts:

    python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.two_ranks FILE

FILE (JSON) has a list of words for each script, by its name. Fails where a run leaves a thread of its process group
behind, which stays: one that ends is still seen for a moment on a busy machine.
"""

import contextlib
import functools
import importlib
import json
import os
import sys
import time
from pathlib import Path

import torch.distributed as dist

from common.command import command


def of_the_group() -> list[str]:
    """Names of the threads that gloo has in this process; none where there is no /proc to see them."""
    names = []
    for task in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # it has ended since it was listed
            names.append(task.read_text().strip())
    return [name for name in names if "gloo" in name]


def main(file: Path) -> None:
    join, rank, world = dist.init_process_group, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for number, (name, words) in enumerate(json.loads(file.read_text()).items()):
        if number:  # torchrun's store, which the first run has, keeps the keys of the group before
            store = dist.FileStore(str(file.with_name(f"store-{name}")), world)
            dist.init_process_group = functools.partial(join, store=store, rank=rank, world_size=world)
        script = importlib.import_module(name)
        sys.argv = [script.__file__, *words]
        command(script.main)
        until = time.monotonic() + 10
        while (left := of_the_group()) and time.monotonic() < until:
            time.sleep(0.01)
        assert not left, (name, left)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
