"""From the command to the first step of a resumed quickstart whose data are cached, without and with compiled programs.

python benchmarks/start_up.py --rounds=3

A first start, which isn't counted, renders the data, writes a checkpoint and fills a fresh cache of compiled programs. Then
resumed starts without the cache (cold) and with it (warm) take turns.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Stops at its first step, saves, and draws and scores as little as it may.
SETTINGS = {
    "max_seconds": 1, "checkpoint_every_steps": 1, "validate_every_steps": 1000, "data.num_people": 64,
    "evaluation.num_people": 3, "evaluation.num_prompts": 3, "sampling.num_steps": 1,
}  # fmt: skip


def main() -> None:
    """Prints a line per start, and the fastest of each kind as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="starts of each kind")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _seconds_to_first_step(folder, str(folder / "compiled"), to_the_end=True)
        seconds: dict[str, list[float]] = {"cold": [], "warm": []}
        for _ in range(args.rounds):
            for kind, cache in (("cold", "off"), ("warm", str(folder / "compiled"))):
                seconds[kind].append(_seconds_to_first_step(folder, cache))
                print(f"{kind}: first step after {seconds[kind][-1]:.1f} s", file=sys.stderr)
    print(json.dumps({kind: min(each) for kind, each in seconds.items()}))


def _seconds_to_first_step(folder: Path, cache: str, to_the_end: bool = False) -> float:
    """Starts the run; unless it is to go `to_the_end`, it is killed after its first step."""
    command = [sys.executable, "-u", "-m", "launch.train", "--config=experiments/quickstart.py"]
    command += [
        f"--workdir={folder / 'run'}",
        f"--compilation_cache={cache}",
        f"--config.data.cache={folder / 'records'}",
    ]
    command += [f"--config.{name}={value}" for name, value in SETTINGS.items()]
    with (folder / "stderr").open("w+", encoding="utf-8") as errors:
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
        for line in child.stdout:
            if found := re.search(r"first step after ([\d.]+) s", line):
                if not to_the_end:
                    child.kill()
                child.wait()
                return float(found[1])
        errors.seek(0)
        sys.exit(f"expected a first step, got: {errors.read()}")


if __name__ == "__main__":
    main()
