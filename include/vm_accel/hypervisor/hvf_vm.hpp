/// The virtual machine of Hypervisor.framework: a process has one at a time.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/hypervisor/hvf_machine.hpp>
#include <vm_accel/hypervisor/hvf_vcpu.hpp>
#include <vm_accel/hypervisor/hypervisor.hpp>
#include <vm_accel/os/hvf_calls.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>

namespace vm_accel::inline v0 {

/// What the guest may do with memory, see basic_hvf_vm::protect_memory.
struct hvf_rights {
    bool read = true;
    bool write = true;
    bool execute = true;
};

/// Made by basic_hvf::create_vm. Outlives its vCPUs; the threads that ran them should
/// have ended before it is destroyed, or have destroyed their vCPUs themselves.
/// create_gic_v3() is set-up: by one thread, before any vCPU. All other calls are safe
/// from any thread, also while vCPUs run; moved only before it is shared.
template <class Calls>
class basic_hvf_vm {
public:
    using vcpu = basic_hvf_vcpu<Calls>;
    static constexpr bool is_arm64 = vcpu::is_arm64;

    basic_hvf_vm(basic_hvf_vm&&) noexcept = default;
    basic_hvf_vm& operator=(basic_hvf_vm&& other) noexcept {
        if (this != &other) {
            end();
            machine_ = std::move(other.machine_);
        }
        return *this;
    }
    ~basic_hvf_vm() { end(); }

    // --- memory -----------------------------------------------------------

    /// Makes [base, base + bytes) RAM, backed by `host`; all three multiples of the
    /// host's page: 16 KiB on Apple silicon, 4 KiB on Intel. The bytes must outlive it.
    [[nodiscard]] result<> add_memory(pa base, std::byte* host, std::uint64_t bytes) noexcept {
        return machine_->memory.add(machine_->calls, base, host, bytes, os::hvf_abi::memory_all);
    }
    /// Once it has returned no vCPU uses those bytes. Error: not_found.
    [[nodiscard]] result<> remove_memory(pa base) noexcept {
        return machine_->memory.remove(machine_->calls, base);
    }
    /// Changes what the guest may do with a whole region. Error: not_found.
    [[nodiscard]] result<> protect_memory(pa base, hvf_rights rights) noexcept {
        using namespace os::hvf_abi;
        const std::uint64_t flags = (rights.read ? memory_read : 0) |
                                    (rights.write ? memory_write : 0) |
                                    (rights.execute ? memory_execute : 0);
        return machine_->memory.protect(machine_->calls, base, flags);
    }

    // --- processors -------------------------------------------------------

    /// A vCPU ready for its registers; the framework's part is made by its first run().
    /// arm64: index 0 is on, the others wait for the guest's CPU_ON, their MPIDR is
    /// psci::mpidr_of(index). Each index once. Errors: out_of_range, already_exists,
    /// exhausted.
    [[nodiscard]] result<vcpu> create_vcpu(unsigned index) noexcept {
        const fixed_text<160> name = fixed_text<160>{"vCPU "}.append_number(index);
        if (index >= machine_->maximum_vcpus) {
            return fail(errc::out_of_range,
                        fixed_text<160>{name}
                            .append(": this host allows ")
                            .append_number(machine_->maximum_vcpus),
                        "use an index below that");
        }
        if (!machine_->power.add(index, is_arm64 && index != 0)) {
            return fail(errc::already_exists, fixed_text<160>{name}.append(": exists"),
                        "create each index once");
        }
        auto* const seat = new (std::nothrow) hvf_seat<Calls>{*machine_, index};
        if (seat == nullptr) {
            return fail(errc::exhausted, fixed_text<160>{name}.append(": no memory"),
                        "free memory");
        }
        return vcpu{seat};
    }

    // --- interrupts -------------------------------------------------------

