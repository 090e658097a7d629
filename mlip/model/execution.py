"""How models are computed: blocks, sizes, devices and memory, as one value that is passed.

It changes no result but by rounding. The numbers were measured on CPUs with the networks of the
MACE family; each says on what.
"""

from dataclasses import dataclass
from pathlib import Path

import jax


@dataclass(frozen=True)
class Execution:
    """One policy of execution; static in compiled programs.

    Raises:
      ValueError: a negative block.
    """

    block: int | None = None  # atoms taken through a layer at a time; 0: all; None: what suits
    axis: str | None = None  # of the devices over which the atoms are spread
    # Of each layer the number of atoms, first in the graph, that it is taken for; None takes all.
    # Neighbours of a layer's atoms lie among those of the layer before.
    rows: tuple[int, ...] | None = None

    slots_at_once: int = 70  # neighbour slots that stay in the cache, for each atom of a block
    # Graphs of up to `least_slots` skip blocking where atoms have at most `few_columns` features;
    # measured on molecules of 27 atoms with 256 and 384.
    least_slots: int = 720
    few_columns: int = 256
    # Up to this many blocks, training stores intermediates, which is no slower than recomputing
    # them (64x0e: cells of 64 to 512 atoms; 128x0e+128x1o: of 64, not of 192).
    kept_blocks: int = 16

    most_slots: int = 200_000  # neighbour slots in one batch of predictions
    most_structures: int = 64  # in one batch of predictions
    many_slots: int = 1_000_000  # beyond which the memory is looked at before it is taken
    large_block: int = 2048  # atoms taken at a time where all at once do not fit
    memory: int | None = None  # bytes that a program may take; None: what the machine has free
    # Atoms on each device, fewer than which are faster on one: of CPUs, of others.
    worthwhile: tuple[int, int] = (48, 2000)

    def __post_init__(self):
        if self.block is not None and self.block < 0:
            raise ValueError(
                f"block is {self.block}; give a positive number of atoms, or 0 for all"
            )

    def block_size(self, columns, best_on_cpu):
        """Atoms to take at a time on this device, or None for all.

        Args:
          columns: features of an atom; the more, the fewer atoms.
          best_on_cpu: measured best number of atoms for 64 features.
        """
        if self.block is None:
            on_cpu = jax.default_backend() == "cpu"
            return max(4, best_on_cpu * 64 // columns) if on_cpu else None
        return self.block or None

    def devices_for(self, n_atoms):
        """Devices of this process over which a system of so many atoms is best spread."""
        devices = jax.local_devices()
        share = self.worthwhile[devices[0].platform != "cpu"]
        return tuple(devices[: max(1, n_atoms // share)])


def compile_within_memory(
    function, versions, arguments, execution, n_atoms, what, devices=None, remedy=None
):
    """Compile a program, and refuse it where it does not fit into memory.

    Args:
      function: a `Program`.
      versions: its static arguments, of versions that give the same and need less and less
        memory; the first that fits is taken.
      arguments: the others, or their shapes.
      execution: an `Execution`, which may limit the memory.
      n_atoms: of the arguments, for the message.
      what: is computed, for the message.
      devices: over which it is spread, if it is.
      remedy: what to take instead of what does not fit.

    Returns:
      `jax.stages.Compiled`.

    Raises:
      MemoryError: no version fits; the message names the size that would.
    """
    for settings in dict.fromkeys(versions):
        compiled = function.compile(*settings, *arguments)
        needed = needed_bytes(compiled, devices)
        free = free_bytes() if execution.memory is None else execution.memory
        if free is None or needed <= free:
            return compiled
    remedy = remedy or "fewer atoms, float32, or more devices"
    raise MemoryError(
        f"{what} of {n_atoms} atoms needs {needed / 1e9:.1f} GB of memory, but only "
        f"{free / 1e9:.1f} GB are free; about {int(n_atoms * free / needed)} atoms fit. Take "
        f"{remedy}"
    )


def peak_bytes(compiled):
    """Bytes that a compiled program holds at once: arguments, results and intermediates."""
    analysis = compiled.memory_analysis()
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )


def needed_bytes(compiled, devices=None):
    """Bytes of one memory that a program takes: devices of the host share theirs.

    Args:
      devices: over which the program is spread, if it is; its analysis is of one of them.
    """
    shares = len(devices) if devices and devices[0].platform == "cpu" else 1
    return shares * peak_bytes(compiled)


def free_bytes():
    """Bytes that the first device can still give, or None where nobody tells."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics["bytes_in_use"]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    available = next((line for line in lines if line.startswith("MemAvailable:")), None)
    if available is None:
        return None
    free = 1024 * int(available.split()[1])
    # A container or a batch job may have less than the machine.
    return min([free, *_left_to_groups()])


def _left_to_groups():
    """Bytes that the control groups of this process still allow, where they limit it."""
    try:
        path = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].strip("/")
    except OSError:
        return
    inner = Path("/sys/fs/cgroup") / path
    for group in (inner, *inner.parents):
        try:
            limit, used = (
                int((group / f"memory.{name}").read_text()) for name in ("max", "current")
            )
            counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such group, or no limit
            continue
        yield max(limit - used + int(counts["inactive_file"]), 0)  # file pages are given back
