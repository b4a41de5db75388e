/// Short text that never allocates: what errors and reports are made of.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace vm_accel::inline v0 {

/// At most `Capacity` bytes of text, trivially copyable. What does not fit is
/// cut, and the last three bytes then read "...".
template <std::size_t Capacity>
class fixed_text {
    static_assert(Capacity >= 4 && Capacity < 0x10000);

public:
    constexpr fixed_text() noexcept = default;
    constexpr fixed_text(std::string_view text) noexcept { append(text); }
    constexpr fixed_text(const char* text) noexcept : fixed_text(std::string_view{text}) {}

    constexpr fixed_text& append(std::string_view text) noexcept {
        const std::size_t n = text.copy(data_ + size_, Capacity - size_);
        size_ = static_cast<std::uint16_t>(size_ + n);
        if (n != text.size()) std::char_traits<char>::assign(data_ + Capacity - 3, 3, '.');
        return *this;
    }
    /// Appends a number, `base` 10 or 16 (the latter with "0x").
    constexpr fixed_text& append_number(std::uint64_t value, unsigned base = 10) noexcept {
        char digits[24]{};
        std::size_t n = 0;
        do {
            digits[n++] = "0123456789abcdef"[value % base];
            value /= base;
        } while (value != 0);
        if (base == 16) append("0x");
        while (n != 0)
            append(std::string_view{&digits[--n], 1});
        return *this;
    }

    [[nodiscard]] constexpr std::string_view view() const noexcept { return {data_, size_}; }
    constexpr operator std::string_view() const noexcept { return view(); }
    [[nodiscard]] constexpr bool empty() const noexcept { return size_ == 0; }
    [[nodiscard]] constexpr std::size_t size() const noexcept { return size_; }
    constexpr void clear() noexcept { size_ = 0; }

    friend constexpr bool operator==(const fixed_text& a, const fixed_text& b) noexcept {
        return a.view() == b.view();
    }
    friend constexpr bool operator==(const fixed_text& a, std::string_view b) noexcept {
        return a.view() == b;
    }
    friend constexpr bool operator==(const fixed_text& a, const char* b) noexcept {
        return a.view() == std::string_view{b};
    }

private:
    char data_[Capacity]{};
    std::uint16_t size_ = 0;
};

/// Prints to anything that takes a string_view with `<<`.
template <class Stream, std::size_t Capacity>
    requires requires(Stream& out, std::string_view text) { out << text; }
Stream& operator<<(Stream& out, const fixed_text<Capacity>& text) {
    out << text.view();
    return out;
}

} // namespace vm_accel::inline v0
