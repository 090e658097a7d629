"""Molecular dynamics: one system or many, in any cell, with a thermostat and a barostat.

The host plans, writes and watches; all steps are taken by `mlip.simulation.engine` on the device.
"""

import math
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ase import units

from mlip.data.structure import Structure
from mlip.model.execution import compile_within_memory
from mlip.model.fold import fold
from mlip.programs import keep_compiled_programs
from mlip.runtime import Stop, stop_signals
from mlip.simulation import engine as engines
from mlip.simulation import setup
from mlip.simulation.engine import Engine
from mlip.simulation.integrators import Method
from mlip.simulation.neighbors import make_room, plan
from mlip.simulation.restart import read_checkpoint, restore, settings_of, write_checkpoint
from mlip.simulation.setup import DynamicsConfig, Start
from mlip.simulation.trajectory import Files, Frame, Trajectory
from mlip.units import GPA

__all__ = ["DynamicsConfig", "Start", "Trajectory", "run"]

CALL_SECONDS = 2.0  # about how long the device is left alone
MOST_ATTEMPTS = 4  # to make room in a step, beyond which atoms have collapsed


def run(
    potential,
    structures,
    config=None,
    velocities=None,
    out=None,
    resume=False,
    show=None,
    folded=True,
):
    """Simulate one system, or several side by side.

    Args:
      potential: a `Potential`.
      structures: a `Structure` or `Start`, or a list of them. A single one with several
        temperatures is simulated at each of them.
      config: a `DynamicsConfig`; its defaults if None.
      velocities: of a single structure, [n_atoms, 3] Å/fs; drawn at the temperature if None.
      out: folder for `trajectory.xyz`, `thermo.csv` and `checkpoint.npz`, with subfolders 000,
        001, … for several systems; None keeps all in memory.
      resume: go on from the checkpoint in `out`; on a CPU bit for bit as if never stopped.
      show: an object with `line(text)` and `update(step, trajectories)`, such as
        `mlip.screen.DynamicsScreen`.
      folded: compute with the folded potential (see `mlip.fold`), several times faster.

    Returns:
      a `Trajectory`, or a list of them for several systems. Of frames that are written to files
      only the last is kept in memory. A system beyond a limit is stopped there, and says why.

    Raises:
      ValueError: settings that do not fit the structures or each other, an element the potential
        does not know, a start with atoms that coincide or beyond a limit, or a resume with
        other settings or another model.
      FileExistsError: `out` holds a simulation and `resume` is not given.
      FileNotFoundError: nothing to resume from.
      MemoryError: the systems do not fit into memory.
      OSError: files cannot be written.
    """
    config = config or DynamicsConfig()
    keep_compiled_programs()
    single = isinstance(structures, (Structure, Start))
    starts = [structures] if single else list(structures)
    if not starts:
        raise ValueError("there are no structures; give at least one")
    starts = [start if isinstance(start, Start) else Start(start) for start in starts]
    if velocities is not None:
        if len(starts) > 1:
            raise ValueError("velocities are given for several structures; give a Start for each")
        starts = [Start(starts[0].structure, np.asarray(velocities, float), starts[0].fixed)]
    starts, temperatures = setup.spread_out(starts, config)
    with jax.enable_x64(True):
        simulation = Simulation(potential, starts, temperatures, config, out, show, folded)
        try:
            simulation.restore() if resume else simulation.begin()
            with stop_signals() as check:
                simulation.to_the_end(check)
        finally:
            simulation.close()
    found = simulation.trajectories
    return found[0] if single and len(found) == 1 else found


