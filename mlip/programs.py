"""Compiled programs: our options for XLA, where they are kept, and which process may run them."""

import contextlib
import functools
import hashlib
import os
import platform
import re
import threading
from pathlib import Path

import jax

# Options of XLA for every program of ours, with the version of jax from which on each is needed.
OPTIONS = {
    # XLA for CPUs hands parts of programs to YNNPACK. Up to jax 0.10.1 these were single products,
    # which is fast; since then they are sums and fused chains too, with which evaluations take 1.6
    # to 5 times as long, and which give wrong sums in 0.10.2 (jax-ml/jax issue 39103).
    "xla_cpu_experimental_ynn_fusion_type": ((0, 10, 2), "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"),
}
# Lines of /proc/cpuinfo that tell processors apart, on x86 and on ARM.
TELLING = ("model name", "flags", "Features", "CPU implementer", "CPU part")
# What jax before 0.11 writes whenever it loads a program from its cache: it takes two preferences
# of the compiler for instructions that the processor lacks (jax-ml/jax issue 38445). An
# instruction that is truly missing has another name, and is told.
REMARK = re.compile(rb"cpu_aot_loader\.cc.*Target machine feature \+prefer-no-(gather|scatter) is")
SILENT_SINCE = (0, 11)
REQUEST = "/jax/compilation_cache/compile_requests_use_cache"
COMPILED = "/jax/core/compile/backend_compile_duration"


class Program:
    """A function whose programs XLA compiles with `compiler_options()`.

    Call it from outside of other jitted functions, and `inside` within them.
    """

    def __init__(self, function, **settings):
        self.inside, self.settings = function, settings
        functools.update_wrapper(self, function)

    @functools.cached_property
    def jitted(self):
        return jax.jit(self.inside, compiler_options=compiler_options(), **self.settings)

    def __call__(self, *arguments):
        refuse_forked()
        return self.jitted(*arguments)

    def compile(self, *arguments):
        """The program for these arguments or their shapes, `jax.stages.Compiled`."""
        refuse_forked()
        return self.jitted.lower(*arguments).compile()


def program(**settings):
    """Decorator that makes a `Program`; settings are those of `jax.jit`."""
    return functools.partial(Program, **settings)


def compiler_options():
    """Options for XLA with which our programs are right and fast on this version of jax.

    Ours have them already. A program of your own that contains a potential, such as a step of
    jax-md, gets them by `jax.jit(step, compiler_options=mlip.compiler_options())`. Options that
    this version does not know, and those that XLA_FLAGS sets, are left out.

    Returns:
      dict for the argument `compiler_options` of `jax.jit`.

    Raises:
      RuntimeError: see `refuse_forked`.
    """
    refuse_forked()
    return dict(_known_options())


@functools.cache
def _known_options():
    known, flags = {}, os.environ.get("XLA_FLAGS", "")
    for name, (since, value) in OPTIONS.items():
        if name in flags or jax.__version_info__ < since:
            continue
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # no such option
            jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
            known[name] = value
    return known


def refuse_forked():
    """Refuse to compute in a process that cannot.

    Raises:
      RuntimeError: the process was forked from one in which jax had computed.
    """
    if _forked:
        raise RuntimeError(
            "this process was forked from one in which jax had computed already; jax's threads "
            "are not copied, and the first computation would hang. Start processes with "
            "multiprocessing.get_context('spawn'), or mp_context= of ProcessPoolExecutor"
        )


_forked = False


def _note_fork():
    global _forked
    before = jax.config.jax_num_cpu_devices
    try:  # jax refuses another number once it has computed
        jax.config.update("jax_num_cpu_devices", 1 if before != 1 else 2)
        jax.config.update("jax_num_cpu_devices", before)
    except RuntimeError:
        _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def keep_compiled_programs():
    """Keep compiled programs in the user's cache folder, so that the next process starts quicker.

    The environment variable MLIP_CACHE names another folder, or is `off`. Where the user has set
    jax's own cache, that is used. Programs of other processors or versions of jax lie apart. It
    holds for all that the process compiles from then on.

    Raises:
      RuntimeError: see `refuse_forked`.
    """
    refuse_forked()
    _drop_remarks()
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


@functools.cache
def _drop_remarks():
    """From now on, keep REMARK out of the standard error of this process.

    Only while jax looks for a program in its cache and compiles what is not there, standard error
    passes through a `Sieve`.
    """
    if jax.__version_info__ >= SILENT_SINCE:
        return
    sieve = Sieve(2, REMARK)
    jax.monitoring.register_event_listener(
        lambda event, **_: sieve.open() if event == REQUEST else None
    )
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: sieve.close() if event == COMPILED else None
    )


class Sieve:
    """While open, lines written to a file descriptor that match a pattern are dropped.

    Everything else is handed on at once, by a thread. Several threads may open it; it closes with
    the last of them. A file descriptor that is closed stays so.
    """

    END = b"\0end of the sieve\0"

    def __init__(self, descriptor, pattern):
        self.descriptor, self.pattern = descriptor, pattern
        self.lock, self.n_open = threading.Lock(), 0

    def open(self):
        with self.lock:
            self.n_open += 1
            if self.n_open > 1:
                return
            try:
                self.behind = os.dup(self.descriptor)
            except OSError:
                self.n_open = 0
                return
            read, self.front = os.pipe()
            os.dup2(self.front, self.descriptor)
            self.ended = threading.Event()
            arguments = read, os.dup(self.behind), self.ended
            threading.Thread(target=self._hand_on, args=arguments, daemon=True).start()

    def close(self):
        with self.lock:
            if self.n_open == 0:
                return
            self.n_open -= 1
            if self.n_open == 0:
                os.dup2(self.behind, self.descriptor)
                os.write(self.front, self.END)
                os.close(self.front)
                os.close(self.behind)
                self.ended.wait()

    def _hand_on(self, read, write, ended):
        """Until every end is closed: a process started in between may hold one for long."""
        held = b""
        with open(read, "rb", buffering=0) as source, open(write, "wb", buffering=0) as target:
            while chunk := source.read(1 << 16):
                text = held + chunk
                over = self.END in text
                *lines, held = text.replace(self.END, b"").split(b"\n")
                kept = b"".join(line + b"\n" for line in lines if not self.pattern.search(line))
                if over:
                    kept, held = kept + held, b""
                with contextlib.suppress(OSError):  # nobody reads them any more
                    target.write(kept)
                if over:
                    ended.set()
