"""Units: eV, Å, amu; stresses eV/Å³. Numbers to convert at the border and for display."""

GPA = 0.006241509074460763  # eV/Å³ in one GPa (CODATA 2018)
KBAR = 0.1 * GPA
MEV = 1000.0  # meV in one eV
