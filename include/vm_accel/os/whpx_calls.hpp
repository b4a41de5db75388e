/// The calls of WinHvPlatform.dll that the `whpx` backend makes.
///
/// The library is looked for at run time: a program that is linked against it does not
/// start where Windows lacks it. So these calls go through pointers that the system
/// gave. Entering a vCPU costs a switch to the hypervisor and back, and no path of the
/// SMMU or of an allocation comes here. On other systems load() says why not.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/dynamic_library.hpp>
#include <vm_accel/os/whpx_abi.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#if defined(_WIN32) && (defined(__x86_64__) || defined(_M_X64))
#define VM_ACCEL_HAS_WHPX 1
#define VM_ACCEL_WHPX_CALL __stdcall
#else
#define VM_ACCEL_HAS_WHPX 0
#define VM_ACCEL_WHPX_CALL
#endif

namespace vm_accel::inline v0::os {

/// Models what `basic_whpx` wants of its calls; a test has a model of its own.
/// Copies share what the first load() found. Threads: any.
class whpx_calls {
public:
    using status = whpx_abi::status;
    using partition = whpx_abi::partition;
    static constexpr bool present = VM_ACCEL_HAS_WHPX != 0;

    /// Errors: unsupported (not Windows on x86-64), not_found (no library, or one that
    /// lacks a function).
    [[nodiscard]] static result<whpx_calls> load() noexcept {
        if constexpr (!present) {
            return fail(errc::unsupported, "WHPX: it exists on Windows for x86-64 only",
                        "use another hypervisor backend, such as software");
        }
        static const result<functions> found = find_all();
        if (!found) return fail(found);
        whpx_calls calls;
        calls.f_ = &*found;
        return calls;
    }

    [[nodiscard]] status get_capability(whpx_abi::capability which,
                                        std::span<std::byte> out) const noexcept {
        std::uint32_t written = 0;
        return f_->get_capability(static_cast<std::uint32_t>(which), out.data(),
                                  static_cast<std::uint32_t>(out.size()), &written);
    }
    [[nodiscard]] status create_partition(partition& made) const noexcept {
        return f_->create_partition(&made);
    }
    [[nodiscard]] status setup_partition(partition p) const noexcept {
        return f_->setup_partition(p);
    }
    status delete_partition(partition p) const noexcept { return f_->delete_partition(p); }
    [[nodiscard]] status set_property(partition p, whpx_abi::property which,
                                      std::span<const std::byte> value) const noexcept {
        return f_->set_property(p, static_cast<std::uint32_t>(which), value.data(),
                                static_cast<std::uint32_t>(value.size()));
    }
    [[nodiscard]] status map(partition p, void* host, std::uint64_t guest, std::uint64_t bytes,
                             std::uint32_t flags) const noexcept {
        return f_->map(p, host, guest, bytes, flags);
    }
    [[nodiscard]] status unmap(partition p, std::uint64_t guest,
                               std::uint64_t bytes) const noexcept {
        return f_->unmap(p, guest, bytes);
    }
    /// Reads and clears which pages were written: one bit each from bit 0 on.
    [[nodiscard]] status take_dirty(partition p, std::uint64_t guest, std::uint64_t bytes,
                                    std::span<std::uint64_t> bitmap) const noexcept {
        if (f_->take_dirty == nullptr) return whpx_abi::no_function;
        return f_->take_dirty(p, guest, bytes, bitmap.data(),
                              static_cast<std::uint32_t>(bitmap.size_bytes()));
    }
    [[nodiscard]] status create_vcpu(partition p, std::uint32_t index) const noexcept {
        return f_->create_vcpu(p, index, 0);
    }
    /// With the node that the vCPU's own memory is to lie on: Windows 10 20H1 or later.
    [[nodiscard]] status create_vcpu_on_node(partition p, std::uint32_t index,
                                             std::uint16_t node) const noexcept {
        if (f_->create_vcpu2 == nullptr) return whpx_abi::no_function;
        const whpx_abi::vcpu_property on_node{0, 0, node};
        return f_->create_vcpu2(p, index, &on_node, 1);
    }
    status delete_vcpu(partition p, std::uint32_t index) const noexcept {
        return f_->delete_vcpu(p, index);
    }
    [[nodiscard]] status run(partition p, std::uint32_t index,
                             whpx_abi::exit_context& out) const noexcept {
        return f_->run(p, index, &out, sizeof out);
    }
    status cancel(partition p, std::uint32_t index) const noexcept {
        return f_->cancel(p, index, 0);
    }
    [[nodiscard]] status get_registers(partition p, std::uint32_t index,
                                       std::span<const whpx_abi::reg> names,
                                       whpx_abi::register_value* values) const noexcept {
        return f_->get_registers(p, index, names.data(), static_cast<std::uint32_t>(names.size()),
                                 values);
    }
    [[nodiscard]] status set_registers(partition p, std::uint32_t index,
                                       std::span<const whpx_abi::reg> names,
                                       const whpx_abi::register_value* values) const noexcept {
        return f_->set_registers(p, index, names.data(), static_cast<std::uint32_t>(names.size()),
                                 values);
    }
    [[nodiscard]] status request_interrupt(partition p,
                                           const whpx_abi::interrupt_control& what) const noexcept {
        return f_->request_interrupt(p, &what, sizeof what);
    }
    /// A guest virtual address as the vCPU would fetch from it.
    [[nodiscard]] status translate(partition p, std::uint32_t index, std::uint64_t address,
                                   whpx_abi::translation& outcome,
                                   std::uint64_t& physical) const noexcept {
        return f_->translate(p, index, address, whpx_abi::translate_for_execution, &outcome,
                             &physical);
    }

private:
    template <class... Arguments>
    using call = status VM_ACCEL_WHPX_CALL(Arguments...);
    using u32 = std::uint32_t;
    using u64 = std::uint64_t;

