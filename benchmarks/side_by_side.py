"""Times a workload of ours and its PyTorch counterpart in two processes that take turns, and compares them.

Each process builds its workload and warms up (compilation is not timed, but reported); then the two run one after the
other, `--rounds` times, so that whatever else the machine does meets both. Processor time is reported beside wall-clock
time: it depends less on what else runs. Peak memory is the resident size of the process over the timed runs;
`peak_with_setup` also counts building the weights and compiling; what either side freed after that is given back before
the timed runs. Where runs return NumPy arrays, those of the last runs are compared.
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIDES = ("pytorch", "ours")


def main(
    name: str, workloads: dict[str, Callable[[argparse.Namespace], Callable[[], Any]]], steps: int | None = None
) -> None:
    """Entry point of a benchmark script; `workloads` maps each of `SIDES` to a function that returns one timed run.

    steps: of a run, unless --steps says otherwise; None: runs have no steps to be counted.
    """
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__, formatter_class=raw)
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each side")
    parser.add_argument("--size", type=int, default=64, help="height and width of the latents")
    parser.add_argument("--batch", type=int, default=1)
    if steps:
        parser.add_argument("--steps", type=int, default=steps, help="of each run")
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        _serve(workloads[args.side](args))
    else:
        _compare(name, args)


def _compare(name: str, args: argparse.Namespace) -> None:
    sizes = {key: value for key, value in vars(args).items() if key in ("size", "batch", "steps")}
    command = [sys.executable, sys.argv[0], *(f"--{key}={value}" for key, value in sizes.items())]
    workers, outputs = {}, {}
    for side in SIDES:  # one after the other, so that setting up doesn't need the memory of both
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        worker = subprocess.Popen([*command, f"--side={side}"], text=True, **pipes)
        workers[side] = (worker, {"setup_seconds": _answer(worker)["seconds"], "seconds": [], "cpu_seconds": []})
        print(f"{name}: {side:8s} first run, not counted: {workers[side][1]['setup_seconds']:.2f} s", file=sys.stderr)
    for _ in range(args.rounds):
        for side, (worker, result) in workers.items():
            answer = _ask(worker, "run")
            result["seconds"].append(answer["seconds"])
            result["cpu_seconds"].append(answer["cpu_seconds"])
            outputs[side] = answer["output"]
            result["peak_gb"], result["peak_with_setup_gb"] = answer["peak_gb"], answer["peak_with_setup_gb"]
            print(
                f"{name}: {side:8s} {answer['seconds']:7.2f} s ({answer['cpu_seconds']:.2f} s of processors), "
                f"peak {answer['peak_gb']:.2f} GB",
                file=sys.stderr,
            )
    for worker, _ in workers.values():
        worker.stdin.close()
        worker.wait()
    report = {"benchmark": name, **sizes}
    report |= {side: result for side, (_, result) in workers.items()}
    theirs, ours = (report[side] for side in SIDES)
    report["time_ratio"] = min(ours["seconds"]) / min(theirs["seconds"])
    report["cpu_time_ratio"] = min(ours["cpu_seconds"]) / min(theirs["cpu_seconds"])
    report["memory_ratio"] = ours["peak_gb"] / theirs["peak_gb"]
    if "steps" in sizes:
        for side in SIDES:
            report[side]["steps_per_second"] = args.steps / min(report[side]["seconds"])
            print(f"{name}: {side:8s} {report[side]['steps_per_second']:.3f} steps per second", file=sys.stderr)
    if None not in outputs.values():
        expected, found = (np.asarray(outputs[side]) for side in SIDES)
        report["largest_difference"] = float(np.abs(found - expected).max())
        report["largest_value"] = float(np.abs(expected).max())
        print(
            f"{name}: largest difference {report['largest_difference']:.2g} of values up to {report['largest_value']:.2g}",
            file=sys.stderr,
        )
    ratios = ", ".join(f"{key.removesuffix('_ratio')} {value:.2f}" for key, value in report.items() if "_ratio" in key)
    print(f"ours / PyTorch: {ratios}", file=sys.stderr)
    print(json.dumps(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _ask(worker: subprocess.Popen, request: str) -> dict:
    worker.stdin.write(request + "\n")
    worker.stdin.flush()
    return _answer(worker)


def _answer(worker: subprocess.Popen) -> dict:
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"expected an answer from {worker.args}, it ended; see its messages above")
    return json.loads(line)


def _serve(run: Callable[[], Any]) -> None:
    start = time.perf_counter()
    run()
    setup_peak = _status_gb("VmHWM")
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that compiling freed, but that the C library keeps
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak to the present size
    print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)
    for _ in sys.stdin:
        start, cpu_start = time.perf_counter(), time.process_time()
        output = run()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        peak = _status_gb("VmHWM")
        peaks = {"peak_gb": peak, "peak_with_setup_gb": max(peak, setup_peak)}
        values = output.tolist() if isinstance(output, np.ndarray) else None
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "output": values} | peaks), flush=True)


def _status_gb(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024 / 1e9
