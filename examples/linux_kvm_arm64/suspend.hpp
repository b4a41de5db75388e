/// Suspending the whole machine, and going on with it in another process.
///
/// What the kernel and the SMMU hold is taken before guest memory is read, and put
/// back after it is written: pending messages and the translation service's tables
/// travel in guest memory.
#pragma once

#include "saved_machine.hpp"

#include <vm_accel/hypervisor/kvm.hpp>
#include <vm_accel/hypervisor/kvm_arm64_state.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace linux_vmm {

/// What the kernel holds of the machine.
struct kernel_parts {
    vm_accel::kvm_vm& vm;
    std::vector<vm_accel::kvm_vcpu>& vcpus;
    unsigned interrupts = 0; ///< of the GIC
    bool has_its = false;
};

/// vCPUs, GIC, ITS and SMMU of a machine at rest.
class inner_state {
public:
    template <class Smmu>
    [[nodiscard]] vm_accel::result<> take(const kernel_parts& from, Smmu& smmu) {
        using namespace vm_accel;
        std::vector<std::uint64_t> affinities;
        for (kvm_vcpu& vcpu : from.vcpus) {
            const result<std::uint64_t> mpidr = vcpu.get_register(arm64::mpidr_el1);
            if (!mpidr) return fail(mpidr);
            affinities.push_back(*mpidr);
            result<arm64::vcpu_state> saved = arm64::save_vcpu(vcpu);
            if (!saved) return fail(saved);
            vcpus_.push_back(std::move(*saved));
        }
        const result<unsigned> bits = arm64::gic_priority_bits(from.vm, affinities.front());
        if (!bits) return fail(bits);
        const arm64::gic_plan plan{affinities, from.interrupts, from.has_its, *bits};
        result<arm64::gic_state> gic = arm64::save_gic(from.vm, plan, from.has_its);
        if (!gic) return fail(gic);
        gic_ = std::move(*gic);
        smmu_.resize(smmu.saved_state_size());
        if (const auto saved = smmu.save(smmu_); !saved) return fail(saved);
        return {};
    }
    template <class Smmu>
    [[nodiscard]] vm_accel::result<> put_back(const kernel_parts& into, Smmu& smmu) const {
        using namespace vm_accel;
        for (std::size_t i = 0; i < into.vcpus.size(); ++i) {
            const result<> done = arm64::restore_vcpu(into.vcpus[i], vcpus_[i]);
            if (!done) return done;
        }
        if (const result<> done = arm64::restore_gic(into.vm, gic_); !done) return done;
        return smmu.restore(smmu_);
    }
    void move_state(saved_machine& file, std::size_t vcpus) {
        vcpus_.resize(vcpus);
        for (vm_accel::arm64::vcpu_state& vcpu : vcpus_) {
            file(vcpu.registers);
            file(vcpu.values);
            file(vcpu.power_state);
            file(vcpu.events);
        }
        file(gic_.words);
        file(smmu_);
    }

private:
    std::vector<vm_accel::arm64::vcpu_state> vcpus_;
    vm_accel::arm64::gic_state gic_;
    std::vector<std::byte> smmu_;
};

/// Saves the machine, or goes on with a saved one. No thread of it runs. A null
/// device is none. Errors: mismatch (another machine, or not a whole file), else
/// what the kernel and the SMMU report.
template <class Smmu, class... Devices>
[[nodiscard]] vm_accel::result<> move_machine(saved_machine& file, const machine_shape& shape,
                                              std::span<std::byte> ram, const kernel_parts& kernel,
                                              Smmu& smmu, Devices*... devices) {
    using namespace vm_accel;
    machine_shape found = shape;
    file(found);
    if (found != shape) {
        return fail(errc::mismatch, "the saved machine is another one",
                    "resume with the options that it was started with");
    }
    inner_state inner;
    if (file.is_saving()) {
        if (const result<> done = inner.take(kernel, smmu); !done) return done;
    }
    file.memory(ram);
    inner.move_state(file, kernel.vcpus.size());
    const auto move = [&file](auto* device) {
        if (device != nullptr) device->move_state(file);
    };
    (move(devices), ...);
    if (const result<> whole = file.finish(); !whole) return whole;
    return file.is_saving() ? result<>{} : inner.put_back(kernel, smmu);
}

} // namespace linux_vmm
