"""Folding a trained potential: its parameters are constant, so that much can be merged."""

import functools
import itertools
import math
from dataclasses import dataclass, fields

import numpy as np
from scipy.interpolate import make_interp_spline

from mlip.data.structure import number_of, symbol
from mlip.deploy.folded import DEGREE, FoldedNetwork
from mlip.deploy.spread import devices_for, evaluate_spread
from mlip.model.network import paths
from mlip.model.potential import Potential
from mlip.model.radial import SILU_GAIN, envelope

# Largest error of the splines and of their slopes, relative to the largest function beyond the
# distance; float32 itself is good to 1e-7.
TOLERANCE = {"float32": 1e-6, "float64": 1e-8}
INTERVALS = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192, 16384, 32768)
MARGIN = 8  # intervals beyond either end of a table, where the ends of the fit are felt


@dataclass(frozen=True)
class FoldedPotential(Potential):
    """A potential for predictions only; `parameters` are tables and merged matrices."""

    intervals: tuple[int, ...] = ()  # of the tables of each layer
    devices: tuple | None = None  # to spread systems over; None for those that make it faster

    @functools.cached_property
    def network(self):
        block = self.suitable_block(best_on_cpu=8)
        return FoldedNetwork(self.config, len(self.species), self.intervals, block)

    def with_dtype(self, dtype):
        """The same potential; its tables are as fine as its precision, which stays.

        Raises:
          ValueError: another precision.
        """
        if dtype not in (None, self.dtype):
            raise ValueError(
                f"this potential was folded in {self.dtype}; fold potential.with_dtype({dtype!r})"
            )
        return self

    def sharing(self, n_atoms):
        """Devices that share a system of so many atoms."""
        return devices_for(n_atoms) if self.devices is None else self.devices

    def evaluator(self, graph):
        n_atoms = len(graph.species)
        devices = self.sharing(n_atoms)
        while n_atoms % len(devices):
            devices = devices[:-1]
        if len(devices) == 1 and self.devices is None:
            return super().evaluator(graph)
        return evaluate_spread, (self.network, devices)


def fold(potential, species=None, block=None, devices=None):
    """The same potential in a form that predicts several times faster.

    Energies, forces and stress agree with the unfolded potential to 1e-6 in float64 and to the
    rounding of float32; forces remain the exact derivative of the energy.

    Args:
      potential: a `Potential` in the precision it is to have; folded ones are returned unchanged.
      species: symbols or atomic numbers that will occur; all that the potential knows by default.
        Fewer make smaller tables.
      block: about how many atoms are taken at a time; 0 takes all. By default what was measured
        best: a few on a CPU, whose cache they fit, and all on a GPU.
      devices: of jax, which share every system; by default all of the process's share those that
        are large enough to gain by it.

    Returns:
      a `FoldedPotential`.

    Raises:
      ValueError: no species or one that the potential does not know; no devices; radial functions
        too rough for tables; or settings for a potential that is folded already.
    """
    if isinstance(potential, FoldedPotential):
        if any(setting is not None for setting in (species, block, devices)):
            raise ValueError("the potential is folded already; fold the one that it came from")
        return potential
    chosen = potential.species if species is None else {number_of(s) for s in species}
    if not chosen or (devices is not None and not devices):
        raise ValueError("species or devices are empty; name at least one, or leave them away")
    if unknown := set(chosen) - set(potential.species):
        raise ValueError(
            f"the potential knows {', '.join(map(symbol, potential.species))}, not "
            f"{', '.join(map(symbol, sorted(unknown)))}"
        )
    kept = [index for index, z in enumerate(potential.species) if z in chosen]
    parameters, intervals = merge(potential, kept)
    values = {f.name: getattr(potential, f.name) for f in fields(Potential)}
    values |= {name: values[name][kept] for name in ("e0", "shift", "scale")}
    values |= {
        "species": tuple(potential.species[index] for index in kept),
        "parameters": parameters,
        "average_neighbors": 1.0,
        "block": potential.block if block is None else block,
    }
    return FoldedPotential(
        **values, intervals=intervals, devices=None if devices is None else tuple(devices)
    )


