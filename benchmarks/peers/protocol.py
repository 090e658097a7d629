"""What every worker does: build a model, then answer the driver's commands on stdin.

The first line on stdin is the task, a JSON object. The answer is one JSON line with versions,
parameters and seconds. A task may name a file to `load` the model from, one to `save` it to, and a
`scale` for the energies of random weights. Then, line by line:

    prepare FILE   build the graph of the frames in FILE, compile, warm up
    run N          N timed evaluations; the answer holds their seconds
    quit

Answers are JSON lines on the file descriptor given as the only argument. A command that fails is
answered by {"error": ...}. Waiting for a command takes no processor time.
"""

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np

WARM_UP = 4  # evaluations after the first
MOST_WARM_UP = 10.0  # seconds of them


@dataclass(frozen=True)
class Model:
    """A built model as the protocol needs it."""

    packages: tuple[str, ...]  # distributions whose versions are reported
    n_parameters: int
    device: str  # its name
    prepare: Callable  # frames (list of ase.Atoms) → `Step`


@dataclass(frozen=True)
class Step:
    """One thing to time, ready to be repeated."""

    call: Callable  # does it once, waits for its end and returns the numbers it is about
    facts: dict = field(default_factory=dict)  # reported with the answer to `prepare`
    restart: Callable = lambda: None  # before each call, not timed: undoes what calls change


def serve(build):
    """Answer the driver until it says `quit`.

    Args:
      build: task → `Model`.
    """
    answers = os.fdopen(int(sys.argv[1]), "w", buffering=1)
    task = json.loads(sys.stdin.readline())
    imported, start = time.time(), time.perf_counter()
    step = None

    def ready():
        model = build(task)
        return model, {
            "ready": True,
            "versions": {name: version(name) for name in model.packages},
            "parameters": model.n_parameters,
            "device": model.device,
            "import_seconds": imported - task["spawned"],
            "init_seconds": time.perf_counter() - start,
            "memory": memory(),
        }

    model, answer = attempt(ready)
    print(json.dumps(answer), file=answers)
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "quit":
            break
        if command == "prepare":
            step, answer = attempt(lambda path=argument: prepare(model, path))
        else:
            _, answer = attempt(lambda step=step, count=argument: (step, timed(step, int(count))))
        print(json.dumps(answer), file=answers)


def attempt(work):
    """What `work` returns, or None and the error as an answer."""
    try:
        return work()
    except Exception as error:
        traceback.print_exc()
        return None, {"error": f"{type(error).__name__}: {error}"[:500]}


def prepare(model, path):
    """The step for the frames in a file, after its warm-up, and what is known of it."""
    import ase.io

    frames = ase.io.read(path, index=":")
    start = time.perf_counter()
    step = model.prepare(frames)
    built = time.perf_counter()
    seconds_of(step)
    first = time.perf_counter() - built
    later = []
    # TorchScript optimises in its second and third evaluation too.
    while len(later) < WARM_UP and sum(later) < MOST_WARM_UP:
        later.append(seconds_of(step))
    return step, {
        "graph_seconds": built - start,
        "first_seconds": first,
        "steady_seconds": later[-1],
        "facts": step.facts,
    }


def timed(step, count):
    return {"seconds": [seconds_of(step) for _ in range(count)], "memory": memory()}


def seconds_of(step):
    """Seconds of one call.

    Raises:
      FloatingPointError: its numbers are not finite.
    """
    step.restart()
    start = time.perf_counter()
    result = step.call()
    seconds = time.perf_counter() - start
    if not np.isfinite(np.asarray(result)).all():
        raise FloatingPointError("the result is not finite")
    return seconds


def memory():
    """The most this process has held in RAM so far, bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def through_ase(calculator):
    """A `prepare` that times a calculator on positions that are new each time."""

    def prepare(frames):
        atoms = frames[0].copy()
        atoms.calc = calculator(atoms)
        rng = np.random.default_rng(0)
        start = atoms.positions.copy()

        def call():
            atoms.positions = start + rng.normal(scale=0.001, size=start.shape)
            return atoms.get_forces()

        return Step(call)

    return prepare


def dynamics_by_ase(calculator, n_steps, timestep=1.0, temperature=300.0):
    """A `prepare` that times velocity Verlet by ASE, always from one start (timestep in fs, K)."""

    def prepare(frames):
        from ase import units
        from ase.md.verlet import VelocityVerlet

        atoms = frames[0].copy()
        set_velocities(atoms, temperature)
        start = atoms.copy()
        atoms.calc = calculator(atoms)

        def restart():
            atoms.set_positions(start.get_positions())
            atoms.set_momenta(start.get_momenta())
            atoms.get_forces()  # with which the first step begins

        def call():
            VelocityVerlet(atoms, timestep * units.fs).run(n_steps)
            return atoms.positions, atoms.get_forces()

        return Step(call, {"steps": n_steps}, restart)

    return prepare


def set_velocities(atoms, temperature):
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary

    rng = np.random.default_rng(0)
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
    Stationary(atoms)
