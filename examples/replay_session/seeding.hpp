/// Puts mappings that the driver has removed back for a moment, so that a
/// device can be made to cache them.
///
/// A translation comes into a TLB only by a walk. The tables that the driver
/// left no longer hold the old mappings; this adds them in place, in the
/// stream's own tables under its own ASID, and takes them out again.
#pragma once

#include "final_tables.hpp"

#include <cstdint>
#include <utility>
#include <vector>

namespace replay {

/// Mappings that exist until this is destroyed or undo() is called. Tables it
/// needs come from the memory's spare pages, which are zero again afterwards:
/// a walk cache that remembers them finds nothing there.
class seeded_tables {
public:
    explicit seeded_tables(page_memory& memory) : memory_(memory), next_(raw(memory.spare())) {}
    seeded_tables(const seeded_tables&) = delete;
    seeded_tables& operator=(const seeded_tables&) = delete;
    ~seeded_tables() { undo(); }

    /// Spare bytes that one added mapping needs at most: a table per level.
    static constexpr std::size_t spare_pages_per_mapping = 3 * 16;

    /// Maps `size` bytes around the line's page as they were; true if they are
    /// mapped now. Map large pieces before small ones. False where stage-1 tables
    /// cannot say it (the stream no longer translates, no such permission, an
    /// output that its granule cannot reach).
    bool map(const configured_stream& view, const translation_line& t, std::uint64_t size) {
        if (view.what != configured_stream::kind::stage1 || !t.readable) return false;
        const iova address = final_tables::without_tag(view, t.address);
        const table_half half = final_tables::half_of(view, address);
        if (!final_tables::reaches(half, address)) return false;
        const std::uint64_t page = std::uint64_t{1} << spec::page_bits(half.granule);
        if (((raw(address) ^ raw(t.output)) & (size - 1)) != 0) return false;

        std::uint64_t table = half.base;
        for (int level = final_tables::start_level(half);; ++level) {
            const pa at{final_tables::descriptor_address(half, table, level, address)};
            const std::optional<std::uint64_t> word = memory_.load64(at);
            if (!word) return false;
            const std::uint64_t covered = std::uint64_t{1}
                                          << spec::covered_bits(half.granule, level);
            if (covered <= size && (level == 3 || spec::descriptor_kind::Valid::of(*word) == 0)) {
                const std::uint64_t kind =
                    level == 3 ? spec::descriptor_kind::page : spec::descriptor_kind::block;
                return put(at, *word,
                           (raw(t.output) & ~(covered - 1)) | kind | attributes(t.writable));
            }
            if (level == 3) return false;
            if (spec::descriptor_kind::Valid::of(*word) == 0) {
                const std::uint64_t fresh = (next_ + page - 1) & ~(page - 1);
                if (!memory_.load64(pa{fresh + page - 8})) return false;
                next_ = fresh + page;
                if (!put(at, *word, fresh | spec::descriptor_kind::table)) return false;
                table = fresh;
            } else if (spec::descriptor_kind::Table::of(*word) == 0) {
                // A block is there: perhaps one that was added for another line.
                return ((*word ^ raw(t.output)) & spec::output_address_mask(half.granule, level)) ==
                       0;
            } else {
                table = *word & spec::table_address_mask(half.granule);
            }
        }
    }

    void undo() {
        while (!changed_.empty()) {
            const auto [at, old] = changed_.back();
            memory_.store64(at, old);
            changed_.pop_back();
        }
        next_ = raw(memory_.spare());
    }

private:
    [[nodiscard]] static constexpr std::uint64_t attributes(bool writable) {
        return spec::stage1_leaf::AP::in_place(writable ? 1 : 3) |
               spec::stage1_leaf::SH::in_place(3) | spec::stage1_leaf::AF::mask |
               spec::stage1_leaf::nG::mask;
    }
    bool put(pa at, std::uint64_t old, std::uint64_t value) {
        changed_.emplace_back(at, old);
        return memory_.store64(at, value);
    }

    page_memory& memory_;
    std::uint64_t next_;
    std::vector<std::pair<pa, std::uint64_t>> changed_;
};

} // namespace replay
