"""Batches of a data set: packed, dealt out to devices and to turns in the cache, padded."""

from dataclasses import replace

import jax
import numpy as np

from mlip.data.graph import pad_labels, plan_ladder
from mlip.data.quantities import DERIVED

SAMPLED = 100  # batches that are looked at to choose the number of parts
MOST_FILLED = 1.1  # rows of parts, padding included, for one row of whole batches


class Frames:
    """Structures of a data set with their neighbour tables, ready to be padded into batches.

    Every batch is dealt out to the devices of the process in equal parts, as far as there are
    frames for them; on a CPU in so many more that a part stays in the cache, which each device
    takes one after another. Which frames are in a batch does not depend on that.
    """

    def __init__(self, structures, tables, potential, config):
        self.structures, self.tables = structures, tables
        self.potential = potential
        self.names = *DERIVED, *potential.model.quantities
        self.dtype = config.dtype
        self.kinds = [potential.species_of(s) for s in structures]
        self.baselines = [potential.baseline(s) for s in structures]
        self.sizes = [table.size() for table in tables]
        self.ladder = plan_ladder(self.sizes, config.batch_size, config.max_atoms)
        devices = jax.local_devices()[: config.batch_size]
        self.devices = tuple(devices) if len(devices) > 1 else None
        self.turns = self.best_turns(
            len(devices), potential.model.slots_at_once(potential.execution)
        )
        self.n_parts = len(devices) * self.turns
        self.part_ladder = self.ladder_of(self.n_parts)

    def best_turns(self, n_devices, slots_at_once):
        """Parts for each device: the fewest that are small and do not fill many rows, or one."""
        most = -(-self.ladder.batch_size // n_devices)
        if slots_at_once is None or most == 1:
            return 1
        some = self.batches(range(len(self.structures)))[:SAMPLED]
        some.sort(key=lambda indices: sum(self.sizes[i][0] for i in indices))
        atoms = np.cumsum([sum(self.sizes[i][0] for i in indices) for indices in some])
        usual = some[np.searchsorted(atoms, atoms[-1] / 2)]  # of which half of the atoms are

        def slots(n_parts, batches):
            ladder = self.ladder_of(n_parts)
            shapes = [self.shape(self.parts(indices, n_parts), ladder) for indices in batches]
            return sum(shape.n_atoms * shape.max_neighbors for shape in shapes)

        enough = MOST_FILLED * n_devices * slots(n_devices, some)
        for turns in range(1, most + 1):
            n_parts = n_devices * turns
            small = slots(n_parts, [usual]) <= slots_at_once
            if small and n_parts * slots(n_parts, some) <= enough:
                return turns
        return 1

    def batches(self, order):
        """Lists of indices into the structures."""
        return self.ladder.pack(self.sizes, order)

    def parts(self, indices, n_parts):
        """The frames of a batch dealt out, the largest first, to and fro; some may get none."""
        if n_parts == 1:
            return [list(indices)]
        parts = [[] for _ in range(n_parts)]
        rounds = [*parts, *parts[::-1]]
        for turn, index in enumerate(sorted(indices, key=lambda i: self.sizes[i], reverse=True)):
            rounds[turn % len(rounds)].append(index)
        return parts

    def ladder_of(self, n_parts):
        """The few sizes that parts are padded to."""
        if n_parts == 1:
            return self.ladder
        # Mostly the share that its frames have of a whole batch's atoms, at most all of them.
        n_frames = -(-self.ladder.batch_size // n_parts)
        atoms = {-(-whole * n_frames // self.ladder.batch_size) for whole in self.ladder.atoms}
        atoms |= {max(n for n, _ in self.sizes), *self.ladder.atoms}
        return replace(self.ladder, batch_size=n_frames, atoms=tuple(sorted(atoms)))

    def shape(self, parts, ladder):
        """The `Shape` that all parts of a batch are padded to."""
        sizes = [[self.sizes[i] for i in part] for part in parts]
        return ladder.shape(
            max(sum(atoms for atoms, _ in part) for part in sizes),
            max(width for part in sizes for _, width in part),
        )

    def batch(self, indices):
        """`Graph` and `Labels` of one batch: its parts, of one shape, one after another."""
        parts = self.parts(indices, self.n_parts)
        shape = self.shape(parts, self.part_ladder)
        made = [self.part(part, shape) for part in parts]
        if len(made) == 1:
            return made[0]
        return jax.tree.map(lambda *rows: np.concatenate(rows), *made)

    def part(self, indices, shape):
        """`Graph` and `Labels` of some frames; without any all is padding."""
        frames = [(self.kinds[i], self.structures[i], self.tables[i]) for i in indices]
        labels = pad_labels(
            [self.structures[i] for i in indices],
            [self.baselines[i] for i in indices],
            shape,
            self.dtype,
            self.names,
        )
        return self.potential.graph(frames, shape), labels
