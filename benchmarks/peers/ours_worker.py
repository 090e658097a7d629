"""This package as a worker; see `protocol.py`."""

from dataclasses import replace

import jax
import numpy as np
from protocol import Model, Step, dynamics_by_ase, serve, set_velocities, through_ase

import mlip
from mlip import programs
from mlip.data.graph import Shape, build_table, pad
from mlip.data.structure import from_ase
from mlip.model.fold import fold

PACKAGES = ("mlip-jax", "jax", "jaxlib", "numpy")


def build(task):
    if task.get("as_jax_compiles"):
        programs.OPTIONS.clear()
        programs.IN_TRAINING.clear()
    potential = potential_of(task)
    prepare = {
        "inference": lambda: inference(potential),
        "training": lambda: training(potential),
        "calculator": lambda: through_ase(lambda _: mlip.Calculator(potential)),
        "dynamics": lambda: dynamics_by_ase(lambda _: mlip.Calculator(potential), task["steps"]),
        "compiled dynamics": lambda: compiled_dynamics(potential, task["steps"]),
        "relaxation": lambda: relaxation(potential, task["steps"]),
    }[task["what"]]()
    if "save" in task:
        mlip.save(potential, task["save"])
    return Model(PACKAGES, potential.n_parameters, jax.devices()[0].device_kind, prepare)


def potential_of(task):
    """The potential of a task: a model file, or one of random weights; folded if wanted."""
    if "load" in task:
        return mlip.load(task["load"])
    if task["threads"] > 1:
        jax.config.update("jax_num_cpu_devices", task["threads"])
    potential = mlip.untrained(
        mlip.NetworkConfig(cutoff=task["cutoff"], **task["network"]),
        task["species"],
        average_neighbors=task["average_neighbors"],
        dtype=task["dtype"],
    )
    scale = task.get("scale", 1.0) * potential.scale
    potential = replace(potential, scale=scale).running(block=task.get("block"))
    return fold(potential) if task.get("folded") else potential


def inference(potential):
    def prepare(frames):
        structure = from_ase(frames[0])
        table = build_table(structure, potential.cutoff)
        frame = (potential.species_of(structure), structure, table)
        shape = Shape(*table.size(), 2)
        with potential.precision():
            graph = jax.device_put(pad([frame], shape, potential.cutoff, potential.dtype))

            function, settings, arguments = potential.evaluator(graph)

        def call():
            with potential.precision():
                return jax.block_until_ready(function(*settings, *arguments)).forces

        return Step(call, {"edges": int(table.used.sum()), "slots": int(table.used.size)})

    return prepare


def training(potential):
    def prepare(frames):
        from mlip.training import optimizer
        from mlip.training.batches import Frames
        from mlip.training.step import TrainState, train_step

        structures = [from_ase(atoms) for atoms in frames]
        config = mlip.TrainConfig(
            train="in memory",
            batch_size=len(frames),
            network=potential.config,
            optimizer=mlip.OptimizerConfig(optimizer="adam"),  # as the peers
            dtype=potential.dtype,
        )
        tables = [build_table(s, potential.cutoff) for s in structures]
        with potential.precision():
            data = Frames(structures, tables, potential, config)
            batch = jax.device_put(data.batch(range(len(frames))))
            parameters = potential.weights.parameters
            copies = [jax.tree.map(jax.numpy.copy, parameters) for _ in range(3)]
            moments = optimizer.build(config.optimizer).init(parameters)
        state = TrainState(copies[0], moments, copies[1], copies[2])
        rates = (0.001, config.optimizer.renewal(0), config.loss.weights(0.0))

        def call():
            nonlocal state
            settings = potential.surface, config.loss, config.optimizer
            dealt = data.devices, data.turns
            with potential.precision():
                state, report = train_step(
                    *settings, *dealt, state, potential.weights, *batch, rates
                )
                jax.block_until_ready(state)
            return report[0]

        return Step(call, {"edges": int(sum(t.used.sum() for t in tables))})

    return prepare


def compiled_dynamics(potential, n_steps):
    """The compiled loop, rebuilds of tables included, always from the same start."""

    def prepare(frames):
        from ase import units

        from mlip.simulation.dynamics import Simulation
        from mlip.simulation.engine import empty_table
        from mlip.simulation.setup import DynamicsConfig, Start

        atoms = frames[0].copy()
        set_velocities(atoms, 300.0)
        start = Start(from_ase(atoms), atoms.get_velocities() * units.fs)
        config = DynamicsConfig(
            ensemble="nve", timestep=1.0, steps=n_steps, save_every=n_steps, min_distance=0.0
        )
        with jax.enable_x64(True):
            temperatures = np.full((2, 1), 300.0)
            simulation = Simulation(potential, [start], temperatures, config, None, None, False)
            simulation.begin()
        flight = simulation.flight

        def restart():
            with jax.enable_x64(True):
                # A call before may have made room, which the table of the start lacks.
                shape, dtype = simulation.setting.systems.real.shape, flight.state.cell.dtype
                table = empty_table(simulation.engine.room, shape, dtype)
                simulation.flight = replace(flight, table=table)

        def call():
            with jax.enable_x64(True):
                while int(simulation.flight.state.step) < n_steps:
                    simulation.advance(n_steps)
                    if simulation.flight.stopped.any():
                        raise FloatingPointError(simulation.reason(0))
                state = simulation.flight.state
                return np.asarray(state.positions), np.asarray(state.forces)

        return Step(call, {"steps": n_steps}, restart)

    return prepare


def relaxation(potential, n_steps):
    """So many steps of positions and cell, from one start, planning and tables included."""

    def prepare(frames):
        from mlip.relaxation.relax import RelaxationConfig, relax

        structures = [from_ase(atoms) for atoms in frames]
        config = RelaxationConfig(cell="full", max_force=1e-12, steps=n_steps, dtype="float32")

        def call():
            found = relax(potential, structures, config, show=Silent(), folded=False)
            return [result.energy for result in found]

        return Step(call, {"steps": n_steps})

    return prepare


class Silent:
    """Takes what a relaxation tells."""

    def line(self, text):
        pass

    def update(self, done, of, going):
        pass


if __name__ == "__main__":
    serve(build)
