"""Starting a run from a trained potential: its species, energies of single atoms, what moves."""

import math
from dataclasses import replace

import numpy as np

from mlip.data.dataset import AtomicEnergies, atomic_energies, fit_atomic_energies
from mlip.data.structure import symbol
from mlip.model.network import NetworkConfig
from mlip.training.checkpoint import load_model

TRAINABLE = ("all", "last", "readouts")
UNSEEN = ("refuse", "add")
MOST_FRAMES = 1000  # predicted to re-estimate energies of single atoms
BY_SPECIES = ("embedding", "skip", "select")  # parameters [n_species, ...], scaled by their number


def adopt_network(config):
    """The settings of a run with the network of the potential that it starts from, if any.

    Raises:
      ValueError: settings of the network are given that are not those of the potential.
    """
    if config.init is None:
        return config
    network = load_model(config.init).config
    if config.network not in (NetworkConfig(), network):
        raise ValueError(
            f"the run starts from {config.init}, whose network is {network}; leave the settings "
            f"of the network away instead of {config.network}"
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
      ValueError: elements that the potential does not know, unless they are to be added, or an
        element without E0.
    """
    potential = load_model(config.init, config.dtype)
    elements = {int(z) for s in train for z in s.numbers}
    unseen = sorted(elements - set(potential.species))
    if unseen and config.unseen == "refuse":
        raise ValueError(
            f"{config.train} holds {', '.join(map(symbol, unseen))}, which {config.init} was not "
            "trained on; leave those frames away, or give --unseen add, so that these elements "
            "start from the mean of the others"
        )
    if unseen and config.e0 == "keep":
        raise ValueError(
            f"E0 of {', '.join(map(symbol, unseen))} cannot be kept: {config.init} has none; give "
            "them with --e0, or write --e0 fit"
        )
    wanted = elements.union(potential.species) if config.keep_species else elements
    potential = with_species(potential, wanted)
    if config.e0 == "keep":
        e0 = AtomicEnergies(dict(zip(potential.species, potential.e0)), "the initial potential")
    elif config.e0 == "fit" or (config.e0 == "auto" and not isolated):
        e0 = estimate_atomic_energies(potential, train)
    else:
        e0 = atomic_energies(config.e0, train, isolated, config.keys)
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


def estimate_atomic_energies(potential, train):
    """E0 by least squares on what the potential leaves of the labels, changed as little as can be.

    Compositions that do not determine single elements share the change among them.

    Args:
      potential: with species for all elements of the structures.
      train: structures, of which up to 1000 that have an energy are predicted.

    Returns:
      `AtomicEnergies` of the elements of those; of all the potential's where none has an energy.
    """
    labelled = [s for s in train if s.energy is not None]
    labelled = labelled[:: max(1, -(-len(labelled) // MOST_FRAMES))]
    values = dict(zip(potential.species, map(float, potential.e0)))
    if not labelled:
        return AtomicEnergies(values, "the initial potential: no frame has an energy")
    elements = sorted({int(z) for s in labelled for z in s.numbers})
    predictions = potential.predict(labelled)
    rest = [replace(s, energy=s.energy - p.energy) for s, p in zip(labelled, predictions)]
    change = fit_atomic_energies(rest, elements)
    source = f"least squares over {len(labelled)} energies less the initial potential's"
    note = ""
    if change.note:
        note = "the compositions leave some changes of E0 open; the smallest that fit were taken"
    return AtomicEnergies({z: values[z] + d for z, d in change.values.items()}, source, note)
