/// The SMMU's concepts: an archetype each, one near miss per obligation, and an
/// SMMU made of nothing but archetypes. What the hot path handles is plain data.
#include "smmu/stream_allocator_archetype.hpp"

#include <vm_accel/smmu/caches/no_tlb.hpp>
#include <vm_accel/smmu/caches/replacement.hpp>
#include <vm_accel/smmu/caches/set_associative.hpp>
#include <vm_accel/smmu/caches/tlb_policy.hpp>
#include <vm_accel/smmu/control/quiescence.hpp>
#include <vm_accel/smmu/host/bitmap_streams.hpp>
#include <vm_accel/smmu/options.hpp>
#include <vm_accel/smmu/smmu.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <type_traits>

using namespace vm_accel;

// ---- tlb_policy --------------------------------------------------------------------------------
struct tlb_archetype {
    static constexpr bool lock_free_lookup = false;
    static constexpr std::size_t capacity = 0;

    tlb_archetype() = default;
    tlb_archetype(const tlb_archetype&) = delete;
    tlb_archetype& operator=(const tlb_archetype&) = delete;

    std::optional<tlb_hit> lookup(const tlb_key&) noexcept { return std::nullopt; }
    fill_ticket begin_fill(const tlb_key&) noexcept { return {}; }
    void fill(fill_ticket, const tlb_entry&) noexcept {}
    void invalidate(const invalidation_scope&) noexcept {}
};
static_assert(tlb_policy<tlb_archetype>);
static_assert(tlb_policy<no_tlb> && tlb_policy<set_associative<1, 1>> &&
              tlb_policy<set_associative<256, 16, fifo>>);

namespace tlb_misses {
using base = tlb_archetype;
struct needs_an_argument : base {
    explicit needs_an_argument(int) {}
};
struct lookup_may_throw : base {
    std::optional<tlb_hit> lookup(const tlb_key&);
};
struct lookup_always_hits : base {
    tlb_hit lookup(const tlb_key&) noexcept;
};
struct lookup_gives_a_pointer_into_the_cache : base {
    const tlb_hit* lookup(const tlb_key&) noexcept;
};
struct lookup_by_address_alone : base {
    std::optional<tlb_hit> lookup(iova) noexcept;
};
struct begin_fill_may_throw : base {
    fill_ticket begin_fill(const tlb_key&);
};
struct begin_fill_gives_no_ticket : base {
    void begin_fill(const tlb_key&) noexcept;
};
struct fill_without_ticket : base {
    void fill(const tlb_entry&) noexcept;
};
struct fill_may_throw : base {
    void fill(fill_ticket, const tlb_entry&);
};
struct fill_answers : base {
    bool fill(fill_ticket, const tlb_entry&) noexcept;
};
struct invalidate_may_throw : base {
    void invalidate(const invalidation_scope&);
};
struct invalidate_may_be_late : base {
    bool invalidate(const invalidation_scope&) noexcept;
};
struct invalidate_all_only : base {
    void invalidate() noexcept;
};
struct lock_free_is_no_bool : base {
    struct maybe {};
    static constexpr maybe lock_free_lookup{};
};
struct capacity_is_no_number : base {
    static constexpr const char* capacity = "large";
};
static_assert(!tlb_policy<needs_an_argument>);
static_assert(!tlb_policy<lookup_may_throw>);
static_assert(!tlb_policy<lookup_always_hits>);
static_assert(!tlb_policy<lookup_gives_a_pointer_into_the_cache>);
static_assert(!tlb_policy<lookup_by_address_alone>);
static_assert(!tlb_policy<begin_fill_may_throw>);
static_assert(!tlb_policy<begin_fill_gives_no_ticket>);
static_assert(!tlb_policy<fill_without_ticket>);
static_assert(!tlb_policy<fill_may_throw>);
static_assert(!tlb_policy<fill_answers>);
static_assert(!tlb_policy<invalidate_may_throw>);
static_assert(!tlb_policy<invalidate_may_be_late>);
static_assert(!tlb_policy<invalidate_all_only>);
static_assert(!tlb_policy<lock_free_is_no_bool>);
static_assert(!tlb_policy<capacity_is_no_number>);
static_assert(!tlb_policy<int>);
} // namespace tlb_misses

