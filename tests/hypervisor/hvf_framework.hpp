/// A model of Hypervisor.framework for tests: one VM for the process, vCPUs tied to
/// their threads, exits as the documentation has them. The guest is executed: the few
/// instructions that the tests' guests are made of, one by one.
#pragma once

#include <vm_accel/hypervisor/hvf.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <thread>
#include <vector>

namespace hvf_framework {

using namespace vm_accel;
using os::hvf_abi::status;

struct mapping {
    std::uint64_t base = 0;
    std::uint64_t bytes = 0;
    std::byte* host = nullptr;
    std::uint64_t rights = 0;
};

/// One vCPU of the model.
struct processor {
    std::thread::id thread{};
    std::array<std::uint64_t, 64> general{};
    std::map<std::uint32_t, std::uint64_t> system{};
    os::hvf_abi::arm64_exit_information exit{};
    std::atomic<bool> leave{false};
    bool irq = false; ///< pending, for the next entry
    bool timer_masked = false;
    bool timer_fires = false; ///< a test's wish
    bool interrupted = false; ///< the guest was entered with an interrupt pending
    unsigned entries = 0;
};

/// What the process has. Tests change the knobs before they open the backend.
struct world {
    std::shared_mutex mutex; ///< of mappings: shared while the guest executes
    bool vm = false;
    std::vector<mapping> mappings;
    std::vector<std::shared_ptr<processor>> processors;
    std::mutex processors_mutex;
    unsigned vms_created = 0;
    unsigned vcpus_destroyed = 0;
    unsigned wrong_thread = 0; ///< calls that the framework would have refused
    // Knobs
    status load_fails = status::success; ///< denied: hv_vm_create gives that
    std::uint64_t page = 4096;
    bool gic = false;
    std::optional<os::hvf_gic_place> gic_at;
    std::vector<std::pair<std::uint32_t, bool>> spis;
    std::vector<std::pair<std::uint64_t, std::uint32_t>> messages;
};
inline world& the_world() {
    static world w;
    return w;
}
/// Everything as at the program's start.
inline void start_afresh() {
    world& w = the_world();
    w.vm = false;
    w.mappings.clear();
    w.processors.clear();
    w.vms_created = w.vcpus_destroyed = w.wrong_thread = 0;
    w.load_fails = status::success;
    w.page = 4096;
    w.gic = false;
    w.gic_at.reset();
    w.spis.clear();
    w.messages.clear();
}

// ---- executing
// -----------------------------------------------------------------------------------

/// Where an address leads: the host's bytes, or nothing.
inline std::byte* find(std::uint64_t address, std::uint64_t bytes) {
    for (const mapping& m : the_world().mappings)
        if (address >= m.base && bytes <= m.bytes && address - m.base <= m.bytes - bytes)
            return m.host + (address - m.base);
    return nullptr;
}

/// A few instructions of A64. True: go on; false: `cpu.exit` tells why not.
inline bool step_arm64(processor& cpu) {
    using namespace os::hvf_abi;
    std::array<std::uint64_t, 64>& r = cpu.general;
    std::uint64_t& pc = r[arm64_pc];
    const auto leave_with = [&](std::uint64_t syndrome, std::uint64_t address) {
        cpu.exit = {1, syndrome, address, address};
        return false;
    };
    const auto value_of = [&](unsigned n) { return n == 31 ? 0 : r[n]; };
    const std::byte* const code = find(pc, 4);
    if (code == nullptr) return leave_with(0x20ull << 26, pc);
    std::uint32_t word = 0;
    std::memcpy(&word, code, 4);
    const unsigned rd = word & 31;
    const unsigned rn = word >> 5 & 31;
    if ((word & 0x3b000000) == 0x39000000) { // LDR, STR, LDRB ... LDRSW with an offset
        const unsigned log = word >> 30;
        const unsigned kind = word >> 22 & 3;
        const unsigned bytes = 1u << log;
        const std::uint64_t at = r[rn] + (word >> 10 & 0xfff) * bytes;
        const bool sign = kind >= 2;
        const bool wide = sign ? kind == 2 : log == 3;
        std::byte* const host = find(at, bytes);
        if (host == nullptr) {
            return leave_with(0x24ull << 26 | 1u << 25 | 1u << 24 | log << 22 |
                                  (sign ? 1u : 0u) << 21 | rd << 16 | (wide ? 1u : 0u) << 15 |
                                  (kind == 0 ? 1u : 0u) << 6 | 6,
                              at);
        }
        if (kind == 0) {
            const std::uint64_t value = value_of(rd);
            std::memcpy(host, &value, bytes);
        } else {
            std::uint64_t value = 0;
            std::memcpy(&value, host, bytes);
            if (rd != 31) r[rd] = hvf_arm64::extend(value, bytes, sign, wide);
        }
    } else if ((word & 0x7fc00000) == 0x11000000) { // ADD, immediate
        const std::uint64_t sum = value_of(rn) + (word >> 10 & 0xfff);
        r[rd] = (word >> 31) != 0 ? sum : sum & 0xffff'ffff;
    } else if ((word & 0x7f800000) == 0x52800000) { // MOVZ
        r[rd] = std::uint64_t{word >> 5 & 0xffff} << (16 * (word >> 21 & 3));
    } else if ((word & 0x7f800000) == 0x72800000) { // MOVK
        const unsigned shift = 16 * (word >> 21 & 3);
        r[rd] = (r[rd] & ~(std::uint64_t{0xffff} << shift)) | std::uint64_t{word >> 5 & 0xffff}
                                                                  << shift;
    } else if ((word & 0xfc000000) == 0x14000000) { // B
        const auto offset = static_cast<std::int32_t>(word << 6) >> 4;
        pc += static_cast<std::uint64_t>(static_cast<std::int64_t>(offset));
        return true;
    } else if (word == 0xd4000002) { // HVC: PC is past it
        pc += 4;
        return leave_with(0x16ull << 26 | 1u << 25, 0);
    } else if (word == 0xd4000003) { // SMC: PC is at it
        return leave_with(0x17ull << 26 | 1u << 25, 0);
    } else if (word == 0xd503207f) { // WFI
        return leave_with(0x01ull << 26 | 1u << 25, 0);
    } else if ((word & 0xffd00000) == 0xd5100000) { // MSR, MRS: all are trapped
        const std::uint64_t iss =
            hvf_arm64::trapped_register(2 | (word >> 19 & 1), word >> 16 & 7, word >> 12 & 15,
                                        word >> 8 & 15, word >> 5 & 7) |
            rd << 5 | (word >> 21 & 1);
        return leave_with(0x18ull << 26 | 1u << 25 | iss, 0);
    } else {
        return leave_with(0, 0); // EC 0: unknown
    }
    pc += 4;
    return true;
}

/// A few instructions of x86-64, through flat page tables. True: go on.
inline bool step_x86(processor& cpu) {
    using namespace os::hvf_abi;
    std::array<std::uint64_t, 64>& r = cpu.general;
    std::uint64_t& rip = r[x86_rip];
    std::array<std::uint8_t, 15> code{};
    for (unsigned i = 0; i < code.size(); ++i)
        if (const std::byte* const b = find(rip + i, 1))
            code[i] = std::to_integer<std::uint8_t>(*b);
    const auto leave_with = [&](x86_exit why, std::uint64_t length, std::uint64_t qualification,
                                std::uint64_t address) {
        cpu.system[vmcs::exit_reason] = static_cast<std::uint16_t>(why);
        cpu.system[vmcs::instruction_length] = length;
        cpu.system[vmcs::exit_qualification] = qualification;
        cpu.system[vmcs::guest_physical_address] = address;
        return false;
    };
    const auto numbered = [&](unsigned n) -> std::uint64_t& {
        return r[hvf_x86_64::numbered(n).number];
    };
    if (code[0] == 0xf4) return leave_with(x86_exit::halt, 1, 0, 0);
    if (code[0] == 0x0f && code[1] == 0xa2) return leave_with(x86_exit::cpuid, 2, 0, 0);
    if (code[0] == 0x0f && code[1] == 0x32) return leave_with(x86_exit::read_msr, 2, 0, 0);
    if (code[0] == 0x0f && code[1] == 0x30) return leave_with(x86_exit::write_msr, 2, 0, 0);
    if (code[0] == 0x0f && code[1] == 0x22)
        return leave_with(x86_exit::control_register, 3,
                          (code[2] >> 3 & 7) | std::uint64_t{code[2] & 7u} << 8, 0);
    if (code[0] >= 0xe4 && code[0] <= 0xe7) { // IN, OUT with an immediate port
        const std::uint64_t size = (code[0] & 1) != 0 ? 3 : 0;
        return leave_with(x86_exit::io, 2,
                          size | (code[0] < 0xe6 ? 8u : 0u) | 0x40 | std::uint64_t{code[1]} << 16,
                          0);
    }
    if (code[0] == 0xeb) { // JMP
        rip += 2 + static_cast<std::uint64_t>(
                       static_cast<std::int64_t>(static_cast<std::int8_t>(code[1])));
        return true;
    }
    if (code[0] == 0xff && code[1] == 0xc0) { // INC EAX
        r[x86_rax] = (r[x86_rax] + 1) & 0xffff'ffff;
        rip += 2;
        return true;
    }
    if (code[0] == 0xb8) { // MOV EAX, immediate
        std::uint32_t value = 0;
        std::memcpy(&value, &code[1], 4);
        r[x86_rax] = value;
        rip += 5;
        return true;
    }
    const auto what = x86_64::decode_mmio(code);
    if (!what) return leave_with(x86_exit::triple_fault, 0, 0, 0);
    // The address, by what the tests use: [base] and [base + disp8].
    const std::size_t opcode_at = (code[0] & 0xf0) == 0x40 ? 1 : 0;
    const std::uint8_t modrm = code[opcode_at + (code[opcode_at] == 0x0f ? 2 : 1)];
    const std::uint8_t disp = code[opcode_at + (code[opcode_at] == 0x0f ? 3 : 2)];
    const std::uint64_t at = numbered(modrm & 7) + ((modrm >> 6) == 1 ? disp : 0);
    std::byte* const host = find(at, what->bytes);
    if (host == nullptr) return leave_with(x86_exit::ept_violation, 0, 0x182, at);
    std::uint64_t& reg = numbered(what->reg);
    if (what->is_write) {
        const std::uint64_t value = x86_64::stored(*what, reg);
        std::memcpy(host, &value, what->bytes);
    } else {
        std::uint64_t value = 0;
        std::memcpy(&value, host, what->bytes);
        reg = x86_64::loaded(*what, reg, value);
    }
    rip += what->length;
    return true;
}

// ---- the calls
// -----------------------------------------------------------------------------------

/// As os::hvf_calls.
template <os::hvf_architecture Architecture>
class calls {
public:
    using status = os::hvf_abi::status;
    static constexpr os::hvf_architecture architecture = Architecture;
    static constexpr bool is_arm64 = Architecture == os::hvf_architecture::arm64;

