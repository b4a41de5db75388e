/// The one-file header of everything compiles with nothing else of the library in reach.
#include <vm_accel.hpp>

static_assert(vm_accel::guest_memory<vm_accel::region_map>);
#if __has_include(<vm_accel/core/version.hpp>)
#error "this test must see the one-file header only"
#endif
