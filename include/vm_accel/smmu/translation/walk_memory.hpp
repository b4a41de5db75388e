/// What the walks of one access may start from, and what they leave for others.
#pragma once

#include <vm_accel/smmu/caches/context_table.hpp>
#include <vm_accel/smmu/caches/familiar_leaf.hpp>
#include <vm_accel/smmu/caches/walk_cache.hpp>
#include <vm_accel/smmu/translation/table_format.hpp>
#include <vm_accel/smmu/vocabulary/access.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/spec/descriptors.hpp>

#include <bit>
#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// Where a walk goes on: a table's address, and what stage 1's tables above it
/// impose, in the bits of a table descriptor.
struct known_table {
    static constexpr std::uint64_t limits = spec::stage1_table::APTable::mask |
                                            spec::stage1_table::XNTable::mask |
                                            spec::stage1_table::PXNTable::mask;
    static constexpr std::uint64_t address = 0x000f'ffff'ffff'f000;
};

/// What stage 2 gives for a page: an answer that needs no look at its descriptor.
struct known_page {
    std::uint64_t word = 0; ///< output address, SH, MemAttr and permissions
    std::uint8_t size_log2 = 12;

    [[nodiscard]] static constexpr known_page of(std::uint64_t output, std::uint64_t descriptor,
                                                 unsigned shareability, permissions allowed,
                                                 unsigned size_log2) noexcept {
        return {output | std::uint64_t{shareability & 3} << 10 |
                    spec::stage2_leaf::MemAttr::of(descriptor) << 6 | allowed.bits(),
                static_cast<std::uint8_t>(size_log2)};
    }
    [[nodiscard]] constexpr std::uint64_t output() const noexcept {
        return word & known_table::address;
    }
    [[nodiscard]] constexpr permissions allowed() const noexcept {
        return permissions{static_cast<unsigned>(word & 0x3f)};
    }
    [[nodiscard]] constexpr unsigned shareability() const noexcept {
        return static_cast<unsigned>(word >> 10 & 3);
    }
    /// A descriptor with its memory type, and nothing else.
    [[nodiscard]] constexpr std::uint64_t descriptor() const noexcept {
        return spec::stage2_leaf::MemAttr::in_place(word >> 6 & 0xf);
    }
};

/// For walks that look at memory as it is.
struct nothing_known {
    [[nodiscard]] static constexpr std::optional<std::uint64_t> table1(std::uint64_t,
                                                                       unsigned) noexcept {
        return std::nullopt;
    }
    [[nodiscard]] static constexpr std::optional<std::uint64_t> table2(std::uint64_t,
                                                                       unsigned) noexcept {
        return std::nullopt;
    }
    [[nodiscard]] static constexpr std::optional<known_page> page(std::uint64_t) noexcept {
        return std::nullopt;
    }
    static constexpr void keep_table1(std::uint64_t, unsigned, std::uint64_t) noexcept {}
    static constexpr void keep_table2(std::uint64_t, unsigned, std::uint64_t) noexcept {}
    static constexpr void keep_page(std::uint64_t, const known_page&) noexcept {}
    [[nodiscard]] static constexpr familiar_leaf* described() noexcept { return nullptr; }
};

inline constexpr int no_known_table = -2;
/// The highest level of whose tables any is known: those above are passed in a
/// fetch or two, which costs no more than to look for them.
inline constexpr int highest_known = 2;

/// The level of the lowest table that is known on the way of an input address,
/// or no_known_table. `find(size_log2)` looks up the table of that reach; the first
/// table of all is the regime's, and is not looked up.
template <smmu_features F, class Find>
[[nodiscard, gnu::always_inline]] inline int lowest_known(const table_format<F>& format, Find find,
                                                          std::uint64_t& word) noexcept {
    for (int level = static_cast<int>(spec::last_level); level >= highest_known; --level) {
        const unsigned reach = format.covered(level - 1);
        if (reach >= format.input_bits()) break;
        if (const std::optional<std::uint64_t> found = find(reach)) {
            word = *found;
            return level;
        }
    }
    return no_known_table;
}

/// Whether a walk has left an update of flags undone: then it is not to spare
/// others the look at its descriptors.
template <class Tables>
[[nodiscard]] constexpr bool owes_update(const Tables& tables) noexcept {
    if constexpr (requires { tables.owes_update(); }) return tables.owes_update();
    return false;
}

/// The caches, in the name of one access. Made before its walk's first read.
template <walk_cache_policy Cache>
class walk_memory {
public:
    /// The ticket comes before all tags. Without contexts nothing is known, and
    /// nothing kept; `stage2` is null where stage 2 is off.
    walk_memory(Cache& cache, walk_ticket ticket, const translation_context* stage2) noexcept
        : cache_(cache), ticket_(ticket), stage2_(stage2) {
        if (stage2 != nullptr) {
            second_ = walk_owner::of(stage2->tag(), stage2->identity().tag);
        }
    }
    /// Stage 1 is that of a context whose tag is this.
    void belongs_to(std::uint64_t context, const translation_tag& tag) noexcept {
        first_ = walk_owner::of(context, tag);
        has_first_ = true;
    }

    [[nodiscard]] std::optional<std::uint64_t> table1(std::uint64_t input,
                                                      unsigned size_log2) const noexcept {
        if (!has_first_) return std::nullopt;
        return cache_.find_table(first_, input, size_log2);
    }
    [[nodiscard]] std::optional<std::uint64_t> table2(std::uint64_t ipa,
                                                      unsigned size_log2) const noexcept {
        if (stage2_ == nullptr) return std::nullopt;
        return cache_.find_table(second_, ipa, size_log2);
    }
    [[nodiscard]] std::optional<known_page> page(std::uint64_t ipa) const noexcept {
        if (stage2_ == nullptr) return std::nullopt;
        for (std::uint64_t sizes = stage2_->page_sizes(); sizes != 0; sizes &= sizes - 1) {
            const auto size_log2 = static_cast<unsigned>(std::countr_zero(sizes));
            if (const auto word = cache_.find_page(second_, ipa, size_log2)) {
                return known_page{*word, static_cast<std::uint8_t>(size_log2)};
            }
        }
        return std::nullopt;
    }
    void keep_table1(std::uint64_t input, unsigned size_log2, std::uint64_t word) noexcept {
        if (has_first_) cache_.keep_table(ticket_, first_, input, size_log2, word);
    }
    void keep_table2(std::uint64_t ipa, unsigned size_log2, std::uint64_t word) noexcept {
        if (stage2_ != nullptr) cache_.keep_table(ticket_, second_, ipa, size_log2, word);
    }
    void keep_page(std::uint64_t ipa, const known_page& page) noexcept {
        if (stage2_ == nullptr) return;
        stage2_->note_page_size(page.size_log2);
        cache_.keep_page(ticket_, second_, ipa, page.size_log2, page.word);
    }

    /// The walk is to describe the leaf of stage 1 that it ends at.
    void describe(familiar_leaf& leaf) noexcept {
        leaf.stage1 = first_;
        leaf.stage2 = second_;
        described_ = &leaf;
    }
    /// Null = nobody wants to know.
    [[nodiscard]] familiar_leaf* described() const noexcept { return described_; }

private:
    Cache& cache_;
    walk_ticket ticket_;
    walk_owner first_{};
    walk_owner second_{};
    const translation_context* stage2_ = nullptr;
    familiar_leaf* described_ = nullptr;
    bool has_first_ = false;
};

} // namespace vm_accel::inline v0
