"""Report on a simulation, from its files."""

from pathlib import Path

import ase.io
import numpy as np

from mlip import config as settings
from mlip.data.neighbors import neighbor_list
from mlip.data.structure import from_ase, mass, symbol
from mlip.report import figures
from mlip.report.page import Figure, Section, Table, provenance, write
from mlip.simulation.trajectory import COLUMNS
from mlip.training.checkpoint import fingerprint
from mlip.units import MEV

MOST_FRAMES = 200  # that are read
MOST_SYSTEMS = 20  # that have curves of their own
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


def report_dynamics(folder, potential, config, stopped):
    """Write `report.html` and `report.json` of a simulation into its folder.

    Args:
      potential: as loaded.
      config: its `DynamicsConfig`.
      stopped: for each system why it was stopped before the end, or an empty text.
    """
    folder = Path(folder)
    folders = [folder] if len(stopped) == 1 else [folder / f"{n:03d}" for n in range(len(stopped))]
    thermo = [np.loadtxt(f / "thermo.csv", delimiter=",", skiprows=1, ndmin=2) for f in folders]
    every = max(1, config.steps // config.save_every // MOST_FRAMES)
    shown = list(range(min(len(folders), MOST_SYSTEMS)))
    frames = [read_frames(folders[index], config, every) for index in shown]
    sections = [
        thermo_section(thermo, shown),
        systems_section(thermo, [len(f[0]) for f in frames], stopped),
        distance_section(frames),
        displacement_section(frames, every * config.save_every * config.timestep / 1000),
        provenance(settings.to_toml(config), {"model": fingerprint(potential)}),
    ]
    steps = int(max(rows[-1, 0] for rows in thermo))
    ends = [text for text in stopped if text]
    key = {"steps": steps, "ps": steps * config.timestep / 1000, "systems": len(stopped)}
    key["stopped before the end"] = len(ends)
    about = f"{config.ensemble} of {', '.join(sorted({composition(f[0]) for f in frames}))}"
    write(folder, f"Dynamics in {folder.resolve().name}", about, key, sections)


def read_frames(folder, config, every):
    """Structures of a trajectory, `every` one."""
    path = folder / f"trajectory.{config.trajectory}"
    return [from_ase(atoms) for atoms in ase.io.read(path, slice(None, None, every))]


def composition(structure):
    """Such as C2H6O."""
    kinds, counts = np.unique(structure.numbers, return_counts=True)
    return "".join(f"{symbol(z)}{n if n > 1 else ''}" for z, n in zip(kinds, counts))


def thermo_section(thermo, shown):
    """Temperature, energies, pressure and volume against time."""
    panels = []
    for name, text in PANELS.items():
        column = COLUMNS.index(name)
        curves = {
            f"{index:03d}" if len(thermo) > 1 else "": (
                thermo[index][:, 1],
                thermo[index][:, column],
            )
            for index in shown
        }
        values = np.concatenate([ys for _, ys in curves.values()])
        if np.isfinite(values).any() and (name != "volume_A3" or np.ptp(values) > 0):
            panels.append({"x": "time (ps)", "y": text, "curves": curves})
    text = "Quantities of the systems against time."
    data = {f"{index:03d}": dict(zip(COLUMNS, thermo[index].T)) for index in shown}
    return Section("Thermodynamics", [Figure(text, figures.lines(panels))], data)


def systems_section(thermo, n_atoms, stopped):
    """Means of the second half, and how every system ended."""
    rows = []
    for index, (table, reason) in enumerate(zip(thermo, stopped)):
        half = table[len(table) // 2 :]
        drift = None
        if index < len(n_atoms) and len(table) > 2:
            drift = MEV * np.polyfit(table[:, 1], table[:, 6], 1)[0] / n_atoms[index]
        means = [float(half[:, column].mean()) for column in (4, 5, 7)]
        rows.append([f"{index:03d}", int(table[-1, 0]), *means, drift, reason or "as asked"])
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
    curves, periodic = radial_distribution(frames[0][len(frames[0]) // 2 :])
    y = "g(r)" if periodic else "probability (1/Å)"
    panel = {"x": "distance (Å)", "y": y, "curves": curves}
    text = "Distances of pairs in the second half of the first system" + (
        ", relative to a gas of the same density." if periodic else "."
    )
    data = {"pairs": curves, "of": y}
    return Section("Distances", [Figure(text, figures.lines([panel]))], data)


def radial_distribution(structures):
    """Distribution of distances for every pair of elements, averaged over frames.

    Returns:
      {"H-O": (distances [BINS] Å, values)}: g(r) in periodic cells, else the probability of a
      distance up to 8 Å, 1/Å; and True for g(r).
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
        if not total.sum():
            continue
        scale = len(structures) if periodic else total.sum() * edges[1]
        curves[f"{symbol(a)}-{symbol(b)}"] = middle, total / scale
    return curves, periodic


def displacement_section(frames, spacing):
    """Mean squared displacement by element of the first system.

    Args:
      spacing: ps between frames.
    """
    times, curves = squared_displacement(frames[0], spacing)
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
