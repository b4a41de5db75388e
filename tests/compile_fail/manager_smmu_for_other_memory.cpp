/// An SMMU made for another kind of guest memory than the one beside it.
// expect: the roles::smmu backend cannot use this roles::guest_memory backend
#include <vm_accel/manager/acceleration_manager.hpp>

using namespace vm_accel;

namespace {

struct ram {
    using role = roles::guest_memory;
    static constexpr std::string_view name = "ram";
};

struct other_ram : ram {};
struct device {
    using role = roles::smmu;
    static constexpr std::string_view name = "device";
    void connect(other_ram&) noexcept {}
    result<> init() noexcept { return {}; }
    bool is_initialized() const noexcept { return false; }
};

} // namespace

acceleration_manager<ram, device> manager;
