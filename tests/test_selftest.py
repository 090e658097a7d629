"""The self-test passes here and notices wrong arithmetic."""

import jax
import numpy as np
import pytest

from mlip import selftest

pytestmark = [pytest.mark.usefixtures("optimized"), pytest.mark.versions]


def test_compiled_arithmetic_is_right_on_this_machine():
    checks = selftest.run()
    assert {check.n_edges for check in checks} == set(selftest.EDGES)
    assert min(selftest.EDGES) > 16_000
    assert sorted(selftest.EDGES)[1] > 32_000
    assert max(selftest.EDGES) >= 40_000
    assert all(check.wrong == 0 for check in checks)
    assert max(check.error for check in checks) < 1e-5
    selftest.require_correct_arithmetic()


def test_wrong_rows_are_counted_and_refused_with_cause_and_remedy(monkeypatch):
    real = selftest.Program

    def faulty(function, training):
        def compiled(*arguments):
            # As jax 0.10.2: a part of the rows is wrong, and only in large arrays.
            result = np.array(real(function, training)(*arguments))
            if len(result) >= 40_000:
                result[::5] *= 1.5
            return result

        return compiled

    monkeypatch.setattr(selftest, "Program", faulty)
    with pytest.raises(RuntimeError, match=r"\d+ of 40\d+ rows deviate .* pip install 'jax!="):
        selftest.require_correct_arithmetic()


def test_the_silently_wrong_version_is_excluded():
    assert jax.__version__ != "0.10.2"
