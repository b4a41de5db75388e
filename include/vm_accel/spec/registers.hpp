/// The SMMUv3 register map as facts (IHI 0070, chapter 6), without behaviour.
///
/// Two 64 KiB pages, and one more where there are enhanced command queues
/// (CMDQ_CONTROL_PAGE_BASE0 says where). `registers` has one row per register, in order of offset;
/// `reg` names the offsets; one struct per register names its fields. A
/// register is one word: read a field with `CR0::SMMUEN::of(value)`, compose
/// one with `CR0::SMMUEN::in_place(1)` (the structs are in register_fields.hpp).
/// All registers are little-endian.
///
/// The event and PRI queue indices live in page 1. An implementation may alias
/// them at the same offsets of page 0 (else those read as zero), so they have
/// no row there. Nor have the registers of enhanced command queues, whose place
/// depends on their number. Registers of DPT, the secure and the Realm
/// interfaces have no rows yet.
#pragma once

#include <vm_accel/spec/register_fields.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace vm_accel::inline v0::spec {

/// Bytes of page 0 and page 1.
inline constexpr std::uint64_t mmio_size = 0x20000;
/// Bytes of each of the two pages.
inline constexpr std::uint64_t mmio_page_size = 0x10000;

/// Offsets from the start of page 0 (IHI 0070, 6.1).
namespace reg {
inline constexpr std::uint32_t IDR0 = 0x0;
inline constexpr std::uint32_t IDR1 = 0x4;
inline constexpr std::uint32_t IDR2 = 0x8;
inline constexpr std::uint32_t IDR3 = 0xc;
inline constexpr std::uint32_t IDR4 = 0x10;
inline constexpr std::uint32_t IDR5 = 0x14;
inline constexpr std::uint32_t IIDR = 0x18;
inline constexpr std::uint32_t AIDR = 0x1c;
inline constexpr std::uint32_t CR0 = 0x20;
inline constexpr std::uint32_t CR0ACK = 0x24;
inline constexpr std::uint32_t CR1 = 0x28;
inline constexpr std::uint32_t CR2 = 0x2c;
inline constexpr std::uint32_t STATUSR = 0x40;
inline constexpr std::uint32_t GBPA = 0x44;
inline constexpr std::uint32_t AGBPA = 0x48;
inline constexpr std::uint32_t IRQ_CTRL = 0x50;
inline constexpr std::uint32_t IRQ_CTRLACK = 0x54;
inline constexpr std::uint32_t GERROR = 0x60;
inline constexpr std::uint32_t GERRORN = 0x64;
inline constexpr std::uint32_t GERROR_IRQ_CFG0 = 0x68;
inline constexpr std::uint32_t GERROR_IRQ_CFG1 = 0x70;
inline constexpr std::uint32_t GERROR_IRQ_CFG2 = 0x74;
inline constexpr std::uint32_t STRTAB_BASE = 0x80;
inline constexpr std::uint32_t STRTAB_BASE_CFG = 0x88;
inline constexpr std::uint32_t CMDQ_BASE = 0x90;
inline constexpr std::uint32_t CMDQ_PROD = 0x98;
inline constexpr std::uint32_t CMDQ_CONS = 0x9c;
inline constexpr std::uint32_t EVENTQ_BASE = 0xa0;
inline constexpr std::uint32_t EVENTQ_IRQ_CFG0 = 0xb0;
inline constexpr std::uint32_t EVENTQ_IRQ_CFG1 = 0xb8;
inline constexpr std::uint32_t EVENTQ_IRQ_CFG2 = 0xbc;
inline constexpr std::uint32_t PRIQ_BASE = 0xc0;
inline constexpr std::uint32_t PRIQ_IRQ_CFG0 = 0xd0;
inline constexpr std::uint32_t PRIQ_IRQ_CFG1 = 0xd8;
inline constexpr std::uint32_t PRIQ_IRQ_CFG2 = 0xdc;
inline constexpr std::uint32_t GATOS_CTRL = 0x100;
inline constexpr std::uint32_t GATOS_SID = 0x108;
inline constexpr std::uint32_t GATOS_ADDR = 0x110;
inline constexpr std::uint32_t GATOS_PAR = 0x118;
inline constexpr std::uint32_t MPAMIDR = 0x130;
inline constexpr std::uint32_t GMPAM = 0x138;
inline constexpr std::uint32_t GBPMPAM = 0x13c;
inline constexpr std::uint32_t VATOS_SEL = 0x180;
inline constexpr std::uint32_t IDR6 = 0x190;
inline constexpr std::uint32_t PIDR4 = 0xfd0;
inline constexpr std::uint32_t PIDR5 = 0xfd4;
inline constexpr std::uint32_t PIDR6 = 0xfd8;
inline constexpr std::uint32_t PIDR7 = 0xfdc;
inline constexpr std::uint32_t PIDR0 = 0xfe0;
inline constexpr std::uint32_t PIDR1 = 0xfe4;
inline constexpr std::uint32_t PIDR2 = 0xfe8;
inline constexpr std::uint32_t PIDR3 = 0xfec;
inline constexpr std::uint32_t CIDR0 = 0xff0;
inline constexpr std::uint32_t CIDR1 = 0xff4;
inline constexpr std::uint32_t CIDR2 = 0xff8;
inline constexpr std::uint32_t CIDR3 = 0xffc;
inline constexpr std::uint32_t CMDQ_CONTROL_PAGE_BASE0 = 0x4000;
inline constexpr std::uint32_t CMDQ_CONTROL_PAGE_CFG0 = 0x4008;
inline constexpr std::uint32_t CMDQ_CONTROL_PAGE_STATUS0 = 0x400c;
inline constexpr std::uint32_t EVENTQ_PROD = 0x100a8;
inline constexpr std::uint32_t EVENTQ_CONS = 0x100ac;
inline constexpr std::uint32_t PRIQ_PROD = 0x100c8;
inline constexpr std::uint32_t PRIQ_CONS = 0x100cc;
} // namespace reg

