"""Radial functions of a trained potential as splines, in NumPy and float64."""

import itertools
import math

import numpy as np
from scipy.interpolate import BSpline, make_interp_spline

from mlip.model.mace.splines import DEGREE
from mlip.model.radial import SILU_GAIN, envelope, radial_basis, transform_distance

# Largest error of the splines and of their slopes, relative to the largest function beyond the
# distance; float32 itself is good to 1e-7.
TOLERANCE = {"float32": 1e-6, "float64": 1e-8}
INTERVALS = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192, 16384, 32768)
MARGIN = 8  # intervals beyond either end of a table, where the ends of the fit are felt
NEARLY_ZERO = 1e-7  # of a cutoff function: small for its square, large for rounding errors
MOST_BYTES = 2e9  # of the tables of one layer


class NoTables(ValueError):
    """The radial functions of a potential cannot be kept in tables."""


def radial_functions(potential, layer, distance, reach):
    """The network's radial functions divided by the cutoff function, in float64.

    Without the cutoff function, which vanishes to third order, they are smooth beyond both ends
    of the range from 0 to the cutoff, as a fit needs them.

    Args:
      distance: [n], Å; also negative or beyond the cutoff.
      reach: sum of the covalent radii of the two atoms, Å.

    Returns:
      [n, columns]
    """
    config = potential.config
    hidden, divisor = _inputs(config, distance, reach)
    weights = [
        np.asarray(potential.parameters[f"radial_{layer}_{step}"], float)
        for step in range(len(config.radial_widths) + 1)
    ]
    for weight, following in itertools.pairwise([*weights, None]):
        hidden = hidden @ (weight / math.sqrt(len(weight)))
        if following is not None:
            hidden = SILU_GAIN * hidden * (1 + np.tanh(hidden / 2)) / 2
    return hidden / divisor


def edge_density(potential, layer, distance, reach):
    """The learned weight of a neighbour, by which sums are normalised, as `radial_functions`."""
    inputs, divisor = _inputs(potential.config, distance, reach)
    weight = np.asarray(potential.parameters[f"density_{layer}"], float)
    return np.tanh((inputs @ weight) ** 2 / len(weight)) / divisor


def _inputs(config, distance, reach):
    """What the radial network is fed, [n, n_radial], and what to divide its results by, [n, 1]."""
    argument = transform_distance(config.distance_transform, distance, reach)
    if config.radial_basis == "bessel":  # here also at distance zero
        n = np.arange(1, config.n_radial + 1)
        scale = math.sqrt(2 / config.cutoff) * n * np.pi / config.cutoff
        basis = scale * np.sinc(n * argument[:, None] / config.cutoff)
    else:
        basis = radial_basis(config.radial_basis, argument, config.cutoff, config.n_radial)
    if config.cutoff_on == "functions":
        return basis, 1.0
    smooth = envelope(distance / config.cutoff, config.cutoff_order)[:, None]
    # At the cutoff the quotient is that of a little before it.
    smooth = np.where(np.abs(smooth) < NEARLY_ZERO, NEARLY_ZERO, smooth)
    return basis * smooth, smooth


def fit(potential, functions, pairs):
    """Spline coefficients of functions of the distance, as fine as the precision deserves.

    Args:
      functions: from distances [n] and a pair of species to values without the cutoff function,
        [n, columns].
      pairs: of species, each with a table of its own.

    Returns:
      coefficients, [pairs x (intervals + DEGREE), columns].

    Raises:
      NoTables: the functions are too rough for the finest table, or the tables too large.
    """
    for intervals in INTERVALS:
        tables = []
        for pair in pairs:
            table = _spline(potential, lambda r, pair=pair: functions(r, *pair), intervals)
            if table is None:
                break
            size = len(pairs) * table.size * np.dtype(potential.dtype).itemsize
            if size > MOST_BYTES:
                raise NoTables(
                    f"the tables of {len(pairs)} pairs of species take {size / 1e9:.1f} GB, more "
                    f"than {MOST_BYTES / 1e9:.0f} GB; fold fewer species, or use the potential "
                    "unfolded (folded=False, or --unfolded)"
                )
            tables.append(table)
        else:
            return np.concatenate(tables)
    raise NoTables(
        f"the radial functions change too fast for a table of {INTERVALS[-1]} intervals; use the "
        "potential unfolded (folded=False, or --unfolded)"
    )


def _spline(potential, functions, intervals):
    """Coefficients [intervals + DEGREE, columns], or None where they are not exact enough."""
    config = potential.config
    places = config.cutoff / intervals * np.arange(-MARGIN, intervals + MARGIN + 1)
    spline = make_interp_spline(places, functions(places), k=DEGREE)
    if not _error(spline, functions, config, intervals) < TOLERANCE[potential.dtype]:
        return None
    # SciPy leaves out two knots near either end; in between they are equally spaced.
    return spline.c[MARGIN - 2 :][: intervals + DEGREE]


def _error(found, true, config, intervals):
    """Largest error of values and slopes between the knots, relative to what lies beyond."""
    pairs = zip(_seen(found, config, intervals), _seen(true, config, intervals))
    return max((np.abs(f - t).max(axis=1) / _largest_beyond(t)).max() for f, t in pairs)


def _seen(functions, config, intervals):
    """Values and slopes between the knots, cutoff function included, [intervals, columns] each."""
    distance = config.cutoff / intervals * (np.arange(intervals) + 0.37)
    step = 1e-4 * config.cutoff  # of a difference formula of fourth order

    def at(distance):
        smooth = envelope(distance / config.cutoff, config.cutoff_order)
        return functions(distance) * smooth[:, None]

    near, far = (at(distance + d) - at(distance - d) for d in (step, 2 * step))
    return at(distance), (8 * near - far) / (12 * step)


def _largest_beyond(values):
    """For each row the largest magnitude in it or any later row, [n]; never quite zero."""
    size = np.abs(values).max(axis=1)
    return np.maximum.accumulate(size[::-1])[::-1] + 1e-3 * size.max()


def few_functions(table, potential):
    """Low-rank factors of a spline table: a few functions, and the columns as their combinations.

    The rank is the smallest multiple of 8 that keeps values and slopes within twice the table's
    tolerance.

    Args:
      table: coefficients of splines of one pair of species, [rows, columns].
      potential: whose cutoff function and precision say what is small.

    Returns:
      table of the functions, [rows, n_functions], and matrix [n_functions, columns].
    """
    config, intervals = potential.config, len(table) - DEGREE
    knots = config.cutoff / intervals * np.arange(-DEGREE, len(table) + 1)
    seen = _seen(BSpline(knots, table, DEGREE), config, intervals)
    weighed = np.concatenate([rows / _largest_beyond(rows)[:, None] for rows in seen])
    directions = np.linalg.svd(weighed, full_matrices=False)[2]
    for count in range(8, len(directions) + 8, 8):
        columns = directions[:count]
        error = np.abs(weighed @ columns.T @ columns - weighed).max()
        if error < 2 * TOLERANCE[potential.dtype]:
            break
    return table @ columns.T, columns
