/// Named bit fields over little-endian words.
///
/// The architecture's structures are arrays of little-endian words in guest
/// memory. A field is a type: word index, highest bit, lowest bit. No C++
/// bit-fields (their layout is the compiler's), no loose masks.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <tuple>

namespace vm_accel::inline v0 {

/// Little-endian to host order, and back (its own inverse).
template <class T>
[[nodiscard]] constexpr T little_endian(T value) noexcept {
    if constexpr (std::endian::native == std::endian::little) {
        return value;
    } else {
        T swapped{};
        for (std::size_t i = 0; i < sizeof(T); ++i) {
            swapped = static_cast<T>((swapped << 8) | ((value >> (8 * i)) & 0xff));
        }
        return swapped;
    }
}

/// An unsigned integer stored in little-endian order.
template <class T>
class little {
public:
    constexpr little() noexcept = default;
    constexpr little(T value) noexcept : stored_(little_endian(value)) {}
    [[nodiscard]] constexpr T value() const noexcept { return little_endian(stored_); }
    constexpr operator T() const noexcept { return value(); }

private:
    T stored_{};
};

using le32 = little<std::uint32_t>;
using le64 = little<std::uint64_t>;

/// Bits [High:Low] of word `Word` of a structure.
template <unsigned Word, unsigned High, unsigned Low>
struct field {
    static_assert(High >= Low && High < 64, "a field is named [high:low] within one 64-bit word");
    static constexpr unsigned word = Word;
    static constexpr unsigned high = High;
    static constexpr unsigned low = Low;
    static constexpr unsigned width = High - Low + 1;
    /// Largest value the field can hold.
    static constexpr std::uint64_t max =
        width == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << (width % 64)) - 1;
    /// The field's bits in place.
    static constexpr std::uint64_t mask = max << Low;

    /// The field's value within one word.
    [[nodiscard]] static constexpr std::uint64_t of(std::uint64_t value) noexcept {
        return (value >> Low) & max;
    }
    /// The value shifted into place; surplus bits are dropped.
    [[nodiscard]] static constexpr std::uint64_t in_place(std::uint64_t value) noexcept {
        return (value & max) << Low;
    }
};

/// Reads field F of a structure that has an array `word`.
template <class F, class Structure>
[[nodiscard]] constexpr std::uint64_t get(const Structure& structure) noexcept {
    static_assert(F::word < std::tuple_size_v<decltype(structure.word)>);
    return F::of(structure.word[F::word]);
}

/// Reads a field that holds an address without its low bits: get<F>() << F::low.
template <class F, class Structure>
[[nodiscard]] constexpr std::uint64_t get_address(const Structure& structure) noexcept {
    static_assert(F::word < std::tuple_size_v<decltype(structure.word)>);
    return structure.word[F::word] & F::mask;
}

/// Replaces field F; the other bits keep their value.
template <class F, class Structure>
constexpr void set(Structure& structure, std::uint64_t value) noexcept {
    static_assert(F::word < std::tuple_size_v<decltype(structure.word)>);
    using W = typename decltype(structure.word)::value_type;
    const std::uint64_t old = structure.word[F::word];
    structure.word[F::word] =
        W{static_cast<decltype(W{}.value())>((old & ~F::mask) | F::in_place(value))};
}

} // namespace vm_accel::inline v0
