"""Relaxation: atoms, and if wanted their cell, go to a minimum of the energy or the enthalpy.

Many structures relax side by side on the device, each until it has converged; then the next one
takes its place. The host plans, writes and watches; steps are taken by `mlip.relaxation.descent`.
"""

import functools
import time
import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from mlip.data.structure import Structure
from mlip.model.execution import compile_within_memory
from mlip.model.fold import FoldedPotential, fold
from mlip.programs import keep_compiled_programs
from mlip.relaxation import descent
from mlip.relaxation.descent import Bodies, Descent, Problem, Terms, free_strains
from mlip.relaxation.results import Files, RelaxationConfig, Relaxed, check_starts
from mlip.runtime import Stop, stop_signals
from mlip.simulation import engine as engines
from mlip.simulation import setup
from mlip.simulation.neighbors import make_room, plan
from mlip.simulation.setup import Start
from mlip.units import GPA

__all__ = ["RelaxationConfig", "Relaxed", "Start", "relax"]

CALL_SECONDS = 2.0  # about how long the device is left alone
WRITE_SECONDS = 60.0  # between two times that results are brought to the file
MOST_ATTEMPTS = 4  # to make room in a step, beyond which atoms have collapsed
FEW = 8  # seats, of which none is dropped
# Neighbour slots of the systems side by side: more would be no quicker.
SEATED_SLOTS = {"cpu": 40_000, "gpu": 2_000_000}
# Scale of strain coordinates, in √N × mean spacing; silicon needed fewest steps with 0.7.
STRAIN_LENGTH = 0.7
WORTHWHILE = 4000  # rows of padding that are worth a program for smaller structures


def relax(
    potential,
    structures,
    config=None,
    out=None,
    trajectory=None,
    overwrite=False,
    show=None,
    folded=True,
):
    """Relax one structure, or many side by side.

    Args:
      potential: a `Potential`.
      structures: a `Structure` or `Start`, or a list of them; velocities are not used.
      config: a `RelaxationConfig`; its defaults if None. If a limit is below what float32 resolves
        and its dtype is None, the relaxation computes in float64 and says so, by `show` or a
        warning.
      out: extended XYZ file for the final structures, in the order of the given ones, with energy,
        forces and stress.
      trajectory: extended XYZ file for every step; several structures have one each, with their
        number added to the name.
      overwrite: replace files that exist.
      show: an object with `line(text)` and `update(done, of, going)`; see
        `mlip.screen.RelaxationScreen`.
      folded: compute with the folded potential (see `mlip.fold`), several times faster.

    Returns:
      a `Relaxed` for each structure. Those that have not converged say so in their fields, and all
      together by a line to `show`, or by a warning where there is none.

    Raises:
      ValueError: settings that do not fit the structures, an element the potential does not know,
        or atoms that coincide.
      FileExistsError: `out` or `trajectory` exists and `overwrite` is not given.
      MemoryError: the systems do not fit into memory.
      OSError: files cannot be written.
    """
    config = config or RelaxationConfig()
    single = isinstance(structures, (Structure, Start))
    starts = [structures] if single else list(structures)
    starts = [start if isinstance(start, Start) else Start(start) for start in starts]
    check_starts(potential, starts, config)
    files = Files(out, trajectory, len(starts), overwrite)
    keep_compiled_programs()
    with jax.enable_x64(True), stop_signals() as check:
        relaxation = Relaxation(potential, starts, config, files, show, folded)
        try:
            sizes = [len(start.structure) for start in starts]
            crews = [Crew(relaxation, members) for members in by_size(sizes)]
            files.begin()
            while crews:
                crews.pop(0).to_the_end(check)
        except Stop as stop:
            relaxation.line(f"stopped by {stop}; what there is has been kept")
            raise
        finally:
            files.write(relaxation.results)
    results = relaxation.results
    if left := [found for found in results if not found.converged]:
        text = f"{len(left)} of {len(results)} structures have not converged"
        warnings.warn(text, stacklevel=2) if show is None else show.line(text)
    return results[0] if single else results


