/// Guest memory that counts how often structures are read.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/guest/guest_memory.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace vm_accel::inline v0 {

/// Words that follow each other within 64 bytes are one access, as on a bus:
/// an STE is one, however it is read. For one look-up, by one thread.
template <guest_memory Memory>
class counted_memory {
public:
    explicit counted_memory(Memory& memory) noexcept : memory_(memory) {}

    [[nodiscard]] std::uint64_t accesses() const noexcept { return accesses_; }

    [[nodiscard]] std::optional<std::uint64_t> load64(pa address) const noexcept {
        if (raw(address) != next_ || raw(address) % 64 == 0) ++accesses_;
        next_ = raw(address) + 8;
        return memory_.load64(address);
    }
    [[nodiscard]] std::optional<std::uint64_t>
    compare_exchange64(pa address, std::uint64_t expected, std::uint64_t desired) noexcept {
        ++accesses_;
        return memory_.compare_exchange64(address, expected, desired);
    }
    [[nodiscard]] bool read(pa address, std::span<std::byte> out) const noexcept {
        ++accesses_;
        return memory_.read(address, out);
    }
    [[nodiscard]] bool write(pa address, std::span<const std::byte> in) noexcept {
        ++accesses_;
        return memory_.write(address, in);
    }
    [[nodiscard]] std::optional<host_run> find(pa address) const noexcept {
        return memory_.find(address);
    }
    void note_write(pa address, std::uint64_t bytes) noexcept {
        memory_.note_write(address, bytes);
    }

private:
    Memory& memory_;
    mutable std::uint64_t next_ = ~std::uint64_t{0}; ///< where the last load ended
    mutable std::uint64_t accesses_ = 0;
};

} // namespace vm_accel::inline v0
