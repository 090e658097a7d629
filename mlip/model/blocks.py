"""Passing over the atoms in blocks, and what crosses from one block to another.

Everything a layer does between gathering its neighbours' features and giving out its own is a
function of a few atoms. Taken a few at a time its intermediates stay in the processor's cache,
and the memory needed no longer grows with the number of atoms.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

SMALL = 4  # blocks that are taken at once


def map_blocks(function, block, *arrays, at_once=SMALL):
    """`function(*arrays)` taken `block` atoms at a time, and again so in the reverse pass.

    Args:
      function: of arrays [n, ...] to a pytree of arrays [n, ...], each row from the same rows.
      block: about how many atoms at a time; None takes all at once, as does a number of atoms so
        small that the loop would cost more than the cache saves.
      arrays: [n_atoms, ...]
      at_once: that number, in blocks.

    Returns:
      what `function` gives, for all atoms.
    """
    n_atoms = arrays[0].shape[0]
    if block is None or n_atoms <= at_once * block:
        return function(*arrays)
    # Of sizes near the wanted one, that which leaves the fewest rows to fill.
    sizes = range(block - block // 2, 2 * block)
    block = min(sizes, key=lambda size: (-n_atoms % size, abs(size - block)))
    n_blocks = -(-n_atoms // block)

    def cut(array):
        if spare := n_blocks * block - n_atoms:
            # The last atom again, for which every function is finite. `join` drops these rows;
            # `stop_gradient` spares the reverse pass their zeros.
            last = jax.lax.stop_gradient(array[-1:])
            array = jnp.concatenate([array, jnp.repeat(last, spare, axis=0)])
        return array.reshape(n_blocks, block, *array.shape[1:])

    def join(array):
        return array.reshape(n_blocks * block, *array.shape[2:])[:n_atoms]

    remember_nothing = jax.checkpoint(function, prevent_cse=False)
    blocks = jax.lax.map(lambda rows: remember_nothing(*rows), [cut(a) for a in arrays])
    return jax.tree.map(join, blocks)


def from_all_devices(rows, axis):
    """Rows of all atoms from the rows on each device; unchanged where atoms are on one device."""
    return rows if axis is None else jax.lax.all_gather(rows, axis, tiled=True)


def collect_slots(slots, reverse, weight=None, block=None, axis=None):
    """For every atom the sum of `slots` [n_rows, max_neighbors, ...] in which it is the sender.

    A gather through the opposite edges, since a scatter is slow. Slots may hold the first rows of
    the atoms only; what the other rows would give counts as zero. With sharded atoms a device sums
    its own slots for every atom, and `to_own_devices` reduces: more to gather, but sums are far
    less to exchange than slots.

    Args:
      reverse: of all atoms, on whichever device.
      weight: of every atom's row of slots, [n_rows]; 1 if None.
    """
    n_rows, width, *columns = slots.shape
    # In two dimensions, since XLA copies arrays with an axis of one component to gather from them.
    slots = slots.reshape(n_rows * width, -1)
    partial = n_rows < len(reverse)
    first = 0 if axis is None else jax.lax.axis_index(axis) * (n_rows * width)

    def collect(index):
        if partial:  # a slot before the first becomes one far beyond the last
            index = (index - first).astype(jnp.uint32)
        if weight is None:
            rows = slots.at[index].get(mode="fill", fill_value=0) if partial else slots[index]
            return rows.sum(axis=1)
        factor = weight.at[index // width].get(mode="fill", fill_value=0)
        # A product, since XLA would fuse a weighted sum with the gather and lose its stride.
        rows = slots.at[index].get(mode="clip")
        return jnp.einsum("nk,nkc->nc", factor, rows, precision="highest")

    return map_blocks(collect, block, reverse).reshape(len(reverse), *columns)


def to_own_devices(sums, axis):
    """What all devices together give to the atoms, [n_atoms, ...]: of each device its own rows."""
    return sums if axis is None else jax.lax.psum_scatter(sums, axis, tiled=True)


def gather_senders(features, graph, axis=None):
    """`features` [n_atoms, ...] of the sender in every slot, [n_atoms, max_neighbors, ...]."""

    def gather(index, rows):
        return from_all_devices(rows, axis)[index[0]]

    def collect(index, slots):
        return to_own_devices(collect_slots(slots, index[1], axis=axis), axis)

    index = (graph.neighbors, graph.reverse)
    return jax.custom_derivatives.linear_call(gather, collect, index, features)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pairs:
    """Edges and their opposites as one, for what depends on the distance alone."""

    first: jax.Array  # [n_pairs] the earlier slot of each pair; n_slots where there is none
    second: jax.Array  # [n_pairs] the later one
    pair: jax.Array  # [n_atoms, max_neighbors] the pair of each slot; of padding the last one

    def choose(self, slots, fill):
        """Of [n_atoms, max_neighbors] the values in the first slot of every pair."""
        return slots.ravel().at[self.first].get(mode="fill", fill_value=fill)

    def give(self, values):
        """Values of pairs, [n_pairs, columns], to both their slots.

        Those of pairs that are none must be 0 with derivatives of 0, as all functions are at the
        cutoff: they go to padding, and no derivative comes back from there.
        """

        def spread(index, values):
            return values.at[index.pair].get(mode="promise_in_bounds")

        def collect(index, slots):  # a gather, since a scatter is slow
            slots = slots.reshape(-1, slots.shape[-1])
            either = (slots.at[i].get(mode="clip") for i in (index.first, index.second))
            return sum(either) * (index.first < len(slots))[:, None]

        return jax.custom_derivatives.linear_call(spread, collect, self, values)


def first_reaching(counted, wanted):
    """The first places at which ascending counts reach the wanted ones.

    The search is a loop. Unrolled, each step reads the results of all earlier ones, which XLA for
    CPUs repeats in every kernel from jax 0.11 on: code doubles with each step, and 18 steps did not
    compile in 14 minutes.

    Args:
      counted: [n], of integers.
      wanted: [n_wanted], likewise.

    Returns:
      [n_wanted] of the same type; n where a count is not reached.
    """
    return jnp.searchsorted(counted, wanted, method="scan").astype(counted.dtype)


def pair_up(graph):
    """`Pairs` of a graph whose rows are all here."""
    reverse = jnp.asarray(graph.reverse).ravel()
    n_slots = len(reverse)
    slots = jnp.arange(n_slots, dtype=reverse.dtype)
    counted = jnp.cumsum(slots < reverse, dtype=reverse.dtype)  # padding is its own opposite
    n_pairs = n_slots // 2 + 1  # one to spare, for padding
    numbers = jnp.arange(1, n_pairs + 1, dtype=reverse.dtype)
    first = first_reaching(counted, numbers)
    pair = jnp.where(slots == reverse, n_pairs - 1, counted[jnp.minimum(slots, reverse)] - 1)
    second = reverse.at[first].get(mode="fill", fill_value=n_slots)
    return Pairs(first, second, pair.reshape(graph.reverse.shape))