    [[nodiscard]] static result<calls> load() noexcept { return calls{}; }
    [[nodiscard]] unsigned maximum_vcpus() const noexcept { return 64; }
    [[nodiscard]] unsigned default_address_bits() const noexcept { return 36; }
    [[nodiscard]] unsigned maximum_address_bits() const noexcept { return 40; }

    [[nodiscard]] status create_vm(unsigned) const noexcept {
        world& w = the_world();
        if (w.load_fails != status::success) return w.load_fails;
        if (w.vm) return status::busy;
        w.vm = true;
        ++w.vms_created;
        return status::success;
    }
    [[nodiscard]] status destroy_vm() const noexcept {
        world& w = the_world();
        for (const auto& p : w.processors)
            if (p != nullptr) return status::busy;
        w.vm = false;
        w.mappings.clear();
        w.processors.clear();
        return status::success;
    }
    [[nodiscard]] status map(void* host, std::uint64_t guest, std::size_t bytes,
                             std::uint64_t rights) const noexcept {
        world& w = the_world();
        if (((guest | bytes | reinterpret_cast<std::uintptr_t>(host)) & (w.page - 1)) != 0)
            return status::bad_argument;
        const std::unique_lock lock{w.mutex};
        w.mappings.push_back({guest, bytes, static_cast<std::byte*>(host), rights});
        return status::success;
    }
    [[nodiscard]] status unmap(std::uint64_t guest, std::size_t bytes) const noexcept {
        world& w = the_world();
        const std::unique_lock lock{w.mutex};
        const auto gone = std::erase_if(
            w.mappings, [&](const mapping& m) { return m.base == guest && m.bytes == bytes; });
        return gone == 1 ? status::success : status::bad_argument;
    }
    [[nodiscard]] status protect(std::uint64_t guest, std::size_t bytes,
                                 std::uint64_t rights) const noexcept {
        world& w = the_world();
        const std::unique_lock lock{w.mutex};
        for (mapping& m : w.mappings)
            if (m.base == guest && m.bytes == bytes) {
                m.rights = rights;
                return status::success;
            }
        return status::bad_argument;
    }

