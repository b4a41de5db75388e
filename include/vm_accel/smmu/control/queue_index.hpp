/// Arithmetic of the SMMU's circular queues (IHI 0070, 3.5.1).
#pragma once

#include <cstdint>

namespace vm_accel::inline v0 {

/// A queue of 2^log2size entries. An index register holds the entry number in
/// its low bits and a wrap flag just above them; bits above that are ignored.
struct queue_shape {
    std::uint32_t log2size = 0;

    [[nodiscard]] constexpr std::uint32_t entry(std::uint32_t index) const noexcept {
        return index & ((std::uint32_t{1} << log2size) - 1);
    }
    /// Entry number and wrap flag.
    [[nodiscard]] constexpr std::uint32_t position(std::uint32_t index) const noexcept {
        return index & ((std::uint32_t{2} << log2size) - 1);
    }
    [[nodiscard]] constexpr bool is_empty(std::uint32_t prod, std::uint32_t cons) const noexcept {
        return position(prod) == position(cons);
    }
    /// Same entry, other wrap flag.
    [[nodiscard]] constexpr bool is_full(std::uint32_t prod, std::uint32_t cons) const noexcept {
        return (position(prod) ^ position(cons)) == std::uint32_t{1} << log2size;
    }
    /// Entries from CONS to PROD: more than there are if a driver has PROD wrong.
    [[nodiscard]] constexpr std::uint32_t filled(std::uint32_t prod,
                                                 std::uint32_t cons) const noexcept {
        return position(prod - cons);
    }
    /// The position after `index`.
    [[nodiscard]] constexpr std::uint32_t next(std::uint32_t index) const noexcept {
        return position(position(index) + 1);
    }
};

/// Shape and first address of a queue from its BASE register: LOG2SIZE beyond
/// `largest` is cut, and address bits below the queue's size (at least 32
/// bytes) are taken as zero (6.3.26).
struct queue_place {
    queue_shape shape;
    std::uint64_t base = 0;

    [[nodiscard]] static constexpr queue_place of(std::uint64_t base_register, unsigned largest,
                                                  unsigned entry_bytes) noexcept {
        auto log2size = static_cast<std::uint32_t>(base_register & 0x1f);
        if (log2size > largest) log2size = largest;
        const std::uint64_t bytes = std::uint64_t{entry_bytes} << log2size;
        const std::uint64_t address = base_register & 0x000f'ffff'ffff'ffe0;
        return {{log2size}, address & ~((bytes < 32 ? 32 : bytes) - 1)};
    }
};

static_assert(queue_shape{1}.is_full(2, 0) && !queue_shape{1}.is_full(1, 0));
static_assert(queue_shape{2}.filled(1, 6) == 3 && queue_shape{2}.filled(4, 0) == 4);
static_assert(queue_shape{0}.is_full(1, 0) && queue_shape{0}.next(1) == 0);

} // namespace vm_accel::inline v0
