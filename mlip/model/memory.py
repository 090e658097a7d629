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


def require_room(needed, free, n_atoms, what, remedy="fewer atoms, float32, or more devices"):
    """Refuse what does not fit into memory, naming the size that would.

    Args:
      needed: bytes for `n_atoms` atoms.
      free: bytes, or None where nobody tells.
      remedy: what to take instead.

    Raises:
      MemoryError: needed is more than free.
    """
    if free is not None and needed > free:
        raise MemoryError(
            f"{what} of {n_atoms} atoms needs {needed / 1e9:.1f} GB of memory, but only "
            f"{free / 1e9:.1f} GB are free; about {int(n_atoms * free / needed)} atoms fit. Take "
            f"{remedy}"
        )
