/// Constructing a backend from something it is not made of.
// expect: give each backend a value it is constructed from
#include <vm_accel/manager/acceleration_manager.hpp>

using namespace vm_accel;

namespace {

struct ram {
    using role = roles::guest_memory;
    static constexpr std::string_view name = "ram";
};

} // namespace

acceleration_manager<ram> manager{std::string_view{"text"}};