def merge(potential, kept):
    """Parameters of a `FoldedNetwork` in float64, and the intervals of its tables.

    Args:
      kept: indices of the species that are kept.

    Raises:
      ValueError: see `fit`.
    """
    config, channels = potential.config, potential.config.channels
    old = {name: np.asarray(value, float) for name, value in potential.parameters.items()}
    unit, n_species = 1 / math.sqrt(channels), len(potential.species)
    features = old["embedding"][kept] / math.sqrt(n_species)
    new, intervals = {}, []
    for layer in range(config.layers):
        last = layer == config.layers - 1
        readout = f"readout_{layer}"
        into_readout = np.eye(channels)
        if last and layer == 0:
            into_readout, new[readout] = old[readout] * unit, np.ones((1, 1))
        elif last:
            into_readout = old[f"{readout}_hidden"] * unit
            new[readout] = old[readout] / math.sqrt(config.readout_width)
        else:
            new[readout] = old[readout] * unit

        l_out = 0 if last else config.hidden_l
        for l in range(l_out + 1):
            new[f"out_{layer}_{l}"] = old[f"out_{layer}_{l}"] * unit @ into_readout
            for order in range(1, config.correlation + 1):
                name = f"product_{layer}_{l}_{order}"
                new[name] = old[name][:, kept]
            if f"skip_{layer}_{l}" in old:
                skip = old[f"skip_{layer}_{l}"][kept] / math.sqrt(channels * n_species)
                new[f"skip_{layer}_{l}"] = skip @ into_readout
        tables, matrices, n = _tables(potential, layer, features, old)
        new |= tables | matrices
        intervals.append(n)
        if layer == 0:
            new["own"] = np.einsum("zc,zcd->zd", features, new.pop("skip_0_0"))
        else:
            for l in range(config.hidden_l + 1):
                new[f"up_{layer}_{l}"] = old[f"up_{layer}_{l}"] * unit
    return new, tuple(intervals)


def _tables(potential, layer, features, old):
    """Tables of a layer's radial functions, the matrices that mix its sums, and the intervals."""
    config, channels = potential.config, potential.config.channels
    routes = paths(0 if layer == 0 else config.hidden_l, config.l_max)

    def functions(distance):
        values = radial_functions(potential, layer, distance) / potential.average_neighbors
        return values.reshape(len(distance), len(routes), channels)

    n_parts = [sum(route[2] == l for route in routes) for l in range(config.l_max + 1)]
    mix = [old[f"mix_{layer}_{l}"] / math.sqrt(n * channels) for l, n in enumerate(n_parts)]
    if layer > 0:
        table, n = fit(lambda r: functions(r).reshape(len(r), -1), potential)
        tables = np.split(table, len(routes), axis=1)
        return _numbered("table", layer, tables), _numbered("mix", layer, mix), n

    senders = features @ old["up_0_0"] / math.sqrt(channels)
    stacked = np.stack(mix)

    def mixed(distance):  # [n, species, degrees, channels]
        return np.einsum("rlc,zc,lcd->rzld", functions(distance), senders, stacked)

    table, n = fit(lambda r: mixed(r).reshape(len(r), -1), potential)
    if len(senders) > 1:
        table = table.reshape(len(table), len(senders), len(routes), channels)
        tables = [
            np.concatenate(list(np.moveaxis(table[:, :, l], 1, 0))) for l in range(len(routes))
        ]
        return _numbered("table", layer, tables), {}, n

    basis, expand = _few_functions(table, n, config, TOLERANCE[potential.dtype])
    matrices = np.split(expand, len(routes), axis=1)
    return _numbered("table", layer, [basis]), _numbered("mix", layer, matrices), n


def _numbered(name, layer, arrays):
    return {f"{name}_{layer}_{index}": array for index, array in enumerate(arrays)}


