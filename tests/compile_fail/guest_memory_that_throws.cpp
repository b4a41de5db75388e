// expect: no matching function for call to .use
#include <vm_accel/guest/region_map.hpp>

using namespace vm_accel;

struct throwing : region_map {
    bool read(pa, std::span<std::byte>) const;
};

template <guest_memory Memory>
void use(Memory&) {}

void try_it(throwing& memory) { use(memory); }
