/// The guest: a straight line of arm64 instructions, written as words.
///
/// It prints a line, sets up the SMMU as a driver does, one stream in bypass, waits
/// for its commands and powers the machine off. No assembler is needed: the few
/// instructions are built here (Arm ARM, C6).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace payload {

/// Where everything lies. RAM begins at a page of any host.
namespace place {
inline constexpr std::uint64_t ram = 0x4000'0000;
inline constexpr std::uint64_t ram_bytes = 0x10'0000;
inline constexpr std::uint64_t code = ram;
inline constexpr std::uint64_t report = ram + 0x1'0000;        ///< see reported
inline constexpr std::uint64_t command_queue = ram + 0x2'0000; ///< 16 entries
inline constexpr std::uint64_t stream_table = ram + 0x3'0000;  ///< 16 entries, one used
inline constexpr std::uint64_t buffer = ram + 0x4'0000;        ///< what the device reads
inline constexpr std::uint64_t uart = 0x900'0000;              ///< a PL011's data register
inline constexpr std::uint64_t smmu = 0x905'0000;
inline constexpr std::uint64_t smmu_bytes = 0x2'0000;
} // namespace place

/// The 32-bit words that the guest leaves at place::report.
namespace reported {
inline constexpr std::uint64_t idr0 = 0x0;
inline constexpr std::uint64_t cr0_acknowledged = 0x4;
inline constexpr std::uint64_t commands_consumed = 0x8;
inline constexpr std::uint64_t finished = 0xc; ///< `done`
inline constexpr std::uint32_t done = 0x900d;
} // namespace reported

inline constexpr std::string_view greeting = "hello from EL1\n";
/// What the guest writes at place::buffer for the device to read.
inline constexpr std::uint64_t text_for_device = 0x646e'6174'7372'6576;

/// Instructions in a row.
class program {
public:
    /// MOVZ and MOVK: `x` = value, in up to four instructions.
    constexpr program& mov(unsigned x, std::uint64_t value) noexcept {
        bool first = true;
        for (unsigned part = 0; part < 4; ++part) {
            const std::uint64_t piece = value >> (16 * part) & 0xffff;
            if (piece == 0 && !(first && part == 3)) continue;
            add((first ? 0xd280'0000u : 0xf280'0000u) | part << 21 |
                static_cast<std::uint32_t>(piece << 5) | x);
            first = false;
        }
        return *this;
    }
    /// STR Wt, [Xn, #offset] and STR Xt.
    constexpr program& str32(unsigned t, unsigned n, std::uint64_t offset) noexcept {
        return add(0xb900'0000u | scaled(offset, 4) | n << 5 | t);
    }
    constexpr program& str64(unsigned t, unsigned n, std::uint64_t offset) noexcept {
        return add(0xf900'0000u | scaled(offset, 8) | n << 5 | t);
    }
    /// LDR Wt, [Xn, #offset]
    constexpr program& ldr32(unsigned t, unsigned n, std::uint64_t offset) noexcept {
        return add(0xb940'0000u | scaled(offset, 4) | n << 5 | t);
    }
    /// PSCI is called by HVC #0 with the function in W0.
    constexpr program& call_firmware(std::uint32_t function) noexcept {
        mov(0, function);
        return add(0xd400'0002u);
    }
    constexpr program& branch_to_self() noexcept { return add(0x1400'0000u); }

    /// Stores a constant of 32 or 64 bits, through X1.
    constexpr program& put32(unsigned n, std::uint64_t offset, std::uint32_t value) noexcept {
        mov(1, value);
        return str32(1, n, offset);
    }
    constexpr program& put64(unsigned n, std::uint64_t offset, std::uint64_t value) noexcept {
        mov(1, value);
        return str64(1, n, offset);
    }

    [[nodiscard]] constexpr std::span<const std::uint32_t> words() const noexcept {
        return std::span{words_}.first(size_);
    }

private:
    constexpr program& add(std::uint32_t word) noexcept {
        words_[size_++] = word;
        return *this;
    }
    [[nodiscard]] static constexpr std::uint32_t scaled(std::uint64_t offset,
                                                        unsigned unit) noexcept {
        return static_cast<std::uint32_t>(offset / unit << 10);
    }

    std::array<std::uint32_t, 256> words_{};
    std::size_t size_ = 0;
};

[[nodiscard]] constexpr program make() noexcept {
    // X10 = SMMU, X11 = UART, X12 = report, X13 = structures of the SMMU
    program p;
    p.mov(10, place::smmu).mov(11, place::uart).mov(12, place::report);
    for (const char c : greeting)
        p.put32(11, 0, static_cast<std::uint32_t>(c));
    p.mov(13, place::buffer).put64(13, 0, text_for_device);

    p.ldr32(2, 10, 0x0).str32(2, 12, reported::idr0); // IDR0
    // A linear table of 16 STEs; stream 0: V = 1, Config = 0b100, bypass.
    p.mov(13, place::stream_table).put64(13, 0, 0x9);
    p.put64(13, 8, std::uint64_t{1} << 44);      // SHCFG: as it comes
    p.put64(10, 0x80, place::stream_table);      // STRTAB_BASE
    p.put32(10, 0x88, 4);                        // STRTAB_BASE_CFG: LOG2SIZE = 4
    p.put64(10, 0x90, place::command_queue | 4); // CMDQ_BASE: LOG2SIZE = 4
    p.put32(10, 0x98, 0).put32(10, 0x9c, 0);     // CMDQ_PROD, CMDQ_CONS
    p.put32(10, 0x20, 0x8);                      // CR0.CMDQEN
    // CMD_CFGI_ALL and CMD_SYNC, then PROD = 2.
    p.mov(13, place::command_queue);
    p.put64(13, 0x00, 0x04).put64(13, 0x08, 0x1f);
    p.put64(13, 0x10, 0x46).put64(13, 0x18, 0);
    p.put32(10, 0x98, 2);
    p.put32(10, 0x20, 0x9); // CR0.SMMUEN too
    p.ldr32(2, 10, 0x24).str32(2, 12, reported::cr0_acknowledged);
    p.ldr32(2, 10, 0x9c).str32(2, 12, reported::commands_consumed);
    p.put32(12, reported::finished, reported::done);
    p.call_firmware(0x8400'0008).branch_to_self(); // PSCI SYSTEM_OFF
    return p;
}

} // namespace payload
