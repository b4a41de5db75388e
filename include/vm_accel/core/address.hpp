/// Address spaces and identifiers as distinct types.
///
/// An `ipa` can never be passed where a `pa` is meant. They convert to integers
/// only through `raw()`, and from integers only by naming the type.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <type_traits>

namespace vm_accel::inline v0 {

/// I/O virtual address: what a device puts on the bus. 64 bits.
enum class iova : std::uint64_t {};
/// Intermediate physical address: output of stage 1 when stage 2 is in use.
enum class ipa : std::uint64_t {};
/// Physical address as the guest's machine sees it (the SMMU's final output).
enum class pa : std::uint64_t {};
/// Names a device to the SMMU (at most 32 bits; IDR1.SIDSIZE bounds it).
enum class stream_id : std::uint32_t {};
/// Names an address space within a stream (at most 20 bits; IDR1.SSIDSIZE).
enum class substream_id : std::uint32_t {};
/// Address space identifier of stage-1 contexts.
enum class asid : std::uint16_t {};
/// Virtual machine identifier of stage-2 contexts.
enum class vmid : std::uint16_t {};

template <class T>
concept address_space = std::is_same_v<T, iova> || std::is_same_v<T, ipa> || std::is_same_v<T, pa>;

/// The integer inside an address or identifier.
template <class E>
    requires std::is_enum_v<E>
[[nodiscard]] constexpr auto raw(E value) noexcept {
    return static_cast<std::underlying_type_t<E>>(value);
}

/// `address + bytes` with wrap-around, as an address bus does it.
template <address_space A>
[[nodiscard]] constexpr A offset_by(A address, std::uint64_t bytes) noexcept {
    return A{raw(address) + bytes};
}

/// A run of addresses that does not wrap: [base, base + size).
template <address_space A>
struct address_range {
    A base{};
    std::uint64_t size = 0; ///< bytes

    friend constexpr bool operator==(const address_range&, const address_range&) = default;

    /// True when base + size is representable (size may reach the very top).
    [[nodiscard]] constexpr bool is_valid() const noexcept {
        return size <= ~raw(base) || (size != 0 && size - 1 == ~raw(base));
    }
    [[nodiscard]] constexpr bool empty() const noexcept { return size == 0; }
    /// Whether all of [address, address + length) lies inside. Never overflows.
    [[nodiscard]] constexpr bool contains(A address, std::uint64_t length = 1) const noexcept {
        const std::uint64_t offset = raw(address) - raw(base);
        return raw(address) >= raw(base) && offset <= size && length <= size - offset;
    }
    [[nodiscard]] constexpr bool overlaps(const address_range& other) const noexcept {
        if (empty() || other.empty()) return false;
        return raw(base) <= raw(other.base) ? raw(other.base) - raw(base) < size
                                            : raw(base) - raw(other.base) < other.size;
    }
};

using iova_range = address_range<iova>;
using ipa_range = address_range<ipa>;
using pa_range = address_range<pa>;

} // namespace vm_accel::inline v0
