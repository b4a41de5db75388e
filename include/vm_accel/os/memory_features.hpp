/// What a memory platform may offer beyond memory_platform. A platform that lacks
/// one of these is not asked; requests for it are then answered "unsupported".
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/memory_platform.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

namespace vm_accel::inline v0::os {

/// Huge pages set aside by the administrator (hugetlb on Linux), node by node.
/// free_huge_pages(n, size) counts those of node n that nobody uses; some may be
/// promised to others already. map_huge() maps memory of such pages and reserves
/// them, on no node in particular: touching a page whose node has none left ends
/// the process (SIGBUS). populate_huge() gives a range its pages and is safe: it
/// answers an error instead. After it, touching is safe.
/// Errors: `unsupported` (no pages of that size, no safe way to populate),
/// `exhausted` (too few), `permission_denied`, `invalid_argument` (sizes).
template <class T>
concept huge_page_pools =
    memory_platform<T> && requires(T t, const T view, const mapping_request& request,
                                   std::byte* address, std::uint64_t bytes, unsigned node) {
        { view.free_huge_pages(node, bytes) } noexcept -> std::same_as<result<std::uint64_t>>;
        { t.map_huge(request, bytes) } noexcept -> std::same_as<result<raw_mapping>>;
        { t.populate_huge(address, bytes) } noexcept -> std::same_as<result<>>;
    };

/// A part of a mapping, and the node it is to lie on.
struct node_part {
    static constexpr unsigned any = ~0u;
    std::uint64_t bytes = 0;
    unsigned node = any; ///< by the operating system's number
};

/// Memory whose nodes are chosen when it is mapped and not later (Windows). map_near()
/// is map() of a mapping whose parts, in order and together as long as it is, each
/// prefer a node; bind() is then not asked. Errors: those of map().
template <class T>
concept node_mapping_memory = memory_platform<T> && requires(T t, const mapping_request& request,
                                                             std::span<const node_part> parts) {
    { t.map_near(request, parts) } noexcept -> std::same_as<result<raw_mapping>>;
};

/// Memory that is never swapped out. lock() makes no pages: those that come later
/// are locked when they come. unmap() ends it.
/// Errors: `permission_denied` (a limit), `unsupported`, `exhausted`.
template <class T>
concept lockable_memory =
    memory_platform<T> && requires(T t, std::byte* address, std::uint64_t bytes) {
        { t.lock(address, bytes) } noexcept -> std::same_as<result<>>;
    };

/// Shared memory whose file no process can make smaller or larger any more: a peer
/// that has the descriptor cannot take pages from under the VMM by truncating it.
/// A peer can still punch holes; what reads there next is zeroes. Pages from pools go
/// back to their pool then, and whoever touches the hole while the pool is empty gets a
/// SIGBUS: share such memory with peers that are trusted only.
/// Errors: `unsupported`, `permission_denied`, `invalid_argument` (no shared file).
template <class T>
concept sealable_memory = memory_platform<T> && requires(T t, const raw_mapping& mapping) {
    { t.seal(mapping) } noexcept -> std::same_as<result<>>;
};

} // namespace vm_accel::inline v0::os