def by_size(sizes):
    """Lists of the indices of structures that share a program, large ones first.

    Where structures half as large and smaller are many, they have a program of their own.
    """
    order = sorted(range(len(sizes)), key=lambda index: -sizes[index])
    groups = []
    while order:
        largest = sizes[order[0]]
        small = [index for index in order if 2 * sizes[index] <= largest]
        if sum(largest - sizes[index] for index in small) < WORTHWHILE:
            small = []
        groups.append(order[: len(order) - len(small)])
        order = small
    return groups


class Relaxation:
    """All structures of a call, and what has become of them."""

    def __init__(self, potential, starts, config, files, show, folded):
        self.starts, self.config, self.files, self.show = starts, config, files, show
        structures = [start.structure for start in starts]
        potential = potential.with_dtype(config.dtype or self.finer(potential))
        for text in setup.warnings_of(potential, structures):
            self.line(f"warning: {text}")
        if folded:
            potential = fold(potential, {z for s in structures for z in s.numbers.tolist()})
        self.potential = potential
        self.results = [None] * len(starts)
        self.written = time.monotonic()

    def line(self, text):
        if self.show is not None:
            self.show.line(text)

    def finer(self, potential):
        """float64 if the limits need it and the potential can change precision, else None."""
        limit, folded = self.config.too_fine(), isinstance(potential, FoldedPotential)
        if not limit or potential.dtype == "float64":
            return None
        if folded:
            raise ValueError(
                f"float32 does not resolve {limit}, and the potential was folded in it; fold "
                "potential.with_dtype('float64'), or set dtype to 'float32' all the same"
            )
        text = f"computing in float64, since float32 does not resolve {limit}"
        warnings.warn(text, stacklevel=4) if self.show is None else self.show.line(text)
        return "float64"

    def done(self, index, result):
        """Keep a result, and bring it to the file now and then."""
        self.results[index] = result
        if result.reason:
            self.line(f"{result.structure.name}: {result.reason}")
        if time.monotonic() - self.written > WRITE_SECONDS:
            self.files.write(self.results)
            self.written = time.monotonic()


