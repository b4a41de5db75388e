/// What a backend can be to the acceleration manager. A backend says
/// `using role = roles::smmu;`; a manager holds at most one backend per role.
#pragma once

#include <string_view>

namespace vm_accel::inline v0::roles {

struct hypervisor {
    static constexpr std::string_view name = "hypervisor";
};
struct vcpus {
    static constexpr std::string_view name = "vcpus";
};
struct memory {
    static constexpr std::string_view name = "memory";
};
struct guest_memory {
    static constexpr std::string_view name = "guest_memory";
};
struct smmu {
    static constexpr std::string_view name = "smmu";
};

} // namespace vm_accel::inline v0::roles
