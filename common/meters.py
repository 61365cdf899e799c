"""The machine: its device, precision and memory; and what a run reports: accuracy with its interval, time, memory."""

import ctypes
import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from common.shards import UsageError


def mean_ci95(values: np.ndarray) -> tuple[float, float]:
    """Mean of episodes' accuracies (E,) and the half-width of its 95 % confidence interval, 1.96 s / sqrt E."""
    values = np.asarray(values, dtype=np.float64)
    return float(values.mean()), float(1.96 * values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def clock(device: torch.device) -> float:
    """Seconds, once all work queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def peak_mib(device: torch.device) -> float:
    """Largest memory so far in MiB: of the device's allocator on CUDA, else resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return resident_mib()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def resident_mib() -> float:
    """Memory in MiB that this process has now, where there is /proc; elsewhere no number (nan)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return math.nan


def keep_memory() -> None:
    """Let glibc keep freed memory instead of returning it to the kernel and faulting it in again at every step, and
    torch ask for huge pages; the latter alone where the C library has no mallopt. To be called before torch makes its
    first tensor."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch at its first tensor
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt:
            M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, -1)


def settled_device(name: str) -> torch.device:
    """The device that --device names, "auto" being the first there is of cuda, mps and cpu.

    Raises UsageError where this machine doesn't have it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cpu":
        return torch.device(name)
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        torch.zeros(1, device=name).item()
        if name.startswith("cuda"):
            torch.cuda.set_device(name)  # which collectives of several processes work on
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name}: {reason}; this machine can use --device auto or cpu") from None


def questions(x: Tensor) -> Literal["free", "dear", "impossible"]:
    """What it costs the host to ask for a number on x's device. On a CPU nothing, and knowing it may save work. A GPU
    first ends all work that is queued, and is idle after that until more comes. While it is recorded it can't answer.
    """
    if not x.is_cuda:
        return "free"
    return "impossible" if torch.cuda.is_current_stream_capturing() else "dear"


def settled_precision(name: str, device: torch.device) -> str:
    """float32 or bfloat16, as --precision names it; "auto" is bfloat16 on CPUs that multiply it in hardware."""
    if name == "auto":
        return "bfloat16" if device.type == "cpu" and has_bfloat16() else "float32"
    return name


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware, so that it is faster than float32 there."""
    return bool({"avx512_bf16", "amx_bf16"} & _cpu_flags())


def hardware(device: torch.device) -> dict[str, object]:
    """Names and abilities of the processor and the device, for config.json."""
    info = _cpuinfo()
    return {
        "processor": info.get("model name", platform.processor() or platform.machine()),
        "cpu_family": info.get("cpu family"),
        "cpu_model": info.get("model"),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "avx512_bf16": "avx512_bf16" in _cpu_flags(),
        "amx_bf16": "amx_bf16" in _cpu_flags(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }


def commit(folder: Path) -> str | None:
    """The git commit that a folder is at, if it is in a repository and there is git."""
    try:
        git = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return git.stdout.strip() or None


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def _cpu_flags() -> set[str]:
    return set(_cpuinfo().get("flags", "").split())
