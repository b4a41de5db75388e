/// The x86-64 instructions that reach devices: what a MOV to or from memory does, for
/// hypervisors that report only the address of an access (Intel SDM volume 2).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace vm_accel::inline v0::x86_64 {

/// One access to memory.
struct mmio_instruction {
    unsigned length = 0; ///< of the instruction, bytes
    unsigned bytes = 0;  ///< of the access: 1, 2, 4 or 8
    bool is_write = false;
    bool has_immediate = false;  ///< a write of `immediate`, not of a register
    std::uint64_t immediate = 0; ///< sign-extended
    unsigned reg = 0;            ///< 0 = RAX, 1 = RCX, 2 = RDX, 3 = RBX, 4 = RSP ... 15 = R15
    bool high_byte = false;      ///< AH, CH, DH, BH: `reg` is 0 to 3
    unsigned register_bytes = 0; ///< of a load's register: what is more than `bytes` is filled
    bool sign_extends = false;

    friend constexpr bool operator==(const mmio_instruction&, const mmio_instruction&) = default;
};

enum class x86_mode : std::uint8_t { bits_16, bits_32, bits_64 };

namespace mmio_decoding {

/// Reads an instruction byte by byte; past the end it gives 0 and is no longer good.
class reader {
public:
    constexpr explicit reader(std::span<const std::uint8_t> code) noexcept : code_(code) {}
    constexpr std::uint8_t next() noexcept {
        if (at_ >= code_.size()) {
            good_ = false;
            return 0;
        }
        return code_[at_++];
    }
    constexpr std::uint64_t number(unsigned bytes) noexcept {
        std::uint64_t value = 0;
        for (unsigned i = 0; i < bytes; ++i)
            value |= std::uint64_t{next()} << (8 * i);
        return value;
    }
    [[nodiscard]] constexpr bool good() const noexcept { return good_; }
    [[nodiscard]] constexpr unsigned used() const noexcept { return static_cast<unsigned>(at_); }

private:
    std::span<const std::uint8_t> code_;
    std::size_t at_ = 0;
    bool good_ = true;
};

/// Passes over the operand that ModRM describes. False: it is a register.
constexpr bool skip_memory_operand(reader& in, std::uint8_t modrm,
                                   unsigned address_bytes) noexcept {
    const unsigned mod = modrm >> 6;
    const unsigned rm = modrm & 7;
    if (mod == 3) return false;
    if (address_bytes == 2) {
        static_cast<void>(in.number(mod == 2 || (mod == 0 && rm == 6) ? 2 : mod));
        return true;
    }
    unsigned displacement = mod == 1 ? 1 : mod == 2 ? 4 : 0;
    if (rm == 4) {
        const std::uint8_t sib = in.next();
        if (mod == 0 && (sib & 7) == 5) displacement = 4;
    } else if (mod == 0 && rm == 5) {
        displacement = 4; // RIP-relative in 64-bit mode
    }
    static_cast<void>(in.number(displacement));
    return true;
}

} // namespace mmio_decoding

