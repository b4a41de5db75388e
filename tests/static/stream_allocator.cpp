/// The stream_allocator concept: its archetype, and one near miss per
/// obligation that must be rejected.
#include "smmu/stream_allocator_archetype.hpp"

#include <vm_accel/smmu/host/bitmap_streams.hpp>
#include <vm_accel/smmu/host/lockfree_streams.hpp>

#include <optional>
#include <type_traits>

template class vm_accel::bitmap_streams<64>;
template class vm_accel::bitmap_streams<65>;
template class vm_accel::lockfree_streams<64>;

namespace {

using namespace vm_accel;

static_assert(stream_allocator<stream_allocator_archetype>);
static_assert(stream_allocator<bitmap_streams<64>> && stream_allocator<lockfree_streams<64>>);
static_assert(!std::is_polymorphic_v<bitmap_streams<64>> &&
              !std::is_polymorphic_v<lockfree_streams<64>>);
static_assert(!std::is_copy_constructible_v<bitmap_streams<64>> &&
              !std::is_copy_constructible_v<lockfree_streams<64>>);

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
