/// Two backends that each want the other first.
// expect: these backends connect to each other in a circle
#include <vm_accel/manager/acceleration_manager.hpp>

using namespace vm_accel;

namespace {

struct ram {
    using role = roles::guest_memory;
    static constexpr std::string_view name = "ram";
};

struct mine {
    static constexpr std::string_view name = "mine";
};
struct device;
struct second {
    using role = mine;
    static constexpr std::string_view name = "second";
    void connect(device&) noexcept {}
};
struct device {
    using role = roles::smmu;
    static constexpr std::string_view name = "device";
    void connect(second&) noexcept {}
    result<> init() noexcept { return {}; }
    bool is_initialized() const noexcept { return false; }
};

} // namespace

acceleration_manager<second, device> manager;
