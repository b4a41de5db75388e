/// A set of logical CPUs by the numbers the operating system gives them.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace vm_accel::inline v0::os {

/// CPUs 0 to capacity - 1. Numbers beyond are not representable: `insert` says
/// so. Trivially copyable.
class cpu_set {
public:
    /// The most CPUs that a Linux kernel can be configured for.
    static constexpr unsigned capacity = 8192;
    static constexpr unsigned bits_per_word = 64;
    using word = std::uint64_t;

    constexpr cpu_set() noexcept = default;

    /// Just one CPU; empty if `cpu` is not representable.
    [[nodiscard]] static constexpr cpu_set of(unsigned cpu) noexcept {
        cpu_set set;
        static_cast<void>(set.insert(cpu));
        return set;
    }

    /// False when `cpu` is not below `capacity`; the set is then unchanged.
    constexpr bool insert(unsigned cpu) noexcept {
        if (cpu >= capacity) return false;
        words_[cpu / bits_per_word] |= word{1} << (cpu % bits_per_word);
        return true;
    }
    constexpr void erase(unsigned cpu) noexcept {
        if (cpu < capacity) words_[cpu / bits_per_word] &= ~(word{1} << (cpu % bits_per_word));
    }
    [[nodiscard]] constexpr bool contains(unsigned cpu) const noexcept {
        return cpu < capacity && ((words_[cpu / bits_per_word] >> (cpu % bits_per_word)) & 1) != 0;
    }
    [[nodiscard]] constexpr unsigned count() const noexcept {
        unsigned total = 0;
        for (const word w : words_)
            total += static_cast<unsigned>(std::popcount(w));
        return total;
    }
    [[nodiscard]] constexpr bool empty() const noexcept { return next(0) == capacity; }
    /// The lowest CPU of the set that is not below `from`; `capacity` if none.
    [[nodiscard]] constexpr unsigned next(unsigned from) const noexcept {
        for (unsigned i = from / bits_per_word; i < words_.size(); ++i) {
            word w = words_[i];
            if (i == from / bits_per_word) w &= ~word{0} << (from % bits_per_word);
            if (w != 0) return i * bits_per_word + static_cast<unsigned>(std::countr_zero(w));
        }
        return capacity;
    }

    /// The words in ascending order, bit 0 of word 0 being CPU 0: the kernel's layout.
    [[nodiscard]] constexpr std::array<word, capacity / bits_per_word>& words() noexcept {
        return words_;
    }
    [[nodiscard]] constexpr const std::array<word, capacity / bits_per_word>&
    words() const noexcept {
        return words_;
    }

    friend constexpr bool operator==(const cpu_set&, const cpu_set&) = default;
    /// The CPUs of both.
    friend constexpr cpu_set operator&(const cpu_set& a, const cpu_set& b) noexcept {
        cpu_set out;
        for (std::size_t i = 0; i < out.words_.size(); ++i)
            out.words_[i] = a.words_[i] & b.words_[i];
        return out;
    }
    /// The CPUs of either.
    friend constexpr cpu_set operator|(const cpu_set& a, const cpu_set& b) noexcept {
        cpu_set out;
        for (std::size_t i = 0; i < out.words_.size(); ++i)
            out.words_[i] = a.words_[i] | b.words_[i];
        return out;
    }
    /// The CPUs of `a` that are not in `b`.
    friend constexpr cpu_set operator-(const cpu_set& a, const cpu_set& b) noexcept {
        cpu_set out;
        for (std::size_t i = 0; i < out.words_.size(); ++i)
            out.words_[i] = a.words_[i] & ~b.words_[i];
        return out;
    }

private:
    std::array<word, capacity / bits_per_word> words_{};
};

/// Appends the set to a fixed_text as "0-3,8"; "none" when it is empty.
template <class Text>
constexpr Text& append_list(Text& out, const cpu_set& set) noexcept {
    if (set.empty()) {
        out.append("none");
        return out;
    }
    bool first = true;
    for (unsigned low = set.next(0); low < cpu_set::capacity;) {
        unsigned high = low;
        while (set.contains(high + 1))
            ++high;
        if (!first) out.append(",");
        first = false;
        out.append_number(low);
        if (high != low) out.append("-").append_number(high);
        low = high + 1 < cpu_set::capacity ? set.next(high + 1) : cpu_set::capacity;
    }
    return out;
}

} // namespace vm_accel::inline v0::os
