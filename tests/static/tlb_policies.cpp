/// The TLB policies' own concepts: an archetype each, near misses, policies made of
/// archetypes, and what each policy says of itself.
#include "smmu/stream_allocator_archetype.hpp"
#include "smmu/tlb_every_policy.hpp"

#include <vm_accel/smmu/smmu.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <tuple>
#include <type_traits>

using namespace vm_accel;

// ---- far_tlb -----------------------------------------------------------------------------------
struct near_archetype {
    static constexpr bool lock_free_lookup = false;
    static constexpr std::size_t capacity = 1;

    near_archetype() = default;
    near_archetype(const near_archetype&) = delete;
    near_archetype& operator=(const near_archetype&) = delete;

    std::optional<tlb_hit> lookup(const tlb_key&) noexcept { return std::nullopt; }
    fill_ticket begin_fill(const tlb_key&) noexcept { return {}; }
    void fill(fill_ticket, const tlb_entry&) noexcept {}
    void invalidate(const invalidation_scope&) noexcept {}
};
struct far_archetype : near_archetype {
    std::optional<tlb_entry> find(const tlb_key&) noexcept { return std::nullopt; }
};
static_assert(tlb_policy<near_archetype> && far_tlb<far_archetype>);
static_assert(far_tlb<set_associative<4, 2>> && far_tlb<fully_associative<4>>);
static_assert(far_tlb<partitioned<fully_associative<4>, 2>>);

namespace far_misses {
struct finds_no_entries : near_archetype {};
struct find_gives_a_hit : near_archetype {
    std::optional<tlb_hit> find(const tlb_key&) noexcept;
};
struct find_gives_a_pointer_into_the_cache : near_archetype {
    const tlb_entry* find(const tlb_key&) noexcept;
};
struct find_may_throw : near_archetype {
    std::optional<tlb_entry> find(const tlb_key&);
};
struct no_cache {
    std::optional<tlb_entry> find(const tlb_key&) noexcept;
};
static_assert(!far_tlb<finds_no_entries> && !far_tlb<no_tlb>);
static_assert(!far_tlb<find_gives_a_hit>);
static_assert(!far_tlb<find_gives_a_pointer_into_the_cache>);
static_assert(!far_tlb<find_may_throw>);
static_assert(!far_tlb<no_cache>);
static_assert(!far_tlb<partitioned<near_archetype, 2>>);
} // namespace far_misses

// ---- prefetching_tlb and stride_policy ---------------------------------------------------------
struct wishing_archetype : near_archetype {
    prefetch_wish next_wanted(const tlb_key&, unsigned) noexcept { return {}; }
};
struct stride_archetype {
    prefetch_wish after(const tlb_key&, unsigned) noexcept { return {}; }
};
static_assert(prefetching_tlb<wishing_archetype> && stride_policy<stride_archetype>);
static_assert(stride_policy<next_page<16>> && stride_policy<constant_stride<1, 1>>);
static_assert(!prefetching_tlb<near_archetype> && !prefetching_tlb<set_associative<4, 2>>);

namespace prefetch_misses {
struct next_wanted_may_throw : near_archetype {
    prefetch_wish next_wanted(const tlb_key&, unsigned);
};
struct next_wanted_gives_one_address : near_archetype {
    std::uint64_t next_wanted(const tlb_key&, unsigned) noexcept;
};
struct next_wanted_knows_no_size : near_archetype {
    prefetch_wish next_wanted(const tlb_key&) noexcept;
};
static_assert(!prefetching_tlb<next_wanted_may_throw>);
static_assert(!prefetching_tlb<next_wanted_gives_one_address>);
static_assert(!prefetching_tlb<next_wanted_knows_no_size>);

struct after_may_throw {
    prefetch_wish after(const tlb_key&, unsigned);
};
struct after_gives_many {
    const prefetch_wish* after(const tlb_key&, unsigned) noexcept;
};
struct needs_an_argument : stride_archetype {
    explicit needs_an_argument(int);
};
static_assert(!stride_policy<after_may_throw>);
static_assert(!stride_policy<after_gives_many>);
static_assert(!stride_policy<needs_an_argument>);
static_assert(!stride_policy<int>);
} // namespace prefetch_misses

