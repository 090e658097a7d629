"""Report on a simulation, from its files."""

from pathlib import Path

import ase.io
import numpy as np

from mlip import config as settings
from mlip.data.neighbors import neighbor_list
from mlip.data.structure import Unusable, from_ase, mass, symbol
from mlip.model.file import fingerprint
from mlip.report import figures
from mlip.report.page import Figure, Section, Table, pairs, provenance, write
from mlip.simulation.trajectory import COLUMNS, summary
from mlip.training.setup import file_card

MOST_FRAMES = 200  # of the first system that are read
MOST_ATOMS = 400_000  # in all of them
MOST_SYSTEMS = 20  # that have curves of their own
MOST_POINTS = 4000  # of all curves of a quantity
MOST_CURVES = 8  # of pairs of elements
MOST_LAGS = 60
LONGEST = 8.0  # Å, of distances
BINS = 160
PANELS = {
    "temperature_K": "temperature (K)",
    "potential_eV": "potential energy (eV)",
    "conserved_eV": "conserved quantity (eV)",
    "pressure_GPa": "pressure (GPa)",
    "volume_A3": "volume (Å³)",
}


def report_dynamics(folder, start, potential, config, trajectories, seconds):
    """Write `report.html` and `report.json` of a simulation into its folder.

    Args:
      start: file of the first structures.
      potential: as loaded.
      config: its `DynamicsConfig`.
      trajectories: list of `Trajectory`, one for each system.
      seconds: what the steps since the run began or resumed have taken.
    """
    folder, count = Path(folder), len(trajectories)
    folders = [folder] if count == 1 else [folder / f"{n:03d}" for n in range(count)]
    thermo = [np.loadtxt(f / "thermo.csv", delimiter=",", skiprows=1, ndmin=2) for f in folders]
    taken = int(thermo[0][-1, 0])
    frames, spacing = read_frames(folders[0], config, taken, len(trajectories[0].structure))
    facts = {f"start {key}": text for key, text in file_card(start).items()}
    steps = int(max(rows[-1, 0] for rows in thermo))
    begun = (t.thermo[0][0] for t in trajectories if t.thermo)
    done = steps - int(min(begun, default=steps))  # none where a run resumed and ended at once
    pace = {
        "steps": done,
        "seconds, compilation included": seconds,
        "steps/s": done / seconds,
        "ns/day": 86400e-6 * config.timestep * done / seconds,
        "systems side by side": count,
    }
    sections = [
        thermo_section(thermo),
        systems_section(thermo, trajectories),
        distance_section(frames),
        displacement_section(frames, spacing),
        Section("Speed", [pairs(pace)], pace),
        provenance(settings.to_toml(config), facts | {"model": fingerprint(potential)}),
    ]
    key = {"steps": steps, "ps": steps * config.timestep / 1000, "systems": count}
    key["stopped before the end"] = sum(bool(t.stopped) for t in trajectories)
    about = (
        config.ensemble + " of " + ", ".join({composition(t.structure): 0 for t in trajectories})
    )
    write(folder, "simulation", f"Dynamics in {folder.resolve().name}", about, key, sections)


