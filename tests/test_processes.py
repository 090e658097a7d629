"""What a process prints, and what becomes of one that is forked."""

import os
import subprocess
import sys
import threading

import pytest

from mlip.programs import REMARK, Sieve

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
from mlip.simulation.relaxation import RelaxationConfig, relax
relax(potential, structure, RelaxationConfig(max_force=10.0))
run(potential, structure, DynamicsConfig(steps=2, save_every=2))
""",
    "a program of the user's": """
import jax
mlip.Calculator(potential)
jax.jit(lambda x: x @ x.T)(jax.numpy.ones((9, 9))).block_until_ready()
""",
}
AS_A_USER = ("JAX_COMPILATION_CACHE_DIR", "TF_CPP_MIN_LOG_LEVEL")  # which the tests set


def run(program, **variables):
    """What a fresh process writes."""
    inherited = {k: v for k, v in os.environ.items() if k not in AS_A_USER}
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
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


def test_true_errors_are_told_while_programs_are_compiled(tmp_path):
    """Lines on standard error from elsewhere in the process, and a death in the compiler."""
    program = f"""{MODEL}
import jax, os, threading, time
going = True
def talk():
    while going:
        os.write(2, b"from another thread\\n")
        time.sleep(0.01)
thread = threading.Thread(target=talk)
thread.start()
{USES["calculator"]}
going = False
thread.join()
def die(event, **_):
    os.write(2, b"the last words\\n")
    time.sleep(0.2)  # as in the compiler, which holds no lock of Python's
    os.abort()
jax.monitoring.register_event_listener(die)
jax.jit(lambda x: x + 1)(1.0)
"""
    done = run(program, MLIP_CACHE=str(tmp_path))
    assert done.returncode < 0
    lines = [line for line in done.stderr.splitlines() if line.startswith(("from", "the last"))]
    assert set(lines[:-1]) == {"from another thread"}
    assert lines[-1] == "the last words"


REMARKS = (
    b"E1 1 cpu_aot_loader.cc:195] Loading XLA:CPU AOT result. Target machine feature "
    b"+prefer-no-gather is not  supported on the host machine. [...] such as SIGILL.\n"
)
TRUE = REMARKS.replace(b"+prefer-no-gather", b"+avx512f")


def test_a_sieve_drops_matching_lines_alone_and_keeps_order():
    read, write = os.pipe()
    sieve = Sieve(write, REMARK)
    for _ in range(3):
        with sieve_open(sieve):
            os.write(write, b"one\n" + REMARKS + TRUE + b"no end of line")
        os.write(write, b", outside\n")
    os.close(write)
    with open(read, "rb") as written:
        assert written.read() == 3 * (b"one\n" + TRUE + b"no end of line, outside\n")


def test_threads_share_a_sieve():
    read, write = os.pipe()
    sieve, n_lines = Sieve(write, REMARK), 200

    def talk(name):
        for _ in range(n_lines):
            with sieve_open(sieve):
                os.write(write, name + b"\n" + REMARKS)

    names = [b"%d" % n for n in range(4)]
    threads = [threading.Thread(target=talk, args=(name,)) for name in names]
    reader = []
    listening = threading.Thread(target=lambda: reader.append(open(read, "rb").read()))
    listening.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(write)
    listening.join()
    assert sorted(reader[0].splitlines()) == sorted(n_lines * names)


def test_a_sieve_without_readers_blocks_nobody():
    read, write = os.pipe()
    sieve = Sieve(write, REMARK)
    os.close(read)
    with sieve_open(sieve):
        os.write(write, 3 * REMARKS + 100 * TRUE)


class sieve_open:
    """A sieve that is open within a block."""

    def __init__(self, sieve):
        self.sieve = sieve

    def __enter__(self):
        self.sieve.open()

    def __exit__(self, *_):
        self.sieve.close()


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
