// First on the include path, before an hwloc that the machine may have.
#error "vm_accel::smmu must not need hwloc"
