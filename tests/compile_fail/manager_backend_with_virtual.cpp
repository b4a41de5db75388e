/// A backend that would be dispatched at run time.
// expect: a backend has no virtual functions
#include <vm_accel/manager/acceleration_manager.hpp>

using namespace vm_accel;

namespace {

struct ram {
    using role = roles::guest_memory;
    static constexpr std::string_view name = "ram";
};

struct lost : ram {
    virtual ~lost() = default;
};

} // namespace

acceleration_manager<lost> manager;
