"""Compiles the CPU kernels with whatever C compiler there is. Without one the install goes on, with a warning."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

SOURCES = Path("octavo/kernels/native")
LIBRARY = "liboctavo.so"
FLAGS = ["-O3", "-std=gnu11", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-Wall", "-Wno-psabi"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]


def installed_compilers() -> list[list[str]]:
    """Commands to try, best first."""
    named = [shlex.split(os.environ["CC"])] if os.environ.get("CC") else []
    return [*named, *([name] for name in ("cc", "gcc", "clang") if shutil.which(name))]


def compilers() -> list[list[str]]:
    """The same, and at last the one that comes as a wheel. It takes the machine it runs on for the target: -mcpu."""
    return [*installed_compilers(), [sys.executable, "-m", "ziglang", "cc", "-mcpu=baseline"]]


def compile_with(compiler: list[str], target: Path) -> None:
    """Every source once, and all but threads.c again for AVX2 on x86-64; linked into one library."""
    with tempfile.TemporaryDirectory() as scratch:
        objects = []
        for source in sorted(SOURCES.glob("*.c")):
            variants = [[]]
            if source.name != "threads.c" and platform.machine().lower() in ("x86_64", "amd64"):
                variants.append(AVX2)
            for i, flags in enumerate(variants):
                objects.append(str(Path(scratch) / f"{source.stem}.{i}.o"))
                subprocess.run([*compiler, *FLAGS, *flags, "-c", str(source), "-o", objects[-1]], check=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        subprocess.run([*compiler, "-shared", "-o", str(partial), *objects, "-lm"], check=True)
        os.replace(partial, target)


def build_library(target: Path) -> bool:
    """Compile with the first compiler that works."""
    for compiler in compilers():
        try:
            compile_with(compiler, target)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"octavo: {shlex.join(compiler)} did not compile the CPU kernels: {error}", file=sys.stderr)
        else:
            return True
    print("octavo: WARNING: no C compiler: Octavo will run, but its CPU path is slow", file=sys.stderr)
    return False


class BuildKernels(build_py):
    """Also compiles the kernels: into the wheel, or beside their sources for an editable install."""

    def run(self) -> None:
        super().run()
        folder = SOURCES if self.editable_mode else Path(self.build_lib) / SOURCES
        build_library(folder / LIBRARY)


class PlatformWheel(bdist_wheel):
    """The library depends on the platform, not on the Python version."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    setup(
        cmdclass={"build_py": BuildKernels, "bdist_wheel": PlatformWheel},
        setup_requires=[] if installed_compilers() else ["ziglang>=0.13"],
    )
