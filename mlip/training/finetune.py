"""Starting a run from a trained potential: its species, energies of single atoms, what moves."""

import math
from collections import Counter
from dataclasses import dataclass, fields, replace

import numpy as np

from mlip.data.dataset import AtomicEnergies, atomic_energies
from mlip.data.structure import symbol
from mlip.model.contract import FlaxModel, import_class, register, registered
from mlip.model.file import load_model
from mlip.model.mace.model import NetworkConfig

TRAINABLE = ("all", "last", "readouts")
UNSEEN = ("refuse", "add")
MOST_FRAMES = 1000  # predicted to re-estimate energies of single atoms
EACH = 8  # of them with an element, which of all 118 elements are fewer than 1000
RANK = 1e-8  # of compositions: relative size of what counts as nothing
USUAL_ERROR = 0.02  # eV/atom, of a potential that knows all elements
FAR_OFF = 0.1  # eV/atom, above which energies are looked at


def adopt_network(config, given=None):
    """The settings of a run with the network and terms of the potential it starts from, if any.

    Args:
      given: names of the settings of network and terms that somebody chose; all of them if not
        given, unless they are the defaults.

    Raises:
      ValueError: settings are given that are not those of the potential.
    """
    if config.init is None:
        return config
    potential = load_model(config.init, model=network_class(config))
    if not isinstance(potential.config, NetworkConfig):
        own = settings_of(potential.config)
        given_here = {k: v for k, v in config.model.items() if k != "class"}
        if any(own.get(name) != value for name, value in given_here.items()):
            raise ValueError(
                f"[model] is {config.model}, but the run starts from {config.init}, whose network "
                f"is {own}; leave the settings of the network away"
            )
        _require_same("terms", config.terms, potential.terms, config.init, given)
        return replace(config, model=own, terms=potential.terms)
    if config.model:
        raise ValueError(
            f"[model] is {config.model}, but the network of {config.init} is of the MACE family; "
            "leave it away"
        )
    parts = {"network": potential.config, "terms": potential.terms}
    for section, own in parts.items():
        _require_same(section, getattr(config, section), own, config.init, given)
    return replace(config, **parts)


def _require_same(section, mine, own, init, given):
    """Refuse settings of a section that are not those of the potential to start from."""
    names = [f.name for f in fields(own)]
    chosen = [n for n in names if mine != type(own)()] if given is None else given
    for name in [n for n in names if n in chosen]:
        if getattr(mine, name) != getattr(own, name):
            raise ValueError(
                f"{name} is {getattr(mine, name)}, but the run starts from {init}, whose "
                f"{section} has {getattr(own, name)}; leave the settings of the {section} away"
            )


def network_class(config):
    """The class of a user's own network in the settings of a run, or None."""
    if not config.model:
        return None
    return registered(config.model["class"]) or import_class(config.model["class"])


def settings_of(module):
    """The section [model] of a flax module, whose class is then known to model files."""
    register(type(module))
    about = FlaxModel(module, 1).card()
    return {"class": about["class"], **about["settings"]}


def describe_network(config):
    """What describes the network of a run: a `NetworkConfig`, or a module of the user's class.

    Raises:
      ValueError: no such class, or settings that it does not take.
    """
    if not config.model:
        # A network that a run starts from has dipoles, or has none.
        wanted = bool(config.loss.dipole_weight) and config.init is None
        return replace(config.network, dipoles=True) if wanted else config.network
    values = dict(config.model)
    cls = network_class(config)
    del values["class"]
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"[model]: {error}; give the settings that the class has") from None


def names_that_move(trainable, potential):
    """Names of the parameters that a run changes.

    Args:
      trainable: "all"; "last" for the last group, with MACE the last layer with its readout;
        "readouts"; or a number, that of the first layer that moves.

    Raises:
      ValueError: the number of a layer that the network does not have, or no readouts.
    """
    names = sorted(potential.parameters)
    if trainable == "all":
        return names
    if trainable == "readouts":
        found = [name for name in names if name.startswith(("readout", "dipole"))]
        if not found:
            raise ValueError(
                f"trainable is 'readouts', but no parameter of the network is named so; it has "
                f"{', '.join(potential.model.groups(names))}"
            )
        return found
    layers = [own for group, own in potential.model.groups(names).items() if group != "embedding"]
    first = len(layers) if trainable == "last" else int(trainable)
    if first > len(layers):
        raise ValueError(
            f"trainable is {trainable}, but the network has {len(layers)} layers; give one of them"
        )
    return sorted(name for own in layers[first - 1 :] for name in own)


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
    potential = load_model(config.init, config.dtype, network_class(config))
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
    execution = replace(potential.execution, block=config.block)
    own = {"e0": np.array(values), "parameters": parameters, "execution": execution}
    return replace(potential, **own), e0


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
    mean = [potential.species.index(z) for z in known]
    rows = [[potential.species.index(z)] if z in potential.species else mean for z in species]
    model, parameters = potential.model.with_species(potential.parameters, rows)
    per_species = {
        name: np.array([getattr(potential, name)[row].mean() for row in rows])
        for name in ("e0", "shift", "scale")
    }
    return replace(potential, model=model, species=species, parameters=parameters, **per_species)


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
    """Refuse E0 of isolated atoms for a potential whose E0 were fitted.

    Fitted E0 contain cohesive energy; with those of isolated atoms every frame would be off by it.

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