    struct functions {
        dynamic_library module{};
        call<u32, void*, u32, u32*>* get_capability = nullptr;
        call<partition*>* create_partition = nullptr;
        call<partition>* setup_partition = nullptr;
        call<partition>* delete_partition = nullptr;
        call<partition, u32, const void*, u32>* set_property = nullptr;
        call<partition, void*, u64, u64, u32>* map = nullptr;
        call<partition, u64, u64>* unmap = nullptr;
        call<partition, u64, u64, u64*, u32>* take_dirty = nullptr; ///< may be absent
        call<partition, u32, u32>* create_vcpu = nullptr;
        call<partition, u32, const whpx_abi::vcpu_property*, u32>* create_vcpu2 =
            nullptr; ///< may be absent
        call<partition, u32>* delete_vcpu = nullptr;
        call<partition, u32, void*, u32>* run = nullptr;
        call<partition, u32, u32>* cancel = nullptr;
        call<partition, u32, const whpx_abi::reg*, u32, whpx_abi::register_value*>* get_registers =
            nullptr;
        call<partition, u32, const whpx_abi::reg*, u32, const whpx_abi::register_value*>*
            set_registers = nullptr;
        call<partition, const whpx_abi::interrupt_control*, u32>* request_interrupt = nullptr;
        call<partition, u32, u64, u32, whpx_abi::translation*, u64*>* translate = nullptr;
    };

    template <class Function>
    static bool look(const functions& from, Function*& to, const char* name) noexcept {
        to = from.module.find<Function>(name);
        return to != nullptr;
    }

    [[nodiscard]] static result<functions> find_all() noexcept {
        result<dynamic_library> opened = dynamic_library::open("WinHvPlatform.dll");
        if (!opened) {
            return fail(errc::not_found, "WHPX: WinHvPlatform.dll is not there",
                        "switch on the Windows feature \"Windows Hypervisor Platform\" (Windows "
                        "10 1803 or later, x86-64) and restart",
                        opened.error().os_error);
        }
        functions f;
        f.module = std::move(*opened);
        const char* missing = nullptr;
        const auto need = [&](auto*& to, const char* name) {
            if (!look(f, to, name) && missing == nullptr) missing = name;
        };
        need(f.get_capability, "WHvGetCapability");
        need(f.create_partition, "WHvCreatePartition");
        need(f.setup_partition, "WHvSetupPartition");
        need(f.delete_partition, "WHvDeletePartition");
        need(f.set_property, "WHvSetPartitionProperty");
        need(f.map, "WHvMapGpaRange");
        need(f.unmap, "WHvUnmapGpaRange");
        need(f.create_vcpu, "WHvCreateVirtualProcessor");
        need(f.delete_vcpu, "WHvDeleteVirtualProcessor");
        need(f.run, "WHvRunVirtualProcessor");
        need(f.cancel, "WHvCancelRunVirtualProcessor");
        need(f.get_registers, "WHvGetVirtualProcessorRegisters");
        need(f.set_registers, "WHvSetVirtualProcessorRegisters");
        need(f.request_interrupt, "WHvRequestInterrupt");
        need(f.translate, "WHvTranslateGva");
        static_cast<void>(look(f, f.take_dirty, "WHvQueryGpaRangeDirtyBitmap"));
        static_cast<void>(look(f, f.create_vcpu2, "WHvCreateVirtualProcessor2"));
        if (missing != nullptr) {
            return fail(errc::not_found,
                        fixed_text<160>{"WHPX: WinHvPlatform.dll lacks "}.append(missing),
                        "update Windows to 10 1809 or later");
        }
        return f;
    }

    const functions* f_ = nullptr;
};

} // namespace vm_accel::inline v0::os
