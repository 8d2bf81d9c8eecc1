"""The process that trains and the machine under it: threads, determinism, memory, versions."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import re
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch

# The CPU's allocator, the CUDA runtime, and libraries that allocate by themselves: cuBLAS, cuSOLVER, cuDNN, cuFFT.
_NO_MEMORY = re.compile(r"can't allocate memory|CUDA error: out of memory|\bCU[A-Z]+_(\w+_)?ALLOC(ATION)?_FAILED\b")


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, as they stand in records."""
    import numpy
    import SimpleITK as sitk

    from harness import __version__

    on_gpu = device.type == "cuda"
    return {
        "bench": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "SimpleITK": sitk.Version.VersionString(),
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def named(device: torch.device) -> str:
    """A device as a log names it."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def reset_peak(device: torch.device) -> None:
    """Forget the peak memory of the cells before; on a CPU this is Linux's to offer."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> float:
    """Peak memory in MB since the reset: of the GPU's allocator, or resident memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return float(next(t for t in lines if t.startswith("VmHWM")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch has a class for its GPU allocator alone, and wraps what a compiler met."""
    within = (error.__cause__, getattr(error, "inner_exception", None))
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or _NO_MEMORY.search(str(error)) is not None
        or any(isinstance(one, BaseException) and out_of_memory(one) for one in within)
    )


def empty_cache(device: str) -> None:
    """Give the memory of a GPU back that this process holds and does not use, for other processes on it."""
    if device.startswith("cuda"):
        with contextlib.suppress(RuntimeError):  # a device with a fault; what raised it says more
            torch.cuda.empty_cache()


def settle(device: str) -> None:
    """What a process that trains sets once: one thread, denormals to zero, deterministic algorithms on a GPU."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # saturated networks make denormals, and those are slow
    if device.startswith("cuda"):
        torch.cuda.set_device(torch.device(device))
        # operations without a deterministic form warn
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
        # float32 is float32: TF32 has 10 bits of mantissa, and is torch's default in convolutions alone. Not by the
        # newer `fp32_precision`: older torches have none, and torch refuses to read these flags once that is set.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


def die_with_parent() -> None:
    """On Linux, be told (SIGTERM) when the parent dies, even by kill -9: the checkpoint is then written."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)
