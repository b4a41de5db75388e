/// vCPUs of KVM whose making was interrupted half-way by an error.
#pragma once

#include <vm_accel/os/descriptor.hpp>

#include <mutex>
#include <utility>
#include <vector>

namespace vm_accel::inline v0 {

/// vCPUs that the kernel has made but that never became ready. KVM keeps a vCPU
/// until the VM ends, so that a second attempt must finish the first one.
/// Part of kvm_vm. Calls are safe from any thread; moved only before it is shared.
class unfinished_vcpus {
public:
    unfinished_vcpus() noexcept = default;
    unfinished_vcpus(unfinished_vcpus&& other) noexcept : waiting_(std::move(other.waiting_)) {}
    unfinished_vcpus& operator=(unfinished_vcpus&& other) noexcept {
        waiting_ = std::move(other.waiting_);
        return *this;
    }

    void keep(unsigned index, os::descriptor vcpu) {
        const std::lock_guard lock{mutex_};
        waiting_.emplace_back(index, std::move(vcpu));
    }
    /// An empty descriptor if none has that index.
    [[nodiscard]] os::descriptor take(unsigned index) noexcept {
        const std::lock_guard lock{mutex_};
        for (auto& [number, vcpu] : waiting_)
            if (number == index && vcpu) return std::move(vcpu);
        return {};
    }

private:
    std::vector<std::pair<unsigned, os::descriptor>> waiting_{};
    std::mutex mutex_{};
};

} // namespace vm_accel::inline v0