// ---- partitioning ------------------------------------------------------------------------------
struct partitioning_archetype {
    std::size_t part_of(std::uint32_t) const noexcept { return 0; }
    std::size_t learn(std::uint32_t, translation_tag) noexcept { return 0; }
    std::optional<std::size_t> part_of(const invalidation_scope&) const noexcept { return {}; }
};
static_assert(partitioning<partitioning_archetype>);

namespace partitioning_misses {
struct part_of_may_throw {
    std::size_t part_of(std::uint32_t) const;
    std::size_t learn(std::uint32_t, translation_tag) noexcept;
    std::optional<std::size_t> part_of(const invalidation_scope&) const noexcept;
};
struct part_of_changes_state {
    std::size_t part_of(std::uint32_t) noexcept;
    std::size_t learn(std::uint32_t, translation_tag) noexcept;
    std::optional<std::size_t> part_of(const invalidation_scope&) const noexcept;
};
struct learns_nothing {
    std::size_t part_of(std::uint32_t) const noexcept;
    std::optional<std::size_t> part_of(const invalidation_scope&) const noexcept;
};
struct learn_says_nothing {
    std::size_t part_of(std::uint32_t) const noexcept;
    void learn(std::uint32_t, translation_tag) noexcept;
    std::optional<std::size_t> part_of(const invalidation_scope&) const noexcept;
};
struct scopes_have_one_part {
    std::size_t part_of(std::uint32_t) const noexcept;
    std::size_t learn(std::uint32_t, translation_tag) noexcept;
    std::size_t part_of(const invalidation_scope&) const noexcept;
};
static_assert(!partitioning<part_of_may_throw>);
static_assert(!partitioning<part_of_changes_state>);
static_assert(!partitioning<learns_nothing>);
static_assert(!partitioning<learn_says_nothing>);
static_assert(!partitioning<scopes_have_one_part>);
static_assert(!partitioning<int>);
} // namespace partitioning_misses

// ---- replacement: what is optional -------------------------------------------------------------
struct learning_archetype {
    learning_archetype() = delete;
    struct shared {};
    static void touch(std::atomic<std::uint32_t>&, unsigned) noexcept {}
    static unsigned victim(std::atomic<std::uint32_t>&, unsigned) noexcept { return 0; }
    static unsigned victim(std::atomic<std::uint32_t>&, unsigned, shared&, std::size_t) noexcept {
        return 0;
    }
};
struct list_archetype {
    list_archetype() = delete;
    static constexpr list_order in_list = list_order::none;
    static void touch(std::atomic<std::uint32_t>&, unsigned) noexcept {}
    static unsigned victim(std::atomic<std::uint32_t>&, unsigned) noexcept { return 0; }
};
static_assert(learning_replacement<learning_archetype> && learning_replacement<duelling_clock>);
static_assert(list_replacement<list_archetype> && list_replacement<lru> && list_replacement<fifo>);
static_assert(list_replacement<vm_accel::clock> && list_replacement<vm_accel::random>);
static_assert(!list_replacement<tree_plru> && !list_replacement<duelling_clock>);
static_assert(!learning_replacement<lru> && !learning_replacement<vm_accel::clock>);

namespace learning_misses {
struct shares_nothing : list_archetype {
    static unsigned victim(std::atomic<std::uint32_t>&, unsigned) noexcept;
    static unsigned victim(std::atomic<std::uint32_t>&, unsigned, int&, std::size_t) noexcept;
};
struct shared_needs_an_argument : list_archetype {
    struct shared {
        explicit shared(int);
    };
    static unsigned victim(std::atomic<std::uint32_t>&, unsigned) noexcept;
    static unsigned victim(std::atomic<std::uint32_t>&, unsigned, shared&, std::size_t) noexcept;
};
struct victim_may_throw : list_archetype {
    struct shared {};
    static unsigned victim(std::atomic<std::uint32_t>&, unsigned) noexcept;
    static unsigned victim(std::atomic<std::uint32_t>&, unsigned, shared&, std::size_t);
};
struct order_is_a_name : learning_archetype {
    static constexpr const char* in_list = "lru";
};
static_assert(!learning_replacement<shares_nothing>);
static_assert(!learning_replacement<shared_needs_an_argument>);
static_assert(!learning_replacement<victim_may_throw>);
static_assert(!list_replacement<order_is_a_name>);
} // namespace learning_misses

