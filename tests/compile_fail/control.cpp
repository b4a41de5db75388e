// expect: compiles
// What the other files do wrong, done right.
#include <vm_accel/core/address.hpp>
#include <vm_accel/core/field.hpp>
#include <vm_accel/guest/region_map.hpp>

using namespace vm_accel;

bool in_window(pa_range window, pa address) { return window.contains(address); }

bool translated(iova from, pa to) {
    return in_window(pa_range{pa{0}, 0x1000}, to) && raw(from) == raw(to);
}

using middle = field<0, 51, 12>;

template <guest_memory Memory>
void use(Memory&) {}

void all_of_it(region_map& memory) {
    use(memory);
    if (!memory.remove(pa{0})) return;
}
