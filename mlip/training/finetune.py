"""Starting a run from a trained potential: its species, energies of single atoms, what moves."""

import math
from collections import Counter
from dataclasses import dataclass, fields, replace

import numpy as np

from mlip.data.dataset import AtomicEnergies, atomic_energies
from mlip.data.structure import symbol
from mlip.model.file import load_model
from mlip.model.mace.network import NetworkConfig

TRAINABLE = ("all", "last", "readouts")
UNSEEN = ("refuse", "add")
MOST_FRAMES = 1000  # predicted to re-estimate energies of single atoms
EACH = 8  # of them with an element, which of all 118 elements are fewer than 1000
RANK = 1e-8  # of compositions: relative size of what counts as nothing
USUAL_ERROR = 0.02  # eV/atom, of a potential that knows all elements
FAR_OFF = 0.1  # eV/atom, above which energies are looked at
BY_SPECIES = ("embedding", "skip", "select")  # parameters [n_species, ...], scaled by their number


def adopt_network(config, given=None):
    """The settings of a run with the network of the potential that it starts from, if any.

    Args:
      given: names of the settings of the network that somebody chose; all of them if not given,
        unless they are the defaults.

    Raises:
      ValueError: settings of the network are given that are not those of the potential.
    """
    if config.init is None:
        return config
    network = load_model(config.init).config
    if given is None:
        given = [f.name for f in fields(network) if config.network != NetworkConfig()]
    for name in given:
        value, own = getattr(config.network, name), getattr(network, name)
        if value != own:
            raise ValueError(
                f"{name} is {value}, but the run starts from {config.init}, whose network has "
                f"{own}; leave the settings of the network away"
            )
    return replace(config, network=network)


def names_that_move(trainable, potential):
    """Names of the parameters that a run changes.

    Args:
      trainable: "all"; "last" for the last layer with its readout; "readouts"; or a number, that
        of the first layer that moves.

    Raises:
      ValueError: the number of a layer that the network does not have.
    """
    n_layers, names = potential.config.layers, sorted(potential.parameters)
    if trainable == "all":
        return names
    if trainable == "readouts":
        return [name for name in names if name.startswith("readout")]
    first = n_layers if trainable == "last" else int(trainable)
    if first > n_layers:
        raise ValueError(
            f"trainable is {trainable}, but the network has {n_layers} layers; give one of them"
        )
    return [n for n in names if n != "embedding" and int(n.split("_")[1]) + 1 >= first]


def start_from(config, train, isolated):
    """The potential that a run starts from, with the species and energies of its data.

    Args:
      config: the settings of the run, a `TrainConfig`.
      train: structures to train on.
      isolated: isolated atoms among the data.

    Returns:
      potential, its `AtomicEnergies`.

    Raises:
      ValueError: elements that the potential does not know, unless they are to be added, an
        element without E0, or isolated atoms that its E0 are not.
    """
    potential = load_model(config.init, config.dtype)
    elements = {int(z) for s in train for z in s.numbers}
    unseen = sorted(elements - set(potential.species))
    if unseen and config.unseen == "refuse":
        raise ValueError(
            f"{config.train} holds {names_of(unseen)}, which {config.init} was not "
            "trained on; leave those frames away, or give --unseen add, so that these elements "
            "start from the mean of the others"
        )
    if unseen and config.e0 == "keep":
        raise ValueError(
            f"E0 of {names_of(unseen)} cannot be kept: {config.init} has none; give "
            "them with --e0, or write --e0 fit"
        )
    wanted = elements.union(potential.species) if config.keep_species else elements
    potential = with_species(potential, wanted)
    if config.e0 == "keep":
        e0 = AtomicEnergies(dict(zip(potential.species, potential.e0)), "the initial potential")
    elif config.e0 == "fit" or (config.e0 == "auto" and not isolated):
        e0 = estimate_atomic_energies(potential, train, unseen)
    else:
        e0 = atomic_energies(config.e0, train, isolated, config.keys)
        if config.e0 == "auto":
            require_isolated_atoms(potential, train, e0)
    values = [e0.values.get(z, old) for z, old in zip(potential.species, potential.e0)]
    parameters = {n: np.asarray(v, config.dtype) for n, v in potential.parameters.items()}
    return replace(potential, e0=np.array(values), parameters=parameters, block=config.block), e0


