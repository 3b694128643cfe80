"""Builds veilsum for a GPU, checks it against the CPU, measures it, and writes what was found.

    python3 bench/gpu.py --out DIR               on a machine with a GPU, nvcc, CMake and Ninja
    python3 bench/gpu.py --backend emu --quick   the same way on emulated devices, whose times
                                                 say nothing

Needs numpy and pybind11, no network and nothing installed: the module is built in build/gpu and
used from there. --sanitize also runs the tests of devices under compute-sanitizer.

The time of every kernel stands beside the least that its bytes could take at the measured speed of
copies on the device, and where its operations are counted beside the measured rate of integers;
that of every round, and of every call of gpu_work.py, beside that of its bytes over the bus.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpu_work import Work, every_work

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build/gpu"
CODECS = ("f32", "f16", "bf16", "int8", "int4", "nf4", "fp4", "fp8_e4m3", "fp8_e5m2", "sign")
SANITIZER_TOOLS = ("memcheck", "racecheck", "synccheck")
DEVICE_TESTS = "test_device_*.py"


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    kernel_bytes: int
    model: int  # coordinates
    sites: int
    repeats: int


FULL = Sizes(kernel_bytes=1 << 30, model=100_000_000, sites=8, repeats=9)
QUICK = Sizes(kernel_bytes=1 << 16, model=10_000, sites=3, repeats=2)


@dataclass(frozen=True)
class Figure:
    """One line of the result; `share` is of the ceiling that `ceiling` names."""

    name: str
    bytes: float
    seconds: float
    spread: float  # between the quartiles, of the median
    gigabytes_per_second: float
    ceiling: str = ""
    share: float | None = None
    integer_share: float | None = None  # of the measured rate of integer operations


# --- building --------------------------------------------------------------------------------


def architecture() -> str:
    """That of the first GPU; of an H100 where there is none, so that the build can be tried."""
    query = ("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    capability = _output(*query).partition("\n")[0].replace(".", "")
    return f"{capability or 90}-real"


def build_module(backend: str) -> None:
    """Builds the module, and puts it where `import veilsum` finds it and nothing else."""
    cuda = "ON" if backend.startswith("cuda") else "OFF"
    pybind11 = _output(sys.executable, "-m", "pybind11", "--cmakedir")
    _run(
        *("cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja"),
        *("-DCMAKE_BUILD_TYPE=Release", f"-DVEILSUM_CUDA={cuda}"),
        f"-DVEILSUM_CUDA_ARCHS={architecture()}",
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}"),
    )
    _run("cmake", "--build", str(BUILD), "--target", "_native")
    package = BUILD / "package/veilsum"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(
        ROOT / "python/veilsum", package, ignore=shutil.ignore_patterns("_native*.so", "*.pyc")
    )
    for module in BUILD.glob("_native*.so"):
        shutil.copy(module, package)
    sys.path.insert(0, str(BUILD / "package"))


def _run(*command: str) -> None:
    print("$", " ".join(command), flush=True)
    subprocess.run(command, check=True)


def _output(*command: str) -> str:
    """What a program says, or "" if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


# --- checking --------------------------------------------------------------------------------


def model_arrays(size: int, number: int) -> dict[str, Any]:
    import numpy as np

    values = np.random.default_rng(number).standard_normal(size, dtype=np.float32)
    return {"w": values * np.float32(0.01)}


def encoded_updates(codec: str, size: int, sites: int) -> tuple[Any, list[Any]]:
    """A layout, and an update of each site."""
    import veilsum

    arrays = [model_arrays(size, number) for number in range(sites)]
    layout = veilsum.ModelLayout.from_arrays(arrays[0])
    return layout, [veilsum.encode(one, codec=codec, layout=layout) for one in arrays]


def run_round(layout: Any, updates: list[Any], backend: str, rule: str = "mean") -> str:
    """The digest of a round whose updates lie in host memory."""
    import veilsum

    aggregator = veilsum.Aggregator(layout, backend=backend, rule=rule)
    for number, update in enumerate(updates):
        aggregator.add(update, weight=number + 1, site=f"site-{number}")
    return aggregator.finish().digest


def check_codecs(backend: str) -> Iterator[str]:
    """Names of codecs whose mean has the CPU's bits.

    Raises:
        SystemExit: one has not.
    """
    for codec in CODECS:
        layout, updates = encoded_updates(codec, 30_011, 5)
        on_device, on_cpu = (run_round(layout, updates, where) for where in (backend, "cpu"))
        if on_device != on_cpu:
            raise SystemExit(f"error: the mean of {codec} is {on_device}, on the CPU {on_cpu}")
        yield codec