/// What software may do. When a writable register is locked by an enable bit
/// is behaviour, and stated where the register file is.
enum class register_access : std::uint8_t { read_only, read_write };

struct register_row {
    std::uint32_t offset;   ///< bytes from the start of page 0
    std::uint32_t width;    ///< bytes: 4 or 8
    register_access access; ///< to software
    std::string_view name;  ///< mnemonic without the SMMU_ prefix
};

inline constexpr auto registers = [] {
    using enum register_access;
    return std::to_array<register_row>({
        {reg::IDR0, 4, read_only, "IDR0"},
        {reg::IDR1, 4, read_only, "IDR1"},
        {reg::IDR2, 4, read_only, "IDR2"},
        {reg::IDR3, 4, read_only, "IDR3"},
        {reg::IDR4, 4, read_only, "IDR4"},
        {reg::IDR5, 4, read_only, "IDR5"},
        {reg::IIDR, 4, read_only, "IIDR"},
        {reg::AIDR, 4, read_only, "AIDR"},
        {reg::CR0, 4, read_write, "CR0"},
        {reg::CR0ACK, 4, read_only, "CR0ACK"},
        {reg::CR1, 4, read_write, "CR1"},
        {reg::CR2, 4, read_write, "CR2"},
        {reg::STATUSR, 4, read_only, "STATUSR"},
        {reg::GBPA, 4, read_write, "GBPA"},
        {reg::AGBPA, 4, read_write, "AGBPA"},
        {reg::IRQ_CTRL, 4, read_write, "IRQ_CTRL"},
        {reg::IRQ_CTRLACK, 4, read_only, "IRQ_CTRLACK"},
        {reg::GERROR, 4, read_only, "GERROR"},
        {reg::GERRORN, 4, read_write, "GERRORN"},
        {reg::GERROR_IRQ_CFG0, 8, read_write, "GERROR_IRQ_CFG0"},
        {reg::GERROR_IRQ_CFG1, 4, read_write, "GERROR_IRQ_CFG1"},
        {reg::GERROR_IRQ_CFG2, 4, read_write, "GERROR_IRQ_CFG2"},
        {reg::STRTAB_BASE, 8, read_write, "STRTAB_BASE"},
        {reg::STRTAB_BASE_CFG, 4, read_write, "STRTAB_BASE_CFG"},
        {reg::CMDQ_BASE, 8, read_write, "CMDQ_BASE"},
        {reg::CMDQ_PROD, 4, read_write, "CMDQ_PROD"},
        {reg::CMDQ_CONS, 4, read_write, "CMDQ_CONS"},
        {reg::EVENTQ_BASE, 8, read_write, "EVENTQ_BASE"},
        {reg::EVENTQ_IRQ_CFG0, 8, read_write, "EVENTQ_IRQ_CFG0"},
        {reg::EVENTQ_IRQ_CFG1, 4, read_write, "EVENTQ_IRQ_CFG1"},
        {reg::EVENTQ_IRQ_CFG2, 4, read_write, "EVENTQ_IRQ_CFG2"},
        {reg::PRIQ_BASE, 8, read_write, "PRIQ_BASE"},
        {reg::PRIQ_IRQ_CFG0, 8, read_write, "PRIQ_IRQ_CFG0"},
        {reg::PRIQ_IRQ_CFG1, 4, read_write, "PRIQ_IRQ_CFG1"},
        {reg::PRIQ_IRQ_CFG2, 4, read_write, "PRIQ_IRQ_CFG2"},
        {reg::GATOS_CTRL, 4, read_write, "GATOS_CTRL"},
        {reg::GATOS_SID, 8, read_write, "GATOS_SID"},
        {reg::GATOS_ADDR, 8, read_write, "GATOS_ADDR"},
        {reg::GATOS_PAR, 8, read_only, "GATOS_PAR"},
        {reg::MPAMIDR, 4, read_only, "MPAMIDR"},
        {reg::GMPAM, 4, read_write, "GMPAM"},
        {reg::GBPMPAM, 4, read_write, "GBPMPAM"},
        {reg::VATOS_SEL, 4, read_write, "VATOS_SEL"},
        {reg::IDR6, 4, read_only, "IDR6"},
        {reg::PIDR4, 4, read_only, "PIDR4"},
        {reg::PIDR5, 4, read_only, "PIDR5"},
        {reg::PIDR6, 4, read_only, "PIDR6"},
        {reg::PIDR7, 4, read_only, "PIDR7"},
        {reg::PIDR0, 4, read_only, "PIDR0"},
        {reg::PIDR1, 4, read_only, "PIDR1"},
        {reg::PIDR2, 4, read_only, "PIDR2"},
        {reg::PIDR3, 4, read_only, "PIDR3"},
        {reg::CIDR0, 4, read_only, "CIDR0"},
        {reg::CIDR1, 4, read_only, "CIDR1"},
        {reg::CIDR2, 4, read_only, "CIDR2"},
        {reg::CIDR3, 4, read_only, "CIDR3"},
        {reg::CMDQ_CONTROL_PAGE_BASE0, 8, read_only, "CMDQ_CONTROL_PAGE_BASE0"},
        {reg::CMDQ_CONTROL_PAGE_CFG0, 4, read_only, "CMDQ_CONTROL_PAGE_CFG0"},
        {reg::CMDQ_CONTROL_PAGE_STATUS0, 4, read_only, "CMDQ_CONTROL_PAGE_STATUS0"},
        {reg::EVENTQ_PROD, 4, read_write, "EVENTQ_PROD"},
        {reg::EVENTQ_CONS, 4, read_write, "EVENTQ_CONS"},
        {reg::PRIQ_PROD, 4, read_write, "PRIQ_PROD"},
        {reg::PRIQ_CONS, 4, read_write, "PRIQ_CONS"},
    });
}();

