"""What a process prints, and what becomes of one that is forked."""

import os
import subprocess
import sys
import threading

import jax
import pytest

from mlip import programs
from mlip.programs import REMARK, without_lines

pytestmark = pytest.mark.versions
MODEL = """
import ase.build, mlip
config = mlip.NetworkConfig(channels=4, l_max=1, correlation=2, radial_widths=(8,), cutoff=3.0)
potential = mlip.untrained(config, ["Si"], average_neighbors=8)
atoms = ase.build.bulk("Si", cubic=True)
atoms.rattle(0.05, seed=1)
structure = mlip.from_ase(atoms)
"""
USES = {
    "calculator": "atoms.calc = mlip.Calculator(potential); atoms.get_forces()",
    "relaxation and dynamics": """
from mlip.simulation.dynamics import DynamicsConfig, run
from mlip.relaxation.relax import RelaxationConfig, relax
relax(potential, structure, RelaxationConfig(max_force=10.0))
run(potential, structure, DynamicsConfig(steps=2, save_every=2))
""",
    "a command": """
import contextlib, io, os, tempfile
import ase.io
from mlip.cli import main
os.chdir(tempfile.mkdtemp())
mlip.save(potential, "model.safetensors")
ase.io.write("start.xyz", atoms)
with contextlib.redirect_stdout(io.StringIO()):
    assert not main("md model.safetensors start.xyz --steps 2 --temperature 10".split())
""",
    "a program of the user's": """
import jax
mlip.Calculator(potential)
jax.jit(lambda x: x @ x.T)(jax.numpy.ones((9, 9))).block_until_ready()
""",
}
SET_BY_TESTS = ("JAX_", "TF_CPP_", "XLA_FLAGS", "PYTHONWARNINGS")


def run(program, **variables):
    """What a fresh process writes."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(SET_BY_TESTS)}
    return subprocess.run(
        [sys.executable, "-c", program],
        env=inherited | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("use", USES)
def test_nothing_is_printed_but_what_the_user_prints(tmp_path, use):
    program = f"{MODEL}{USES[use]}\nprint('forces')"
    for _ in ("with an empty cache", "with a warm one"):
        done = run(program, MLIP_CACHE=str(tmp_path))
        assert (done.returncode, done.stdout, done.stderr) == (0, "forces\n", "")
    assert any(tmp_path.rglob("*-cache"))


def test_the_last_words_of_a_compiler_that_dies_are_told(tmp_path):
    program = f"""{MODEL}{USES["calculator"]}
import ctypes, jax
def die(event, **_):
    if "compile_requests" in event:
        ctypes.CDLL(None).__assert_fail(b"the last words", b"compiler", 1, b"compile")
jax.monitoring.register_event_listener(die)
jax.jit(lambda x: x + 1)(1.0)
"""
    done = run(program, MLIP_CACHE=str(tmp_path))
    assert done.returncode < 0
    assert "the last words" in done.stderr


REMARKS = (
    b"E1 1 cpu_aot_loader.cc:195] Loading XLA:CPU AOT result. Target machine feature "
    b"+prefer-no-gather is not  supported on the host machine. [...] such as SIGILL.\n"
)
TRUE = REMARKS.replace(b"+prefer-no-gather", b"+avx512f")


def test_matching_lines_alone_are_dropped_and_the_others_keep_their_order(tmp_path):
    with open(tmp_path / "written", "wb", buffering=0) as file:
        for _ in range(3):
            with without_lines(file.fileno(), REMARK):
                file.write(b"one\n" + REMARKS + TRUE + b"no end of line")
            file.write(b", outside\n")
    lines = b"one\n" + TRUE + b"no end of line, outside\n"
    assert (tmp_path / "written").read_bytes() == 3 * lines


def test_threads_lose_no_lines(tmp_path):
    names, n_lines = [b"%d" % n for n in range(4)], 100
    with open(tmp_path / "written", "ab", buffering=0) as file:

        def talk(name):
            for _ in range(n_lines):
                with without_lines(file.fileno(), REMARK):
                    file.write(name + b"\n" + REMARKS)

        threads = [threading.Thread(target=talk, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = (tmp_path / "written").read_bytes().splitlines()
    assert sorted(lines) == sorted(n_lines * names)


def test_a_closed_descriptor_is_left_closed():
    read, write = os.pipe()
    os.close(read)
    os.close(write)
    with without_lines(write, REMARK):
        pass
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(write)


OPTIONS = """
import jax, mlip, os
from mlip import programs
programs.OPTIONS["xla_unknown"] = (0,), (999,), "1"
before = dict(os.environ), jax.config.values.copy()
print(mlip.compiler_options())
print(mlip.compiler_options(training=True))
assert before == (dict(os.environ), jax.config.values.copy())
"""


def test_programs_get_the_options_that_their_jax_knows_and_needs():
    fusions, products = programs.FUSIONS, {programs.FUSIONS: programs.PRODUCTS_ALONE}
    untiled = {"xla_cpu_experimental_enable_tiling_propagation": False}
    version = jax.__version_info__
    predicting = products if version >= (0, 10, 2) else {}
    training = untiled if version >= (0, 11) else predicting
    assert run(OPTIONS, XLA_FLAGS="").stdout == f"{predicting}\n{training}\n"
    training.pop(fusions, None)
    assert run(OPTIONS, XLA_FLAGS=f"--{fusions}=").stdout == f"{{}}\n{training}\n"


FORKING = """
import multiprocessing, warnings
warnings.simplefilter("ignore")  # jax warns of forks itself
def task(_):
    try:
        {task}
        return "computed"
    except RuntimeError as error:
        return str(error)
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.map(task, [0])[0])
"""


@pytest.mark.parametrize(
    "task",
    [
        "return str(atoms.get_potential_energy())",
        "return str(potential.predict([structure]))",
        "return str(mlip.Calculator(potential).get_forces(atoms))",
    ],
)
def test_a_process_forked_after_use_refuses_at_once_and_names_spawn(tmp_path, task):
    use = f"{USES['calculator']}\natoms.rattle(0.01, seed=2)"
    done = run(MODEL + use + FORKING.format(task=task), MLIP_CACHE=str(tmp_path))
    assert "get_context('spawn')" in done.stdout, done.stderr


def test_a_process_forked_before_use_computes(tmp_path):
    task = "atoms.calc = mlip.Calculator(potential); atoms.get_forces()"
    done = run(MODEL + FORKING.format(task=task), MLIP_CACHE=str(tmp_path))
    assert done.stdout == "computed\n", done.stderr
