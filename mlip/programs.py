"""Compiled programs: our options for XLA, where they are kept, and which process may run them."""

import contextlib
import functools
import hashlib
import os
import platform
import re
import tempfile
import threading
from pathlib import Path

import jax

# XLA for CPUs hands parts of programs to YNNPACK. From jax 0.10.2 on these are sums and fused
# chains too, with which evaluations take 1.6 to 5 times as long, and which give wrong sums in
# 0.10.2 (jax-ml/jax issue 39103). Single products are left to it.
FUSIONS = "xla_cpu_experimental_ynn_fusion_type"
PRODUCTS_ALONE = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
NEVER = (999,)
# Options that XLA gets with programs: the versions of jax that need each (the first that does, the
# first that does not), and the value.
OPTIONS = {FUSIONS: ((0, 10, 2), NEVER, PRODUCTS_ALONE)}
# Training steps gain by those fusions where they are right, and lose by tiles of fused loops.
IN_TRAINING = {
    FUSIONS: ((0, 10, 2), (0, 11), PRODUCTS_ALONE),
    "xla_cpu_experimental_enable_tiling_propagation": ((0, 11), NEVER, False),
}
# Lines of /proc/cpuinfo that tell processors apart, on x86 and on ARM.
TELLING = ("model name", "flags", "Features", "CPU implementer", "CPU part")
# jax before 0.11 writes this for every program that it loads from its cache: it mistakes two tuning
# flags of LLVM for instructions that the processor lacks (jax-ml/jax issue 38445). An instruction
# that is truly missing has another name, and is told.
REMARK = re.compile(rb"cpu_aot_loader\.cc.*Target machine feature \+prefer-no-(gather|scatter) is")
SILENT_SINCE = (0, 11)


class Program:
    """A function whose programs XLA compiles with `compiler_options()`.

    Call it from outside of other jitted functions, and `inside` within them.

    Args:
      training: as of `compiler_options`.
      settings: of `jax.jit`.
    """

    def __init__(self, function, training=False, **settings):
        self.inside, self.training, self.settings = function, training, settings
        functools.update_wrapper(self, function)

    @functools.cached_property
    def jitted(self):
        options = compiler_options(self.training)
        return jax.jit(self.inside, compiler_options=options, **self.settings)

    def __call__(self, *arguments):
        note_computing()
        return self.jitted(*arguments)

    def compile(self, *arguments):
        """The program for these arguments or their shapes, `jax.stages.Compiled`."""
        note_computing()
        return self.jitted.lower(*arguments).compile()


def program(**settings):
    """Decorator that makes a `Program`; settings are its arguments."""
    return functools.partial(Program, **settings)


def compiler_options(training=False):
    """Options for XLA with which our programs are right and fast on this version of jax.

    Ours have them already. A program of your own that contains a potential, such as a step of
    jax-md, gets them by `jax.jit(step, compiler_options=mlip.compiler_options())`. Options that
    this version does not know, and those that XLA_FLAGS sets, are left out.

    Args:
      training: True for a program that differentiates by a network's parameters.

    Returns:
      dict for the argument `compiler_options` of `jax.jit`.

    Raises:
      RuntimeError: see `refuse_forked`.
    """
    note_computing()
    return dict(_known_options(training))


@functools.cache
def _known_options(training):
    known, flags = {}, os.environ.get("XLA_FLAGS", "")
    for name, (since, before, value) in (IN_TRAINING if training else OPTIONS).items():
        if name in flags or not since <= jax.__version_info__ < before:
            continue
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # no such option
            jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
            known[name] = value
    return known


_computed_in = None  # the process in which a potential has computed


def refuse_forked():
    """Refuse to compute in a process that cannot.

    Raises:
      RuntimeError: the process was forked from one in which a potential had computed.
    """
    if _computed_in not in (None, os.getpid()):
        raise RuntimeError(
            "this process was forked from one in which jax had computed already; jax's threads "
            "are not copied, and the first computation would hang. Start processes with "
            "multiprocessing.get_context('spawn'), or mp_context= of ProcessPoolExecutor"
        )


def note_computing():
    """To be called before a potential computes; raises as `refuse_forked`."""
    global _computed_in
    refuse_forked()
    _computed_in = os.getpid()


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
    """From now on, keep REMARK out of standard error while jax loads programs from its cache."""
    if jax.__version_info__ >= SILENT_SINCE:
        return
    from jax._src import compilation_cache

    load = compilation_cache.get_executable_and_time

    @functools.wraps(load)
    def load_silently(*arguments, **settings):
        with without_lines(2, REMARK):
            return load(*arguments, **settings)

    compilation_cache.get_executable_and_time = load_silently


_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def without_lines(descriptor, pattern):
    """What is written to a file descriptor within comes after the block, less some lines.

    Args:
      descriptor: if it is closed, or nothing can be held back, nothing is done.
      pattern: compiled, of bytes; lines in which it is found are dropped.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_one_at_a_time)
        try:
            held = stack.enter_context(tempfile.TemporaryFile())
            behind = os.dup(descriptor)
        except OSError:
            yield
            return
        os.dup2(held.fileno(), descriptor)
        try:
            yield
        finally:
            os.dup2(behind, descriptor)
            os.close(behind)
            held.seek(0)
            with (
                contextlib.suppress(OSError),  # nobody reads it
                open(descriptor, "wb", closefd=False) as written,
            ):
                written.writelines(line for line in held if not pattern.search(line))