// ---- replacement_policy ------------------------------------------------------------------------
struct replacement_archetype {
    replacement_archetype() = delete;
    static void touch(std::atomic<std::uint32_t>&, unsigned) noexcept {}
    static unsigned victim(std::atomic<std::uint32_t>&, unsigned) noexcept { return 0; }
};
static_assert(replacement_policy<replacement_archetype>);
static_assert(replacement_policy<vm_accel::clock> && replacement_policy<fifo>);

namespace replacement_misses {
using base = replacement_archetype;
using state = std::atomic<std::uint32_t>;
struct touch_may_throw : base {
    static void touch(state&, unsigned);
};
struct touch_wants_the_ways : base {
    static void touch(state&, unsigned, unsigned) noexcept;
};
struct touch_copies_the_state : base {
    static void touch(std::uint32_t&, unsigned) noexcept;
};
struct touch_needs_an_object : base {
    void touch(state&, unsigned) noexcept;
};
struct victim_may_throw : base {
    static unsigned victim(state&, unsigned);
};
struct victim_may_find_none : base {
    static std::optional<unsigned> victim(state&, unsigned) noexcept;
};
struct victim_is_signed : base {
    static int victim(state&, unsigned) noexcept;
};
static_assert(!replacement_policy<touch_may_throw>);
static_assert(!replacement_policy<touch_wants_the_ways>);
static_assert(!replacement_policy<touch_copies_the_state>);
static_assert(!replacement_policy<touch_needs_an_object>);
static_assert(!replacement_policy<victim_may_throw>);
static_assert(!replacement_policy<victim_may_find_none>);
static_assert(!replacement_policy<victim_is_signed>);
static_assert(!replacement_policy<int>);
} // namespace replacement_misses

// ---- quick_tlb_policy --------------------------------------------------------------------------
struct quick_tlb_archetype : tlb_archetype {
    struct prepared {};
    static prepared prepare(std::uint64_t, unsigned) noexcept { return {}; }
    static std::uint8_t asks_for(unsigned) noexcept { return 0; }
    quick_hit look_quickly(const prepared&, std::uint64_t, std::uint64_t,
                           const std::uint8_t&) noexcept {
        return {};
    }
};
static_assert(quick_tlb_policy<quick_tlb_archetype> && quick_tlb_policy<set_associative<4, 3>>);
static_assert(!quick_tlb_policy<tlb_archetype> && !quick_tlb_policy<no_tlb>);

namespace quick_tlb_misses {
using base = quick_tlb_archetype;
struct prepared_is_no_type : tlb_archetype {
    static int prepare(std::uint64_t, unsigned) noexcept;
    static std::uint8_t asks_for(unsigned) noexcept;
    quick_hit look_quickly(int, std::uint64_t, std::uint64_t, const std::uint8_t&) noexcept;
};
struct prepare_may_throw : base {
    static prepared prepare(std::uint64_t, unsigned);
};
struct asks_may_throw : base {
    static std::uint8_t asks_for(unsigned);
};
struct look_may_throw : base {
    quick_hit look_quickly(const prepared&, std::uint64_t, std::uint64_t, const std::uint8_t&);
};
struct look_finds_whole_entries : base {
    std::optional<tlb_hit> look_quickly(const prepared&, std::uint64_t, std::uint64_t,
                                        const std::uint8_t&) noexcept;
};
static_assert(!quick_tlb_policy<prepared_is_no_type>);
static_assert(!quick_tlb_policy<prepare_may_throw>);
static_assert(!quick_tlb_policy<asks_may_throw>);
static_assert(!quick_tlb_policy<look_may_throw>);
static_assert(!quick_tlb_policy<look_finds_whole_entries>);
} // namespace quick_tlb_misses

