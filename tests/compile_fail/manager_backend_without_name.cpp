/// A backend that does not say what it is called.
// expect: this backend has no name
#include <vm_accel/manager/acceleration_manager.hpp>

using namespace vm_accel;

namespace {

struct ram {
    using role = roles::guest_memory;
    static constexpr std::string_view name = "ram";
};

struct lost {
    using role = roles::guest_memory;
};

} // namespace

acceleration_manager<lost> manager;
