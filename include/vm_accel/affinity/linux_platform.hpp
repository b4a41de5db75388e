/// The running system as a platform for `affinity`: topology from hwloc, threads
/// through the kernel. Its answers on systems other than Linux are `unsupported`.
#pragma once

#include <vm_accel/affinity/platform.hpp>
#include <vm_accel/os/threads.hpp>
#include <vm_accel/topology/load.hpp>

#include <string_view>

namespace vm_accel::inline v0 {

/// Models affinity_platform. Stateless; the topology is loaded once per process.
struct linux_platform {
    static constexpr std::string_view name = "linux";
    static constexpr bool can_pin_threads = os::native_threads::can_pin_threads;
    static constexpr bool pins_are_real = true;

    [[nodiscard]] result<cpu_topology> load() noexcept { return host_topology{}.load(); }
    [[nodiscard]] result<> pin(const os::cpu_set& cpus) noexcept {
        return os::native_threads{}.pin_current_thread(cpus);
    }
    [[nodiscard]] result<os::cpu_set> pinned() noexcept {
        return os::native_threads{}.current_pin();
    }
};

static_assert(affinity_platform<linux_platform>);

} // namespace vm_accel::inline v0