    /// What the framework wants of a GIC's place. Errors: unsupported (x86-64, or macOS
    /// before 15).
    [[nodiscard]] result<os::hvf_gic_sizes> gic_sizes() const noexcept {
        os::hvf_gic_sizes sizes;
        if (!has_gic()) return no_gic();
        const auto told = machine_->calls.gic_sizes(sizes);
        if (told != os::hvf_abi::status::success) return hvf_failure(told, "GIC", "update macOS");
        return sizes;
    }
    /// A GICv3 of the framework's, before any vCPU, once. Its redistributors lie one
    /// after the other in the order of the vCPUs. Errors: unsupported (x86-64, or macOS
    /// before 15), already_exists, invalid_argument.
    [[nodiscard]] result<> create_gic_v3(const os::hvf_gic_place& place) noexcept {
        if (machine_->spi_count.load() != 0) {
            return fail(errc::already_exists, "GIC: this VM has one", "create it once");
        }
        const result<os::hvf_gic_sizes> sizes = gic_sizes();
        if (!sizes) return fail(sizes);
        const auto made = machine_->calls.create_gic(place);
        if (made != os::hvf_abi::status::success) {
            return hvf_failure(made, "GIC",
                               "place it as gic_sizes() says, without overlap, before any vCPU");
        }
        machine_->first_spi = sizes->first_spi;
        machine_->spi_count.store(sizes->spi_count);
        return {};
    }
    /// Delivers a message interrupt: a write of `intid` to the frame of
    /// hvf_gic_place::messages. Errors: not_found (no GIC), invalid_argument.
    [[nodiscard]] result<> signal_msi(pa address, std::uint32_t intid) noexcept {
        if (machine_->spi_count.load() == 0) {
            return fail(errc::not_found, "message interrupt: this VM has no GIC",
                        "call create_gic_v3() with a frame for messages");
        }
        const auto sent = machine_->calls.send_message(raw(address), intid);
        if (sent == os::hvf_abi::status::success) return {};
        return hvf_failure(sent, "message interrupt",
                           "use an address and an INTID of hvf_gic_place");
    }

    /// Interrupt input `line`. arm64 with a GIC: an SPI, counted from 0. arm64 without:
    /// the IRQ input of vCPU `line`, for an interrupt controller of the VMM's. x86-64:
    /// none, see basic_hvf_vcpu::inject_interrupt(). Error: out_of_range.
    [[nodiscard]] result<> set_line(unsigned line, bool level) noexcept {
        const unsigned spis = machine_->spi_count.load();
        const unsigned lines = !is_arm64 ? 0 : spis != 0 ? spis : machine_->maximum_vcpus;
        if (line >= lines) {
            return fail(errc::out_of_range,
                        fixed_text<160>{"no interrupt line "}.append_number(line),
                        is_arm64 ? "use a vCPU's index, or call create_gic_v3() for SPIs"
                                 : "use inject_interrupt() of the vCPU");
        }
        if constexpr (is_arm64) {
            if (spis == 0) {
                machine_->irq[line].store(level);
                if (level) machine_->wake(line);
                return {};
            }
            const auto done = machine_->calls.set_spi(machine_->first_spi + line, level);
            if (done != os::hvf_abi::status::success)
                return hvf_failure(done, "interrupt line", "use a line below the GIC's count");
        }
        return {};
    }
    /// One rising edge; without a GIC it counts only if the vCPU sees the level meanwhile.
    [[nodiscard]] result<> pulse_line(unsigned line) noexcept {
        if (const result<> raised = set_line(line, true); !raised) return raised;
        return set_line(line, false);
    }

private:
    template <class>
    friend class basic_hvf;

    explicit basic_hvf_vm(std::unique_ptr<hvf_machine<Calls>> machine) noexcept
        : machine_(std::move(machine)) {}

    [[nodiscard]] bool has_gic() const noexcept {
        if constexpr (is_arm64) return machine_->calls.has_gic();
        return false;
    }
    [[nodiscard]] static tl::unexpected<error> no_gic() noexcept {
        return fail(errc::unsupported, "GIC: this macOS has none for VMs",
                    "use macOS 15 or later on Apple silicon, or an interrupt controller of the "
                    "VMM's behind set_line()");
    }
    void end() noexcept {
        if (machine_ != nullptr) static_cast<void>(machine_->calls.destroy_vm());
        machine_.reset();
    }

    std::unique_ptr<hvf_machine<Calls>> machine_;
};

} // namespace vm_accel::inline v0
