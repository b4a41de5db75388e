/// The usual miss: one like those before.
#pragma once

#include <vm_accel/guest/guest_memory.hpp>
#include <vm_accel/guest/interrupt_sink.hpp>
#include <vm_accel/smmu/caches/configuration_cache.hpp>
#include <vm_accel/smmu/caches/familiar_leaf.hpp>
#include <vm_accel/smmu/caches/prefetching_tlb.hpp>
#include <vm_accel/smmu/caches/tlb_policy.hpp>
#include <vm_accel/smmu/caches/walk_cache.hpp>
#include <vm_accel/smmu/translation/table_format.hpp>
#include <vm_accel/smmu/translation/walk_memory.hpp>
#include <vm_accel/smmu/vocabulary/access.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/smmu/vocabulary/outcome.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// Whether misses can be answered by repeated_miss. Not where each access to memory
/// counts: what it could not read is read again.
template <smmu_features F, tlb_policy Tlb, walk_cache_policy Walks, guest_memory Memory>
inline constexpr bool repeats_misses =
    refilling_tlb<Tlb> && !prefetching_tlb<Tlb> && Walks::enabled &&
    F.state != security_state::secure && !requires { Memory::counts_accesses; };

/// Answers misses whose leaf says what an earlier one said, but for its address: what
/// its walk has found then (familiar_leaf) is not worked out again. The leaf's
/// descriptor is read each time, and the tables above it unless they are known.
///
/// Answers nothing else: no fault, no flag to be set, nothing that is not RAM.
template <smmu_features F, refilling_tlb Tlb, walk_cache_policy Walks, guest_memory Memory,
          interrupt_sink Sink>
class repeated_miss {
public:
    repeated_miss(Tlb& tlb, Walks& walks, const change_epoch& epoch, Memory& memory,
                  Sink& sink) noexcept
        : tlb_(tlb), walks_(walks), epoch_(epoch), memory_(memory), sink_(sink) {}

    /// False = anything else: nothing has been counted, and translator::translate()
    /// decides. Inside an open and settled guard; `slot` is the access's.
    ///
    /// The ticket comes before the look at the epoch, which says that the tags are
    /// those of now: so both come before the first descriptor is read.
    template <class Counters>
    [[nodiscard, gnu::always_inline]] bool
    answer(miss_memory<Tlb>& known, const configuration_slot& slot, const transaction& asked,
           Counters& counters, outcome& out) noexcept {
        const std::uint64_t address = raw(asked.address);
        const fill_ticket ticket = tlb_.begin_fill({address, 0, 0});
        const std::uint64_t epoch = epoch_.now();
        auto* lesson = known.at(epoch);
        if (lesson == nullptr) [[unlikely]] {
            if (!known.renew(epoch, slot)) return false;
            lesson = known.at(epoch);
        }
        const familiar_leaf& leaf = lesson->leaf;
        // Not empty, nor up to the end of the address space.
        if (asked.length - 1 >= ~address || !serves(*lesson->configuration, asked) ||
            (address >> 63 != 0) != leaf.upper || !lesson->allows(asked)) [[unlikely]] {
            return false;
        }
        const std::uint64_t in_entry = leaf.in_entry;
        const std::uint64_t first = address & ~in_entry;
        const auto room = tlb_.room_for(lesson->by, first);
        if (!room.is_there()) [[unlikely]]
            return false;

        std::uint64_t accesses = 1;
        auto table = walks_.find_table(leaf.stage1, address, leaf.reach_log2);
        if (!table) [[unlikely]] {
            table = descend(*lesson, address, epoch, accesses);
            if (!table) return false;
        }
        if ((*table & known_table::limits) != leaf.limits) [[unlikely]]
            return false;
        std::uint64_t at =
            (*table & known_table::address) + (address >> leaf.size_log2 & leaf.last_index) * 8;
        if (leaf.nested && !find_page(leaf, at, leaf.table_page_log2, leaf.table_page)) [[unlikely]]
            return false;
        const std::optional<std::uint64_t> descriptor = memory_.load64(pa{at});
        if (!descriptor || (*descriptor & ~leaf.address_bits) != leaf.descriptor) [[unlikely]]
            return false;
        std::uint64_t output =
            ((*descriptor & leaf.address_bits) | leaf.output) + (address & leaf.in_leaf);
        if (leaf.nested && !find_page(leaf, output, leaf.output_page_log2, leaf.output_page))
            [[unlikely]]
            return false;

        const std::uint64_t base = output & ~in_entry;
        if (sink_.is_doorbell(pa{output})) [[unlikely]]
            return false;
        if (!lesson->reachable.has(base) && !find_memory(*lesson, base)) [[unlikely]]
            return false;
        std::byte* const host = lesson->reachable.host + (base - lesson->reachable.first);
        counters.misses.add();
        counters.walk_accesses.add(accesses);
        tlb_.fill_again(ticket, room, lesson->by, first, host, base, lesson->as);
        const std::uint64_t offset = address & in_entry;
        out = outcome::span(host + offset, std::min(asked.length, in_entry - offset + 1),
                            pa{output}, leaf.attributes);
        return true;
    }

private:
    using lesson_type = typename miss_memory<Tlb>::lesson;