# --- measuring -------------------------------------------------------------------------------


def spread_of(seconds: list[float]) -> float:
    if len(seconds) < 2:
        return 0
    low, middle, high = statistics.quantiles(seconds, n=4)
    return (high - low) / middle if middle else 0


def figure(name: str, seconds: list[float], size: float) -> Figure:
    median = statistics.median(seconds)
    return Figure(name, size, median, spread_of(seconds), size / median / 1e9 if median else 0)


def limited(one: Figure, ceiling: Figure) -> Figure:
    limit = ceiling.gigabytes_per_second
    share = one.gigabytes_per_second / limit if limit else None
    return Figure(**asdict(one) | {"ceiling": ceiling.name, "share": share})


def measure_device(backend: str, sizes: Sizes) -> tuple[list[Figure], float]:
    """Copies, and kernels beside them; and integer operations per second."""
    from veilsum import _native

    def measure(name: str) -> tuple[Figure, float]:
        seconds, size, operations = _native.device_benchmark(
            backend, name, bytes=sizes.kernel_bytes, repeats=sizes.repeats
        )
        found = figure(name, list(seconds), size)
        return found, operations / found.seconds if found.seconds else 0

    copy, _ = measure("copy")
    figures = [copy, measure("to_device")[0], measure("to_host")[0]]
    _, integers = measure("mix")
    kernels = [name for name in _native.device_benchmarks() if name.startswith("mean_")]
    figures += [limited(measure(name)[0], copy) for name in kernels]
    return figures, integers


def measure_round(name: str, work: Callable[[], object], size: int, repeats: int) -> Figure:
    work()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return figure(name, seconds, size)


def measure_rounds(backend: str, sizes: Sizes, bus: Figure) -> Iterator[Figure]:
    for codec in CODECS:
        layout, updates = encoded_updates(codec, sizes.model, sizes.sites)
        size = sum(update.nbytes for update in updates)
        for where in (backend, "cpu"):

            def work(where: str = where, layout: Any = layout, updates: Any = updates) -> str:
                return run_round(layout, updates, where)

            found = measure_round(f"round {codec}, {where}", work, size, sizes.repeats)
            yield found if where == "cpu" else limited(found, bus)


def check_work(work: Work, backend: str) -> None:
    """Raises:
    SystemExit: the device's result is not the CPU's.
    """
    on_device, on_cpu = work.run(backend), work.run("cpu")
    same = on_device == on_cpu
    if not (same if isinstance(same, bool) else same.all()):
        raise SystemExit(f"error: {work.name} on {backend} has other bits than on the CPU")


def measure_work(
    backend: str, sizes: Sizes, copy: Figure, bus: Figure, integers: float
) -> Iterator[Figure]:
    """Each call on the device and on the CPU, and its kernels, after its result was compared."""
    threads = os.cpu_count() or 1
    for work in every_work(sizes.model // 4096 * 4096, threads):
        check_work(work, backend)
        for where in (backend, "cpu"):

            def call(where: str = where, work: Work = work) -> object:
                return work.run(where)

            found = measure_round(f"{work.name}, {where}", call, work.bytes, sizes.repeats)
            if where != "cpu":
                found = beside_integers(limited(found, bus), work.operations, integers)
            yield found
        yield from measure_kernels(backend, work, sizes.repeats, copy, integers)


def measure_kernels(
    backend: str, work: Work, repeats: int, copy: Figure, integers: float
) -> Iterator[Figure]:
    """What the kernels of a call take by themselves, all launches together. Those of different
    windows may overlap, and then count twice."""
    from veilsum import _native

    seconds: dict[str, list[float]] = {kernel: [] for kernel in work.kernels}
    for _ in range(repeats):
        for kernel, _launches, taken in _native.kernel_times(backend, lambda: work.run(backend)):
            seconds[kernel].append(taken)
    for number, (kernel, size) in enumerate(work.kernels.items()):
        found = limited(figure(f"{work.name}: {kernel}", seconds[kernel], size), copy)
        yield beside_integers(found, 0 if number else work.operations, integers)


def beside_integers(found: Figure, operations: float, integers: float) -> Figure:
    share = operations / found.seconds / integers if found.seconds and integers else None
    return replace(found, integer_share=share if operations else None)


# --- compute-sanitizer -----------------------------------------------------------------------


def run_sanitizers(backend: str) -> dict[str, str]:
    """The last line of each tool's report on the tests of devices."""
    import veilsum

    package = Path(veilsum.__file__).parent.parent
    tests = [str(path) for path in sorted((ROOT / "tests").glob(DEVICE_TESTS))]
    pytest = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", backend)
    reports = {}
    for tool in SANITIZER_TOOLS:
        command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *pytest, *tests)
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(package)},
            cwd=ROOT,
            check=False,
        )
        lines = [line for line in done.stdout.splitlines() if "ERROR SUMMARY" in line]
        reports[tool] = f"exit code {done.returncode}; {lines[-1] if lines else 'no summary'}"
    return reports


