/// Whether what was copied out of the caches is still what they say.
#pragma once

#include <atomic>
#include <cstdint>

namespace vm_accel::inline v0 {

/// Counts the changes that make copies of configurations and context tags worthless,
/// so that one comparison tells whether a copy is still good.
///
/// Who copies takes now() first, then reads what is to be copied. Who changes
/// something makes the change first, then calls changed(). A copy whose number
/// is still now() is then at least as new as the last change that anybody has
/// finished.
class alignas(64) change_epoch {
public:
    /// Of no copy. Zero, so that a view of zeros finds nothing: GCC 12 makes such ones of new
    /// ones, at -O3 and with strict aliasing, in some programs.
    static constexpr std::uint64_t never = 0;

    [[nodiscard]] std::uint64_t now() const noexcept {
        return word_.load(std::memory_order_acquire);
    }
    void changed() noexcept { word_.fetch_add(1, std::memory_order_seq_cst); }

    /// From now on no copy is good, and none is made.
    void end() noexcept { word_.fetch_or(ended, std::memory_order_seq_cst); }
    /// Whether a copy that was made at that number may be used.
    [[nodiscard]] static constexpr bool allows_copies(std::uint64_t number) noexcept {
        return (number & ended) == 0;
    }

private:
    static constexpr std::uint64_t ended = std::uint64_t{1} << 63;
    std::atomic<std::uint64_t> word_{never + 1};
};

} // namespace vm_accel::inline v0
