/// What the vCPUs of one partition of the Windows Hypervisor Platform share.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/result.hpp>
#include <vm_accel/hypervisor/whpx_errors.hpp>
#include <vm_accel/hypervisor/whpx_memory.hpp>
#include <vm_accel/os/whpx_abi.hpp>

#include <array>
#include <atomic>
#include <cstdint>

namespace vm_accel::inline v0 {

/// Where an interrupt line leads: to a vector of a local APIC.
struct whpx_route {
    std::uint8_t vector = 0;      ///< 16 to 255
    std::uint8_t destination = 0; ///< APIC identifier of the vCPU: its index
    bool level_triggered = false; ///< sent again after the guest's EOI while the line is high

    friend constexpr bool operator==(const whpx_route&, const whpx_route&) = default;
};

/// Lives as long as the VM; deletes the partition. Calls are safe from any thread, once
/// set-up is done.
template <class Calls>
class whpx_machine {
public:
    static constexpr unsigned vcpu_limit = 64;
    static constexpr unsigned line_count = 24; ///< as many as an I/O APIC has

    whpx_machine(const Calls& calls_made, os::whpx_abi::partition handle) noexcept
        : calls(calls_made), partition(handle) {}
    whpx_machine(const whpx_machine&) = delete;
    whpx_machine& operator=(const whpx_machine&) = delete;
    ~whpx_machine() { static_cast<void>(calls.delete_partition(partition)); }

    /// Error: invalid_argument, unsupported (no local APICs).
    [[nodiscard]] result<> route(unsigned line, const whpx_route& to) noexcept {
        if (!has_apic) return no_apic("interrupt line");
        if (line >= line_count) return no_line(line);
        if (to.vector < 16)
            return fail(errc::invalid_argument,
                        fixed_text<160>{"no interrupt has vector "}.append_number(to.vector),
                        "choose 16 to 255");
        routes_[line].store(1u << 31 | (to.level_triggered ? 1u << 16 : 0u) |
                            static_cast<std::uint32_t>(to.destination) << 8 | to.vector);
        return {};
    }
    /// Error: out_of_range for a line that leads nowhere.
    [[nodiscard]] result<> set_line(unsigned line, bool level) noexcept {
        if (line >= line_count || routes_[line].load() == 0) return no_line(line);
        const bool was_high = high_[line].exchange(level);
        return level && !was_high ? send(routes_[line].load()) : result<>{};
    }
    /// The guest has ended an interrupt: level-triggered lines that are still high with
    /// this vector come again.
    [[nodiscard]] result<> end_of_interrupt(std::uint32_t vector) noexcept {
        for (unsigned line = 0; line < line_count; ++line) {
            const std::uint32_t route = routes_[line].load();
            if (!high_[line].load() || (route & 0xff) != vector || (route >> 16 & 1) == 0) continue;
            if (const result<> sent = send(route); !sent) return sent;
        }
        return {};
    }
    /// A message interrupt as a device writes it (Intel SDM volume 3, "Message
    /// Signalled Interrupts"). Errors: invalid_argument, unsupported.
    [[nodiscard]] result<> signal_msi(pa address, std::uint32_t data) noexcept {
        if (!has_apic) return no_apic("message interrupt");
        const std::uint64_t mode = data >> 8 & 7; // fixed, lowest priority, NMI, INIT
        if (raw(address) >> 20 != 0xfee || (mode != 0 && mode != 1 && mode != 4 && mode != 5))
            return fail(errc::invalid_argument,
                        fixed_text<160>{"message interrupt to "}.append_number(raw(address), 16),
                        "use an address from 0xfee00000 to 0xfeefffff and a delivery mode of 0, "
                        "1, 4 or 5");
        const std::uint64_t logical = raw(address) >> 2 & 1;
        const std::uint64_t level = data >> 15 & 1;
        return request({mode | logical << 8 | level << 12,
                        static_cast<std::uint32_t>(raw(address) >> 12 & 0xff), data & 0xff});
    }

    Calls calls;
    os::whpx_abi::partition partition;
    whpx_memory memory{};
    unsigned processors = 0;
    bool has_apic = false;
    std::array<std::atomic<bool>, vcpu_limit> made{};

private:
    [[nodiscard]] static tl::unexpected<error> no_line(unsigned line) noexcept {
        return fail(errc::out_of_range, fixed_text<160>{"no interrupt line "}.append_number(line),
                    "create the VM with local APICs, and route_line() a line below 24 first");
    }
    [[nodiscard]] static tl::unexpected<error> no_apic(std::string_view what) noexcept {
        return fail(errc::unsupported, fixed_text<160>{what}.append(": this VM has no local APICs"),
                    "create it with local_apic = true, or use inject_interrupt() of the vCPU");
    }
    [[nodiscard]] result<> send(std::uint32_t route) noexcept {
        return request({std::uint64_t{route >> 16 & 1} << 12, route >> 8 & 0xff, route & 0xff});
    }
    [[nodiscard]] result<> request(const os::whpx_abi::interrupt_control& what) noexcept {
        const auto sent = calls.request_interrupt(partition, what);
        if (!os::whpx_abi::failed(sent)) return {};
        return whpx_failure(sent, "interrupt", "send it to a vCPU that exists");
    }

    /// Bit 31: there is one; bit 16: level; [15:8] destination; [7:0] vector.
    std::array<std::atomic<std::uint32_t>, line_count> routes_{};
    std::array<std::atomic<bool>, line_count> high_{};
};

} // namespace vm_accel::inline v0
