"""Compiled programs are kept where the user says, and a folder that can't be used stops nothing."""

from pathlib import Path

import filelock
import jax

from pidiff_jax import compilation_cache
from pidiff_jax.compilation_cache import OFF, cache_folder, use_compilation_cache
from tests.launch.test_command_line import call_afresh

COMPILE = """
import jax
from launch import command_line
from pidiff_jax import compilation_cache

compilation_cache.MIN_COMPILE_SECONDS = 0.0

def main():
    jax.jit(lambda x: x + 1)(1.0)

command_line.start(main, after_interrupt="")
"""


def compile_something(*arguments, **environment):
    result = call_afresh("-c", COMPILE, *arguments, JAX_PLATFORMS="cpu", **environment)
    assert result.returncode == 0, result.stderr
    return result


def programs(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*-cache"))


def test_the_command_line_comes_before_the_environment_and_that_before_the_users_caches(tmp_path):
    ours, jax_s = {"PIDIFF_COMPILATION_CACHE": "/ours"}, {"JAX_COMPILATION_CACHE_DIR": "/jax"}
    assert cache_folder("/given", {**ours, **jax_s}).parent == Path("/given")
    assert cache_folder(None, {**ours, **jax_s}).parent == Path("/ours")
    assert cache_folder(None, jax_s) is None
    assert cache_folder(None, {"XDG_CACHE_HOME": "/caches"}).parent == Path("/caches/pidiff_jax/compiled")
    assert cache_folder("", {}).parent == Path.home() / ".cache" / "pidiff_jax" / "compiled"
    assert cache_folder(OFF, ours) == cache_folder(None, {"PIDIFF_COMPILATION_CACHE": OFF}) == OFF
    assert cache_folder("/given", ours) != OFF


def test_programs_are_kept_in_a_private_folder_and_read_again_in_silence(tmp_path):
    first = compile_something(f"--compilation_cache={tmp_path / 'compiled'}")
    kept = programs(tmp_path)
    assert kept and kept[0].parent.stat().st_mode & 0o777 == 0o700
    written = [path.stat().st_mtime_ns for path in kept]
    second = compile_something(PIDIFF_COMPILATION_CACHE=str(tmp_path / "compiled"))
    assert [path.stat().st_mtime_ns for path in programs(tmp_path)] == written
    assert first.stderr == second.stderr == ""


def test_off_keeps_nothing(tmp_path):
    elsewhere = {"XDG_CACHE_HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "jax")}
    compile_something(f"--compilation_cache={OFF}", **elsewhere)
    assert not programs(tmp_path)


def test_jax_s_own_folder_is_used_as_it_is(tmp_path):
    compile_something(
        PIDIFF_COMPILATION_CACHE="",
        JAX_COMPILATION_CACHE_DIR=str(tmp_path / "jax"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )
    assert programs(tmp_path)[0].parent == tmp_path / "jax"


def test_a_folder_that_can_not_be_made_is_a_warning(tmp_path):
    (tmp_path / "file").touch()
    result = compile_something(f"--compilation_cache={tmp_path / 'file'}")
    assert (
        result.stderr.startswith("warning: expected a folder for compiled programs") and result.stderr.count("\n") == 1
    )


def test_a_user_without_a_home_is_warned_and_goes_on(monkeypatch, capsys):
    def homeless(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    for name in ("PIDIFF_COMPILATION_CACHE", "JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    use_compilation_cache(None)
    assert "got: Could not determine home directory.; going on without" in capsys.readouterr().err


def test_a_program_that_was_not_written_to_its_end_is_written_again(tmp_path):
    argument = f"--compilation_cache={tmp_path}"
    compile_something(argument)
    [program] = programs(tmp_path)[:1]
    whole = program.read_bytes()
    program.write_bytes(whole[: len(whole) // 2])
    program.with_name(program.name.replace("-cache", "-atime")).unlink()
    result = compile_something(argument)
    assert result.stderr == ""
    assert len(program.read_bytes()) > len(whole) // 2


def test_a_folder_whose_lock_nobody_lets_go_is_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compilation_cache, "_LOCK_SECONDS", 0.2)
    folder = compilation_cache.cache_folder(str(tmp_path), {})
    folder.mkdir()
    before = jax.config.jax_compilation_cache_dir
    with filelock.FileLock(folder / ".lockfile"):
        use_compilation_cache(str(tmp_path))
    assert ".lockfile" in capsys.readouterr().err
    assert jax.config.jax_compilation_cache_dir == before
