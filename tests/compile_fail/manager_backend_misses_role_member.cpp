/// A backend for memory that cannot be switched off.
// expect: this backend lacks a member that its role promises
#include <vm_accel/manager/acceleration_manager.hpp>

using namespace vm_accel;

namespace {

struct ram {
    using role = roles::guest_memory;
    static constexpr std::string_view name = "ram";
};

struct nodes {
    using role = roles::memory;
    static constexpr std::string_view name = "nodes";
    result<> enable(unsigned) noexcept { return {}; }
    bool is_enabled() const noexcept { return false; }
};

} // namespace

acceleration_manager<nodes> manager;