/// What the instruction at the start of `code` does, if it is a MOV, MOVZX, MOVSX or
/// MOVSXD with a memory operand. Nothing for any other, and for one that is cut off.
/// At most 15 bytes of `code` count.
[[nodiscard]] constexpr std::optional<mmio_instruction>
decode_mmio(std::span<const std::uint8_t> code, x86_mode mode = x86_mode::bits_64) noexcept {
    constexpr std::size_t longest = 15;
    mmio_decoding::reader in{code.first(code.size() < longest ? code.size() : longest)};
    bool other_operand = false;
    bool other_address = false;
    std::uint8_t opcode = in.next();
    for (;; opcode = in.next()) {
        if (opcode == 0x66) {
            other_operand = true;
        } else if (opcode == 0x67) {
            other_address = true;
        } else if (opcode != 0x26 && opcode != 0x2e && opcode != 0x36 && opcode != 0x3e &&
                   opcode != 0x64 && opcode != 0x65) {
            break; // segment overrides change the address, which is known already
        }
    }
    std::uint8_t rex = 0;
    if (mode == x86_mode::bits_64 && (opcode & 0xf0) == 0x40) {
        rex = opcode;
        opcode = in.next();
    }
    const bool wide = (rex & 8) != 0;
    const bool short_mode = mode == x86_mode::bits_16;
    const unsigned operand = wide ? 8 : short_mode == other_operand ? 4 : 2;
    const unsigned address = mode == x86_mode::bits_64     ? (other_address ? 4 : 8)
                             : short_mode == other_address ? 4
                                                           : 2;
    mmio_instruction found;
    const auto finish = [&]() -> std::optional<mmio_instruction> {
        if (!in.good()) return std::nullopt;
        found.length = in.used();
        return found;
    };
    if (opcode >= 0xa0 && opcode <= 0xa3) { // AL or eAX and an address
        found.is_write = opcode >= 0xa2;
        found.bytes = found.register_bytes = (opcode & 1) != 0 ? operand : 1;
        static_cast<void>(in.number(address));
        return finish();
    }
    const bool two_bytes = opcode == 0x0f;
    if (two_bytes) opcode = in.next();
    const std::uint8_t modrm = in.next();
    found.reg = (modrm >> 3 & 7u) | ((rex & 4u) << 1);
    const auto name_byte = [&] {
        if (rex == 0 && found.reg >= 4 && found.reg < 8) {
            found.high_byte = true;
            found.reg -= 4;
        }
    };
    if (!mmio_decoding::skip_memory_operand(in, modrm, address)) return std::nullopt;
    if (two_bytes) {
        if (opcode != 0xb6 && opcode != 0xb7 && opcode != 0xbe && opcode != 0xbf)
            return std::nullopt;
        found.bytes = (opcode & 1) != 0 ? 2 : 1;
        found.register_bytes = operand;
        found.sign_extends = opcode >= 0xbe;
        return finish();
    }
    switch (opcode) {
    case 0x88: // MOV r/m8, r8
    case 0x8a: // MOV r8, r/m8
        found.bytes = found.register_bytes = 1;
        found.is_write = opcode == 0x88;
        name_byte();
        return finish();
    case 0x89: // MOV r/m, r
    case 0x8b: // MOV r, r/m
        found.bytes = found.register_bytes = operand;
        found.is_write = opcode == 0x89;
        return finish();
    case 0x63: // MOVSXD r, r/m32
        if (mode != x86_mode::bits_64) return std::nullopt;
        found.bytes = 4;
        found.register_bytes = operand;
        found.sign_extends = true;
        return finish();
    case 0xc6: // MOV r/m8, imm8
    case 0xc7: // MOV r/m, imm
    {
        if ((modrm & 0x38) != 0) return std::nullopt;
        found.bytes = opcode == 0xc6 ? 1 : operand;
        const unsigned size = found.bytes == 8 ? 4 : found.bytes;
        const std::uint64_t top = std::uint64_t{1} << (8 * size - 1);
        found.immediate = (in.number(size) ^ top) - top;
        found.is_write = found.has_immediate = true;
        found.reg = 0;
        return finish();
    }
    default:
        return std::nullopt;
    }
}

/// What a register of `old` holds after a load of `value` (`bytes` bytes of it).
[[nodiscard]] constexpr std::uint64_t loaded(const mmio_instruction& what, std::uint64_t old,
                                             std::uint64_t value) noexcept {
    const auto low = [](unsigned bytes) {
        return bytes >= 8 ? ~std::uint64_t{0} : (std::uint64_t{1} << (8 * bytes)) - 1;
    };
    value &= low(what.bytes);
    if (what.sign_extends) {
        const std::uint64_t top = std::uint64_t{1} << (8 * what.bytes - 1);
        value = (value ^ top) - top;
    }
    if (what.high_byte) return (old & ~std::uint64_t{0xff00}) | value << 8;
    if (what.register_bytes >= 4) return value & low(what.register_bytes);
    return (old & ~low(what.register_bytes)) | (value & low(what.register_bytes));
}

/// What a store writes: the register's value or the immediate, `bytes` bytes of it.
[[nodiscard]] constexpr std::uint64_t stored(const mmio_instruction& what,
                                             std::uint64_t register_value) noexcept {
    const std::uint64_t value = what.has_immediate ? what.immediate
                                : what.high_byte   ? register_value >> 8
                                                   : register_value;
    return what.bytes >= 8 ? value : value & ((std::uint64_t{1} << (8 * what.bytes)) - 1);
}

} // namespace vm_accel::inline v0::x86_64
