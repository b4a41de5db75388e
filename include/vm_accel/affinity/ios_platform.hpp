/// iOS as a platform for `affinity`: everything unsupported, with the reason.
#pragma once

#include <vm_accel/affinity/platform.hpp>

#include <string_view>

namespace vm_accel::inline v0 {

/// Models affinity_platform, and claims nothing. iOS lets no program make virtual
/// machines (Hypervisor.framework is not there, or not open to programs), so there are
/// no vCPUs to place; the SMMU's model and the planner work. The same on every system.
struct ios_platform : claims_nothing {
    static constexpr std::string_view name = "ios";
    static constexpr std::string_view why_no_pins = "iOS runs no virtual machines of programs";

    /// Always `unsupported`.
    [[nodiscard]] result<cpu_topology> load() noexcept { return refuse("its CPUs"); }
    /// Always `unsupported`.
    [[nodiscard]] result<> pin(os::thread_id, const os::cpu_set&) noexcept {
        return refuse("pinning threads");
    }
    /// Always `unsupported`.
    [[nodiscard]] result<os::given_priority> set_priority(const os::thread_priority&) noexcept {
        return refuse("priorities of vCPU threads");
    }

private:
    [[nodiscard]] static tl::unexpected<error> refuse(std::string_view what) noexcept {
        return fail(errc::unsupported,
                    fixed_text<160>{"ios platform: iOS runs no virtual machines of programs; "}
                        .append(what)
                        .append(" has no use there"),
                    "run the VMM on macOS or Linux; use fixed_platform for dry runs");
    }
};

static_assert(affinity_platform<ios_platform>);

} // namespace vm_accel::inline v0
