"""What a process decides once: host devices, signals to stop."""

import contextlib
import os
import signal
import threading

import jax


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
