/// What guest RAM is made of: ordinary pages or pages from pools, private or in a
/// file that other processes can map, locked or not.
///
/// What a platform does not offer is answered `unsupported`; see os/memory_features.hpp.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/numa/grant.hpp>
#include <vm_accel/numa/guest_ram_request.hpp>
#include <vm_accel/numa/ram_planning.hpp>
#include <vm_accel/numa/ram_region.hpp>
#include <vm_accel/numa/strategy.hpp>
#include <vm_accel/os/memory_features.hpp>
#include <vm_accel/os/memory_platform.hpp>
#include <vm_accel/topology/cpu_topology.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace vm_accel::inline v0::ram_backing {

/// "64 pages of 2048 KiB"
[[nodiscard]] inline fixed_text<64> pages_of(std::uint64_t bytes, std::uint64_t page) noexcept {
    return fixed_text<64>{}
        .append_number(bytes / page)
        .append(" pages of ")
        .append_number(page >> 10)
        .append(" KiB");
}

/// The size of pages from pools that a request means.
template <os::memory_platform Memory>
[[nodiscard]] std::uint64_t page_size_of(const Memory& memory,
                                         const guest_ram_request& request) noexcept {
    return request.huge_page_bytes != 0 ? request.huge_page_bytes : memory.huge_page_bytes();
}

/// Whether every guest node is whole pages from a pool. Errors: invalid_argument.
[[nodiscard]] inline result<> check_sizes(std::span<const memory_request> parts,
                                          std::uint64_t page) noexcept {
    for (const memory_request& part : parts) {
        if (page != 0 && part.bytes % page == 0) continue;
        return fail(errc::invalid_argument,
                    fixed_text<160>{"guest RAM: "}
                        .append_number(part.bytes)
                        .append(" bytes of a guest node are not whole pages of ")
                        .append_number(page >> 10)
                        .append(" KiB"),
                    "give each guest node a multiple of the huge page, or use smaller ones");
    }
    return {};
}

/// What the pools of these nodes can give now, by node index. Errors: unsupported,
/// where no node has a pool of that size; exhausted, where all of them have too little.
template <os::memory_platform Memory>
[[nodiscard]] result<memory_inventory>
take_stock_of_pools(const Memory& memory, const cpu_topology& topology,
                    std::span<const unsigned> nodes, std::uint64_t page,
                    std::uint64_t wanted) noexcept {
    if constexpr (os::huge_page_pools<Memory>) {
        memory_inventory inventory;
        inventory.topology = &topology;
        inventory.granule = page;
        inventory.free_bytes.assign(topology.nodes.size(), 0);
        std::uint64_t total = 0;
        result<std::uint64_t> told;
        bool any = false;
        for (const unsigned node : nodes) {
            told = memory.free_huge_pages(topology.nodes[node].os_index, page);
            any = any || told;
            if (told) total += inventory.free_bytes[node] = *told * page;
        }
        if (!any && !nodes.empty()) return fail(told);
        if (total >= wanted) return inventory;
        return fail(errc::exhausted,
                    fixed_text<160>{"guest RAM: "}
                        .append(pages_of(wanted, page))
                        .append(" wanted, ")
                        .append_number(total / page)
                        .append(" free in the pools of the nodes in use"),
                    "raise nr_hugepages in /sys/devices/system/node/node*/hugepages, or ask for "
                    "transparent huge pages");
    } else {
        return fail(errc::unsupported, "guest RAM: this platform has no pools of huge pages",
                    "ask for transparent huge pages, or for none");
    }
}

/// The nodes of chunks, for platforms that choose them when they map. Not `placed`: any.
[[nodiscard]] inline std::vector<os::node_part> parts_of(std::span<const ram_chunk> chunks,
                                                         bool placed) {
    std::vector<os::node_part> parts;
    for (const ram_chunk& chunk : chunks)
        parts.push_back({chunk.bytes, placed && chunk.mode != os::bind_mode::none
                                          ? chunk.node
                                          : os::node_part::any});
    return parts;
}

/// Maps memory for chunks, near their nodes where that is decided here. Where the file is refused
/// and the request is not strict, the memory is private, and `sharing` says why. `page`: of pages
/// from pools, or 0.
template <os::memory_platform Memory>
[[nodiscard]] result<os::raw_mapping> map(Memory& memory, const guest_ram_request& request,
                                          std::span<const ram_chunk> chunks, bool placed,
                                          std::uint64_t page, grant& sharing) noexcept {
    const std::uint64_t bytes = chunks.back().offset + chunks.back().bytes;
    // The kernel uses huge pages unasked, too: none is to lie across two guest nodes, of
    // which only one would get it where binding is refused.
    const std::uint64_t huge = memory.huge_page_bytes();
    const bool aligned = request.huge_pages != huge_page_use::none || bytes >= huge;
    const std::uint64_t alignment = aligned ? huge : 0;
    const auto try_to = [&](bool shared) noexcept -> result<os::raw_mapping> {
        if constexpr (os::huge_page_pools<Memory>) {
            if (page != 0) return memory.map_huge({bytes, alignment, shared}, page);
        }
        if constexpr (os::node_mapping_memory<Memory>) {
            return memory.map_near({bytes, alignment, shared}, parts_of(chunks, placed));
        }
        return memory.map({bytes, alignment, shared});
    };
    result<os::raw_mapping> mapped = try_to(request.memfd);
    if (mapped && request.memfd) sharing = grant::enforced();
    if (mapped || !request.memfd || request.strict) return mapped;
    sharing = grant::denied(mapped.error());
    return try_to(false);
}

/// Fixes the size of the file, if there is one.
template <os::memory_platform Memory>
[[nodiscard]] grant seal(Memory& memory, const os::raw_mapping& mapping) noexcept {
    if (mapping.file < 0) return {};
    if constexpr (os::sealable_memory<Memory>) {
        const result<> done = memory.seal(mapping);
        return done ? grant::enforced() : grant::denied(done.error());
    } else {
        return grant::denied({errc::unsupported, 0,
                              "this platform cannot fix the size of a shared file",
                              "let only trusted processes have the descriptor"});
    }
}

/// Locks a chunk. Pages from pools are never swapped out to begin with.
template <os::memory_platform Memory>
[[nodiscard]] grant lock(Memory& memory, std::byte* address, std::uint64_t bytes,
                         bool from_pools) noexcept {
    if (from_pools) return grant::enforced();
    if constexpr (os::lockable_memory<Memory>) {
        const result<> done = memory.lock(address, bytes);
        return done ? grant::enforced() : grant::denied(done.error());
    } else {
        return grant::denied({errc::unsupported, 0, "this platform cannot lock memory here",
                              "switch swapping off, or do not ask for locked memory"});
    }
}

} // namespace vm_accel::inline v0::ram_backing
