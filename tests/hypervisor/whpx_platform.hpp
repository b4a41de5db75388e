/// A model of the Windows Hypervisor Platform for tests: partitions and vCPUs as its
/// reference has them. The guest is executed: the few instructions that the tests'
/// guests are made of, one by one.
#pragma once

#include <vm_accel/hypervisor/whpx.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <span>
#include <vector>

namespace whpx_platform {

using namespace vm_accel;
namespace abi = os::whpx_abi;
using abi::reg;
using abi::status;

inline constexpr status invalid_argument = abi::status_of(0x8007'0057);
inline constexpr status unknown_property = abi::status_of(0x8037'0302);

struct mapping {
    std::uint64_t base = 0;
    std::uint64_t bytes = 0;
    std::byte* host = nullptr;
    std::uint32_t flags = 0;
    std::set<std::uint64_t> dirty{}; ///< page numbers from `base` on
};

struct processor {
    std::array<abi::register_value, 64> low{};
    std::map<std::uint32_t, abi::register_value> others{};
    std::atomic<bool> canceled{false};
    std::vector<unsigned> delivered{}; ///< vectors that the guest took
    std::optional<std::uint16_t> node{};
    unsigned entries = 0;

    [[nodiscard]] abi::register_value& at(reg which) {
        const auto number = static_cast<std::uint32_t>(which);
        return number < low.size() ? low[number] : others[number];
    }
    [[nodiscard]] std::uint64_t& operator[](reg which) { return at(which).low; }
};

struct partition {
    std::shared_mutex mutex; ///< of mappings: shared while a guest executes
    std::vector<mapping> mappings;
    std::map<std::uint32_t, std::unique_ptr<processor>> processors;
    std::map<abi::property, std::uint64_t> properties;
    std::vector<abi::interrupt_control> interrupts;
    bool set_up = false;
};

/// What the process has. Tests change the knobs before they open the backend.
struct world {
    std::vector<std::unique_ptr<partition>> partitions; ///< null once deleted
    std::uint32_t hypervisor_present = 1;
    std::uint64_t features = abi::feature::local_apic | abi::feature::dirty_pages;
    std::set<abi::property> refused; ///< properties that this version does not know
    status create_gives = status::success;
    status setup_gives = status::success;
    bool has_vcpu_properties = true;
    unsigned instruction_bytes = 16;            ///< of those that an exit reports
    std::optional<abi::exit_context> next_exit; ///< instead of running the guest
};
inline world& the_world() {
    static world w;
    return w;
}
inline void start_afresh() { the_world() = world{}; }
inline partition& last_partition() { return *the_world().partitions.back(); }

// ---- executing ----------------------------------------------------------------------------------

class executor {
public:
    executor(partition& in, processor& cpu, abi::exit_context& exit)
        : partition_(in), cpu_(cpu), exit_(exit) {}

    /// One instruction. True: go on; false: the exit says why not.
    [[nodiscard]] bool step() {
        std::uint64_t& rip = cpu_[reg::rip];
        code_ = {};
        for (unsigned i = 0; i < code_.size(); ++i)
            if (const std::byte* const b = find(rip + i, 1, abi::map_execute))
                code_[i] = std::to_integer<std::uint8_t>(*b);
        std::uint64_t& held = cpu_[reg::interrupt_state];
        const std::uint64_t held_before = held;
        const bool go_on = execute(rip);
        // What held interrupts off for one instruction is over; an exit keeps it.
        if (go_on && held_before == held) held = 0;
        return go_on;
    }
    /// An interrupt that was put in, and the notice that one could be.
    [[nodiscard]] bool take_interrupts() {
        std::uint64_t& pending = cpu_[reg::pending_interruption];
        if ((pending & 1) != 0) {
            cpu_.delivered.push_back(static_cast<unsigned>(pending >> 16 & 0xffff));
            pending = 0;
        }
        std::uint64_t& notify = cpu_[reg::deliverability_notifications];
        if ((notify & abi::notify_interrupt) == 0 || (cpu_[reg::rflags] & 0x200) == 0 ||
            (cpu_[reg::interrupt_state] & 1) != 0)
            return true;
        notify = 0;
        return leave(abi::exit::interrupt_window, 0);
    }
    bool leave(abi::exit reason, unsigned length) {
        exit_.reason = reason;
        exit_.vp.length_and_cr8 = static_cast<std::uint8_t>(length);
        exit_.vp.cs = abi::segment_of(cpu_.at(reg::cs));
        exit_.vp.rip = cpu_[reg::rip];
        exit_.vp.rflags = cpu_[reg::rflags];
        exit_.vp.execution_state =
            static_cast<std::uint16_t>(((cpu_[reg::efer] & 0x400) != 0 ? 1u << 4 : 0u) |
                                       ((cpu_[reg::interrupt_state] & 1) != 0 ? 1u << 12 : 0u));
        return false;
    }

private:
    [[nodiscard]] std::byte* find(std::uint64_t address, std::uint64_t bytes,
                                  std::uint32_t rights) {
        for (mapping& m : partition_.mappings) {
            if (address < m.base || bytes > m.bytes || address - m.base > m.bytes - bytes) continue;
            if ((m.flags & rights) != rights) return nullptr;
            if (rights == abi::map_write) m.dirty.insert((address - m.base) / 4096);
            return m.host + (address - m.base);
        }
        return nullptr;
    }
    [[nodiscard]] bool is_mapped(std::uint64_t address) {
        return std::any_of(
            partition_.mappings.begin(), partition_.mappings.end(),
            [&](const mapping& m) { return address >= m.base && address - m.base < m.bytes; });
    }

    bool execute(std::uint64_t& rip) {
        switch (code_[0]) {
        case 0xf4: // HLT
            ++rip;
            return leave(abi::exit::halt, 1);
        case 0xfb: // STI
            ++rip;
            cpu_[reg::rflags] |= 0x200;
            cpu_[reg::interrupt_state] = 1;
            return true;
        case 0xeb: // JMP
            rip += 2 + static_cast<std::uint64_t>(
                           static_cast<std::int64_t>(static_cast<std::int8_t>(code_[1])));
            return true;
        case 0xff: // INC EAX
            cpu_[reg::rax] = (cpu_[reg::rax] + 1) & 0xffff'ffff;
            rip += 2;
            return true;
        case 0xb8: { // MOV EAX, immediate
            std::uint32_t value = 0;
            std::memcpy(&value, &code_[1], 4);
            cpu_[reg::rax] = value;
            rip += 5;
            return true;
        }
        case 0xe4: // IN AL, IN EAX, OUT AL, OUT EAX with an immediate port
        case 0xe5:
        case 0xe6:
        case 0xe7:
            exit_.io = {};
            exit_.io.info = (code_[0] >= 0xe6 ? 1u : 0u) | ((code_[0] & 1) != 0 ? 4u : 1u) << 1;
            exit_.io.port = code_[1];
            exit_.io.rax = cpu_[reg::rax];
            return leave(abi::exit::io_port, 2);
        default:
            return move();
        }
    }
    bool move() {
        const auto what = x86_64::decode_mmio(code_);
        if (!what) return leave(abi::exit::unrecoverable_exception, 0);
        // The address, by what the tests use: [base] and [base + disp8].
        const std::size_t opcode_at = code_[0] == 0x66 || (code_[0] & 0xf0) == 0x40 ? 1 : 0;
        const std::uint8_t modrm = code_[opcode_at + (code_[opcode_at] == 0x0f ? 2 : 1)];
        const std::uint8_t disp = code_[opcode_at + (code_[opcode_at] == 0x0f ? 3 : 2)];
        const std::uint64_t at = cpu_[abi::general(modrm & 7)] + ((modrm >> 6) == 1 ? disp : 0);
        std::byte* const host =
            find(at, what->bytes, what->is_write ? abi::map_write : abi::map_read);
        if (host == nullptr) {
            exit_.memory = {};
            exit_.memory.info = (what->is_write ? 1u : 0u) | (is_mapped(at) ? 0u : 4u) | 8u;
            exit_.memory.physical = at;
            exit_.memory.virtual_address = at;
            exit_.memory.instruction_bytes =
                static_cast<std::uint8_t>(the_world().instruction_bytes);
            std::copy_n(code_.begin(), the_world().instruction_bytes, exit_.memory.instruction);
            return leave(abi::exit::memory_access, 0);
        }
        std::uint64_t& value_of = cpu_[abi::general(what->reg)];
        if (what->is_write) {
            const std::uint64_t value = x86_64::stored(*what, value_of);
            std::memcpy(host, &value, what->bytes);
        } else {
            std::uint64_t value = 0;
            std::memcpy(&value, host, what->bytes);
            value_of = x86_64::loaded(*what, value_of, value);
        }
        cpu_[reg::rip] += what->length;
        return true;
    }

    partition& partition_;
    processor& cpu_;
    abi::exit_context& exit_;
    std::array<std::uint8_t, 16> code_{};
};

// ---- the calls ----------------------------------------------------------------------------------

/// As os::whpx_calls.
class calls {
public:
    [[nodiscard]] static result<calls> load() noexcept { return calls{}; }

    [[nodiscard]] status get_capability(abi::capability which,
                                        std::span<std::byte> out) const noexcept {
        const std::uint64_t value = which == abi::capability::features
                                        ? the_world().features
                                        : the_world().hypervisor_present;
        std::memcpy(out.data(), &value, std::min(out.size(), sizeof value));
        return status::success;
    }
    [[nodiscard]] status create_partition(abi::partition& made) const {
        if (abi::failed(the_world().create_gives)) return the_world().create_gives;
        the_world().partitions.push_back(std::make_unique<partition>());
        made = &last_partition();
        return status::success;
    }
    [[nodiscard]] status setup_partition(abi::partition p) const noexcept {
        if (abi::failed(the_world().setup_gives)) return the_world().setup_gives;
        of(p).set_up = true;
        return status::success;
    }
    status delete_partition(abi::partition p) const noexcept {
        for (auto& known : the_world().partitions)
            if (known.get() == &of(p)) known.reset();
        return status::success;
    }
    [[nodiscard]] status set_property(abi::partition p, abi::property which,
                                      std::span<const std::byte> value) const {
        if (the_world().refused.contains(which)) return unknown_property;
        const std::size_t wanted = which == abi::property::primary_numa_node ? 2 : 4;
        if (of(p).set_up || value.size() != wanted) return invalid_argument;
        std::uint64_t read = 0;
        std::memcpy(&read, value.data(), value.size());
        of(p).properties[which] = read;
        return status::success;
    }
    [[nodiscard]] status map(abi::partition p, void* host, std::uint64_t guest, std::uint64_t bytes,
                             std::uint32_t flags) const {
        if (!of(p).set_up) return invalid_argument;
        const std::unique_lock lock{of(p).mutex};
        of(p).mappings.push_back({guest, bytes, static_cast<std::byte*>(host), flags});
        return status::success;
    }
    [[nodiscard]] status unmap(abi::partition p, std::uint64_t guest, std::uint64_t bytes) const {
        const std::unique_lock lock{of(p).mutex};
        const auto gone = std::erase_if(
            of(p).mappings, [&](const mapping& m) { return m.base == guest && m.bytes == bytes; });
        return gone == 1 ? status::success : invalid_argument;
    }
    [[nodiscard]] status take_dirty(abi::partition p, std::uint64_t guest, std::uint64_t bytes,
                                    std::span<std::uint64_t> bitmap) const {
        if (bitmap.size() != (bytes / 4096 + 63) / 64) return invalid_argument;
        const std::unique_lock lock{of(p).mutex};
        for (mapping& m : of(p).mappings) {
            if (m.base != guest || (m.flags & abi::map_track_dirty) == 0) continue;
            std::fill(bitmap.begin(), bitmap.end(), 0);
            for (const std::uint64_t page : m.dirty)
                bitmap[page / 64] |= std::uint64_t{1} << page % 64;
            m.dirty.clear();
            return status::success;
        }
        return invalid_argument;
    }
    [[nodiscard]] status create_vcpu(abi::partition p, std::uint32_t index) const {
        if (!of(p).set_up || index >= of(p).properties[abi::property::processor_count])
            return invalid_argument;
        of(p).processors[index] = std::make_unique<processor>();
        return status::success;
    }
    [[nodiscard]] status create_vcpu_on_node(abi::partition p, std::uint32_t index,
                                             std::uint16_t node) const {
        if (!the_world().has_vcpu_properties) return abi::no_function;
        const status done = create_vcpu(p, index);
        if (!abi::failed(done)) of(p).processors[index]->node = node;
        return done;
    }
    status delete_vcpu(abi::partition p, std::uint32_t index) const {
        of(p).processors.erase(index);
        return status::success;
    }
    [[nodiscard]] status run(abi::partition p, std::uint32_t index, abi::exit_context& out) const {
        processor& cpu = *of(p).processors.at(index);
        executor guest{of(p), cpu, out};
        ++cpu.entries;
        if (the_world().next_exit) {
            out = *the_world().next_exit;
            the_world().next_exit.reset();
            return status::success;
        }
        for (;;) {
            // Also one that came while the vCPU was not in the guest.
            if (cpu.canceled.exchange(false)) {
                static_cast<void>(guest.leave(abi::exit::canceled, 0));
                return status::success;
            }
            const std::shared_lock lock{of(p).mutex};
            for (unsigned i = 0; i < 64; ++i)
                if (!guest.take_interrupts() || !guest.step()) return status::success;
        }
    }
    status cancel(abi::partition p, std::uint32_t index) const {
        of(p).processors.at(index)->canceled.store(true);
        return status::success;
    }
    [[nodiscard]] status get_registers(abi::partition p, std::uint32_t index,
                                       std::span<const reg> names,
                                       abi::register_value* values) const {
        for (std::size_t i = 0; i < names.size(); ++i)
            values[i] = of(p).processors.at(index)->at(names[i]);
        return status::success;
    }
    [[nodiscard]] status set_registers(abi::partition p, std::uint32_t index,
                                       std::span<const reg> names,
                                       const abi::register_value* values) const {
        for (std::size_t i = 0; i < names.size(); ++i)
            of(p).processors.at(index)->at(names[i]) = values[i];
        return status::success;
    }
    [[nodiscard]] status request_interrupt(abi::partition p,
                                           const abi::interrupt_control& what) const {
        if (of(p).properties[abi::property::local_apic_mode] == 0) return invalid_argument;
        of(p).interrupts.push_back(what);
        return status::success;
    }
    /// Flat page tables.
    [[nodiscard]] status translate(abi::partition, std::uint32_t, std::uint64_t address,
                                   abi::translation& outcome,
                                   std::uint64_t& physical) const noexcept {
        outcome.code = 0;
        physical = address;
        return status::success;
    }

private:
    [[nodiscard]] static partition& of(abi::partition p) noexcept {
        return *static_cast<partition*>(p);
    }
};

using backend = basic_whpx<calls>;
static_assert(hypervisor<backend>);

} // namespace whpx_platform