def radial_functions(potential, layer, distance):
    """The network's radial functions divided by the cutoff function, in float64.

    Without the cutoff function, which vanishes to third order, they are smooth beyond both ends
    of the range from 0 to the cutoff, as a fit needs them.

    Args:
      distance: [n], Å; also negative or beyond the cutoff.

    Returns:
      [n, columns]
    """
    config = potential.config
    x = distance / config.cutoff
    smooth = envelope(x, config.cutoff_order)
    n = np.arange(1, config.n_radial + 1)
    bessel = math.sqrt(2 / config.cutoff) * n * np.pi / config.cutoff
    hidden = bessel * np.sinc(n * x[:, None]) * smooth[:, None]
    weights = [
        np.asarray(potential.parameters[f"radial_{layer}_{step}"], float)
        for step in range(len(config.radial_widths) + 1)
    ]
    for weight, following in itertools.pairwise([*weights, None]):
        hidden = hidden @ (weight / math.sqrt(len(weight)))
        if following is not None:
            hidden = SILU_GAIN * hidden * (1 + np.tanh(hidden / 2)) / 2
    # At the cutoff itself both are zero, and so is the quotient.
    return hidden / np.where(smooth == 0, 1.0, smooth)[:, None]


def fit(functions, potential):
    """Spline coefficients of functions of the distance, as fine as the precision deserves.

    Args:
      functions: from distances [n] to values without the cutoff function, [n, columns].

    Returns:
      coefficients, [intervals + DEGREE, columns], and the number of intervals.

    Raises:
      ValueError: the functions are too rough for the finest table.
    """
    cutoff = potential.config.cutoff
    tolerance = TOLERANCE[potential.dtype]
    for intervals in INTERVALS:
        places = cutoff / intervals * np.arange(-MARGIN, intervals + MARGIN + 1)
        spline = make_interp_spline(places, functions(places), k=DEGREE)
        if _error(spline, functions, potential.config, intervals) < tolerance:
            # SciPy leaves out two knots near either end; in between they are equally spaced.
            return spline.c[MARGIN - 2 :][: intervals + DEGREE], intervals
    raise ValueError(
        f"the radial functions change too fast for a table of {intervals} intervals; use the "
        "potential unfolded (folded=False, or --unfolded)"
    )


def _error(spline, functions, config, intervals):
    """Largest error of values and slopes between the knots, relative to what lies beyond."""
    distance = config.cutoff / intervals * (np.arange(intervals) + 0.37)
    step = 1e-4 * config.cutoff  # of a difference formula of fourth order

    def values_and_slopes(functions):
        def at(distance):
            smooth = envelope(distance / config.cutoff, config.cutoff_order)
            return functions(distance) * smooth[:, None]

        near, far = (at(distance + d) - at(distance - d) for d in (step, 2 * step))
        return at(distance), (8 * near - far) / (12 * step)

    pairs = zip(values_and_slopes(spline), values_and_slopes(functions))
    return max(
        (np.abs(found - true).max(axis=1) / _largest_beyond(true)).max() for found, true in pairs
    )


def _largest_beyond(values):
    """For each row the largest magnitude in it or any later row, [n]; never quite zero."""
    size = np.abs(values).max(axis=1)
    return np.maximum.accumulate(size[::-1])[::-1] + 1e-3 * size.max()


def _few_functions(table, intervals, config, tolerance):
    """Functions of which all columns of a table are combinations, and the combinations.

    Returns:
      table of the functions, [rows, n_functions], and matrix [n_functions, columns].
    """
    # Row j belongs to the spline with its middle at j - 2 intervals.
    x = np.clip((np.arange(len(table)) - 2) / intervals, 0, 1)
    seen = envelope(x, config.cutoff_order)
    weight = seen / _largest_beyond(table * seen[:, None])
    _, sizes, columns = np.linalg.svd(weight[:, None] * table, full_matrices=False)
    needed = np.count_nonzero(sizes > tolerance * sizes[0])
    columns = columns[: min(8 * math.ceil(needed / 8), len(sizes))]
    return table @ columns.T, columns
