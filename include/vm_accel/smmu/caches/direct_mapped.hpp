/// The TLB with one place for each page.
#pragma once

#include <vm_accel/smmu/caches/set_associative.hpp>

#include <cstddef>

namespace vm_accel::inline v0 {

/// Sets of one way: the smallest look-up there is, and hits write nothing. Two
/// pages whose numbers share the low bits evict each other each time, however
/// empty the rest is; so do the pages of two devices that use one range of
/// addresses. For tables small enough to be read in full, or as the near level
/// of two_level.
template <std::size_t Sets>
using direct_mapped = set_associative<Sets, 1, fifo>;

} // namespace vm_accel::inline v0
