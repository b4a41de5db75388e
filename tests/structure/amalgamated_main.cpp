/// The one-file header can be used in two translation units of one program.
#include <vm_accel.hpp>

int main() { return vm_accel::library_version.major == VM_ACCEL_VERSION_MAJOR ? 0 : 1; }
