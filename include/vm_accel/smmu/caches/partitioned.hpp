/// A TLB in parts, so that nobody can evict everybody's entries.
#pragma once

#include <vm_accel/smmu/caches/prefetching_tlb.hpp>
#include <vm_accel/smmu/caches/tlb_policy.hpp>

#include <array>
#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// Whose entries a part holds, as a number that partitioned takes modulo its
/// parts. Look-ups know a context alone, fills its tag too, and invalidations
/// their scope; `learn` is called before each fill.
/// - `part_of(context)`: where look-ups of that context go;
/// - `learn(context, tag)`: where its fills go; part_of() says the same from then
///   on, until the number belongs to another context. A look-up before may go astray,
///   and miss.
/// - `part_of(scope)`: the one part where all that it covers is, if there is one.
template <class P>
concept partitioning = std::default_initializable<P> &&
                       requires(P by, const P& view, std::uint32_t context, translation_tag tag,
                                const invalidation_scope& scope) {
                           { view.part_of(context) } noexcept -> std::same_as<std::size_t>;
                           { by.learn(context, tag) } noexcept -> std::same_as<std::size_t>;
                           {
                               view.part_of(scope)
                           } noexcept -> std::same_as<std::optional<std::size_t>>;
                       };

/// One part for each translation context: for each domain of the guest's that
/// its devices are in, as Linux gives one to each device or group. Contexts are
/// numbered from 0, the lowest free number first, and a number is free again only
/// some time after its context has gone. N parts keep all apart when Options::contexts
/// is not above N; else numbers that are equal modulo N share a part. Invalidations
/// by address go to all parts.
struct by_context {
    [[nodiscard]] static std::size_t part_of(std::uint32_t context) noexcept { return context; }
    [[nodiscard]] static std::size_t learn(std::uint32_t context, translation_tag) noexcept {
        return context;
    }
    [[nodiscard]] static std::optional<std::size_t>
    part_of(const invalidation_scope& scope) noexcept {
        if (scope.what == invalidation_scope::kind::context) return scope.context_index;
        return std::nullopt;
    }
};

/// One part for each VMID: for guests that run guests of their own. VMIDs that
/// are equal modulo N share a part; streams without stage 2 are under VMID 0.
/// Invalidations that name a VMID go to its part alone.
class by_vmid {
public:
    [[nodiscard]] std::size_t part_of(std::uint32_t context) const noexcept {
        return vm_of_[context % translation_contexts::most].load(std::memory_order_relaxed);
    }
    [[nodiscard]] std::size_t learn(std::uint32_t context, translation_tag tag) noexcept {
        std::atomic<std::uint16_t>& place = vm_of_[context % translation_contexts::most];
        if (place.load(std::memory_order_relaxed) != raw(tag.vm)) {
            place.store(raw(tag.vm), std::memory_order_relaxed);
        }
        return raw(tag.vm);
    }
    [[nodiscard]] static std::optional<std::size_t>
    part_of(const invalidation_scope& scope) noexcept {
        using kind = invalidation_scope::kind;
        if (scope.by_address() || scope.what == kind::vm || scope.what == kind::space) {
            return raw(scope.tag.vm);
        }
        return std::nullopt;
    }

private:
    std::array<std::atomic<std::uint16_t>, translation_contexts::most> vm_of_{};
};

/// What partitioned prepares for quick look-ups, if both Tlb and the part of a
/// context allow it beforehand.
template <class Tlb, std::size_t N, class By>
struct prepared_in_parts {};
template <quick_tlb_policy Tlb, std::size_t N, partitioning By>
    requires requires { By::part_of(std::uint32_t{}); }
struct prepared_in_parts<Tlb, N, By> {
    struct prepared {
        typename Tlb::prepared in_part{};
        std::size_t part = 0;
    };
    [[nodiscard]] static constexpr prepared prepare(std::uint64_t context,
                                                    unsigned size_log2) noexcept {
        return {Tlb::prepare(context, size_log2), By::part_of(context_index(context)) % N};
    }
    [[nodiscard]] static constexpr std::uint8_t asks_for(unsigned needed) noexcept {
        return Tlb::asks_for(needed);
    }
};

/// N TLBs, of which each context uses one: what it fills evicts nothing in the
/// others, however hard it tries, and an invalidation does not slow the others
/// down where the parts are told apart by it. For devices that must not be able
/// to slow each other down, and for guests that must not see each other's
/// evictions. The price is that idle parts help nobody.
///
/// A look-up costs what Tlb's costs, and one load with by_vmid.
template <tlb_policy Tlb, std::size_t N, partitioning By = by_context>
    requires(N >= 1 && !prefetching_tlb<Tlb>)
class partitioned : public prepared_in_parts<Tlb, N, By> {
public:
    static constexpr bool lock_free_lookup = Tlb::lock_free_lookup;
    static constexpr std::size_t capacity = N * Tlb::capacity;

    [[nodiscard, gnu::always_inline]] std::optional<tlb_hit> lookup(const tlb_key& key) noexcept {
        return parts_[by_.part_of(context_index(key.context)) % N].lookup(key);
    }
    [[nodiscard]] std::optional<tlb_entry> find(const tlb_key& key) noexcept
        requires requires(Tlb tlb) { tlb.find(key); }
    {
        return parts_[by_.part_of(context_index(key.context)) % N].find(key);
    }

    /// See quick_tlb_policy.
    [[nodiscard, gnu::always_inline]] quick_hit look_quickly(const auto& by, std::uint64_t address,
                                                             std::uint64_t first,
                                                             const std::uint8_t& asked) noexcept
        requires requires { by.in_part; }
    {
        return parts_[by.part].look_quickly(by.in_part, address, first, asked);
    }

    [[nodiscard]] fill_ticket begin_fill(const tlb_key&) const noexcept {
        return {epoch_.load(std::memory_order_seq_cst)};
    }
    /// The part's own ticket comes first, and then a look at whether the
    /// caller's is still good: an invalidation that begins later is one that
    /// the part drops its fill for.
    void fill(fill_ticket ticket, const tlb_entry& entry) noexcept {
        Tlb& part = parts_[by_.learn(context_index(entry.context), entry.tag) % N];
        const fill_ticket to_part = part.begin_fill({entry.base, entry.context, 0});
        if (epoch_.load(std::memory_order_seq_cst) != ticket.epoch) return;
        part.fill(to_part, entry);
    }

    void invalidate(const invalidation_scope& scope) noexcept {
        epoch_.fetch_add(1, std::memory_order_seq_cst);
        if (const std::optional<std::size_t> only = by_.part_of(scope)) {
            parts_[*only % N].invalidate(scope);
            return;
        }
        for (Tlb& part : parts_)
            part.invalidate(scope);
    }

private:
    std::array<Tlb, N> parts_{};
    [[no_unique_address]] By by_{};
    alignas(64) std::atomic<std::uint64_t> epoch_{0};
};

static_assert(partitioning<by_context> && partitioning<by_vmid>);

} // namespace vm_accel::inline v0