    [[nodiscard]] status create_vcpu(std::uint64_t& vcpu,
                                     const os::hvf_abi::arm64_exit_information*& exit) const {
        if (!is_arm64) return status::unsupported;
        const status made = make(vcpu);
        exit = &the_world().processors[static_cast<std::size_t>(vcpu)]->exit;
        return made;
    }
    [[nodiscard]] status create_vcpu(std::uint64_t& vcpu) const { return make(vcpu); }
    [[nodiscard]] status destroy_vcpu(std::uint64_t vcpu) const noexcept {
        const auto cpu = own(vcpu);
        if (cpu == nullptr) return status::bad_argument;
        world& w = the_world();
        const std::lock_guard lock{w.processors_mutex};
        w.processors[static_cast<std::size_t>(vcpu)] = nullptr;
        ++w.vcpus_destroyed;
        return status::success;
    }
    [[nodiscard]] status run_vcpu(std::uint64_t vcpu) const noexcept {
        const auto cpu = own(vcpu);
        if (cpu == nullptr) return status::bad_argument;
        ++cpu->entries;
        cpu->interrupted = cpu->irq;
        cpu->irq = false;
        for (;;) {
            if (cpu->leave.exchange(false)) {
                cpu->exit = {};
                cpu->system[os::hvf_abi::vmcs::exit_reason] = 1;
                return status::success;
            }
            if (is_arm64 && cpu->timer_fires && !cpu->timer_masked) {
                cpu->timer_masked = true;
                cpu->exit = {2, 0, 0, 0};
                return status::success;
            }
            const std::shared_lock lock{the_world().mutex};
            for (unsigned i = 0; i < 64; ++i) {
                if (!(is_arm64 ? step_arm64(*cpu) : step_x86(*cpu))) return status::success;
            }
        }
    }
    [[nodiscard]] status exit_vcpu(std::uint64_t vcpu) const noexcept {
        const auto cpu = at(vcpu);
        if (cpu == nullptr) return status::bad_argument;
        cpu->leave.store(true);
        return status::success;
    }
    [[nodiscard]] status get_register(std::uint64_t vcpu, std::uint32_t number,
                                      std::uint64_t& value) const noexcept {
        const auto cpu = own(vcpu);
        if (cpu == nullptr || number >= cpu->general.size()) return status::bad_argument;
        value = cpu->general[number];
        return status::success;
    }
    [[nodiscard]] status set_register(std::uint64_t vcpu, std::uint32_t number,
                                      std::uint64_t value) const noexcept {
        const auto cpu = own(vcpu);
        if (cpu == nullptr || number >= cpu->general.size()) return status::bad_argument;
        cpu->general[number] = value;
        return status::success;
    }
    [[nodiscard]] status get_system_register(std::uint64_t vcpu, std::uint16_t number,
                                             std::uint64_t& value) const noexcept {
        return read_vmcs(vcpu, number, value);
    }
    [[nodiscard]] status set_system_register(std::uint64_t vcpu, std::uint16_t number,
                                             std::uint64_t value) const noexcept {
        return write_vmcs(vcpu, number, value);
    }
    [[nodiscard]] status set_pending_irq(std::uint64_t vcpu, bool pending) const noexcept {
        const auto cpu = own(vcpu);
        if (cpu == nullptr) return status::bad_argument;
        cpu->irq = pending;
        return status::success;
    }
    [[nodiscard]] status mask_timer(std::uint64_t vcpu, bool masked) const noexcept {
        const auto cpu = own(vcpu);
        if (cpu == nullptr) return status::bad_argument;
        cpu->timer_masked = masked;
        return status::success;
    }
    [[nodiscard]] bool has_gic() const noexcept { return the_world().gic; }
    [[nodiscard]] status gic_sizes(os::hvf_gic_sizes& sizes) const noexcept {
        sizes = {0x1'0000, 0x200'0000, 0x1'0000, 0x1'0000, 32, 988};
        return status::success;
    }
    [[nodiscard]] status create_gic(const os::hvf_gic_place& place) const noexcept {
        if ((place.distributor & 0xffff) != 0) return status::bad_argument;
        the_world().gic_at = place;
        return status::success;
    }
    [[nodiscard]] status set_spi(std::uint32_t intid, bool level) const {
        the_world().spis.emplace_back(intid, level);
        return status::success;
    }
    [[nodiscard]] status send_message(std::uint64_t address, std::uint32_t intid) const {
        the_world().messages.emplace_back(address, intid);
        return status::success;
    }
    [[nodiscard]] status read_vmcs(std::uint64_t vcpu, std::uint32_t field,
                                   std::uint64_t& value) const noexcept {
        const auto cpu = own(vcpu);
        if (cpu == nullptr) return status::bad_argument;
        value = cpu->system[field];
        return status::success;
    }
    [[nodiscard]] status write_vmcs(std::uint64_t vcpu, std::uint32_t field,
                                    std::uint64_t value) const noexcept {
        const auto cpu = own(vcpu);
        if (cpu == nullptr) return status::bad_argument;
        cpu->system[field] = value;
        return status::success;
    }
    [[nodiscard]] status vmx_capability(os::hvf_abi::vmx_capability,
                                        std::uint64_t& value) const noexcept {
        value = 0xffff'ffff'0000'0016; // all may be set, bits 1, 2 and 4 must be
        return status::success;
    }
    [[nodiscard]] os::cpuid_leaf host_cpuid(std::uint32_t leaf, std::uint32_t) const noexcept {
        return {leaf, 0x1234, ~0u, 0x5678};
    }

