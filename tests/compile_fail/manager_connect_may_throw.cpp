/// A connect() that is not noexcept is not passed over.
// expect: takes another through a connect\(\) of another shape
#include <vm_accel/manager/acceleration_manager.hpp>

using namespace vm_accel;

namespace {

struct ram {
    using role = roles::guest_memory;
    static constexpr std::string_view name = "ram";
};

struct device {
    using role = roles::smmu;
    static constexpr std::string_view name = "device";
    void connect(ram&) {}
    result<> init() noexcept { return {}; }
    bool is_initialized() const noexcept { return false; }
};

} // namespace

acceleration_manager<ram, device> manager;
