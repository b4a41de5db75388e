"""Defects that scripts/differential --mutants plants: name, file under include/vm_accel/smmu, the
line as it is, the line with the defect."""

MUTANTS = []
