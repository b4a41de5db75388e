/// A backend that is not held by value.
// expect: a backend is a class, held by value
#include <vm_accel/manager/acceleration_manager.hpp>

using namespace vm_accel;

namespace {

struct ram {
    using role = roles::guest_memory;
    static constexpr std::string_view name = "ram";
};

} // namespace

acceleration_manager<ram&> manager;
