"""Commands in processes of their own, forked from one that has done the slow imports: a start takes tenths of a second."""

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess

import jax

ROOT = Path(__file__).parents[2]
_SECONDS = 300
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["pidiff_jax.runs.training", "data_pipeline.prepare.networks"])


def call(*arguments, command: str = "train", **environment: str) -> CompletedProcess[str]:
    """`python -m launch.COMMAND` in the root of the repository; see `call_script`."""
    return call_script(
        f"import runpy; runpy.run_module('launch.{command}', {{}}, '__main__')", *arguments, **environment
    )


def call_script(script: str, *arguments, **environment: str) -> CompletedProcess[str]:
    """`python -c SCRIPT` in the root of the repository, with its exit status and what it writes.

    Where it matters what is imported when, a process must be started anew.

    environment: on top of this process's. JAX reads its variables when it is imported, so that only JAX_PLATFORMS is heeded.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("stdout", "stderr")]
        for path in outputs:
            path.touch()  # a process that is ended early may have written nothing
        line, variables = [script, *map(str, arguments)], {**os.environ, **environment}
        process = _FORKS.Process(target=_run, args=(line, variables, outputs))
        process.start()
        process.join(_SECONDS)
        if running := process.is_alive():
            process.kill()
            process.join()
        stdout, stderr = (path.read_text(encoding="utf-8") for path in outputs)
        assert not running, f"no end after {_SECONDS} seconds: {stdout}\n{stderr}"
    return CompletedProcess(line, process.exitcode, stdout, stderr)


def _run(line: list[str], variables: dict[str, str], outputs: list[Path]) -> None:
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY), descriptor)
    os.environ.clear()
    os.environ.update(variables)
    jax.config.update("jax_platforms", variables.get("JAX_PLATFORMS"))
    os.chdir(ROOT)
    sys.argv = ["-c", *line[1:]]
    exec(line[0], {"__name__": "__main__"})
