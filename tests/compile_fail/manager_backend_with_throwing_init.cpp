/// A backend whose init() is not noexcept.
// expect: this backend's set-up has another shape
#include <vm_accel/manager/acceleration_manager.hpp>

using namespace vm_accel;

namespace {

struct ram {
    using role = roles::guest_memory;
    static constexpr std::string_view name = "ram";
};

struct lost : ram {
    result<> init() { return {}; }
    bool is_initialized() const noexcept { return false; }
};

} // namespace

acceleration_manager<lost> manager;