// ---- refilling_tlb -----------------------------------------------------------------------------
struct refilling_archetype : quick_tlb_archetype {
    struct likeness {};
    struct room {
        [[nodiscard]] bool is_there() const noexcept { return false; }
    };
    static likeness like(const tlb_entry&) noexcept { return {}; }
    room room_for(const prepared&, std::uint64_t) const noexcept { return {}; }
    void fill_again(fill_ticket, const room&, const prepared&, std::uint64_t, std::byte*,
                    std::uint64_t, const likeness&) noexcept {}
};
static_assert(refilling_tlb<refilling_archetype> && refilling_tlb<set_associative<4, 3>>);
static_assert(!refilling_tlb<quick_tlb_archetype> && !refilling_tlb<no_tlb>);

namespace refilling_misses {
using base = refilling_archetype;
struct like_may_throw : base {
    static likeness like(const tlb_entry&);
};
struct room_is_a_bool : base {
    bool room_for(const prepared&, std::uint64_t) const noexcept;
};
struct room_changes_the_tlb : base {
    room room_for(const prepared&, std::uint64_t) noexcept;
};
struct fill_may_fail : base {
    bool fill_again(fill_ticket, const room&, const prepared&, std::uint64_t, std::byte*,
                    std::uint64_t, const likeness&) noexcept;
};
static_assert(!refilling_tlb<like_may_throw>);
static_assert(!refilling_tlb<room_is_a_bool>);
static_assert(!refilling_tlb<room_changes_the_tlb>);
static_assert(!refilling_tlb<fill_may_fail>);
} // namespace refilling_misses

// ---- quiescence_policy -------------------------------------------------------------------------
struct quiescence_archetype {
    static constexpr bool concurrent = true;

    quiescence_archetype() = default;
    quiescence_archetype(const quiescence_archetype&) = delete;
    quiescence_archetype& operator=(const quiescence_archetype&) = delete;

    bool prepare() noexcept { return true; }
    void add_with_barrier(std::atomic<std::uint64_t>& word, std::uint64_t number) const noexcept {
        word.fetch_add(number);
    }
    bool sync_side_barrier() noexcept { return true; }
};
static_assert(quiescence_policy<quiescence_archetype>);
static_assert(quiescence_policy<membarrier_quiescence> && quiescence_policy<fence_quiescence> &&
              quiescence_policy<single_threaded>);
static_assert(membarrier_quiescence::concurrent && fence_quiescence::concurrent &&
              !single_threaded::concurrent);

namespace quiescence_misses {
using base = quiescence_archetype;
using word = std::atomic<std::uint64_t>;
struct needs_an_argument : base {
    explicit needs_an_argument(int);
};
struct prepare_may_throw : base {
    bool prepare();
};
struct prepare_cannot_fail : base {
    void prepare() noexcept;
};
struct add_may_throw : base {
    void add_with_barrier(word&, std::uint64_t) const;
};
struct add_changes_the_policy : base {
    void add_with_barrier(word&, std::uint64_t) noexcept;
};
struct add_by_pointer : base {
    void add_with_barrier(word*, std::uint64_t) const noexcept;
};
struct barrier_may_throw : base {
    bool sync_side_barrier();
};
struct barrier_cannot_fail : base {
    void sync_side_barrier() noexcept;
};
struct concurrent_is_no_bool : base {
    struct maybe {};
    static constexpr maybe concurrent{};
};
static_assert(!quiescence_policy<needs_an_argument>);
static_assert(!quiescence_policy<prepare_may_throw>);
static_assert(!quiescence_policy<prepare_cannot_fail>);
static_assert(!quiescence_policy<add_may_throw>);
static_assert(!quiescence_policy<add_changes_the_policy>);
static_assert(!quiescence_policy<add_by_pointer>);
static_assert(!quiescence_policy<barrier_may_throw>);
static_assert(!quiescence_policy<barrier_cannot_fail>);
static_assert(!quiescence_policy<concurrent_is_no_bool>);
static_assert(!quiescence_policy<int>);
} // namespace quiescence_misses