def with_species(potential, numbers):
    """The same potential for other species; new ones start from the mean of those it knows.

    Energies of structures of the species that stay do not change.

    Args:
      potential: a `Potential`.
      numbers: atomic numbers of the species that it shall have.

    Returns:
      a `Potential`, its species ascending.
    """
    species = tuple(sorted(numbers))
    known = [z for z in species if z in potential.species] or list(potential.species)
    rows = [potential.species.index(z) for z in known]
    growth = math.sqrt(len(species) / len(potential.species))

    def chosen(values, axis=0):
        values = np.moveaxis(np.asarray(values), axis, 0)
        mean = values[rows].mean(axis=0)
        picked = [
            values[potential.species.index(z)] if z in potential.species else mean for z in species
        ]
        return np.moveaxis(np.stack(picked), 0, axis)

    parameters = dict(potential.parameters)
    for name, values in potential.parameters.items():
        if name.startswith(BY_SPECIES):
            # The network divides by the root of the number of species.
            parameters[name] = (growth * chosen(values)).astype(values.dtype)
        elif name.startswith("product"):
            parameters[name] = np.ascontiguousarray(chosen(values, axis=1))
    per_species = {name: chosen(getattr(potential, name)) for name in ("e0", "shift", "scale")}
    return replace(potential, species=species, parameters=parameters, **per_species)


def estimate_atomic_energies(potential, train, unseen=()):
    """E0 by least squares on what the potential leaves of the energies; see `least_change`.

    Args:
      potential: with species for all elements of the structures.
      train: structures, of which up to 1000 that have an energy are predicted.
      unseen: atomic numbers of elements that are new to the potential.

    Returns:
      `AtomicEnergies` of the elements of the structures.

    Raises:
      ValueError: an unseen element that no frame with an energy has.
    """
    remains = residuals(potential, train)
    elements = {int(z) for s in train for z in s.numbers}
    if missing := set(unseen) & elements - set(remains.elements):
        names = names_of(missing)
        raise ValueError(
            f"E0 of {names} cannot be estimated, since no frame with {names} has an energy; give "
            "E0 of all elements of the data with --e0, as a table or a file of isolated atoms"
        )
    values = {z: float(e) for z, e in zip(potential.species, potential.e0) if z in elements}
    if not remains.elements:
        return AtomicEnergies(values, "the initial potential: no frame has an energy")
    free = np.isin(remains.elements, list(unseen))
    change, rank = least_change(remains.fractions, remains.energies, free)
    notes = []
    if rank < len(change):
        note = "the compositions leave some changes of E0 open; the smallest that fit were taken"
        if free.any():
            note += f", after {names_of(unseen)} explained what new elements can"
        if not free.all():
            most = np.argmax(np.where(free, -1, np.abs(change)))
            name = symbol(remains.elements[most])
            note += f"; of known elements {name} changed most, by {change[most]:.3g} eV"
        notes.append(note)
    if kept := elements - set(remains.elements):
        names = names_of(kept)
        notes.append(f"no frame with {names} has an energy; E0 of the initial potential is kept")
    values |= {z: values[z] + float(d) for z, d in zip(remains.elements, change)}
    source = f"least squares over {len(remains.energies)} energies less the initial potential's"
    return AtomicEnergies(values, source, ". ".join(notes))


