/// Memory spread page by page over nodes in the ratio of weights: what a memory
/// platform may offer beyond memory_platform.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/memory_platform.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace vm_accel::inline v0::os {

/// How many pages in a row a node gets when it is its turn.
struct node_weight {
    unsigned node = 0;   ///< the operating system's number
    unsigned weight = 1; ///< 1 to 255

    friend bool operator==(const node_weight&, const node_weight&) = default;
};

/// The weights belong to the whole system, one for each node: interleave() says over
/// which nodes, interleave_weight() what the weights are, set_interleave_weight() changes
/// one for everybody's later pages. A page whose turn falls on a full node goes to
/// another one: interleaving never fails for want of room, and promises none.
/// interleaved_over() are the nodes of an address's policy; none if it is not interleaved.
/// Errors: `unsupported` (no such policy in this kernel), `permission_denied`,
/// `invalid_argument` (absent or excluded node, or weight).
template <class T>
concept interleavable_memory =
    memory_platform<T> &&
    requires(T t, const T view, std::byte* address, std::uint64_t bytes,
             std::span<const unsigned> nodes, unsigned node, unsigned weight) {
        { t.interleave(address, bytes, nodes) } noexcept -> std::same_as<result<>>;
        { view.interleaved_over(address) } noexcept -> std::same_as<result<std::vector<unsigned>>>;
        { view.interleave_weight(node) } noexcept -> std::same_as<result<unsigned>>;
        { t.set_interleave_weight(node, weight) } noexcept -> std::same_as<result<>>;
    };

} // namespace vm_accel::inline v0::os