// ---- smmu_options ------------------------------------------------------------------------------
struct options_archetype {
    static constexpr smmu_features features{};
    using quiescence = quiescence_archetype;
    using walk_cache = no_walk_cache;
    using fault_injection = no_fault_injection;
    using lint = no_lint;
    using other_state = no_other_state;
    static constexpr stream_id message_requester{0};
    static constexpr std::size_t ports = 1;
    static constexpr std::size_t configurations = 1;
    static constexpr std::size_t contexts = 1;
    static constexpr std::size_t substream_slots = 0;
    static constexpr unsigned generation_bits = 2;
    static constexpr unsigned commands_per_call = 1;
};
static_assert(smmu_options<options_archetype> && smmu_options<default_smmu_options>);

namespace options_misses {
using base = options_archetype;
struct features_are_a_number : base {
    static constexpr int features = 0;
};
template <auto Change>
struct changed_features : base {
    static constexpr smmu_features features = [] {
        smmu_features f;
        Change(f);
        return f;
    }();
};
struct quiescence_is_none : base {
    using quiescence = int;
};
struct messages_from_a_number : base {
    static constexpr std::uint32_t message_requester = 0;
};
struct no_ports : base {
    static constexpr std::size_t ports = 0;
};
struct no_configurations : base {
    static constexpr std::size_t configurations = 0;
};
struct no_contexts : base {
    static constexpr std::size_t contexts = 0;
};
struct three_substream_slots : base {
    static constexpr std::size_t substream_slots = 3;
};
struct no_commands : base {
    static constexpr unsigned commands_per_call = 0;
};
struct generation_of_one_bit : base {
    static constexpr unsigned generation_bits = 1;
};
struct generation_of_21_bits : base {
    static constexpr unsigned generation_bits = 21;
};
struct too_many_contexts : base {
    static constexpr std::size_t contexts = 4096;
};
static_assert(!smmu_options<features_are_a_number>);
static_assert(!smmu_options<quiescence_is_none>);
static_assert(!smmu_options<messages_from_a_number>);
static_assert(!smmu_options<no_ports>);
static_assert(!smmu_options<no_configurations>);
static_assert(!smmu_options<no_contexts>);
static_assert(!smmu_options<three_substream_slots>);
static_assert(!smmu_options<no_commands>);
static_assert(!smmu_options<generation_of_one_bit>);
static_assert(!smmu_options<generation_of_21_bits>);
static_assert(!smmu_options<too_many_contexts>);
static_assert(!smmu_options<int>);

// Features are advertised only when they are there.
using features = smmu_features;
static_assert(smmu_options<changed_features<[](features&) {}>>);
static_assert(smmu_options<changed_features<[](features& f) { f.output_bits = 48; }>>);
static_assert(smmu_options<changed_features<[](features& f) { f.stream_bits = 32; }>>);
static_assert(!smmu_options<changed_features<[](features& f) { f.stage1 = false; }>>);
static_assert(smmu_options<changed_features<[](features& f) { f.stage2 = true; }>>);
static_assert(!smmu_options<changed_features<[](features& f) { f.granule_4k = false; }>>);
static_assert(smmu_options<changed_features<[](features& f) { f.granule_16k = true; }>>);
static_assert(smmu_options<changed_features<[](features& f) { f.granule_64k = true; }>>);
static_assert(!smmu_options<changed_features<[](features& f) { f.hyp = true; }>>);
static_assert(smmu_options<changed_features<[](features& f) { f.vmid16 = true; }>>);
static_assert(smmu_options<changed_features<[](features& f) { f.substream_bits = 1; }>>);
static_assert(!smmu_options<changed_features<[](features& f) { f.output_bits = 43; }>>);
static_assert(smmu_options<changed_features<[](features& f) { f.output_bits = 52; }>>);
static_assert(!smmu_options<changed_features<[](features& f) { f.vax52 = true; }>>);
static_assert(!smmu_options<changed_features<[](features& f) { f.mpam = true; }>>);
static_assert(!smmu_options<changed_features<[](features& f) { f.bbml = 3; }>>);
static_assert(!smmu_options<changed_features<[](features& f) { f.httu = 3; }>>);
static_assert(!smmu_options<changed_features<[](features& f) { f.pri = true; }>>);
static_assert(!smmu_options<changed_features<[](features& f) { f.ecmdq_log2 = 1; }>>);
static_assert(!smmu_options<changed_features<[](features& f) { f.stall_max = 0; }>>);
static_assert(!smmu_options<changed_features<[](features& f) { f.substream_bits = 21; }>>);
static_assert(!smmu_options<changed_features<[](features& f) { f.stream_bits = 0; }>>);
static_assert(!smmu_options<changed_features<[](features& f) { f.stream_bits = 33; }>>);
static_assert(!smmu_options<changed_features<[](features& f) { f.command_queue_log2 = 20; }>>);
static_assert(!smmu_options<changed_features<[](features& f) { f.event_queue_log2 = 20; }>>);
} // namespace options_misses