def require_isolated_atoms(potential, train, e0):
    """Refuse E0 of isolated atoms for a potential whose own E0 hold more than those.

    E0 that were fitted to energies hold a part of the cohesive energy; with others in their place
    every frame would be off by that.

    Args:
      potential: with its own E0 and species for all elements of the structures.
      e0: `AtomicEnergies` of the isolated atoms.

    Raises:
      ValueError: they leave far more of the energies than the potential's own E0 once moved.
    """
    remains = residuals(potential, train)
    if not remains.elements:
        return
    own = dict(zip(potential.species, potential.e0))
    isolated = np.array([e0.values[z] - own[z] for z in remains.elements])
    moved, _ = least_change(remains.fractions, remains.energies, np.zeros(len(isolated), bool))
    off, least = remains.error(isolated), remains.error(moved)
    if off > FAR_OFF and off > 10 * least:
        raise ValueError(
            f"with E0 of the isolated atoms among the data the initial potential is off by "
            f"{off:.3g} eV/atom, with its own E0 moved by {least:.3g} eV/atom, so that its own "
            "hold more than isolated atoms; move them with --e0 fit, or give E0 by a table or "
            "file, which is taken as it is"
        )


@dataclass(frozen=True)
class Residuals:
    """What a potential leaves of the energies of some frames, with their compositions."""

    elements: list[int]  # atomic numbers, ascending; none where no frame has an energy
    fractions: np.ndarray  # [n_frames, n_elements] of the atoms
    energies: np.ndarray  # [n_frames] eV/atom

    def error(self, change):
        """Root mean square left by a change of E0, [n_elements], eV/atom."""
        return float(np.sqrt(np.mean((self.energies - self.fractions @ change) ** 2)))


def residuals(potential, train):
    """`Residuals` of up to 1000 structures that have an energy."""
    frames = covering([s for s in train if s.energy is not None])
    elements = sorted({int(z) for s in frames for z in s.numbers})
    fractions = [[(s.numbers == z).mean() for z in elements] for s in frames]
    rest = [(s.energy - p.energy) / len(s) for s, p in zip(frames, potential.predict(frames))]
    return Residuals(elements, np.array(fractions), np.array(rest))


def covering(structures):
    """Up to 1000 of the structures: some of every element, then compositions by turns."""
    order = np.random.default_rng(0).permutation(len(structures))
    seen, alike, turns = Counter(), Counter(), {}
    for index in order.tolist():
        elements, counts = np.unique(structures[index].numbers, return_counts=True)
        composition = (*elements.tolist(), *counts.tolist())
        rare = min(seen[z] for z in elements.tolist()) < EACH
        turns[index] = (not rare, alike[composition])
        seen.update(elements.tolist())
        alike[composition] += 1
    return [structures[index] for index in sorted(sorted(turns, key=turns.get)[:MOST_FRAMES])]


def least_change(fractions, energies, free):
    """Changes of E0 that explain energies, no larger than the energies ask for.

    Free elements explain what they can first. The others are fitted to the rest, with a normal
    prior around no change: as wide as the rest is large, against noise of the size that no change
    explains. A direction that the compositions hardly determine so stays where it was, and without
    noise the changes are exact.

    Args:
      fractions: [n_frames, n_elements] of the atoms.
      energies: [n_frames] eV/atom.
      free: [n_elements] bool.

    Returns:
      changes, [n_elements], eV, and the rank of the compositions.
    """
    least = RANK * np.linalg.norm(fractions, 2)
    inverse = np.linalg.pinv(fractions[:, free], rcond=RANK)
    rest, known = (a - fractions[:, free] @ (inverse @ a) for a in (energies, fractions[:, ~free]))
    u, s, v = np.linalg.svd(known, full_matrices=False)
    u, s, v = u[:, s > least], s[s > least], v[s > least]
    width, spare = np.sqrt(np.mean(rest**2)), len(rest) - len(s)
    noise = min(width, USUAL_ERROR)  # where all can be explained, right or wrong
    if spare > 0:
        noise = np.linalg.norm(rest - u @ (u.T @ rest)) / math.sqrt(spare)
    share = (noise / width) ** 2 if width > 0 else 1.0
    change = np.zeros(len(free))
    change[~free] = v.T @ (s / (s**2 + share) * (u.T @ rest))
    change[free] = inverse @ (energies - fractions[:, ~free] @ change[~free])
    return change, int(np.linalg.matrix_rank(fractions, tol=least))


def names_of(numbers):
    """Symbols of some elements for a message."""
    return ", ".join(map(symbol, sorted(numbers)))
