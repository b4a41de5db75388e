/// Random numbers that depend on the seed alone, on every compiler.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

namespace differential {

class random_source {
public:
    random_source(std::uint64_t seed, std::uint64_t stream)
        : state_(seed * 0x9e37'79b9'7f4a'7c15 + stream) {
        (void)bits();
        state_ ^= stream * 0xd134'2543'de82'ef95;
    }

    std::uint64_t bits() {
        state_ += 0x9e37'79b9'7f4a'7c15;
        std::uint64_t z = state_;
        z = (z ^ (z >> 30)) * 0xbf58'476d'1ce4'e5b9;
        z = (z ^ (z >> 27)) * 0x94d0'49bb'1331'11eb;
        return z ^ (z >> 31);
    }
    /// 0 to n - 1.
    std::uint64_t below(std::uint64_t n) { return n == 0 ? 0 : bits() % n; }
    /// `low` to `high`, both included.
    unsigned between(unsigned low, unsigned high) {
        return low + static_cast<unsigned>(below(high - low + 1));
    }
    bool percent(unsigned n) { return below(100) < n; }
    template <class T>
    T pick(std::initializer_list<T> of) {
        return of.begin()[below(of.size())];
    }
    template <class T>
    T& pick(std::vector<T>& of) {
        return of[static_cast<std::size_t>(below(of.size()))];
    }

private:
    std::uint64_t state_;
};

} // namespace differential
