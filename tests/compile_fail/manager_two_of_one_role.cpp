/// Two backends for the same role.
// expect: two backends of this acceleration_manager have the same role
#include <vm_accel/manager/acceleration_manager.hpp>

using namespace vm_accel;

namespace {

struct ram {
    using role = roles::guest_memory;
    static constexpr std::string_view name = "ram";
};

struct other : ram {};

} // namespace

acceleration_manager<ram, other> manager;