# --- writing ---------------------------------------------------------------------------------


def facts(backend: str) -> dict[str, str]:
    from veilsum import _native

    _, devices, reason = _native.cuda_status()
    query = ("nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "backend": backend,
        "device": (devices[0] if devices else reason) if backend != "emu" else "emulated device",
        "driver": _output(*query).partition("\n")[0],
        "nvcc": _output("nvcc", "--version").rpartition("\n")[2],
        "cpu": platform.processor() or platform.machine(),
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
    }


def table(report: dict[str, Any]) -> str:
    lines = [f"# {report['facts']['device']}, {report['facts']['date']}", ""]
    lines += [f"- {key}: {value}" for key, value in report["facts"].items()]
    lines += [f"- integer operations: {report['integers_per_second'] / 1e12:.3f} * 10^12 a second"]
    lines += [f"- same digest as on the CPU: {', '.join(report['checked'])}"]
    lines += [f"- compute-sanitizer {tool}: {text}" for tool, text in report["sanitizer"].items()]
    lines += [
        "",
        "Rounds and calls have the bus in their time; kernels by name do not.",
        "",
        "| what | MB | ms | spread | GB/s | of | of integers |",
    ]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for one in report["figures"]:
        share = "" if one["share"] is None else f"{one['share']:.0%} of {one['ceiling']}"
        integers = "" if one["integer_share"] is None else f"{one['integer_share']:.0%}"
        lines.append(
            f"| {one['name']} | {one['bytes'] / 1e6:.3f} "
            f"| {one['seconds'] * 1e3:.3f} | {one['spread']:.0%} "
            f"| {one['gigabytes_per_second']:.1f} | {share} | {integers} |"
        )
    return "\n".join(lines) + "\n"


def write_report(report: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    device = "".join(c if c.isalnum() else "-" for c in report["facts"]["device"].lower())
    path = folder / f"{report['facts']['date']}-{device}.md"
    path.write_text(table(report))
    path.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    return path


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Checks and measures veilsum on a GPU.")
    parser.add_argument("--backend", default="cuda", help="cuda, cuda:N or emu")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results", help="a folder")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does the script work")
    parser.add_argument("--no-build", action="store_true", help="use the veilsum on the path")
    parser.add_argument("--sanitize", action="store_true", help="compute-sanitizer, too")
    return parser.parse_args()


def require_device(backend: str) -> None:
    """Raises:
    SystemExit: there is none of this name.
    """
    from veilsum import devices
    from veilsum.errors import VeilsumError

    try:
        devices.require_backend(backend)
    except VeilsumError as error:
        raise SystemExit(
            f"error: no device {backend}: {error}\n"
            "hint: `veilsum doctor` says what there is; --backend emu tries the script without one"
        ) from None


def main() -> None:
    arguments = parse_arguments()
    backend, sizes = arguments.backend, QUICK if arguments.quick else FULL
    if arguments.sanitize and shutil.which("compute-sanitizer") is None:
        raise SystemExit(
            "error: there is no compute-sanitizer on the path\n"
            "hint: it is part of the CUDA toolkit, in its folder bin"
        )
    if not arguments.no_build:
        build_module(backend)
    require_device(backend)
    checked = []
    for codec in check_codecs(backend):
        print(f"{codec}: same digest as on the CPU", flush=True)
        checked.append(codec)
    figures, integers = measure_device(backend, sizes)
    bus = next(one for one in figures if one.name == "to_device")
    figures += measure_rounds(backend, sizes, bus)
    copy = next(one for one in figures if one.name == "copy")
    figures += measure_work(backend, sizes, copy, bus, integers)
    report = {
        "facts": facts(backend),
        "checked": checked,
        "integers_per_second": integers,
        "sanitizer": run_sanitizers(backend) if arguments.sanitize else {},
        "figures": [asdict(one) for one in figures],
    }
    path = write_report(report, arguments.out)
    print(path.read_text(), path, sep="\n")
    failed = [
        tool for tool, text in report["sanitizer"].items() if not text.startswith("exit code 0")
    ]
    if failed:
        raise SystemExit(f"error: compute-sanitizer: {', '.join(failed)}: see the table")


if __name__ == "__main__":
    main()
