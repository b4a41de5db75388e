/// Asking a manager for a backend that it was not composed of.
// expect: this acceleration_manager has no backend of the type asked for
#include <vm_accel/manager/acceleration_manager.hpp>

using namespace vm_accel;

namespace {

struct ram {
    using role = roles::guest_memory;
    static constexpr std::string_view name = "ram";
};

struct other : ram {};

} // namespace

acceleration_manager<ram> manager;
auto& wanted = manager.get<other>();
