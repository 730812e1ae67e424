"""Times a workload of ours and its PyTorch counterpart in two processes that take turns, and compares them.

Each process builds its workload and warms up (compilation is not timed, but reported); then the two run one after the
other, `--rounds` times, so that whatever else the machine does meets both. Processor time is reported beside wall-clock
time: it depends less on what else runs. Peak memory is the resident size of the process over the timed runs;
`peak_with_setup` also counts building the weights and compiling; what either side freed after that is given back before
the timed runs.
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

SIDES = ("pytorch", "ours")


def main(name: str, workloads: dict[str, Callable[[argparse.Namespace], Callable[[], None]]]) -> None:
    """Entry point of a benchmark script; `workloads` maps each of `SIDES` to a function that returns one timed run."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each side")
    parser.add_argument("--size", type=int, default=64, help="height and width of the latents")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        _serve(workloads[args.side](args))
    else:
        _compare(name, args)


def _compare(name: str, args: argparse.Namespace) -> None:
    command = [sys.executable, sys.argv[0], f"--size={args.size}", f"--batch={args.batch}"]
    workers = {}
    for side in SIDES:  # one after the other, so that setting up doesn't need the memory of both
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        worker = subprocess.Popen([*command, f"--side={side}"], text=True, **pipes)
        workers[side] = (worker, {"setup_seconds": _answer(worker)["seconds"], "seconds": [], "cpu_seconds": []})
    for _ in range(args.rounds):
        for side, (worker, result) in workers.items():
            answer = _ask(worker, "run")
            result["seconds"].append(answer["seconds"])
            result["cpu_seconds"].append(answer["cpu_seconds"])
            result["peak_gb"], result["peak_with_setup_gb"] = answer["peak_gb"], answer["peak_with_setup_gb"]
            print(
                f"{name}: {side:8s} {answer['seconds']:7.2f} s ({answer['cpu_seconds']:.2f} s of processors), "
                f"peak {answer['peak_gb']:.2f} GB",
                file=sys.stderr,
            )
    for worker, _ in workers.values():
        worker.stdin.close()
        worker.wait()
    report = {"benchmark": name, "size": args.size, "batch": args.batch}
    report |= {side: result for side, (_, result) in workers.items()}
    theirs, ours = (report[side] for side in SIDES)
    report["time_ratio"] = min(ours["seconds"]) / min(theirs["seconds"])
    report["cpu_time_ratio"] = min(ours["cpu_seconds"]) / min(theirs["cpu_seconds"])
    report["memory_ratio"] = ours["peak_gb"] / theirs["peak_gb"]
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


def _serve(run: Callable[[], None]) -> None:
    start = time.perf_counter()
    run()
    setup_peak = _status_gb("VmHWM")
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that compiling freed, but that the C library keeps
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak to the present size
    print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)
    for _ in sys.stdin:
        start, cpu_start = time.perf_counter(), time.process_time()
        run()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        peak = _status_gb("VmHWM")
        peaks = {"peak_gb": peak, "peak_with_setup_gb": max(peak, setup_peak)}
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds} | peaks), flush=True)


def _status_gb(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024 / 1e9
