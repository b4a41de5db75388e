/// What a device asks for, and which of it a translation allows.
#pragma once

#include <vm_accel/core/address.hpp>

#include <cstdint>

namespace vm_accel::inline v0 {

/// Direction of a DMA access, seen from the device.
enum class access : std::uint8_t { read, write };

/// One access as it arrives from a device (IHI 0070, 3.3). `privileged` and
/// `instruction` are the incoming attributes PnU and InD; plain devices send
/// neither.
struct transaction {
    iova address{};
    std::uint64_t length = 1; ///< bytes, at least 1
    access kind = access::read;
    bool privileged = false;
    bool instruction = false;
    bool has_substream = false; ///< SSV: the access carries a SubstreamID
    bool translated = false;    ///< the address came from an ATS translation
    substream_id substream{};   ///< meaningful with has_substream
};

/// Kinds of accesses in small numbers, 0 to 7: direction, privilege, instruction.
[[nodiscard]] constexpr unsigned number_of(const transaction& t) noexcept {
    return (t.kind == access::write ? 1U : 0U) | (t.privileged ? 2U : 0U) |
           (t.instruction ? 4U : 0U);
}
/// An access of the kind with that number.
[[nodiscard]] constexpr transaction kind_of(unsigned number) noexcept {
    transaction t;
    t.kind = (number & 1) != 0 ? access::write : access::read;
    t.privileged = (number & 2) != 0;
    t.instruction = (number & 4) != 0;
    return t;
}

/// Neither empty nor past the end of the address space.
[[nodiscard]] constexpr bool is_sound(iova address, std::uint64_t length) noexcept {
    return length != 0 && length - 1 <= ~raw(address);
}

/// Which accesses a translation permits: one bit per kind of access.
class permissions {
public:
    constexpr permissions() noexcept = default;
    constexpr explicit permissions(unsigned bits) noexcept
        : bits_(static_cast<std::uint8_t>(bits & 0x3f)) {}

    static constexpr unsigned user_read = 1U << 0;
    static constexpr unsigned user_write = 1U << 1;
    static constexpr unsigned privileged_read = 1U << 2;
    static constexpr unsigned privileged_write = 1U << 3;
    static constexpr unsigned user_execute = 1U << 4;
    static constexpr unsigned privileged_execute = 1U << 5;

    [[nodiscard]] static constexpr permissions all() noexcept { return permissions{0x3f}; }
    /// The one bit that this access needs.
    [[nodiscard]] static constexpr unsigned needed(access kind, bool privileged,
                                                   bool instruction) noexcept {
        if (instruction && kind == access::read) {
            return privileged ? privileged_execute : user_execute;
        }
        return 1U << ((privileged ? 2U : 0U) + (kind == access::write ? 1U : 0U));
    }
    [[nodiscard]] constexpr bool allow(unsigned needed_bit) const noexcept {
        return (bits_ & needed_bit) != 0;
    }
    [[nodiscard]] constexpr unsigned bits() const noexcept { return bits_; }
    friend constexpr bool operator==(permissions, permissions) noexcept = default;

private:
    std::uint8_t bits_ = 0;
};

} // namespace vm_accel::inline v0