class Crew:
    """Structures of similar sizes: some on the device, each in a seat, the others waiting."""

    def __init__(self, relaxation, members):
        self.all, self.members, self.config = relaxation, members, relaxation.config
        potential, config = relaxation.potential, relaxation.config
        self.starts = [relaxation.starts[index] for index in members]
        self.structures = [start.structure for start in self.starts]
        grid, room = plan(self.structures, potential.cutoff, config.skin)
        systems, positions, cells = setup.make_systems(self.structures, potential, grid)
        self.launched, self.room = (positions, cells), room
        self.systems, self.bodies = systems, make_bodies(self.starts, systems, cells, config)
        self.terms = make_terms(config)
        slots = SEATED_SLOTS.get(jax.default_backend(), SEATED_SLOTS["gpu"])
        n_seats = max(1, min(len(members), slots // (systems.real.shape[1] * room.neighbors)))
        self.waiting = list(range(n_seats, len(members)))
        self.span, self.attempts, self.compiled_for = 1, 0, None
        self.crowded = {}  # why no room can be made, by the seat
        self.descent = Descent(
            surface=potential.surface,
            dtype=potential.dtype,
            devices=None,
            room=room,
            skin=config.skin,
            strained=config.cell != "fixed",
        )
        self.seat(np.arange(n_seats), self.begin(np.arange(n_seats)))

    def begin(self, chosen):
        """`State` of some members before their first step."""
        positions, cells = (jnp.asarray(array[chosen]) for array in self.launched)
        return descent.launch(self.config.optimizer, positions, cells)

    def seat(self, seated, state):
        """Have these members go on from a state, one a seat."""
        self.seated = seated
        systems, bodies = jax.tree.map(lambda a: a[seated], (self.systems, self.bodies))
        potential = self.all.potential
        self.problem = jax.device_put(Problem(potential.weights, systems, bodies, self.terms))
        devices = setup.sharing(potential, systems.real.size)
        self.descent = replace(self.descent, devices=devices)
        self.flight = descent.aloft(self.descent.room, state)

    # Running -------------------------------------------------------------------------------------

    def to_the_end(self, check):
        """All steps of all members; see `relax`."""
        try:
            while self.going().any():
                check()
                self.fly()
                self.change_seats()
        except Stop as stop:
            for seat in np.flatnonzero(self.going()):
                self.keep(seat, f"interrupted by {stop}")
            raise

    def going(self):
        return np.asarray(self.flight.state.why) == 0

    def fly(self):
        """Take steps for about two seconds, or until seats are to be changed."""
        before, going, n_seats = time.monotonic(), self.going(), len(self.seated)
        fewest = 3 * n_seats // 4 if self.waiting else n_seats // 4 if n_seats >= FEW else 0
        every = bool(self.all.files.trajectories)
        span, fewest = (1, 0) if every else (self.span, fewest)
        self.flight = self.program()(self.problem, self.flight, span, fewest)
        if not self.flight.fits:
            self.make_room()
        else:
            self.attempts = 0
            for seat in np.flatnonzero(going) if every else ():
                self.all.files.add_frame(self.members[self.seated[seat]], self.result(seat))
        for seat in np.flatnonzero(going & ~self.going()):
            self.keep(seat, self.reason(seat))
        # The device is left alone for longer and longer, up to about two seconds.
        seconds = time.monotonic() - before
        self.span = 2 * self.span if seconds < CALL_SECONDS / 2 else self.span
        self.span = max(self.span // 2, 1) if seconds > 2 * CALL_SECONDS else self.span
        if self.all.show is not None:
            done = sum(result is not None for result in self.all.results)
            force = np.asarray(self.flight.state.point.force)[self.going()]
            self.all.show.update(done, len(self.all.results), force.max(initial=0.0))

    def program(self):
        """The compiled steps; where the table is large, known to fit into memory.

        Raises:
          MemoryError: they do not fit.
        """
        n_atoms, width = self.problem.systems.real.size, self.descent.room.neighbors
        steps = functools.partial(descent.advance, self.descent)
        if n_atoms * width <= self.descent.surface.execution.many_slots:
            return steps
        key = self.descent, n_atoms, len(self.seated)
        if key != self.compiled_for:
            args, shared = (self.problem, self.flight, 1, 0), self.descent.devices
            self.compiled = compile_within_memory(
                descent.advance,
                [(self.descent,)],
                args,
                self.descent.surface.execution,
                n_atoms,
                "a relaxation",
                shared,
            )
            self.compiled_for = key
        return self.compiled

    def change_seats(self):
        """Seat those who wait where others have ended; where few are left, drop the empty seats."""
        going, state = self.going(), self.flight.state
        empty, n_going = np.flatnonzero(~going)[: len(self.waiting)], int(going.sum())
        if len(empty):
            new, self.waiting = np.array(self.waiting[: len(empty)]), self.waiting[len(empty) :]
            seated = self.seated.copy()
            seated[empty] = new
            state = jax.tree.map(lambda a, b: a.at[empty].set(b), state, self.begin(new))
            self.seat(seated, state)
        elif 0 < n_going <= len(going) // 4 and len(going) >= FEW:
            self.seat(self.seated[going], jax.tree.map(lambda a: a[going], state))

    def make_room(self):
        """Plan bins and tables anew, where the step leads that found no room."""
        table, needed, going = self.flight.table, self.flight.needed, self.going()
        cutoff, skin = self.descent.cutoff, self.descent.skin
        there = [self.structures[member] for member in self.seated], table.positions, table.cell
        self.attempts += 1
        state = self.flight.state
        try:
            if self.attempts > MOST_ATTEMPTS:
                raise FloatingPointError
            grid, room = make_room(setup.moved(*there), cutoff, skin, self.descent.room, needed)
        except (FloatingPointError, ValueError):
            self.crowded = setup.without_room(*there, going, needed, cutoff, skin)
            seats = np.array(list(self.crowded))
            state = replace(state, why=state.why.at[seats].set(engines.COLLAPSED))
        else:
            for whole, new in zip(jax.tree.leaves(self.systems.grid), jax.tree.leaves(grid)):
                whole[self.seated] = new
            # Those who wait have bins of the first plan.
            self.descent = replace(self.descent, room=room.joined(self.room))
        self.seat(self.seated, state)

    # What is kept --------------------------------------------------------------------------------

    def keep(self, seat, reason):
        self.all.done(self.members[self.seated[seat]], self.result(seat, reason))

    def result(self, seat, reason=""):
        """`Relaxed` of a seat as it is now."""
        start = self.starts[self.seated[seat]]
        structure, strained = start.structure, self.descent.strained
        state, rows = self.flight.state, slice(0, len(structure))
        point = jax.tree.map(lambda a: np.asarray(a[seat]), state.point)
        unknown = 0.0 if np.isfinite(point.value) else np.nan  # nothing was found at the start
        cell = structure.cell
        if strained:
            first = self.bodies.cell[self.seated[seat]]
            strain = np.linalg.solve(first, point.cell)
            cell = np.where(structure.pbc[:, None], point.cell, cell @ strain)
        baseline = self.all.potential.baseline(structure)
        return Relaxed(
            structure=replace(
                structure.without_labels(), positions=point.positions[rows], cell=cell
            ),
            energy=float(point.energy + baseline + unknown),
            forces=point.forces[rows] + unknown,
            stress=point.stress + unknown if np.isfinite(structure.volume) else None,
            steps=max(int(state.steps[seat]), 0),
            converged=int(state.why[seat]) == descent.CONVERGED,
            max_force=float(point.force),
            max_stress=float(point.excess) / GPA if strained else None,
            reason=reason,
            fixed=setup.is_fixed(start, self.config),
        )

    def reason(self, seat):
        """Why a seat has ended without converging, with the value and the limit."""
        config, state = self.config, self.flight.state
        force, stress, closest = (
            float(getattr(state.point, name)[seat]) for name in ("force", "excess", "closest")
        )
        steps, n_atoms = int(state.steps[seat]), len(self.structures[self.seated[seat]])
        rise = float(state.point.value[seat] - state.first[seat]) / n_atoms
        stretch = np.linalg.inv(self.bodies.cell[self.seated[seat]]) @ state.point.cell[seat]
        high = "enthalpy" if config.pressure else "energy"
        short = f"forces up to {force:.3g} eV/Å where max_force is {config.max_force:g}"
        if self.descent.strained:
            short += f", stress up to {stress / GPA:.3g} GPa where max_stress is "
            short += f"{config.max_stress:g}"
        code = int(state.why[seat])
        if code == descent.CONVERGED:
            return ""
        if code == descent.EXHAUSTED:
            remedy = "allow more steps"
            if config.too_fine() and self.descent.dtype == "float32":
                remedy = f"float32 does not resolve {config.too_fine()}, choose --dtype float64"
            return f"not converged after {steps} steps: {short}; {remedy}"
        text = {
            engines.NOT_FINITE: "energy, forces or positions are no longer finite numbers",
            engines.TOO_CLOSE: f"two atoms are {closest:.3f} Å apart, closer than min_distance = "
            f"{config.min_distance:g} Å",
            engines.TOO_HIGH: f"the {high} is {rise:.4g} eV per atom above the start, more than "
            f"max_energy = {config.max_energy:g} eV",
            descent.RUNAWAY: f"the cell has stretched {np.linalg.norm(stretch, 2):.3g} times, and "
            f"would go on; the pressure of {config.pressure:g} GPa is beyond what the structure "
            "bears, or its atoms repel each other at all distances",
            engines.COLLAPSED: f"the cell or its atoms have collapsed; {self.crowded.get(seat)}",
        }[code]
        return f"stopped at step {steps}: {text}"


def make_bodies(starts, systems, cells, config):
    """`Bodies` in NumPy arrays."""
    free = np.zeros((*systems.real.shape, 1), bool)
    for row, start in enumerate(starts):
        free[row, : len(start.structure), 0] = ~setup.is_fixed(start, config)
    n_atoms = systems.real.sum(axis=1)
    volume = np.array([start.structure.volume for start in starts])
    volume = np.where(np.isfinite(volume), volume, 1.0)
    # About the move of atoms, all taken together, that a strain of one means.
    length = STRAIN_LENGTH * np.sqrt(n_atoms) * np.cbrt(volume / n_atoms)
    return Bodies(free, cells, length, n_atoms)


def make_terms(config):
    """`Terms` in NumPy arrays."""
    return Terms(
        basis=free_strains(config.cell, config.strain),
        pressure=np.asarray(config.pressure * GPA),
        max_force=np.asarray(config.max_force),
        max_stress=np.asarray(config.max_stress * GPA),
        max_step=np.asarray(config.max_step),
        steps=np.asarray(config.steps),
        closest=np.asarray(config.min_distance),
        rise=np.asarray(config.max_energy),
    )
