/// Shares of guest RAM by the kernel's weighted interleaving instead of sized chunks:
/// page by page, where the kernel has it and its weights are the ratio that was planned.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/numa/grant.hpp>
#include <vm_accel/numa/guest_ram_request.hpp>
#include <vm_accel/numa/ram_region.hpp>
#include <vm_accel/os/interleaved_memory.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace vm_accel::inline v0::ram_interleaving {

/// Off by so much of the whole, a share still counts as the one that was planned.
inline constexpr double tolerance = 0.02;

/// The bytes that chunks have on each node, ascending by node.
[[nodiscard]] inline std::vector<pages_on_node> shares_of(std::span<const ram_chunk> chunks) {
    std::vector<pages_on_node> shares;
    for (const ram_chunk& chunk : chunks) {
        const auto known = std::find_if(shares.begin(), shares.end(),
                                        [&](const auto& on) { return on.node == chunk.node; });
        if (known != shares.end()) {
            known->pages += chunk.bytes;
        } else {
            shares.push_back({chunk.node, chunk.bytes});
        }
    }
    std::sort(shares.begin(), shares.end(),
              [](const auto& a, const auto& b) { return a.node < b.node; });
    return shares;
}

/// Whether weights give each node its share, within the tolerance.
[[nodiscard]] inline bool fit(std::span<const os::node_weight> weights,
                              std::span<const pages_on_node> shares) noexcept {
    double all_weights = 0;
    double all = 0;
    for (std::size_t i = 0; i < shares.size(); ++i) {
        all_weights += weights[i].weight;
        all += static_cast<double>(shares[i].pages);
    }
    for (std::size_t i = 0; i < shares.size(); ++i)
        if (std::abs(weights[i].weight / all_weights - static_cast<double>(shares[i].pages) / all) >
            tolerance)
            return false;
    return true;
}

/// The smallest weights that fit; those for 255 where none do.
[[nodiscard]] inline std::vector<os::node_weight>
weights_for(std::span<const pages_on_node> shares) {
    std::uint64_t most = 1;
    for (const pages_on_node& share : shares)
        most = std::max(most, share.pages);
    std::vector<os::node_weight> weights;
    for (unsigned largest = 1; largest <= 255; ++largest) {
        weights.clear();
        for (const pages_on_node& share : shares) {
            const double exact =
                static_cast<double>(share.pages) / static_cast<double>(most) * largest;
            weights.push_back({share.node, std::max(1u, static_cast<unsigned>(exact + 0.5))});
        }
        if (fit(weights, shares)) break;
    }
    return weights;
}

/// "0:3 1:1"
[[nodiscard]] inline fixed_text<96> text_of(std::span<const os::node_weight> weights) noexcept {
    fixed_text<96> text;
    for (const os::node_weight& w : weights) {
        if (!text.empty()) text.append(" ");
        text.append_number(w.node).append(":").append_number(w.weight);
    }
    return text;
}

/// The weights in force that fit the shares: the system's own, or with
/// interleave_use::set_weights those that it takes. Errors: unsupported,
/// permission_denied; mismatch (the system's weights are others).
template <os::interleavable_memory Memory>
[[nodiscard]] result<std::vector<os::node_weight>>
agree(Memory& memory, std::span<const pages_on_node> shares, interleave_use use) noexcept {
    std::vector<os::node_weight> present;
    for (int attempt = 0;; ++attempt) {
        present.clear();
        for (const pages_on_node& share : shares) {
            const result<unsigned> weight = memory.interleave_weight(share.node);
            if (!weight) return fail(weight);
            present.push_back({share.node, std::max(*weight, 1u)});
        }
        if (fit(present, shares)) return present;
        const std::vector<os::node_weight> wanted = weights_for(shares);
        if (use != interleave_use::set_weights || attempt != 0)
            return fail(errc::mismatch,
                        fixed_text<160>{"weighted interleave: the system's weights are "}
                            .append(text_of(present))
                            .append(", not ")
                            .append(text_of(wanted)),
                        "have them set, or let this process set them for the whole system");
        for (const os::node_weight& w : wanted) {
            const result<> set = memory.set_interleave_weight(w.node, w.weight);
            if (!set) return fail(set);
        }
    }
}

/// Interleaves one guest node's memory if it can be; `chunks` are all of it, in order,
/// from `address` on. Errors: as agree(), and what mbind refuses; nothing has changed then
/// but weights, maybe.
template <os::interleavable_memory Memory>
[[nodiscard]] result<ram_chunk> join(Memory& memory, std::byte* address,
                                     std::span<const ram_chunk> chunks,
                                     interleave_use use) noexcept {
    const std::vector<pages_on_node> shares = shares_of(chunks);
    const result<std::vector<os::node_weight>> weights = agree(memory, shares, use);
    if (!weights) return fail(weights);
    ram_chunk joined = chunks.front();
    joined.bytes = 0;
    for (const ram_chunk& chunk : chunks)
        joined.bytes += chunk.bytes;
    std::vector<unsigned> nodes;
    for (const pages_on_node& share : shares)
        nodes.push_back(share.node);
    if (const result<> done = memory.interleave(address, joined.bytes, nodes); !done)
        return fail(done);
    const result<std::vector<unsigned>> actual = memory.interleaved_over(address);
    if (!actual) return fail(actual);
    if (*actual != nodes)
        return fail(errc::mismatch, "weighted interleave: accepted, and not in force",
                    "use sized chunks");
    joined.node = any_node;
    joined.mode = os::bind_mode::prefer;
    joined.weights = *weights;
    joined.reason = fixed_text<120>{"weighted interleave over nodes "}.append(text_of(*weights));
    joined.binding =
        grant::preferred("interleaved by weight; pages for which a node has no room go elsewhere");
    return joined;
}

/// Turns the chunks of every guest node that is bound to more than one node into one
/// interleaved chunk, if the kernel and its weights allow; else leaves them as they
/// are. Returns what came of it: enforced (all of them), or why not.
template <os::memory_platform Memory>
[[nodiscard]] grant realise(Memory& memory, std::byte* address, std::vector<ram_chunk>& chunks,
                            interleave_use use) noexcept {
    if constexpr (!os::interleavable_memory<Memory>) {
        return grant::denied(error{errc::unsupported, 0,
                                   "weighted interleave: this platform has none",
                                   "use sized chunks"});
    } else {
        grant outcome{};
        std::vector<ram_chunk> out;
        for (auto first = chunks.begin(); first != chunks.end();) {
            const auto last = std::find_if(first, chunks.end(), [&](const ram_chunk& c) {
                return c.guest_node != first->guest_node;
            });
            const bool spread =
                std::any_of(first, last,
                            [&](const ram_chunk& c) { return c.node != first->node; }) &&
                std::all_of(first, last,
                            [](const ram_chunk& c) { return c.mode == os::bind_mode::bind; });
            if (spread) {
                result<ram_chunk> joined =
                    join(memory, address + first->offset, std::span{first, last}, use);
                if (joined) {
                    if (outcome.state == grant_state::not_requested) outcome = grant::enforced();
                    out.push_back(std::move(*joined));
                } else {
                    outcome = grant::denied(joined.error());
                    out.insert(out.end(), first, last);
                }
            } else {
                out.insert(out.end(), first, last);
            }
            first = last;
        }
        chunks = std::move(out);
        return outcome;
    }
}

} // namespace vm_accel::inline v0::ram_interleaving
