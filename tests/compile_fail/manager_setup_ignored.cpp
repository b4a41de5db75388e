/// Setting up without looking at what came of it.
// expect: (ignoring return|nodiscard)
#pragma GCC diagnostic error "-Wunused-result"
#include <vm_accel/manager/acceleration_manager.hpp>

using namespace vm_accel;

namespace {

struct ram {
    using role = roles::guest_memory;
    static constexpr std::string_view name = "ram";
};

} // namespace

void forget(acceleration_manager<ram>& manager) { manager.setup_full_acceleration(); }