// Every member is instantiated: it uses nothing that the concepts do not promise.
template class vm_accel::two_level<near_archetype, far_archetype>;
template class vm_accel::partitioned<near_archetype, 2, partitioning_archetype>;
template class vm_accel::prefetching<near_archetype, stride_archetype>;
template class vm_accel::fully_associative<2, list_archetype>;
template class vm_accel::set_associative<2, 2, learning_archetype>;

namespace {

// Templates as concepts: whether a policy can be made of these parts.
template <class Near, class Far>
concept makes_two_level = requires { typename two_level<Near, Far>; };
template <class Tlb, std::size_t N>
concept makes_partitioned = requires { typename partitioned<Tlb, N>; };
template <class Tlb>
concept makes_prefetching = requires { typename prefetching<Tlb>; };
static_assert(makes_two_level<near_archetype, far_archetype>);
static_assert(!makes_two_level<near_archetype, near_archetype>);
static_assert(!makes_two_level<int, far_archetype>);
static_assert(makes_partitioned<near_archetype, 1> && !makes_partitioned<near_archetype, 0>);
// Wishes would get lost inside another policy.
using wishing_far = prefetching<far_archetype>;
static_assert(far_tlb<wishing_far> && !makes_two_level<near_archetype, wishing_far>);
static_assert(!makes_two_level<wishing_archetype, far_archetype>);
static_assert(!makes_partitioned<wishing_archetype, 2> && !makes_prefetching<wishing_archetype>);
static_assert(makes_prefetching<partitioned<two_level<near_archetype, far_archetype>, 2>>);

// Whoever has a mutex anywhere says so.
using sets = set_associative<16, 4>;
using listed = fully_associative<16>;
static_assert(no_tlb::lock_free_lookup && sets::lock_free_lookup && !listed::lock_free_lookup);
static_assert(direct_mapped<16>::lock_free_lookup && set_duelling<16, 4>::lock_free_lookup);
static_assert(two_level<direct_mapped<4>, sets>::lock_free_lookup);
static_assert(!two_level<direct_mapped<4>, listed>::lock_free_lookup);
static_assert(!two_level<listed, sets>::lock_free_lookup);
static_assert(partitioned<sets, 2>::lock_free_lookup && !partitioned<listed, 2>::lock_free_lookup);
static_assert(prefetching<sets>::lock_free_lookup && !prefetching<listed>::lock_free_lookup);

static_assert(direct_mapped<16>::capacity == 16 && set_duelling<16, 4>::capacity == 64);
static_assert(listed::capacity == 16 && two_level<direct_mapped<4>, listed>::capacity == 16);
static_assert(partitioned<sets, 3>::capacity == 192 && prefetching<sets>::capacity == 64);

// Quick look-ups pass through policies where they can.
static_assert(quick_tlb_policy<two_level<direct_mapped<4>, listed>>);
static_assert(quick_tlb_policy<prefetching<sets>> && quick_tlb_policy<partitioned<sets, 2>>);
static_assert(quick_tlb_policy<prefetching<two_level<partitioned<sets, 2>, sets>, next_page<>>>);
static_assert(!quick_tlb_policy<two_level<listed, sets>>);
static_assert(!quick_tlb_policy<partitioned<sets, 2, by_vmid>>);
static_assert(!quick_tlb_policy<partitioned<listed, 2>> && !quick_tlb_policy<listed>);

// Each is a policy, plain, and fits into an SMMU.
template <class T>
constexpr bool fits = tlb_policy<T> && !std::is_polymorphic_v<T> &&
                      (T::capacity == 0 || !std::is_copy_constructible_v<T>) &&
                      sizeof(smmu<T, stream_allocator_archetype>) >= sizeof(T);
template <class... T>
constexpr bool all_fit(std::tuple<T...>*) {
    return (fits<T> && ...);
}
static_assert(all_fit(static_cast<tlb_tests::every_policy*>(nullptr)));

} // namespace