    /// The vCPU that was made as number `vcpu`, for tests.
    [[nodiscard]] static std::shared_ptr<processor> at(std::uint64_t vcpu) noexcept {
        world& w = the_world();
        const std::lock_guard lock{w.processors_mutex};
        return vcpu < w.processors.size() ? w.processors[static_cast<std::size_t>(vcpu)] : nullptr;
    }

private:
    [[nodiscard]] static status make(std::uint64_t& vcpu) {
        world& w = the_world();
        if (!w.vm) return status::no_device;
        const std::lock_guard lock{w.processors_mutex};
        vcpu = w.processors.size();
        w.processors.push_back(std::make_shared<processor>());
        w.processors.back()->thread = std::this_thread::get_id();
        return status::success;
    }
    /// Only the thread that created a vCPU may use it.
    [[nodiscard]] static std::shared_ptr<processor> own(std::uint64_t vcpu) noexcept {
        auto cpu = at(vcpu);
        if (cpu != nullptr && cpu->thread != std::this_thread::get_id()) {
            ++the_world().wrong_thread;
            return nullptr;
        }
        return cpu;
    }
};

using arm64_calls = calls<os::hvf_architecture::arm64>;
using x86_64_calls = calls<os::hvf_architecture::x86_64>;

static_assert(hypervisor<basic_hvf<arm64_calls>> && hypervisor<basic_hvf<x86_64_calls>>);

} // namespace hvf_framework
