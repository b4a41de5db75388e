/// Descriptors in memory: their byte order, and how flags in them are set.
#pragma once

#include <vm_accel/smmu/translation/walk.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// How often one walk tries again because a descriptor changed under it. Each
/// time somebody else has made progress; only a guest that does nothing but
/// rewrite the descriptor gets this far, and its device gets F_WALK_EABT.
inline constexpr unsigned walk_retries = 64;

enum class replaced : std::uint8_t {
    done,
    overtaken, ///< the descriptor is no longer what was decoded: decode it again
    lost,      ///< not memory
};

/// The descriptors of one stage, in host order.
template <smmu_features F, table_access Tables>
class table_words {
public:
    table_words(Tables& tables, bool big_endian) noexcept
        : tables_(tables), big_endian_(big_endian) {}

    [[nodiscard, gnu::always_inline]] std::optional<std::uint64_t> load(std::uint64_t at) noexcept {
        std::optional<std::uint64_t> word = tables_.load(at);
        if (word) *word = ordered(*word);
        return word;
    }
    [[nodiscard]] replaced replace(std::uint64_t at, std::uint64_t old_word,
                                   std::uint64_t new_word) noexcept {
        const auto found = tables_.compare_exchange(at, ordered(old_word), ordered(new_word));
        if (!found) return replaced::lost;
        return *found == ordered(old_word) ? replaced::done : replaced::overtaken;
    }

private:
    [[nodiscard]] std::uint64_t ordered(std::uint64_t word) const noexcept {
        if constexpr (F.mixed_endian) {
            if (big_endian_) return byte_swapped(word);
        }
        return word;
    }
    [[nodiscard]] static constexpr std::uint64_t byte_swapped(std::uint64_t word) noexcept {
        std::uint64_t swapped = 0;
        for (unsigned i = 0; i < 64; i += 8)
            swapped |= (word >> i & 0xff) << (56 - i);
        return swapped;
    }

    Tables& tables_;
    bool big_endian_;
};

} // namespace vm_accel::inline v0
