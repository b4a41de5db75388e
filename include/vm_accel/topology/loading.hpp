/// What every way of reading a topology shares: the options, and keeping what was read.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/topology/cpu_topology.hpp>

#include <mutex>
#include <optional>
#include <utility>

namespace vm_accel::inline v0 {

struct topology_options {
    /// Leave out CPUs that taskset or a parent process took from this process, but isolated
    /// ones only if it took others too. What a cgroup's cpuset excludes is always left out.
    bool honour_binding = true;
};

namespace topology_reading {

/// A topology that is loaded when first asked for, and kept once that has
/// worked; a failure is not kept. Threads: any; others wait while one loads.
class kept_topology {
public:
    /// `load` gives a result<cpu_topology>. What is returned stays valid.
    template <class Load>
    [[nodiscard]] result<const cpu_topology*> get(Load load) noexcept {
        const std::lock_guard lock{mutex_};
        if (!kept_) {
            result<cpu_topology> loaded = load();
            if (!loaded) return fail(loaded);
            kept_ = std::move(*loaded);
        }
        return &*kept_;
    }

private:
    std::mutex mutex_{};
    std::optional<cpu_topology> kept_{};
};

} // namespace topology_reading

} // namespace vm_accel::inline v0
