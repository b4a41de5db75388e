/// The stream_allocator concept: its archetype, and one near miss per
/// obligation that must be rejected.
#include "smmu/stream_allocator_archetype.hpp"

#include <vm_accel/smmu/host/bitmap_streams.hpp>
#include <vm_accel/smmu/host/lockfree_streams.hpp>
#include <vm_accel/smmu/host/pci_streams.hpp>
#include <vm_accel/smmu/host/range_streams.hpp>

#include <optional>
#include <type_traits>

template class vm_accel::bitmap_streams<64>;
template class vm_accel::bitmap_streams<65>;
template class vm_accel::lockfree_streams<64>;
template class vm_accel::range_streams<65, vm_accel::first_fit>;
template class vm_accel::range_streams<65, vm_accel::best_fit>;
template class vm_accel::pci_streams<>;

namespace {

using namespace vm_accel;

static_assert(stream_allocator<stream_allocator_archetype>);
template <class T>
inline constexpr bool is_model =
    stream_allocator<T> && !std::is_polymorphic_v<T> && !std::is_copy_constructible_v<T>;
static_assert(is_model<bitmap_streams<64>> && is_model<lockfree_streams<64>>);
static_assert(is_model<range_streams<64>> && is_model<range_streams<64, best_fit>>);
static_assert(is_model<pci_streams<>> && is_model<pci_streams<pci_layout{.base = 1}>>);

using base = stream_allocator_archetype;

struct without_capacity {
    result<stream_id> allocate() noexcept;
    result<> reserve(stream_id) noexcept;
    result<> release(stream_id) noexcept;
    bool is_held(stream_id) const noexcept;
};
static_assert(!stream_allocator<without_capacity>);

struct needs_an_argument : base {
    explicit needs_an_argument(int);
};
static_assert(!stream_allocator<needs_an_argument>);

struct capacity_is_no_number : base {
    static constexpr const char* capacity = "many";
};
static_assert(!stream_allocator<capacity_is_no_number>);

struct allocate_may_throw : base {
    result<stream_id> allocate();
};
static_assert(!stream_allocator<allocate_may_throw>);

struct allocate_has_no_reason : base {
    std::optional<stream_id> allocate() noexcept;
};
static_assert(!stream_allocator<allocate_has_no_reason>);

struct allocate_gives_a_number : base {
    result<std::uint32_t> allocate() noexcept;
};
static_assert(!stream_allocator<allocate_gives_a_number>);

struct reserve_takes_a_number : base {
    result<> reserve(std::uint32_t) noexcept;
};
static_assert(!stream_allocator<reserve_takes_a_number>);

struct reserve_says_only_no : base {
    bool reserve(stream_id) noexcept;
};
static_assert(!stream_allocator<reserve_says_only_no>);

struct reserve_may_throw : base {
    result<> reserve(stream_id);
};
static_assert(!stream_allocator<reserve_may_throw>);

struct release_hides_mistakes : base {
    void release(stream_id) noexcept;
};
static_assert(!stream_allocator<release_hides_mistakes>);

struct release_may_throw : base {
    result<> release(stream_id);
};
static_assert(!stream_allocator<release_may_throw>);

struct is_held_changes_state : base {
    bool is_held(stream_id) noexcept;
};
static_assert(!stream_allocator<is_held_changes_state>);

struct is_held_may_throw : base {
    bool is_held(stream_id) const;
};
static_assert(!stream_allocator<is_held_may_throw>);

} // namespace
