"""What a process decides once: its cache of compiled programs, host devices, signals to stop."""

import contextlib
import hashlib
import os
import platform
import signal
import threading
from pathlib import Path

import jax

# Lines of /proc/cpuinfo, on x86 and on ARM.
TELLING = ("model name", "flags", "Features", "CPU implementer", "CPU part")


def keep_compiled_programs():
    """Keep compiled programs in the user's cache folder, so that the next process starts quicker.

    The environment variable MLIP_CACHE names another folder, or is `off`. Where the user has set
    jax's own cache, that is used. Programs of other processors or versions of jax lie apart. It
    holds for all that the process compiles from then on.
    """
    wanted = os.environ.get("MLIP_CACHE", "")
    if wanted == "off" or jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # nobody's process, in a container
        return
    machine = hashlib.sha256(_processor().encode()).hexdigest()[:8]
    folder = Path(wanted or Path(base) / "mlip").expanduser() / f"jax-{jax.__version__}-{machine}"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Small programs too: there are dozens, and together they take seconds to compile.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _processor():
    """What tells apart processors for which programs are compiled."""
    unknown = f"{platform.machine()} {platform.processor()}"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return unknown
    return "".join(sorted({line for line in lines if line.startswith(TELLING)})) or unknown


def use_all_cores():
    """Make every core that this process may use a device of its own.

    For programs, not for libraries: it holds for the whole process. A number of devices that was
    set before, or with which jax has already computed, is kept.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if jax.config.jax_num_cpu_devices > 0 or "xla_force_host_platform_device_count" in flags:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(RuntimeError):  # jax has computed already
        jax.config.update("jax_num_cpu_devices", cores)


class Stop(KeyboardInterrupt):
    """Raised between two steps when a signal asked the run to end."""

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def stop_signals():
    """A function that raises `Stop` once Ctrl-C or SIGTERM has come; a second Ctrl-C interrupts."""
    received = []

    def note(number, frame):
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    def check():
        if received:
            raise Stop(received[0])

    main = threading.current_thread() is threading.main_thread()
    wanted = (signal.SIGINT, signal.SIGTERM) if main else ()
    before = {number: signal.signal(number, note) for number in wanted}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
