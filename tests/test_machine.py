"""What a process that trains sets, and how it knows that memory ran out; of a GPU what a test can say without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._inductor.exc import InductorError

from harness.data.samples import SHARE, budget
from harness.machine import out_of_memory, settle
from tests.small_networks import loss_of, toy_cell, trainer_of


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
        InductorError(torch.OutOfMemoryError("full"), None),
    ],
)
def test_memory_that_ran_out_is_known_in_all_its_forms(error: Exception) -> None:
    assert out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a mistake"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        InductorError(OSError(28, "No space left on device"), None),
    ],
)
def test_what_is_something_else_is_not_taken_for_it(error: Exception) -> None:
    assert not out_of_memory(error)


def test_float32_is_float32_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for place, name in (
        (torch.cuda, "set_device"),
        (torch, "use_deterministic_algorithms"),
        (torch, "set_flush_denormal"),
        (torch, "set_num_threads"),
    ):
        monkeypatch.setattr(place, name, lambda *arguments, **named: None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.backends.cuda.matmul.allow_tf32 = True  # not what it is by default; an attribute that cannot be patched
    settle("cuda:0")
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.benchmark


def test_what_the_allocator_of_a_gpu_keeps_and_does_not_use_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_CACHE_MB", raising=False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 8000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2000)
    assert budget(torch.device("cuda")) == SHARE * 4000


def test_steps_that_a_gpu_has_yet_to_make_are_no_time_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]

    class Clock:
        monotonic = staticmethod(lambda: now[0])

    def synchronize(device: torch.device) -> None:
        now[0] += 7

    trainer = trainer_of(toy_cell(tmp_path), loss_of("ce"))
    monkeypatch.setattr("harness.train.time", Clock)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    trainer.begin()
    trainer.device = torch.device("cuda")
    trainer.keep()
    assert (trainer.progress.seconds, trainer.progress.aside) == (7, 0)
