/// A TLB in which any entry can be anywhere.
///
/// Costs almost a second of compile time (Boost.Intrusive): include it only where
/// it is used.
#pragma once

#include <vm_accel/smmu/caches/replacement.hpp>
#include <vm_accel/smmu/caches/tlb_policy.hpp>

#include <boost/intrusive/list.hpp>
#include <boost/intrusive/set.hpp>
#include <boost/intrusive/unordered_set.hpp>

#include <array>
#include <atomic>
#include <bit>
#include <compare>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace vm_accel::inline v0 {

/// Replacement policies that can order a list.
template <class R>
concept list_replacement = replacement_policy<R> && requires {
    { R::in_list } -> std::convertible_to<list_order>;
};

/// N entries that evict each other in one exact order, whatever their addresses:
/// no two pages conflict. For few entries and one device thread, as a measure
/// of what sets lose, and for addresses that conflict in sets.
///
/// Each entry is in three intrusive structures: a hash table for look-ups
/// (constant time per page size of the context), a tree by size and address for
/// invalidations (log N, and what lies in the range), and a list in order of
/// eviction. A fill costs log N. All under one mutex: look-ups of two threads
/// wait for each other, hence lock_free_lookup = false.
template <std::size_t N, list_replacement Replacement = lru>
class fully_associative {
    static_assert(N >= 1, "a TLB without entries is no_tlb");

public:
    static constexpr bool lock_free_lookup = false;
    static constexpr std::size_t capacity = N;

    fully_associative() noexcept : found_by_page_(bucket_span{buckets_.data(), buckets}) {
        for (node& n : nodes_)
            free_.push_back(n);
    }
    fully_associative(const fully_associative&) = delete;
    fully_associative& operator=(const fully_associative&) = delete;
    ~fully_associative() = default;

    [[nodiscard]] std::optional<tlb_hit> lookup(const tlb_key& key) noexcept {
        const std::lock_guard held{mutex_};
        const node* const n = search(key);
        if (n == nullptr) return std::nullopt;
        const tlb_entry& e = n->entry;
        return tlb_hit{e.host, e.output, e.allowed, e.size_log2, e.attributes};
    }
    /// The whole entry that lookup() finds: see two_level.
    [[nodiscard]] std::optional<tlb_entry> find(const tlb_key& key) noexcept {
        const std::lock_guard held{mutex_};
        const node* const n = search(key);
        if (n == nullptr) return std::nullopt;
        return n->entry;
    }

    [[nodiscard]] fill_ticket begin_fill(const tlb_key&) const noexcept {
        return {epoch_.load(std::memory_order_seq_cst)};
    }

    void fill(fill_ticket ticket, const tlb_entry& entry) noexcept {
        const std::lock_guard held{mutex_};
        if (epoch_.load(std::memory_order_relaxed) != ticket.epoch) return;
        sizes_ |= std::uint64_t{1} << entry.size_log2;
        if (entry.guest_size_log2 != entry.size_log2) {
            slack_ |= entry.guest_size_log2 >= 64 ? ~std::uint64_t{0}
                                                  : (std::uint64_t{1} << entry.guest_size_log2) - 1;
        }
        remove_same_page(entry);
        if (free_.empty()) remove(victim());
        node& n = free_.front();
        free_.pop_front();
        n.entry = entry;
        n.was_hit = false;
        order_.push_back(n);
        found_by_page_.insert(n);
        sorted_.insert(n);
    }

    void invalidate(const invalidation_scope& scope) noexcept {
        const std::lock_guard held{mutex_};
        epoch_.fetch_add(1, std::memory_order_seq_cst);
        if (!scope.by_address()) {
            for (auto at = order_.begin(); at != order_.end();) {
                node& n = *at++;
                if (n.entry.covered_by(scope)) remove(n);
            }
            return;
        }
        const std::uint64_t first = scope.first & ~slack_;
        const std::uint64_t last = scope.last | slack_;
        for (std::uint64_t rest = sizes_; rest != 0; rest &= rest - 1) {
            const auto size_log2 = static_cast<unsigned>(std::countr_zero(rest));
            auto at = sorted_.lower_bound(page{size_log2, first >> size_log2 << size_log2, 0});
            while (at != sorted_.end() && at->entry.size_log2 == size_log2 &&
                   at->entry.base <= last) {
                node& n = *at++;
                if (n.entry.covered_by(scope)) remove(n);
            }
        }
    }

private:
    /// What names an entry, in the order of the tree.
    struct page {
        unsigned size_log2 = 0;
        std::uint64_t base = 0;
        std::uint64_t context = 0;

