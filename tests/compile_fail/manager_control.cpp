/// Control: what the other files do wrong, done right, compiles.
// expect: compiles
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
    void connect(ram&) noexcept {}
    result<> init() noexcept { return {}; }
    bool is_initialized() const noexcept { return false; }
};

} // namespace

acceleration_manager<device, ram> manager;
auto& wanted = manager.smmu();
auto& found = manager.get<ram>();
const auto done = manager.init_smmu();
