// expect: (ignoring return|nodiscard)
#pragma GCC diagnostic error "-Wunused-result"
#include <vm_accel/guest/region_map.hpp>

void forget(vm_accel::region_map& memory) { memory.remove(vm_accel::pa{0}); }