// ---- all of them together ----------------------------------------------------------------------
struct memory_archetype {
    memory_archetype() = delete;
    memory_archetype(const memory_archetype&) = delete;
    memory_archetype& operator=(const memory_archetype&) = delete;
    bool read(pa, std::span<std::byte>) const noexcept { return false; }
    bool write(pa, std::span<const std::byte>) noexcept { return false; }
    std::optional<std::uint64_t> load64(pa) const noexcept { return std::nullopt; }
    std::optional<std::uint64_t> compare_exchange64(pa, std::uint64_t, std::uint64_t) noexcept {
        return std::nullopt;
    }
    std::optional<host_run> find(pa) const noexcept { return std::nullopt; }
    void note_write(pa, std::uint64_t) noexcept {}
};
struct sink_archetype {
    sink_archetype() = delete;
    sink_archetype(const sink_archetype&) = delete;
    sink_archetype& operator=(const sink_archetype&) = delete;
    void pulse(wired_interrupt) noexcept {}
    bool is_doorbell(pa) noexcept { return false; }
    bool signal_msi(stream_id, pa, std::uint32_t) noexcept { return false; }
};

// Every member is instantiated: it uses nothing that the concepts do not promise.
template class vm_accel::set_associative<4, 2, replacement_archetype>;
template class vm_accel::smmu<tlb_archetype, stream_allocator_archetype, memory_archetype,
                              sink_archetype, options_archetype>;
template class vm_accel::smmu<quick_tlb_archetype, stream_allocator_archetype, memory_archetype,
                              sink_archetype, options_archetype>;

namespace {

using least = smmu<tlb_archetype, stream_allocator_archetype, memory_archetype, sink_archetype,
                   options_archetype>;

template <class... T>
constexpr bool plain = (!std::is_polymorphic_v<T> && ...);
static_assert(plain<least, least::port, least::port::guard, default_smmu_options>);
static_assert(plain<vm_accel::clock, fifo, membarrier_quiescence, fence_quiescence>);
static_assert(plain<single_threaded, guard_slot, configuration_cache, context_table>);

// What travels between threads or on the hot path is copied like an integer.
template <class... T>
constexpr bool data = (std::is_trivially_copyable_v<T> && ...);
static_assert(data<outcome, transaction, permissions, tlb_key, tlb_hit, tlb_entry, fill_ticket>);
static_assert(data<invalidation_scope, translation_tag, translation_fault, stall_ticket>);
static_assert(data<access_attributes, attach_options, smmu_statistics, attachment_info>);
static_assert(data<spec::command, spec::event_record, spec::ste, spec::cd>);
static_assert(sizeof(outcome) <= 32);

// Slots and counters of two threads never share a cache line.
static_assert(alignof(guard_slot) >= 64 && alignof(port_counters) >= 64);

} // namespace
