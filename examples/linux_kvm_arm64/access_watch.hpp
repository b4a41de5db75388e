/// Where the vCPUs run while the guest does: what local access rates are made of.
#pragma once

#include <vm_accel/numa/numa_allocator.hpp>
#include <vm_accel/numa/vcpu_sampler.hpp>
#include <vm_accel/os/placement.hpp>
#include <vm_accel/topology/cpu_topology.hpp>

#include <chrono>
#include <cstddef>
#include <mutex>
#include <optional>
#include <vector>

namespace linux_vmm {

/// Threads: any.
class access_watch {
public:
    explicit access_watch(const vm_accel::cpu_topology& topology) : sampler_(topology) {}

    /// On each vCPU's thread, before the guest is entered.
    void follow_this_vcpu(unsigned vcpu, unsigned guest_node) {
        const auto self = placement_.current_thread();
        const std::lock_guard lock{mutex_};
        if (!self) return;
        sampler_.add(placement_, *self, guest_node);
        vcpus_.push_back(vcpu);
        sampler_.sample(placement_);
    }
    /// Now and then, from any thread of the VMM; a look at most every 100 ms is taken.
    void look() noexcept {
        const auto now = std::chrono::steady_clock::now();
        const std::lock_guard lock{mutex_};
        if (now < next_) return;
        next_ = now + std::chrono::milliseconds{100};
        sampler_.sample(placement_);
    }

    /// The rate of each vCPU, and of each of the region's chunks, when the vCPUs have ended.
    /// The memory backend's report tells of the whole.
    template <class Allocator>
    [[nodiscard]] vm_accel::access_tracking track(Allocator& memory,
                                                  const vm_accel::region_proof& proof) {
        const std::lock_guard lock{mutex_};
        sampler_.read_counters();
        vm_accel::access_tracking tracked =
            memory.track(proof, sampler_.residency(), sampler_.counted());
        std::vector<vm_accel::local_access_rate> in_order(vcpus_.size());
        for (std::size_t i = 0; i < vcpus_.size(); ++i)
            if (vcpus_[i] < in_order.size()) in_order[vcpus_[i]] = tracked.vcpus[i];
        tracked.vcpus = in_order;
        return tracked;
    }

private:
    std::mutex mutex_;
    vm_accel::os::native_placement placement_;
    vm_accel::vcpu_sampler<vm_accel::os::native_placement> sampler_;
    std::vector<unsigned> vcpus_; ///< in the order in which their threads began
    std::chrono::steady_clock::time_point next_{};
};

} // namespace linux_vmm
