/// Random numbers that are the same on every machine.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace oracle {

/// splitmix64: also turns related seeds into unrelated streams.
class random_source {
public:
    explicit random_source(std::uint64_t seed) noexcept : state_(seed) {}

    [[nodiscard]] std::uint64_t word() noexcept {
        std::uint64_t z = (state_ += 0x9e37'79b9'7f4a'7c15);
        z = (z ^ (z >> 30)) * 0xbf58'476d'1ce4'e5b9;
        z = (z ^ (z >> 27)) * 0x94d0'49bb'1331'11eb;
        return z ^ (z >> 31);
    }
    /// 0 to limit - 1. The bias is too small to matter here.
    [[nodiscard]] unsigned below(unsigned limit) noexcept {
        return static_cast<unsigned>((word() >> 32) * limit >> 32);
    }
    /// first to last.
    [[nodiscard]] unsigned between(unsigned first, unsigned last) noexcept {
        return first + below(last - first + 1);
    }
    /// True in `parts` of 100 cases.
    [[nodiscard]] bool percent(unsigned parts) noexcept { return below(100) < parts; }
    [[nodiscard]] bool coin() noexcept { return (word() >> 63) != 0; }
    /// The low `count` bits random, the others zero.
    [[nodiscard]] std::uint64_t bits(unsigned count) noexcept {
        return count == 0 ? 0 : word() >> (64 - count);
    }
    template <class T>
    [[nodiscard]] T one_of(std::initializer_list<T> values) noexcept {
        return values.begin()[below(static_cast<unsigned>(values.size()))];
    }

private:
    std::uint64_t state_;
};

} // namespace oracle