        [[nodiscard]] static page of(const tlb_entry& e) noexcept {
            return {e.size_log2, e.base, e.context};
        }
        friend auto operator<=>(const page&, const page&) noexcept = default;
    };
    using unchecked = boost::intrusive::link_mode<boost::intrusive::normal_link>;
    struct node : boost::intrusive::list_base_hook<unchecked>,
                  boost::intrusive::set_base_hook<unchecked>,
                  boost::intrusive::unordered_set_base_hook<unchecked> {
        tlb_entry entry{};
        bool was_hit = false;
    };
    struct page_of_node {
        using type = page;
        page operator()(const node& n) const noexcept { return page::of(n.entry); }
    };
    struct hash_of_page {
        std::size_t operator()(const page& p) const noexcept {
            const std::uint64_t word =
                (p.base >> 12 ^ p.context ^ std::uint64_t{p.size_log2} << 56) *
                0x9e37'79b9'7f4a'7c15U;
            return static_cast<std::size_t>(word >> 32);
        }
    };
    using list = boost::intrusive::list<node, boost::intrusive::constant_time_size<false>>;
    using tree = boost::intrusive::set<node, boost::intrusive::key_of_value<page_of_node>,
                                       boost::intrusive::constant_time_size<false>>;
    using table = boost::intrusive::unordered_set<
        node, boost::intrusive::key_of_value<page_of_node>, boost::intrusive::hash<hash_of_page>,
        boost::intrusive::power_2_buckets<true>, boost::intrusive::constant_time_size<false>>;
    using bucket_span = typename table::bucket_traits;
    static constexpr std::size_t buckets = std::bit_ceil(N);

    [[nodiscard]] node* search(const tlb_key& key) noexcept {
        for (std::uint64_t sizes = key.page_sizes; sizes != 0; sizes &= sizes - 1) {
            const auto size_log2 = static_cast<unsigned>(std::countr_zero(sizes));
            const auto at = found_by_page_.find(
                page{size_log2, key.address >> size_log2 << size_log2, key.context});
            if (at == found_by_page_.end()) continue;
            if constexpr (Replacement::in_list == list_order::as_used) {
                order_.splice(order_.end(), order_, order_.iterator_to(*at));
            } else if constexpr (Replacement::in_list == list_order::second_chance) {
                at->was_hit = true;
            }
            return &*at;
        }
        return nullptr;
    }
    /// The same page of the same context, whatever its generation: the older
    /// entry can never be hit again, or is the same translation.
    void remove_same_page(const tlb_entry& entry) noexcept {
        page from = page::of(entry);
        from.context = entry.context >> 32 << 32;
        const auto at = sorted_.lower_bound(from);
        if (at == sorted_.end() || at->entry.size_log2 != entry.size_log2 ||
            at->entry.base != entry.base || (at->entry.context ^ entry.context) >> 32 != 0) {
            return;
        }
        remove(*at);
    }
    [[nodiscard]] node& victim() noexcept {
        if constexpr (Replacement::in_list == list_order::none) {
            // Knuth's generator (MMIX): all nodes are in use, so any of them will do.
            random_ = random_ * 6364136223846793005U + 1442695040888963407U;
            return nodes_[(random_ >> 32) % N];
        }
        if constexpr (Replacement::in_list == list_order::second_chance) {
            while (order_.front().was_hit) {
                order_.front().was_hit = false;
                order_.splice(order_.end(), order_, order_.begin());
            }
        }
        return order_.front();
    }
    void remove(node& n) noexcept {
        found_by_page_.erase(found_by_page_.iterator_to(n));
        sorted_.erase(sorted_.iterator_to(n));
        order_.erase(order_.iterator_to(n));
        free_.push_front(n);
    }

    std::mutex mutex_;
    std::atomic<std::uint64_t> epoch_{0};
    std::uint64_t sizes_ = 0; ///< page sizes ever filled
    std::uint64_t slack_ = 0; ///< pieces of a guest's page lie anywhere in that page
    std::uint64_t random_ = 0;
    std::array<node, N> nodes_{};
    std::array<typename table::bucket_type, buckets> buckets_{};
    table found_by_page_;
    tree sorted_;
    list order_; ///< first = next to be evicted
    list free_;
};

static_assert(tlb_policy<fully_associative<4>>);

} // namespace vm_accel::inline v0
