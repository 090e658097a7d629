"""What the cores this process is pinned to can do with jax, as JSON on stdout."""

import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

SIDE = 1024  # rows of the matrices
COPIED = 1 << 28  # bytes, far more than the caches hold


def median_seconds(work, repeats=7):
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def matmul_gflops():
    """Rate of a jitted product of two float32 matrices."""
    a = jax.random.normal(jax.random.key(0), (SIDE, SIDE))
    product = jax.jit(jnp.matmul)
    return 2e-9 * SIDE**3 / median_seconds(lambda: product(a, a).block_until_ready())


def copy_gigabytes():
    """Gigabytes read and written each second by a large copy."""
    source, target = np.ones((2, COPIED // 8))
    return 2e-9 * COPIED / median_seconds(lambda: np.copyto(target, source))


if __name__ == "__main__":
    print(json.dumps({"matmul_gflops": matmul_gflops(), "copy_gigabytes": copy_gigabytes()}))
