"""Functions of the distance as splines on a table of coefficients, on the device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import BSpline, PPoly

from mlip.model.radial import smooth_cutoff

DEGREE = 5  # four continuous derivatives
# Powers of the position in an interval, highest first, of each of the pieces that overlap there.
_BASIS = PPoly.from_spline(BSpline.basis_element(np.arange(DEGREE + 2)))
_PIECES = _BASIS.c[:, np.searchsorted(_BASIS.x, np.arange(DEGREE, -1, -1), side="right") - 1]


# `jit` within `jit`: all layers share one trace.
@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def spline_weights(distance, cutoff, cutoff_order, intervals):
    """Weights of the spline coefficients for functions that end smoothly at the cutoff.

    Args:
      distance: [...], Å.
      intervals: number of equal parts between 0 and the cutoff.

    Returns:
      the first coefficient, [...]; the weights of it and the next `DEGREE`; and their derivatives
      by the distance. All are zero at and beyond the cutoff.
    """
    position = distance * (intervals / cutoff)
    row = jnp.clip(jnp.floor(position), 0, intervals - 1)
    t = jnp.minimum(position - row, 1.0)
    envelope, envelope_slope = jax.jvp(
        lambda r: smooth_cutoff(r, cutoff, cutoff_order), (distance,), (jnp.ones_like(distance),)
    )
    weights, slopes = [], []
    for powers in _PIECES.T:
        value, slope = 0.0, 0.0
        for power in powers:
            slope = slope * t + value
            value = value * t + float(power)
        weights.append(envelope * value)
        slopes.append(envelope_slope * value + envelope * slope * (intervals / cutoff))
    return row.astype(jnp.int32), weights, slopes


@jax.jit
def spline(table, row, weights):
    """Functions [..., columns] from a table of coefficients [rows, columns]."""
    return sum(
        weight[..., None] * table.at[row + shift].get(mode="promise_in_bounds")
        for shift, weight in enumerate(weights)
    )