def read_frames(folder, config, steps, n_atoms):
    """Structures of a trajectory, evenly spaced and not too many, and the time between them, ps."""
    most = max(2, min(MOST_FRAMES, MOST_ATOMS // n_atoms))
    every = max(1, steps // config.save_every // most)
    path = folder / f"trajectory.{config.trajectory}"
    found = ase.io.read(path, slice(None, None, every))
    # The last frame of a run may stand between two of the others.
    spaced = [atoms for atoms in found if atoms.info["step"] % config.save_every == 0]
    return [from_ase(atoms) for atoms in spaced], every * config.save_every * config.timestep / 1000


def composition(structure):
    """Such as C2H6O."""
    kinds, counts = np.unique(structure.numbers, return_counts=True)
    return "".join(f"{symbol(z)}{n if n > 1 else ''}" for z, n in zip(kinds, counts))


def thermo_section(thermo):
    """Temperature, energies, pressure and volume of the first systems against time.

    Args:
      thermo: rows of `thermo.csv` of every system, [n_rows, columns].
    """
    shown = thermo[:MOST_SYSTEMS]
    tables = [np.array(figures.thinned(rows, MOST_POINTS // len(shown))) for rows in shown]
    names = [f"{index:03d}" if len(thermo) > 1 else "" for index in range(len(shown))]
    panels = []
    for name, text in PANELS.items():
        column = COLUMNS.index(name)
        curves = {n: (rows[:, 1], rows[:, column]) for n, rows in zip(names, tables)}
        values = np.concatenate([ys for _, ys in curves.values()])
        if np.isfinite(values).any() and (name != "volume_A3" or np.ptp(values) > 0):
            panels.append({"x": "time (ps)", "y": text, "curves": curves})
    text = f"Quantities of {len(shown)} of {len(thermo)} systems against time."
    data = {f"{n:03d}": dict(zip(COLUMNS, rows.T)) for n, rows in enumerate(tables)}
    return Section("Thermodynamics", [Figure(text, figures.lines(panels))], data)


def systems_section(thermo, trajectories):
    """Means of the second half, and how every system ended."""
    rows = []
    for index, (table, trajectory) in enumerate(zip(thermo, trajectories)):
        found = summary(table, len(trajectory.structure))
        steps, ended = int(table[-1, 0]), trajectory.stopped or "as asked"
        rows.append([f"{index:03d} {trajectory.structure.name}", steps, *found.values(), ended])
    heads = (
        "system",
        "steps",
        "mean K",
        "mean GPa",
        "mean Å³",
        "drift of the conserved quantity (meV/atom/ps)",
        "ended",
    )
    return Section("Systems", ["Means over the second half.", Table(heads, rows)], {"rows": rows})


def distance_section(frames):
    """Radial distribution functions of the pairs of elements of the first system."""
    frames = frames[len(frames) // 2 :]
    try:
        curves, periodic = radial_distribution(frames)
    except Unusable as error:  # such as atoms that coincide where a run was stopped
        return Section("Distances", [f"There are none to show: {error}."], {"reason": str(error)})
    y = "g(r)" if periodic else "probability (1/Å)"
    largest = sorted(curves, key=lambda name: -curves[name][1].max())[:MOST_CURVES]
    panel = {"x": "distance (Å)", "y": y, "curves": {name: curves[name] for name in largest}}
    text = f"Distances of pairs in {len(frames)} frames of the first system's second half" + (
        ", relative to a gas of the same density" if periodic else ""
    )
    text += f"; {len(largest)} of {len(curves)} pairs of elements." * (len(largest) < len(curves))
    data = {"pairs": curves, "of": y}
    return Section("Distances", [Figure(text, figures.lines([panel]))], data)


def radial_distribution(structures):
    """Distribution of distances for every pair of elements, averaged over frames.

    Returns:
      {"H-O": (distances [BINS] Å, values)}: g(r) in periodic cells, else the probability of a
      distance up to 8 Å, 1/Å; and True for g(r).

    Raises:
      Unusable: atoms that coincide, or more pairs than a neighbour list may hold.
    """
    edges = np.linspace(0, LONGEST, BINS + 1)
    middle, shells = (edges[1:] + edges[:-1]) / 2, 4 / 3 * np.pi * np.diff(edges**3)
    kinds = np.unique(structures[0].numbers)
    periodic = bool(structures[0].pbc.all())
    sums = {(a, b): 0.0 for i, a in enumerate(kinds) for b in kinds[i:]}
    for structure in structures:
        receivers, senders, shifts = neighbor_list(structure, LONGEST)
        vectors = structure.positions[senders] + shifts @ structure.cell
        distance = np.linalg.norm(vectors - structure.positions[receivers], axis=1)
        first, second = structure.numbers[receivers], structure.numbers[senders]
        for a, b in sums:
            chosen = (first == a) & (second == b)
            counts = np.histogram(distance[chosen], edges)[0].astype(float)
            if periodic:
                n_a, n_b = (np.count_nonzero(structure.numbers == z) for z in (a, b))
                counts /= n_a * n_b / structure.volume * shells
            sums[a, b] = sums[a, b] + counts
    curves = {}
    for (a, b), total in sums.items():
        if total.sum():
            scale = len(structures) if periodic else total.sum() * edges[1]
            curves[f"{symbol(a)}-{symbol(b)}"] = middle, total / scale
    return curves, periodic


def displacement_section(frames, spacing):
    """Mean squared displacement by element of the first system.

    Args:
      spacing: ps between frames.
    """
    times, curves = squared_displacement(frames, spacing)
    parts, data = ["There are too few frames to follow displacements."], {}
    if len(times) > 2:
        half = len(times) // 2
        rows = [
            [name, float(ys[-1]), float(np.polyfit(times[half:], ys[half:], 1)[0] / 6)]
            for name, ys in curves.items()
        ]
        panel = {
            "x": "time (ps)",
            "y": "mean squared displacement (Å²)",
            "curves": {name: (times, ys) for name, ys in curves.items()},
        }
        text = "Mean squared displacement about the centre of mass, over all origins of time."
        heads = "element", "at the end (Å²)", "slope of the second half / 6 (Å²/ps)"
        parts = [Figure(text, figures.lines([panel])), Table(heads, rows)]
        data = {"time_ps": times, "squared_A2": curves, "rows": rows}
    return Section("Displacements", parts, data)


def squared_displacement(structures, spacing):
    """Mean squared displacement for each element, over all origins of time.

    Args:
      structures: frames, whose atoms are not wrapped.
      spacing: time between them, ps.

    Returns:
      times [n_lags] ps, up to half the trajectory, and {element: [n_lags] Å²}.
    """
    positions = np.array([s.positions for s in structures])
    masses = np.array([mass(z) for z in structures[0].numbers])
    positions -= (masses[:, None] * positions).sum(axis=1, keepdims=True) / masses.sum()
    lags = np.unique(np.linspace(0, len(positions) // 2, MOST_LAGS).astype(int))
    numbers, squares = structures[0].numbers, []
    for lag in lags:
        moved = positions[lag:] - positions[: len(positions) - lag]
        squares.append((moved**2).sum(axis=2).mean(axis=0))
    squares = np.array(squares)
    return spacing * lags, {
        symbol(z): squares[:, numbers == z].mean(axis=1) for z in np.unique(numbers)
    }
