"""Units: eV, Å, amu; stresses eV/Å³. Numbers to convert at the border and for display."""

GPA = 0.006241509074460763  # eV/Å³ in one GPa (CODATA 2018)
KBAR = 0.1 * GPA
MEV = 1000.0  # meV in one eV
HARTREE = 27.211386245988  # eV in one Hartree (CODATA 2018)
RYDBERG = HARTREE / 2
BOHR = 0.529177210903  # Å in one Bohr (CODATA 2018)
DEBYE = 0.20819433  # e·Å in one Debye (CODATA 2018)
KJ_MOL = 0.01036426965  # eV per particle in one kJ/mol
KCAL_MOL = 4.184 * KJ_MOL