    [[nodiscard]] static constexpr bool serves(const stream_configuration& configuration,
                                               const transaction& asked) noexcept {
        if constexpr (F.substream_bits != 0) return configuration.serves(asked);
        return !asked.has_substream;
    }

    /// Replaces an intermediate address by the physical one, if its page is known and says
    /// what is expected.
    [[nodiscard, gnu::always_inline]] bool find_page(const familiar_leaf& leaf,
                                                     std::uint64_t& address, unsigned size_log2,
                                                     std::uint16_t expected) const noexcept {
        const auto page = walks_.find_page(leaf.stage2, address, size_log2);
        if (!page || (*page & familiar_leaf::page_bits) != expected) [[unlikely]]
            return false;
        address =
            (*page & known_table::address) | (address & ((std::uint64_t{1} << size_log2) - 1));
        return true;
    }
    [[nodiscard, gnu::noinline]] bool find_memory(lesson_type& lesson,
                                                  std::uint64_t base) const noexcept {
        const std::optional<host_run> run = memory_.find(pa{base});
        return run && lesson.reaches(base, *run);
    }

    /// From the first table of stage 1 to the one that has the leaf: its word, as
    /// find_table() gives it, and keeps it. Nullopt = there is something else on the way.
    [[nodiscard, gnu::noinline]] std::optional<std::uint64_t>
    descend(const lesson_type& lesson, std::uint64_t address, std::uint64_t epoch,
            std::uint64_t& accesses) noexcept {
        const familiar_leaf& leaf = lesson.leaf;
        if (leaf.nested) return std::nullopt;
        const walk_ticket ticket = walks_.begin();
        if (epoch_.now() != epoch) return std::nullopt; // as for the TLB's ticket
        const stage1_regime& regime = lesson.configuration->regimes.stage1;
        const stage1_half& half = regime.half[leaf.upper ? 1 : 0];
        const std::uint64_t sign = leaf.upper ? ~std::uint64_t{0} : 0;
        if ((address ^ sign) >> half.input_bits != 0) return std::nullopt;
        const table_format<F> format{half.granule_bits, half.input_bits, regime.output_bits,
                                     regime.wide_format};
        const std::uint64_t input = address & ((std::uint64_t{1} << half.input_bits) - 1);
        int level = format.first_level();
        if (level >= leaf.level || !format.fits(half.table) || !format.is_narrow())
            return std::nullopt;
        std::uint64_t here = 0;
        std::uint64_t at =
            format.first_table(half.table, level) + (input >> format.covered(level)) * 8;
        for (;; at = (here & known_table::address) + format.index(input, level) * 8) {
            const std::optional<std::uint64_t> descriptor = memory_.load64(pa{at});
            if (!descriptor || !format.is_usual_table(*descriptor)) return std::nullopt;
            ++accesses;
            here = (here & known_table::limits) | format.usual_table(*descriptor);
            if (!half.flat_permissions) here |= *descriptor & known_table::limits;
            if (++level == leaf.level) break;
        }
        if (level >= highest_known)
            walks_.keep_table(ticket, leaf.stage1, address, leaf.reach_log2, here);
        return here;
    }

    Tlb& tlb_;
    Walks& walks_;
    const change_epoch& epoch_;
    Memory& memory_;
    Sink& sink_;
};

} // namespace vm_accel::inline v0