class Simulation:
    """A run as the host sees it: what is planned, the flight so far, and where it is written."""

    def __init__(self, potential, starts, temperatures, config, out, show, folded):
        self.config, self.show, self.out = config, show, None if out is None else Path(out)
        self.starts, self.temperatures = starts, temperatures
        self.structures = [start.structure for start in starts]
        setup.check_starts(potential, starts, config)
        potential = potential.with_dtype(config.dtype)
        self.settings = settings_of(potential, starts, config, folded)
        for text in setup.warnings_of(potential, self.structures):
            self.line(f"warning: {text}")
        if folded:
            elements = {z for s in self.structures for z in s.numbers.tolist()}
            potential = fold(potential, elements)
        self.potential = potential
        self.baseline = np.array([potential.baseline(s) for s in self.structures])
        self.trajectories = [Trajectory(s) for s in self.structures]
        self.files, self.span = [], 1
        self.engine, self.crowded = None, (0, 0)  # step without room, and attempts to make some

    def line(self, text):
        if self.show is not None:
            self.show.line(text)

    @property
    def checkpoint(self):
        return self.out / "checkpoint.npz"

    def folders(self):
        if len(self.starts) == 1:
            return [self.out]
        return [self.out / f"{index:03d}" for index in range(len(self.starts))]

    # Beginning -----------------------------------------------------------------------------------

    def begin(self):
        """Launch, and write the first frame."""
        names = "checkpoint.npz", "thermo.csv", f"trajectory.{self.config.trajectory}"
        for folder in [] if self.out is None else {self.out, *self.folders()}:
            if found := [name for name in names if (folder / name).exists()]:
                raise FileExistsError(
                    f"{folder} holds {found[0]} already; go on with --resume or give another folder"
                )
        grid, room = plan(self.structures, self.potential.cutoff, self.config.skin)
        positions, cells = self.prepare(grid, room)
        seed = jax.random.PRNGKey(self.config.seed)
        draw, keys = (
            jnp.stack([jax.random.fold_in(key, index) for index in range(len(self.starts))])
            for key in jax.random.split(seed)
        )
        momenta = setup.first_momenta(self.setting, self.starts, draw)
        self.flight = engines.launch(self.engine, self.setting, positions, momenta, cells, keys)
        while int(self.flight.state.step) < 0 and not np.any(self.flight.stopped):
            rows, _ = self.advance(0)
        counts = np.array([len(s) for s in self.structures])
        self.limit_energy(self.flight.state.energy + self.config.max_energy * counts)
        for index in np.flatnonzero(self.flight.stopped):
            raise ValueError(
                f"{self.structures[index].name} cannot start: {self.reason(index)}. Relax it "
                "first, lower the temperature, or change the limit"
            )
        for start in self.starts:
            if start.velocities is not None:
                self.line(f"{start.structure.name}: velocities are those of the start")
        if self.out is not None:
            self.files = [
                Files(folder, s, self.config.trajectory)
                for folder, s in zip(self.folders(), self.structures)
            ]
        self.add_rows(rows)
        self.save_frames()
        self.save_checkpoint()

    def restore(self):
        """Go on from the checkpoint."""
        if self.out is None:
            raise ValueError("there is no folder to resume from; give out")
        arrays, room, grid, kept = read_checkpoint(self.checkpoint, self.settings)
        positions, cells = self.prepare(grid, room)
        self.limit_energy(arrays["energy_limit"])
        momenta, keys = jnp.zeros_like(positions), jnp.asarray(arrays["state.key"])
        flight = engines.launch(self.engine, self.setting, positions, momenta, cells, keys)
        table = engines.find(
            self.engine, self.setting.systems, arrays["table_positions"], arrays["table_cell"]
        )
        self.flight = replace(restore(flight, arrays), table=table)
        for index in np.flatnonzero(self.flight.stopped):
            self.trajectories[index].stopped = self.why(index)
        self.files = [
            Files(folder, s, self.config.trajectory, sizes)
            for folder, s, sizes in zip(self.folders(), self.structures, kept)
        ]
        self.line(f"resumed at step {int(self.flight.state.step)}")

    def prepare(self, grid, room):
        """Set engine and setting; returns positions and cells of the starts."""
        systems, positions, cells = setup.make_systems(self.structures, self.potential, grid)
        self.setting = setup.make_setting(
            self.potential, self.starts, self.temperatures, self.config, systems
        )
        self.compile_for(room)
        return jnp.asarray(positions), jnp.asarray(cells)

    def limit_energy(self, limit):
        limits = replace(self.setting.limits, energy=jnp.asarray(limit))
        self.setting = replace(self.setting, limits=limits)

    def compile_for(self, room):
        """Set the engine; the program is compiled when it is first called."""
        config, n_rows = self.config, self.setting.systems.real.size
        at_rest = config.ensemble != "npt"
        method = Method(
            None if config.ensemble == "nve" else config.thermostat,
            None if at_rest else config.cell_motion,
            config.chain_length,
        )
        engine = Engine(
            surface=self.potential.surface,
            dtype=self.potential.dtype,
            devices=setup.sharing(self.potential, n_rows),
            method=method,
            room=room,
            skin=config.skin,
            log_every=config.log_every,
            most_rows=min(config.save_every, config.checkpoint_every) // config.log_every + 1,
        )
        if engine != self.engine:
            self.engine, self.program = engine, None

    # Running -------------------------------------------------------------------------------------

    def to_the_end(self, check):
        """All steps that are left; see `run`."""
        config, step = self.config, int(self.flight.state.step)
        try:
            while step < config.steps and not np.all(self.flight.stopped):
                check()
                every = config.save_every, config.checkpoint_every
                goals = [(step // n + 1) * n for n in every]
                step = self.fly(min(config.steps, step + self.span, *goals))
                if step % config.save_every == 0:
                    self.save_frames()
                ended = step == config.steps or np.all(self.flight.stopped)
                if step % config.checkpoint_every == 0 or ended:
                    self.save_checkpoint()
            if step % config.save_every:
                self.save_frames()  # beyond the checkpoint: a run that goes on leaves it out
        except Stop as stop:
            self.save_checkpoint()
            onward = "" if self.out is None else "; go on with --resume"
            self.line(f"stopped by {stop} at step {step}{onward}")
            for trajectory in self.trajectories:
                trajectory.stopped = trajectory.stopped or f"stopped by {stop} at step {step}"
            raise

    def fly(self, goal):
        """Take steps until `goal`, and keep what they give; returns the step reached."""
        before = time.monotonic()
        going = np.asarray(self.flight.stopped) == 0
        rows, alive = self.advance(goal)
        self.add_rows(rows, alive)
        for index in np.flatnonzero(going & (np.asarray(self.flight.stopped) > 0)):
            self.stop(index)
        # The device is left alone for longer and longer, up to about two seconds.
        seconds = time.monotonic() - before
        self.span = 2 * self.span if seconds < CALL_SECONDS / 2 else self.span
        self.span = max(self.span // 2, 1) if seconds > 2 * CALL_SECONDS else self.span
        if self.show is not None:
            self.show.update(int(self.flight.state.step), self.trajectories)
        return int(self.flight.state.step)

    def advance(self, goal):
        """Take steps until `goal` or until a table is full; returns the new rows of numbers."""
        begin = int(self.flight.state.step)
        flight, rows, alive = self.compiled()(self.setting, self.flight, goal)
        self.flight = flight
        n_rows = int(flight.state.step) // self.config.log_every - begin // self.config.log_every
        if not flight.fits:
            self.make_room()
        return np.asarray(rows)[:n_rows], np.asarray(alive)[:n_rows]

    def compiled(self):
        """The program of `advance`, known to fit into memory.

        Raises:
          MemoryError: it does not.
        """
        if self.program is None:
            self.program = compile_within_memory(
                engines.advance,
                [(self.engine,)],
                (self.setting, self.flight, 0),
                self.potential.execution,
                self.setting.systems.real.size,
                "a simulation",
                self.engine.devices,
            )
        return self.program

    def make_room(self):
        """Plan bins and tables anew, for the step that found no room."""
        needed, state, step = self.flight.needed, self.flight.state, int(self.flight.state.step)
        self.crowded = step, self.crowded[1] + 1 if self.crowded[0] == step else 1
        going = np.asarray(self.flight.stopped) == 0
        reach = self.engine.cutoff, self.engine.skin
        try:
            if self.crowded[1] > MOST_ATTEMPTS:
                raise FloatingPointError
            here = list(self.structures)  # those that were left need no bins but their start's
            for index in np.flatnonzero(going).tolist():
                one = slice(index, index + 1)
                here[one] = setup.moved(here[one], state.positions[one], state.cell[one])
            grid, room = make_room(here, *reach, self.engine.room, needed)
        except (FloatingPointError, ValueError):
            there = self.structures, state.positions, state.cell
            worst = np.array(list(setup.without_room(*there, going, needed, *reach)))
            self.flight = replace(
                self.flight,
                stopped=self.flight.stopped.at[worst].set(engines.COLLAPSED),
                stopped_at=self.flight.stopped_at.at[worst].set(step),
                fits=jnp.asarray(True),
            )
            self.crowded = step, 0
            return
        systems = replace(self.setting.systems, grid=jax.device_put(grid))
        self.setting = replace(self.setting, systems=systems)
        self.compile_for(room)
        table = engines.empty_table(room, systems.real.shape, state.cell.dtype)
        self.flight = replace(self.flight, table=table, fits=jnp.asarray(True))

    # What is seen and kept -----------------------------------------------------------------------

    def stop(self, index):
        """Note why a system does not go on, and keep its last frame."""
        trajectory = self.trajectories[index]
        trajectory.stopped = self.why(index)
        self.line(f"{trajectory.structure.name} {trajectory.stopped}")
        self.save_frame(index)

    def why(self, index):
        return f"stopped at step {int(self.flight.stopped_at[index])}: {self.reason(index)}"

    def reason(self, index):
        """Why a system has a code other than 0, with the value and the limit."""
        limits, bodies, state = self.setting.limits, self.setting.bodies, self.flight.state
        code = int(self.flight.stopped[index])
        momenta, masses = state.momenta[index], bodies.masses[index]
        kinetic = float((momenta**2 / masses).sum())
        hot = kinetic / float(bodies.freedom[index]) / units.kB
        force = float((jnp.linalg.norm(state.forces, axis=-1) * bodies.free[..., 0])[index].max())
        rise = float(state.energy[index] - limits.energy[index]) / len(self.structures[index])
        return {
            engines.NOT_FINITE: "energy, forces or positions are no longer finite numbers",
            engines.TOO_CLOSE: f"two atoms are {float(self.flight.closest[index]):.3f} Å apart, "
            f"closer than min_distance = {float(limits.closest):g} Å",
            engines.TOO_STRONG: f"a force of {force:.4g} eV/Å is above max_force = "
            f"{float(limits.force):g} eV/Å",
            engines.TOO_HOT: f"the temperature of {hot:.4g} K is above max_temperature = "
            f"{self.config.max_temperature:g} K",
            engines.TOO_HIGH: f"the potential energy is {rise + self.config.max_energy:.4g} eV per "
            f"atom above the start, more than max_energy = {self.config.max_energy:g} eV",
            engines.COLLAPSED: "the cell or its atoms have collapsed: atoms coincide, or one would "
            "have thousands of neighbours",
        }[code]

    def add_rows(self, rows, alive=None):
        """Keep rows of numbers, [n_rows, n_systems, 7] of `engine.row`."""
        for n, row in enumerate(rows):
            for index, values in enumerate(row):
                if alive is not None and not alive[n, index]:
                    continue
                step, potential, kinetic, kt, pressure, conserved, volume = values.tolist()
                base = float(self.baseline[index])
                finite = math.isfinite(volume)
                line = (
                    int(step),
                    step * self.config.timestep / 1000,
                    potential + base,
                    kinetic,
                    kt / units.kB,
                    pressure / GPA if finite else math.nan,
                    conserved + base,
                    volume,
                )
                self.trajectories[index].thermo.append(line)
                if self.files:
                    self.files[index].add_row(line)

    def save_frames(self):
        for index in np.flatnonzero(np.asarray(self.flight.stopped) == 0):
            self.save_frame(index)

    def save_frame(self, index):
        structure, trajectory = self.structures[index], self.trajectories[index]
        state, rows = self.flight.state, slice(0, len(structure))
        step = int(self.flight.stopped_at[index] if self.flight.stopped[index] else state.step)
        if trajectory.frames and trajectory.frames[-1].step == step:
            return
        masses = np.asarray(self.setting.bodies.masses[index, rows])
        frame = Frame(
            step=step,
            time=step * self.config.timestep,
            positions=np.asarray(state.positions[index, rows]),
            velocities=np.asarray(state.momenta[index, rows]) / masses * units.fs,
            forces=np.asarray(state.forces[index, rows]),
            cell=np.asarray(state.cell[index]) if structure.pbc.all() else structure.cell,
            energy=float(state.energy[index] + self.baseline[index]),
            stress=np.asarray(state.stress[index]) if np.isfinite(structure.volume) else None,
        )
        if self.files:
            self.files[index].add_frame(frame)
            trajectory.frames.clear()
        trajectory.frames.append(frame)

    def save_checkpoint(self):
        if self.out is not None:
            sizes = [files.sync() for files in self.files]
            write_checkpoint(
                self.checkpoint, self.settings, self.engine, self.setting, self.flight, sizes
            )

    def close(self):
        for files in self.files:
            files.close()
