/// No part of the library is polymorphic: nothing can be called through a table of functions.
#include <vm_accel/vm_accel.hpp>

#include <type_traits>

namespace {

using namespace vm_accel;

template <class... T>
constexpr bool plain = (!std::is_polymorphic_v<T> && ...);

using device = smmu<set_associative<256, 4>, bitmap_streams<256>>;
using other_device = smmu<no_tlb, lockfree_streams<64>>;

static_assert(plain<error, counter, region_map, counting_sink, os::descriptor>);
static_assert(plain<device, device::port, device::port::guard, other_device>);
static_assert(plain<set_associative<256, 4>, no_tlb, bitmap_streams<256>, lockfree_streams<64>>);
static_assert(plain<numa_allocator<local_first>, numa_allocator<load_balanced>, object_pool<>>);
static_assert(plain<affinity<linux_platform>, affinity<fixed_platform>, kvm, kvm_vm, kvm_vcpu>);
static_assert(plain<acceleration_manager<device>>);

// What the hot path hands around is copied like an integer.
static_assert(std::is_trivially_copyable_v<outcome>);
static_assert(sizeof(outcome) <= 4 * sizeof(void*));

// A device is shared by threads, and its parts refer to each other: it stays where it is.
static_assert(!std::is_copy_constructible_v<device> && !std::is_move_constructible_v<device>);
// A guard lives in its scope; a port moves to its thread.
static_assert(!std::is_copy_constructible_v<device::port::guard>);
static_assert(!std::is_move_constructible_v<device::port::guard>);
static_assert(std::is_nothrow_move_constructible_v<device::port>);
static_assert(!std::is_copy_constructible_v<device::port>);

} // namespace
