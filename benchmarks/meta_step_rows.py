"""Meta-steps of the six algorithms against one forward and backward of the same images, and against their peers: rows
of `python -m benchmarks.run`."""

import functools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from benchmarks import cloned, ours, peers
from benchmarks.problems import SHAPES
from benchmarks.rows import Row, compared, with_gradients
from benchmarks.worker import side_by_side

WIDTHS = {"omniglot": 64, "miniimagenet": 32}
OURS = {  # what each script's meta-step is told; the rest is its default
    "convex_imaml": {},
    "convex_maml": {"inner_steps": 5, "inner_rate": 1.0},
    "maml": {"inner_steps": 5, "inner_rate": 0.01},
    "maml, first order": {"inner_steps": 5, "inner_rate": 0.01, "first_order": True},
    # Strong enough for Eq 5's systems to be definite: elsewhere imaml.py ends conjugate gradient where peers go on.
    "imaml": {"inner_steps": 16, "inner_rate": 0.005, "strength": 50.0, "cg_steps": 5, "tolerance": 0.0},
    "reptile": {"inner_steps": 5, "inner_batch": 10},
    "cavia": {"inner_steps": 2, "inner_rate": 10.0},
}
PEERS = {  # of each algorithm; each is also run with our allocator setting
    "convex_maml": {"learn2learn, ANIL": peers.learn2learn_anil},
    "maml": {
        "learn2learn": partial(peers.a_task_at_a_time, peers.learn2learn),
        "higher": partial(peers.a_task_at_a_time, peers.higher),
        "TorchOpt": partial(peers.a_task_at_a_time, peers.torchopt),
        "parallel-metalearn": peers.parallel_metalearn,
    },
    "maml, first order": {
        "learn2learn": partial(peers.a_task_at_a_time, peers.learn2learn),
        "parallel-metalearn": peers.parallel_metalearn,
    },
    "imaml": {"TorchOpt": partial(peers.a_task_at_a_time, peers.torchopt_implicit), "hypertorch": cloned.hypertorch},
    "cavia": {"the authors' CAVIA": cloned.cavia},
}


def operations(algorithm: str, dataset: str, config: dict) -> float:
    """Convolutions' operations of a meta-step's task over those of a plain step on its images (5 support, 75 query).

    In forwards of an image: a gradient costs 3, and where it is differentiated again 9. The plain step has 3 a task's
    image. Batch norm, pooling and what else is no convolution aren't counted.
    """
    S, Q, k = 5, 75, config.get("inner_steps", 0)
    (channels, side, _), width = SHAPES[dataset], WIDTHS[dataset]
    layers = [c * width * (side >> i) ** 2 for i, c in enumerate((channels, width, width, width))]
    last = layers[3] / sum(layers)  # CAVIA: what depends on the context, whose gradient alone is taken, in 2 steps
    plain = 3 * (S + Q)
    forwards = {
        "maml": 3 * Q + 9 * k * S,
        "maml, first order": 3 * Q + 3 * k * S,
        "imaml": 3 * Q + 3 * k * S + 3 * S + 6 * (config.get("cg_steps", 0) + 1) * S,  # one product for the residual
        "reptile": 3 * k * config.get("inner_batch", 0),
        "cavia": plain * (1 - last) + (3 * Q + 6 * 2 * S) * last,
    }
    return forwards.get(algorithm, plain) / plain


@functools.cache
def fastest_plain(dataset: str, tasks: int, block: str, precision: str) -> partial:
    """One forward and backward of the same images, at the best of layouts and batches, all at once too."""
    how = [(chunk, True) for chunk in sorted({16, 80, 320, 80 * tasks})] + [(320, False)]
    base = partial(ours.plain, dataset, WIDTHS[dataset], tasks, block, precision)
    pieces = {(chunk, layout): partial(base, chunk=chunk, channels_last=layout) for chunk, layout in how}
    workers = side_by_side(pieces, turns=7, warmup=2)
    return pieces[min((how for how in workers if not workers[how].error), key=lambda how: workers[how].amount)]


def meta_step_pieces(algorithm: str, network: dict, batches: int, variant: dict, quick: bool) -> dict[str, partial]:
    """An algorithm's meta-step, `ours`, and what it is compared with beside the plain step: each peer, or of a variant
    of ours the network that peers have."""
    script = algorithm.split(",")[0]
    base = partial(ours.meta_steps, script, **network, batches=batches, **OURS[algorithm])
    pieces = {"ours": partial(base, **variant)}
    if variant:
        return pieces | {"the same in float32, norm-pool": base}
    for name, peer in {} if quick else PEERS.get(algorithm, {}).items():
        pieces[name] = partial(peer, **network, **OURS[algorithm])
        # of ANIL on large images three don't fit into 24 GiB
        if algorithm != "convex_maml" or network["dataset"] == "omniglot" or network["tasks"] <= 4:
            pieces[f"{name}, our allocator setting"] = partial(peers.with_our_allocator, pieces[name])
    return pieces


def meta_steps(dataset: str, tasks: int, algorithm: str, variant: dict, quick: bool, **rounds: int) -> Iterator[Row]:
    """An algorithm's meta-step against the plain step of the same kind, the operation count and its other pieces."""
    network = {"dataset": dataset, "width": WIDTHS[dataset], "tasks": tasks}
    # More tasks' weights and large images at a time don't fit into 24 GiB beside the peers.
    batches = -(-tasks // 4) if dataset == "miniimagenet" and algorithm.startswith(("maml", "imaml")) else 1
    plain = fastest_plain(dataset, tasks, variant.get("block", "norm-pool"), variant.get("precision", "float32"))
    pieces = meta_step_pieces(algorithm, network, batches, variant, quick)
    workers = side_by_side({"plain": plain, **pieces}, **rounds)
    us = workers.pop("ours")
    shared = f" (--batches {batches})" if batches > 1 else ""
    setting = ", ".join([f"{dataset} Conv4-{WIDTHS[dataset]}", f"{tasks} tasks{shared}", *variant.values()])
    layout = "channels_last" if plain.keywords["channels_last"] else "contiguous"
    at_a_time = min(plain.keywords["chunk"], 80 * tasks)
    best = f"one forward and backward of 80 images a task, {layout}, {at_a_time} at a time"
    row = compared("meta_step", algorithm, setting, us, "plain", workers.pop("plain"), best)
    yield row
    share = operations(algorithm, dataset, OURS[algorithm])
    if share != 1 and not variant and row.theirs:
        scaled = {key: share * getattr(row, key) for key in ("theirs", "ratio", "ratio_low", "ratio_high")}
        yield replace(row, against="operation count", note=f"the plain step's speed times {share:.2f}", **scaled)
    for name, worker in workers.items():
        row = compared("meta_step", algorithm, setting, us, name, worker, worker.info.get("note", ""))
        same_work = "gradient" in worker.info and not worker.error and not variant
        yield with_gradients(row, us.info["gradient"], worker.info["gradient"]) if same_work else row
