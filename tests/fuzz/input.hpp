/// Bytes of a fuzzer, taken piece by piece. When they run out, zeros follow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace fuzz {

class input {
public:
    explicit input(std::span<const std::uint8_t> bytes) : rest_(bytes) {}

    bool empty() const { return rest_.empty(); }
    std::uint64_t take(unsigned bytes) {
        std::uint64_t value = 0;
        for (unsigned i = 0; i < bytes && !rest_.empty(); ++i) {
            value |= std::uint64_t{rest_.front()} << 8 * i;
            rest_ = rest_.subspan(1);
        }
        return value;
    }
    std::uint64_t below(std::uint64_t limit) {
        return take(limit <= 0x100 ? 1 : limit <= 0x1'0000 ? 2 : 4) % limit;
    }
    bool flag() { return (take(1) & 1) != 0; }

    /// A number of the kinds that find mistakes, mostly from few bytes.
    std::uint64_t number(std::uint64_t ram, std::uint64_t ram_bytes) {
        switch (below(8)) {
        case 0:
            return take(1);
        case 1:
            return ~std::uint64_t{0} << below(64);
        case 2:
            return std::uint64_t{1} << below(64);
        case 3:
            return ram + below(ram_bytes / 64) * 64;
        case 4:
            return ram + ram_bytes - take(1);
        case 5:
            return (ram + below(ram_bytes / 4096) * 4096) | take(2) % 4096;
        case 6:
            return take(4);
        default:
            return take(8);
        }
    }

private:
    std::span<const std::uint8_t> rest_;
};

} // namespace fuzz
