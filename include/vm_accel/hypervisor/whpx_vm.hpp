/// A virtual machine of the Windows Hypervisor Platform: memory, processors, interrupts.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/hypervisor/hypervisor.hpp>
#include <vm_accel/hypervisor/whpx_machine.hpp>
#include <vm_accel/hypervisor/whpx_vcpu.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

namespace vm_accel::inline v0 {

/// What of a VM's placement and share of the processors was asked for, and what became
/// of it: a version of Windows that does not know it, or refuses it, fails no VM.
struct whpx_setting {
    std::string_view name{};
    std::uint64_t value = 0;
    std::optional<error> refused{};
};

/// Made by basic_whpx::create_vm. Outlives its vCPUs. All calls are safe from any
/// thread, also while vCPUs run; moved only before it is shared.
template <class Calls>
class basic_whpx_vm {
public:
    using vcpu = basic_whpx_vcpu<Calls>;
    using machine = whpx_machine<Calls>;

    // --- memory -----------------------------------------------------------

    /// Makes [base, base + bytes) RAM, backed by `host`; all three multiples of 4096.
    /// The bytes must outlive it. Where they lie is decided by who maps them: see
    /// os::windows_memory.
    [[nodiscard]] result<> add_memory(pa base, std::byte* host, std::uint64_t bytes,
                                      const whpx_mapping& how) noexcept {
        return machine_->memory.add(machine_->calls, machine_->partition, base, host, bytes, how);
    }
    [[nodiscard]] result<> add_memory(pa base, std::byte* host, std::uint64_t bytes) noexcept {
        return add_memory(base, host, bytes, whpx_mapping{});
    }
    /// Once it has returned no vCPU uses those bytes. Error: not_found.
    [[nodiscard]] result<> remove_memory(pa base) noexcept {
        return machine_->memory.remove(machine_->calls, machine_->partition, base);
    }
    /// Which 4096-byte pages of a whole region the guest wrote since this was asked
    /// last: bit 0 of word 0 is its first page. Errors: not_found, invalid_argument
    /// (its writes are not tracked), unsupported.
    [[nodiscard]] result<> take_dirty(pa base, std::span<std::uint64_t> bitmap) noexcept {
        return machine_->memory.take_dirty(machine_->calls, machine_->partition, base, bitmap);
    }

    // --- processors -------------------------------------------------------

    /// A vCPU in the state of a reset. Each index once. Errors: out_of_range (the VM was
    /// made for fewer), already_exists, exhausted, those of the platform.
    [[nodiscard]] result<vcpu> create_vcpu(unsigned index) noexcept {
        return create_vcpu(index, std::nullopt);
    }
    /// The same with the host node that what the hypervisor keeps of this vCPU is to lie
    /// on. Error: also unsupported (before Windows 10 20H1).
    [[nodiscard]] result<vcpu> create_vcpu(unsigned index,
                                           std::optional<std::uint16_t> node) noexcept {
        const fixed_text<160> name = fixed_text<160>{"vCPU "}.append_number(index);
        if (index >= machine_->processors) {
            return fail(errc::out_of_range,
                        fixed_text<160>{name}
                            .append(": this VM was made for ")
                            .append_number(machine_->processors),
                        "give create_vm() more processors, or use an index below that");
        }
        if (machine_->made[index].exchange(true)) {
            return fail(errc::already_exists, fixed_text<160>{name}.append(": exists"),
                        "create each index once");
        }
        std::unique_ptr<whpx_seat<Calls>> seat{new (std::nothrow)
                                                   whpx_seat<Calls>{*machine_, index}};
        if (seat == nullptr) {
            machine_->made[index].store(false);
            return fail(errc::exhausted, fixed_text<160>{name}.append(": no memory"),
                        "free memory");
        }
        const auto created =
            node ? machine_->calls.create_vcpu_on_node(machine_->partition, index, *node)
                 : machine_->calls.create_vcpu(machine_->partition, index);
        if (os::whpx_abi::failed(created)) {
            machine_->made[index].store(false);
            return whpx_failure(created, name.view(), "use fewer vCPUs");
        }
        return vcpu{std::move(seat)};
    }

    // --- interrupts -------------------------------------------------------

    /// Where an interrupt line leads; a VM with local APICs only. Error: invalid_argument,
    /// out_of_range (line 24 or more), unsupported.
    [[nodiscard]] result<> route_line(unsigned line, const whpx_route& to) noexcept {
        return machine_->route(line, to);
    }
    /// Error: out_of_range (a line that leads nowhere).
    [[nodiscard]] result<> set_line(unsigned line, bool level) noexcept {
        return machine_->set_line(line, level);
    }
    [[nodiscard]] result<> pulse_line(unsigned line) noexcept {
        if (const result<> raised = set_line(line, true); !raised) return raised;
        return set_line(line, false);
    }
    /// A message interrupt; a VM with local APICs only.
    [[nodiscard]] result<> signal_msi(pa address, std::uint32_t data) noexcept {
        return machine_->signal_msi(address, data);
    }

    /// What was asked for beyond the machine itself, and what became of it.
    [[nodiscard]] std::span<const whpx_setting> settings() const noexcept {
        return std::span{settings_}.first(setting_count_);
    }

private:
    template <class>
    friend class basic_whpx;

    explicit basic_whpx_vm(std::unique_ptr<machine> made) noexcept : machine_(std::move(made)) {}

    void note(const whpx_setting& setting) noexcept { settings_[setting_count_++] = setting; }

    std::unique_ptr<machine> machine_;
    std::array<whpx_setting, 4> settings_{};
    std::size_t setting_count_ = 0;
};

} // namespace vm_accel::inline v0
