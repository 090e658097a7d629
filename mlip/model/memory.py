"""How much memory a compiled program takes, and how much there is."""

from pathlib import Path

import jax


def peak_bytes(compiled):
    """Bytes that a compiled program holds at once: arguments, results and intermediates."""
    analysis = compiled.memory_analysis()
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )


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
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        return min(free, int(limit) - int(used))
    except (OSError, ValueError):  # no such group, or no limit
        return free


def fits(needed):
    """Whether so many bytes are free, as far as one can know."""
    free = free_bytes()
    return free is None or needed <= free


def require_room(needed, n_atoms, what):
    """Refuse what does not fit into memory, naming the size that would.

    Args:
      needed: bytes for `n_atoms` atoms.

    Raises:
      MemoryError: less than that is free.
    """
    if not fits(needed):
        free = free_bytes()
        raise MemoryError(
            f"{what} of {n_atoms} atoms needs {needed / 1e9:.1f} GB of memory, but only "
            f"{free / 1e9:.1f} GB are free; about {int(n_atoms * free / needed)} atoms fit. Take "
            "fewer atoms, float32, or more devices"
        )
