"""Processors: makes a process compute as on another one, as far as its libraries let themselves be told.

OpenBLAS, FAISS, numpy and the C library each choose their kernels by the processor, and each has a variable that
chooses for it. ONNX Runtime has none.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
THREADS = (1, 2)
_AVX512 = "X86_V4 AVX512_ICL AVX512_SPR"


@dataclass(frozen=True)
class Processor:
    """A processor, by OpenBLAS's name for it."""

    name: str
    needs: str
    """The flag in ``/proc/cpuinfo`` without which it cannot be had here."""
    faiss: str
    numpy_without: str
    libc_without: str = ""

    def environment(self, threads: int) -> dict[str, str]:
        """What makes the libraries of a process compute as on this processor, in so many threads."""
        return {
            "OPENBLAS_CORETYPE": self.name,
            "FAISS_SIMD_LEVEL": self.faiss,
            "NPY_DISABLE_CPU_FEATURES": self.numpy_without,
            "OPENBLAS_NUM_THREADS": str(threads),
            "OMP_NUM_THREADS": str(threads),
            **({"GLIBC_TUNABLES": f"glibc.cpu.hwcaps={self.libc_without}"} if self.libc_without else {}),
        }


PROCESSORS = (
    Processor("Prescott", "pni", "NONE", f"X86_V3 {_AVX512}", "-AVX2,-FMA"),
    Processor("Haswell", "avx2", "AVX2", _AVX512),
    Processor("Zen", "avx2", "AVX2", _AVX512),
    Processor("SkylakeX", "avx512f", "AVX512", "AVX512_ICL AVX512_SPR"),
)


def runnable() -> list[Processor]:
    """Those that this machine can compute as."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    return [each for each in PROCESSORS if each.needs in flags]


def configurations() -> Iterator[tuple[str, Mapping[str, str]]]:
    """Every processor that can be had here in every number of threads: its name, and the variables."""
    for processor in runnable():
        for threads in THREADS:
            yield f"{processor.name}/{threads}", processor.environment(threads)


def start(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """A process that runs a module of the tests with those variables; what it prints is in its ``stdout``."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
