/// What a port keeps of its stream, so that a hit needs nothing else.
#pragma once

#include <vm_accel/smmu/caches/change_epoch.hpp>
#include <vm_accel/smmu/caches/configuration_cache.hpp>
#include <vm_accel/smmu/caches/familiar_leaf.hpp>
#include <vm_accel/smmu/caches/tlb_policy.hpp>
#include <vm_accel/smmu/vocabulary/access.hpp>
#include <vm_accel/smmu/vocabulary/access_attributes.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace vm_accel::inline v0 {

/// What a look-up in a view gives: memory, from the access's first byte on.
struct view_hit {
    std::byte* host = nullptr;
    std::uint64_t length = 0; ///< of the access that one entry serves
    std::uint64_t output = 0; ///< physical address of the first byte
    memory_attributes attributes{};
};

/// A copy of a stream's configuration, as far as hits need it: the context's tag,
/// the page size that was hit last, and which permission each kind of access
/// needs. Good while the change epoch is what it was; the accesses of one
/// SubstreamID, or those without one.
///
/// Threads: one at a time, the port's.
template <smmu_features F, tlb_policy Tlb>
class stream_view {
    static constexpr bool quick = quick_tlb_policy<Tlb>;
    struct by_key {
        std::uint64_t tag = 0;
        const translation_context* context = nullptr;
    };
    template <class T, bool>
    struct prepared_by {
        using type = by_key;
    };
    template <class T>
    struct prepared_by<T, true> {
        using type = typename T::prepared;
    };

public:
    /// Looks the access up. False = ask translator::translate(). Inside an open
    /// guard: the epoch is what makes it safe to read nothing else. Whoever changes
    /// a configuration or a generation changes the epoch next, has a barrier next,
    /// and looks for open guards last; we opened our guard first, and look at the
    /// epoch next. So if we are not seen, and not waited for, we see the new epoch.
    [[nodiscard, gnu::always_inline]] bool look_up(Tlb& tlb, const change_epoch& epoch, iova at,
                                                   std::uint64_t length, access kind,
                                                   access_attributes attributes,
                                                   view_hit& out) const noexcept {
        if (epoch.now() != copied_) [[unlikely]]
            return false;
        if constexpr (F.substream_bits != 0) {
            if (attributes.has_substream && attributes.substream != substream_) [[unlikely]]
                return false;
        } else {
            if (attributes.has_substream) [[unlikely]]
                return false;
        }
        const std::uint64_t address = raw(at);
        if constexpr (quick) {
            const std::uint64_t first = address & page_mask_;
            // From here the page's last byte is ~0. Wraps if empty, or beyond the page.
            const std::uint64_t end = address | page_mask_;
            if (end + (length - 1) < end) [[unlikely]] {
                if (!is_sound(at, length)) return false;
                length = std::min(length, ~end + 1);
            }
            const quick_hit hit =
                tlb.look_quickly(by_, address, first, asked_for(kind, attributes));
            if (!hit.found) [[unlikely]]
                return false;
            out = {hit.host, length, hit.output + (address - first), hit.attributes};
        } else {
            if (!is_sound(at, length)) [[unlikely]]
                return false;
            const auto hit = tlb.lookup({address, by_.tag, by_.context->page_sizes()});
            if (!hit || hit->host == nullptr || !hit->allowed.allow(asked_for(kind, attributes)))
                [[unlikely]]
                return false;
            const std::uint64_t mask = (std::uint64_t{1} << hit->size_log2) - 1;
            const std::uint64_t offset = address & mask;
            out = {hit->host + offset, length - 1 > mask - offset ? mask - offset + 1 : length,
                   hit->output + offset, hit->attributes};
        }
        return true;
    }

    /// Copies a published configuration whose entries of 2^size_log2 bytes were hit
    /// under `tag`. `epoch` was now() before the configuration and the tag were read.
    void copy(std::uint64_t epoch, const stream_configuration& from, std::uint64_t tag,
              unsigned size_log2) noexcept {
        if (!change_epoch::allows_copies(epoch)) return;
        if constexpr (quick) {
            by_ = Tlb::prepare(tag, size_log2);
            page_mask_ = ~std::uint64_t{0} << size_log2;
        } else {
            by_ = {tag, from.context};
        }
        // Between the emptying of a slot and the change of the epoch two configurations
        // have the same number; a configuration's place has another one when it is used again.
        if (copied_ == epoch && from_ == &from) return;
        copied_ = epoch;
        from_ = &from;
        substream_ = from.substream;
        for (unsigned i = 0; i < asked_.size(); ++i)
            asked_[i] = asks_for(from.needed(kind_of(i)));
    }

private:
    [[nodiscard]] static constexpr std::uint8_t asks_for(unsigned needed) noexcept {
        if constexpr (quick) return Tlb::asks_for(needed);
        return static_cast<std::uint8_t>(needed);
    }
    [[nodiscard]] const std::uint8_t& asked_for(access kind, access_attributes by) const noexcept {
        return asked_[(kind == access::write ? 1U : 0U) | (by.privileged ? 2U : 0U) |
                      (by.instruction ? 4U : 0U)];
    }
    std::uint64_t copied_ = change_epoch::never; ///< the epoch of the copy
    typename prepared_by<Tlb, quick>::type by_{};
    std::uint64_t page_mask_ = 0;         ///< bits of an address that say which page
    std::array<std::uint8_t, 8> asked_{}; ///< by kind, privilege and instruction
    substream_id substream_{};
    const stream_configuration* from_ = nullptr; ///< which one; never looked into

public:
    [[no_unique_address]] miss_memory<Tlb> misses{}; ///< for translator::miss_again()
};

/// A port's views: of accesses without a SubstreamID, and of those with the one that
/// was used last.
template <smmu_features F, tlb_policy Tlb>
class stream_views {
public:
    [[nodiscard]] stream_view<F, Tlb>& of(bool has_substream) noexcept {
        if constexpr (F.substream_bits == 0) return view_[0];
        return view_[has_substream ? 1 : 0];
    }

private:
    std::array<stream_view<F, Tlb>, F.substream_bits == 0 ? 1 : 2> view_{};
};

} // namespace vm_accel::inline v0
