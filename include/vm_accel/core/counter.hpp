/// Statistics that cost one plain add where they are counted.
#pragma once

#include <atomic>
#include <cstdint>

namespace vm_accel::inline v0 {

/// Written by one thread, read by any. Reads may be a moment late, never torn.
class counter {
public:
    [[gnu::always_inline]] void add(std::uint64_t n = 1) noexcept {
        value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
    }
    [[nodiscard]] std::uint64_t read() const noexcept {
        return value_.load(std::memory_order_relaxed);
    }
    void reset() noexcept { value_.store(0, std::memory_order_relaxed); }

private:
    std::atomic<std::uint64_t> value_{0};
};

} // namespace vm_accel::inline v0
