"""Compiled programs are kept between processes, and programs use every core."""

import os
import subprocess
import sys

CACHE = """
import jax, sys
from mlip.programs import keep_compiled_programs
keep_compiled_programs()
print(jax.config.jax_compilation_cache_dir)
"""


def run(program, **variables):
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    return subprocess.run(
        [sys.executable, "-c", program],
        env=inherited | variables,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_programs_are_kept_in_the_users_cache_folder(tmp_path):
    folder = run(CACHE, XDG_CACHE_HOME=str(tmp_path))
    assert folder.startswith(str(tmp_path / "mlip" / "jax-"))


def test_the_cache_can_be_switched_off_or_set_by_jax(tmp_path):
    assert run(CACHE, MLIP_CACHE="off") == "None"
    assert run(CACHE, JAX_COMPILATION_CACHE_DIR=str(tmp_path)) == str(tmp_path)


def test_another_folder_can_be_named(tmp_path):
    assert run(CACHE, MLIP_CACHE=str(tmp_path)).startswith(str(tmp_path / "jax-"))


def test_a_second_process_finds_the_programs_of_the_first(tmp_path):
    program = """
import jax, mlip
from ase.build import molecule
atoms = molecule("H2O")
potential = mlip.untrained(mlip.NetworkConfig(channels=4, l_max=2, radial_widths=(8,)), ["H", "O"])
seen = []
jax.monitoring.register_event_listener(lambda name, **_: seen.append(name))
atoms.calc = mlip.Calculator(potential)
atoms.get_forces()
print(*(sum(what in name for name in seen) for what in ("cache_hits", "cache_misses")))
"""
    hits, misses = map(int, run(program, MLIP_CACHE=str(tmp_path)).split())
    assert misses > hits == 0
    assert run(program, MLIP_CACHE=str(tmp_path)) == f"{misses} 0"


def test_programs_use_every_core_and_libraries_leave_it():
    cores = len(os.sched_getaffinity(0))
    program = "from mlip.runtime import use_all_cores; use_all_cores(); import jax; "
    assert run(program + "print(len(jax.devices()))", XLA_FLAGS="") == str(cores)
    assert run("import mlip.engines.ase, jax; print(len(jax.devices()))", XLA_FLAGS="") == "1"
