"""`mlip selftest`: compare compiled parts of the network with NumPy on this machine."""

from mlip.screen import checks_table, print_to_screen
from mlip.selftest import require_correct_arithmetic
from mlip.selftest import run as compare_with_numpy


def describe(parser):
    pass


def run(arguments):
    checks = compare_with_numpy()
    print_to_screen(checks_table(checks))
    require_correct_arithmetic(checks)
    print("compiled arithmetic agrees with NumPy")
