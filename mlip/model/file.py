"""The model file: weights, and JSON that says what they are, in one safetensors file."""

import hashlib
import json
import struct
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from mlip import config as settings
from mlip.data.structure import number_of, symbol
from mlip.files import atomic_write
from mlip.model.contract import FlaxModel, bare, class_name, hashable, named, registered
from mlip.model.fold import FoldedPotential
from mlip.model.mace.model import NetworkConfig
from mlip.model.potential import Potential
from mlip.model.terms import ZBL, TermsConfig

FORMAT = "mlip-jax model"
# 2: the network has more settings, all with the defaults of 1. 3: a model of any family, terms.
FORMAT_VERSION = 3
UNITS = {"energy": "eV", "length": "Å", "forces": "eV/Å", "stress": "eV/Å³"}


@dataclass(frozen=True)
class Card:
    """What a model file says beside its tensors."""

    format: str
    format_version: int
    package_version: str
    model: dict  # its family, and what makes it anew
    terms: TermsConfig
    species: tuple[str, ...]
    e0: tuple[float, ...]  # eV
    shift: tuple[float, ...]  # eV
    scale: tuple[float, ...]  # eV
    average_neighbors: float
    dtype: str
    units: dict
    training: dict


def save_model(potential, path):
    """Write a potential to one safetensors file: weights, and JSON that says what they are.

    Raises:
      ValueError: a folded potential, which is made anew wherever it is used; a network whose
        settings, or terms, a file cannot keep.
    """
    if isinstance(potential, FoldedPotential):
        raise ValueError("a folded potential is not kept; save the one that it came from")
    if not isinstance(potential.terms, TermsConfig):
        raise ValueError(
            f"the terms {potential.terms} are no settings; have them made by a TermsConfig"
        )
    card, tensors = _contents(potential)
    card |= {"model": potential.model.card(), "terms": asdict(potential.terms)}
    card |= {"package_version": version("mlip-jax"), "training": potential.training}
    text = json.dumps(card, sort_keys=True)
    metadata = {"mlip": text, "sha256": _digest(text, tensors)}
    with atomic_write(path) as temporary:
        temporary.write_bytes(safetensors.numpy.save(tensors, metadata))


def fingerprint(potential):
    """sha256 of all that a potential's predictions depend on, in hexadecimal digits."""
    card, tensors = _contents(potential)
    card |= {"model": repr(potential.model), "terms": repr(potential.surface.terms)}
    return _digest(json.dumps(card, sort_keys=True), tensors)


def _contents(potential):
    tensors = {
        name: np.ascontiguousarray(value) for name, value in sorted(potential.parameters.items())
    }
    card = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "species": [symbol(z) for z in potential.species],
        "e0": potential.e0.tolist(),
        "shift": potential.shift.tolist(),
        "scale": potential.scale.tolist(),
        "average_neighbors": float(potential.average_neighbors),
        "dtype": potential.dtype,
        "units": UNITS,
    }
    return card, tensors


def _digest(text, tensors):
    """sha256 of the card and of every tensor with its name, type and shape."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def load_model(path, dtype=None, model=None):
    """Read a potential back, verified. No code that the file names is imported.

    Args:
      path: a file that `save_model` wrote.
      dtype: "float32" or "float64"; by default the precision it was saved with.
      model: class of the network, where it is one of your own; classes that were given to
        `mlip.register` are known.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is truncated or damaged, of another program, of a newer format, of a
        network whose class is not known here, or its tensors do not fit its configuration.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; give the model.safetensors of a run")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, OSError, struct.error, MemoryError, TypeError) as error:
        raise ValueError(
            f"{path} is truncated, damaged or no safetensors file ({error}); copy it again"
        ) from None
    try:
        card = json.loads(metadata["mlip"])
        foreign = card["format"] != FORMAT
    except (KeyError, TypeError, ValueError, RecursionError):
        foreign = True
    if foreign:
        raise ValueError(
            f"{path} is a safetensors file, but no model of mlip-jax; give the model.safetensors "
            "of a run"
        )
    # Before the version, which a flipped bit can change: later formats have to keep this digest.
    if metadata.get("sha256") != _digest(metadata["mlip"], tensors):
        raise ValueError(
            f"{path} is damaged: its contents do not match their sha256; copy it again from where "
            "it was made"
        )
    version_found = card.get("format_version")
    if not isinstance(version_found, int) or version_found > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version_found!r}, written by mlip-jax "
            f"{card.get('package_version')}; this version reads up to {FORMAT_VERSION}. Update "
            "mlip-jax"
        )
    wrongly = "the file was put together wrongly, save it anew"
    try:
        card = settings.from_table(Card, _upgrade(card))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {wrongly}") from None
    cls = _network_class(path, card.model, model)
    try:
        return _potential(card, tensors, dtype, cls)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {wrongly}") from None


def _upgrade(card):
    """The card of an older version as one of this."""
    if card["format_version"] >= 3:
        return card
    card = dict(card)
    network = card.pop("config", {})
    moved = {n: network.pop(n) for n in ZBL if n in network} if isinstance(network, dict) else {}
    return card | {"model": {"family": "mace", "settings": network}, "terms": moved}


def _network_class(path, about, given):
    """The class of a file's network, given or registered; None for the MACE family.

    Raises:
      ValueError: none is, or it is of another name than the file has.
    """
    name = str(about.get("class")) if about.get("family") == "flax" else None
    if given is not None and bare(class_name(given)) != bare(str(name)):
        raise ValueError(
            f"the network of {path} is {name or 'of the MACE family'}, not {class_name(given)}; "
            + ("give its own class" if name else "load it without a class")
        )
    found = given or (name and (registered(name) or named(name)))
    if name and found is None:
        raise ValueError(
            f"the network of {path} is {name}, and no code that a file names is imported; give the "
            f"class, as mlip.load(path, model={bare(name)}) or --model-class {name}"
        )
    return found


def _model(card, cls):
    """The model that a card describes, of this class if it is a flax module."""
    values, n_species = card.model.get("settings", {}), len(card.species)
    if not isinstance(values, dict):
        raise ValueError(f"the settings of its network are {values!r}, which is no table")
    if cls is None:
        if card.model.get("family") != "mace":
            raise ValueError(f"the family {card.model.get('family')!r} of its network is unknown")
        return settings.from_table(NetworkConfig, values).model(n_species)
    try:
        return FlaxModel(cls(**hashable(values)), n_species)
    except TypeError as error:
        raise ValueError(
            f"{class_name(cls)} does not take its settings {values}: {error}"
        ) from None


def _potential(card, tensors, dtype, cls):
    potential = Potential(
        model=_model(card, cls),
        species=tuple(number_of(s) for s in card.species),
        parameters=tensors,
        e0=np.array(card.e0),
        shift=np.array(card.shift),
        scale=np.array(card.scale),
        average_neighbors=card.average_neighbors,
        terms=card.terms,
        dtype=dtype or card.dtype,
        training=card.training,
    )
    expected = potential.model.shapes()
    for name in sorted(expected.keys() | tensors.keys()):
        found = tensors.get(name)
        if np.shape(found) != expected.get(name) or found is None:
            raise ValueError(
                f"the tensor {name} has shape {None if found is None else found.shape}, but the "
                f"configuration asks for {expected.get(name)}"
            )
        if found.dtype.kind != "f" or not np.isfinite(found).all():
            raise ValueError(f"the tensor {name} ({found.dtype}) holds more than finite numbers")
    return potential
