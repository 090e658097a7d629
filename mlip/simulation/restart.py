"""What a simulation resumes from: one file with the whole state and what it belongs to."""

import dataclasses
import hashlib
import json
import zipfile
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from mlip.files import atomic_write
from mlip.model.file import fingerprint
from mlip.simulation.neighbors import Grid, Room

# Settings that may differ when a run goes on.
FREE = ("steps", "checkpoint_every")


def settings_of(potential, starts, config, folded):
    """All that decides a run, by name, in plain values."""
    digest = hashlib.sha256()
    for start in starts:
        for array in (start.structure.numbers, start.structure.positions, start.structure.cell):
            digest.update(np.ascontiguousarray(array).tobytes())
        for array in (start.structure.pbc, start.velocities, start.fixed):
            digest.update(b"none" if array is None else np.asarray(array).tobytes())
    table = dataclasses.asdict(config)
    return json.loads(json.dumps({
        "the model": fingerprint(potential)[:16],
        "the start": digest.hexdigest()[:16],
        "folded": folded,
        **table,
    }))  # fmt: skip


def write_checkpoint(path, settings, engine, setting, flight, files):
    """Write the state after a whole step.

    Args:
      settings: of `settings_of`.
      files: what each system's `Files.sync` gave.
    """
    # Tables are found again from where they were found: the same program gives the same ones.
    arrays = {
        **_named("state", flight.state),
        **_named("grid", setting.systems.grid),
        "table_positions": flight.table.positions,
        "table_cell": flight.table.cell,
        "stopped": flight.stopped,
        "stopped_at": flight.stopped_at,
        "closest": flight.closest,
        "energy_limit": setting.limits.energy,
    }
    card = {"settings": settings, "room": dataclasses.asdict(engine.room), "files": files}
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, card=json.dumps(card), **{k: np.asarray(v) for k, v in arrays.items()})


def read_checkpoint(path, settings):
    """What `write_checkpoint` wrote: arrays by name, `Room`, `Grid`, and the files' lengths.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged, or belongs to a run with other settings.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent} holds no simulation to resume; start one without --resume"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        card = json.loads(str(arrays.pop("card")))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); start the simulation anew") from None
    for name, old in card["settings"].items():
        new = settings.get(name)
        ramped = settings["temperature_end"] is not None or settings["pressure_end"] is not None
        if new != old and (name not in FREE or (name == "steps" and ramped)):
            raise ValueError(
                f"cannot resume {path.parent} with {name} = {new!r}: the simulation was started "
                f"with {old!r}; keep it, or start a new one in another folder"
            )
    room = card["room"]
    room = Room(**room | {"reach": tuple(room["reach"])})
    grid = Grid(**{f.name: arrays[f"grid.{f.name}"] for f in dataclasses.fields(Grid)})
    return arrays, room, grid, card["files"]


def restore(flight, arrays):
    """The `Flight` of a checkpoint, but for its table.

    Args:
      flight: one of the same shapes.

    Raises:
      ValueError: the checkpoint has other shapes, since other devices shared the atoms.
    """
    rows, wanted = arrays["state.positions"].shape[1], flight.state.positions.shape[1]
    if rows != wanted:
        raise ValueError(
            f"the checkpoint has {rows} rows of atoms, but the devices here share {wanted}; resume "
            "on as many cores or devices as the simulation was started on"
        )
    names = list(_named("state", flight.state))
    leaves = [jnp.asarray(arrays[name]) for name in names]
    state = jax.tree.unflatten(jax.tree.structure(flight.state), leaves)
    others = {name: jnp.asarray(arrays[name]) for name in ("stopped", "stopped_at", "closest")}
    return replace(flight, state=state, **others)


def _named(prefix, tree):
    """Leaves of a tree of dataclasses by their paths."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {prefix + jax.tree_util.keystr(path): leaf for path, leaf in leaves}
