/// A backend that does not say what it is for.
// expect: this backend has no role: say what it is for
#include <vm_accel/manager/acceleration_manager.hpp>

using namespace vm_accel;

namespace {

struct ram {
    using role = roles::guest_memory;
    static constexpr std::string_view name = "ram";
};

struct lost {
    static constexpr std::string_view name = "lost";
};

} // namespace

acceleration_manager<lost> manager;
