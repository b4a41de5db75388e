/// Switching on NUMA without a backend for memory.
// expect: no backend of this acceleration_manager has the role asked for
#include <vm_accel/manager/acceleration_manager.hpp>

using namespace vm_accel;

namespace {

struct ram {
    using role = roles::guest_memory;
    static constexpr std::string_view name = "ram";
};

} // namespace

acceleration_manager<ram> manager;
const auto done = manager.enable_numa(2);
