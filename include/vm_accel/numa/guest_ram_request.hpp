/// What a VMM asks of a numa_allocator: guest RAM, and how it is to be backed.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/numa/strategy.hpp>

#include <cstdint>
#include <vector>

namespace vm_accel::inline v0 {

/// RAM of one guest node.
struct guest_node_request {
    std::uint64_t bytes = 0;  ///< above 0, a multiple of the page size
    unsigned node = any_node; ///< the operating system's number of the host node wanted
};

enum class huge_page_use : std::uint8_t {
    none,
    advise, ///< align to a huge page and advise the kernel to use them (transparent huge pages)
    /// Pages that the administrator set aside (hugetlb), taken from the pool of each
    /// node and populated before allocate() returns: no pool can run empty under the
    /// guest. Where there are too few, all of the RAM is as with `advise`.
    reserve,
};

/// How a guest node that a strategy spreads over several nodes is laid out. Sized chunks
/// are bound; weighted interleave is finer, and only preferred, so never strict.
enum class interleave_use : std::uint8_t {
    never,          ///< sized chunks
    if_weights_fit, ///< by the kernel's interleaving, where its weights are the planned ratio
    set_weights,    ///< the same, setting the weights where they are not: for the whole system
};

struct guest_ram_request {
    std::uint64_t bytes = 0; ///< total, a multiple of the page size; 0 with a split means its sum
    /// One entry for each guest node, in the order of addresses; empty for RAM
    /// that is not split. An entry with any_node goes where the strategy chooses:
    /// by local_first to the node at the same place in the list of nodes in use.
    std::vector<guest_node_request> split{};
    huge_page_use huge_pages = huge_page_use::none;
    bool memfd = false;  ///< a shared anonymous file of fixed size, as vhost-user needs
    bool strict = false; ///< fail if anything asked for is not enforced
    /// Threads that populate the memory, shared out over the nodes, at least one
    /// for each node; 0 leaves pages to be made on first touch (but for reserved ones).
    unsigned prefault_threads = 0;
    bool locked = false; ///< never swapped out
    /// With huge_page_use::reserve, the size of the pages: 2 MiB, 1 GiB, or what else the
    /// machine has pools of. 0: the platform's huge_page_bytes(). Each guest node has to
    /// be a multiple of it.
    std::uint64_t huge_page_bytes = 0;
    /// Of ordinary pages only. What came of it is ram_grants::interleaving.
    interleave_use interleave = interleave_use::never;
};

/// Checks a request by itself: sizes, sum, multiples of `page`. Returns its total.
/// Errors: invalid_argument.
[[nodiscard]] inline result<std::uint64_t> total_of(const guest_ram_request& request,
                                                    std::uint64_t page) noexcept {
    constexpr std::uint64_t most = std::uint64_t{1} << 52;
    std::uint64_t total = request.split.empty() ? request.bytes : 0;
    for (const guest_node_request& part : request.split) {
        if (part.bytes == 0 || part.bytes % page != 0 || part.bytes > most)
            return fail(errc::invalid_argument,
                        fixed_text<160>{"guest RAM: a guest node of "}
                            .append_number(part.bytes)
                            .append(" bytes is empty, too large or not whole pages"),
                        fixed_text<160>{"give each guest node a multiple of "}.append_number(page));
        total += part.bytes;
        if (total > most) break;
    }
    if (total == 0 || total % page != 0 || total > most)
        return fail(errc::invalid_argument,
                    fixed_text<160>{"guest RAM: "}.append_number(total).append(
                        " bytes is none, too much or not whole pages"),
                    fixed_text<160>{"ask for a multiple of "}.append_number(page).append(" bytes"));
    if (request.bytes != 0 && request.bytes != total)
        return fail(errc::invalid_argument,
                    fixed_text<160>{"guest RAM: the guest nodes add up to "}
                        .append_number(total)
                        .append(" bytes, not to ")
                        .append_number(request.bytes),
                    "make the split add up to the total, or leave the total 0");
    return total;
}

} // namespace vm_accel::inline v0