/// Whether rows are in order of offset, share no byte, are naturally aligned,
/// 4 or 8 bytes wide, named, and inside the window.
template <std::size_t N>
[[nodiscard]] constexpr bool is_register_map(const std::array<register_row, N>& rows) noexcept {
    std::uint64_t end = 0;
    for (const register_row& row : rows) {
        if (row.width != 4 && row.width != 8) return false;
        if (row.offset < end || row.offset % row.width != 0 || row.name.empty()) return false;
        end = std::uint64_t{row.offset} + row.width;
    }
    return end <= mmio_size;
}

static_assert(is_register_map(registers));

/// Rows by their words in the first 4 KiB, where nearly all are: the number of
/// the row and one, 0 = none.
inline constexpr auto row_of_word = [] {
    std::array<std::uint8_t, 1024> found{};
    for (std::size_t i = 0; i < registers.size(); ++i) {
        for (std::uint32_t at = registers[i].offset; at < registers[i].offset + registers[i].width;
             at += 4) {
            if (at < 4096) found[at / 4] = static_cast<std::uint8_t>(i + 1);
        }
    }
    return found;
}();
static_assert(registers.size() < 255);

/// The row whose bytes include `offset`; nullptr where there is no register.
[[nodiscard]] constexpr const register_row* find_register(std::uint64_t offset) noexcept {
    if (offset < 4096) {
        const std::uint8_t row = row_of_word[offset / 4];
        return row == 0 ? nullptr : &registers[row - 1U];
    }
    std::size_t low = 0;
    std::size_t high = registers.size();
    while (low != high) {
        const std::size_t middle = low + (high - low) / 2;
        const register_row& row = registers[middle];
        if (offset < row.offset) {
            high = middle;
        } else if (offset - row.offset >= row.width) {
            low = middle + 1;
        } else {
            return &row;
        }
    }
    return nullptr;
}

static_assert(find_register(0x84)->name == "STRTAB_BASE" && find_register(0x8c) == nullptr);
static_assert(find_register(0x400c)->width == 4 && find_register(0x4010) == nullptr);

} // namespace vm_accel::inline v0::spec
