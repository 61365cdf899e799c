"""Runs of several scripts, one after the other, in each of the processes that torchrun starts:

    python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.two_ranks FILE

FILE (JSON) has a list of words for each script, by its name. Fails where a run leaves a thread of its process group
behind.
"""

import functools
import importlib
import json
import os
import sys
from pathlib import Path

import torch.distributed as dist

from common.command import command


def threads() -> list[str]:
    """Names of this process's threads; none where there is no /proc to see them."""
    return [task.read_text() for task in Path("/proc/self/task").glob("*/comm")]


def main(file: Path) -> None:
    join, rank, world = dist.init_process_group, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for number, (name, words) in enumerate(json.loads(file.read_text()).items()):
        if number:  # torchrun's store, which the first run has, keeps the keys of the group before
            store = dist.FileStore(str(file.with_name(f"store-{name}")), world)
            dist.init_process_group = functools.partial(join, store=store, rank=rank, world_size=world)
        script = importlib.import_module(name)
        sys.argv = [script.__file__, *words]
        command(script.main)
        assert not (left := [thread for thread in threads() if "gloo" in thread]), (name, left)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
