/// Proof of placement: what was asked for, what the kernel holds now, and on which
/// nodes the pages lie.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/numa/access_tracking.hpp>
#include <vm_accel/numa/grant.hpp>
#include <vm_accel/numa/migration.hpp>
#include <vm_accel/numa/ram_region.hpp>
#include <vm_accel/os/memory_platform.hpp>
#include <vm_accel/os/placement_platform.hpp>
#include <vm_accel/topology/cpu_topology.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace vm_accel::inline v0 {

struct verify_options {
    std::uint64_t stride = 1; ///< one page in so many is looked at
    bool strict = false;      ///< what is not as requested is an error
};

/// How it is known where pages lie.
enum class proof_source : std::uint8_t {
    nothing,        ///< the kernel would not tell at all
    mapping_totals, ///< its totals for whole mappings, shared out evenly: an estimate
    page_query,     ///< its answer for each page
};

[[nodiscard]] constexpr std::string_view name_of(proof_source source) noexcept {
    switch (source) {
    case proof_source::nothing:
        return "nothing";
    case proof_source::mapping_totals:
        return "totals of mappings";
    case proof_source::page_query:
        return "query of pages";
    }
    return "unknown";
}

/// One chunk: requested, given, and where it lies.
struct chunk_proof {
    chunk_placement placement{}; ///< the chunk, and its pages by node
    grant binding{};             ///< what the kernel holds now, which may be less than at set-up

    /// Pages that exist on a node other than the planned one; 0 where none was planned.
    [[nodiscard]] std::uint64_t wrong_pages() const noexcept {
        return placement.present() - placement.local();
    }
    /// Bound as strongly as was asked for, and no page seen elsewhere.
    [[nodiscard]] bool as_requested() const noexcept {
        const os::bind_mode asked = placement.chunk.mode;
        const bool kept =
            asked == os::bind_mode::none || binding.state == grant_state::enforced ||
            (asked == os::bind_mode::prefer && binding.state == grant_state::preferred);
        return kept && wrong_pages() == 0 && placement.unknown == 0;
    }
};

struct region_proof {
    std::vector<chunk_proof> chunks{};
    proof_source source = proof_source::nothing;
    std::uint64_t page_bytes = 4096;
    std::uint64_t stride = 1;
    error why_not_better{}; ///< with less than a query of pages: what was refused

    [[nodiscard]] bool as_requested() const noexcept {
        return source != proof_source::nothing &&
               std::all_of(chunks.begin(), chunks.end(),
                           [](const chunk_proof& c) { return c.as_requested(); });
    }
    [[nodiscard]] std::uint64_t pages_present() const noexcept {
        std::uint64_t total = 0;
        for (const chunk_proof& c : chunks)
            total += c.placement.present();
        return total;
    }
    [[nodiscard]] std::uint64_t wrong_pages() const noexcept {
        std::uint64_t total = 0;
        for (const chunk_proof& c : chunks)
            total += c.wrong_pages();
        return total;
    }

    /// The chunks as samples for track_accesses() and migration planners.
    [[nodiscard]] std::vector<region_sample> samples(const cpu_topology& topology) const {
        std::vector<region_sample> out;
        for (const chunk_proof& c : chunks) {
            region_sample& sample = out.emplace_back();
            sample.guest_node = c.placement.chunk.guest_node;
            for (const pages_on_node& on : c.placement.on_nodes)
                if (const unsigned node = topology.find_node(on.node); node != no_index)
                    sample.on_nodes.push_back({node, on.pages * page_bytes * stride});
        }
        return out;
    }
};

/// One line for each chunk: "guest node 1 +128 MiB: asked for bind to node 1, given
/// enforced; 32768 of 32768 pages there (query of pages)"
template <class Stream>
    requires requires(Stream& out, std::string_view text) { out << text; }
Stream& operator<<(Stream& out, const region_proof& proof) {
    for (const chunk_proof& c : proof.chunks) {
        const ram_chunk& chunk = c.placement.chunk;
        fixed_text<640> line{"guest node "};
        line.append_number(chunk.guest_node).append(" +").append_number(chunk.offset >> 20);
        line.append(" MiB: asked for ");
        if (chunk.mode == os::bind_mode::none) {
            line.append("any node");
        } else if (!chunk.weights.empty()) {
            line.append(chunk.reason);
        } else {
            line.append(name_of(chunk.mode)).append(" to node ").append_number(chunk.node);
        }
        line.append(", given ").append(name_of(c.binding.state));
        if (!c.binding.cause.empty()) line.append(" (").append(c.binding.cause).append(")");
        line.append("; ").append_number(c.placement.local()).append(" of ");
        line.append_number(c.placement.present()).append(" pages there");
        if (c.placement.absent != 0)
            line.append(", ").append_number(c.placement.absent).append(" absent");
        if (c.placement.unknown != 0)
            line.append(", ").append_number(c.placement.unknown).append(" unknown");
        out << line.append(" (").append(name_of(proof.source)).append(")\n").view();
    }
    return out;
}

namespace ram_verification {

/// What the kernel holds of a binding now: never more than was granted at set-up.
template <os::memory_platform Memory>
[[nodiscard]] grant binding_now(const ram_chunk& chunk, const std::byte* address,
                                const Memory& memory,
                                const result<std::vector<unsigned>>& allowed) noexcept {
    const grant& given = chunk.binding;
    if (chunk.mode == os::bind_mode::none || given.is_denied()) return given;
    if (allowed && chunk.weights.empty() &&
        std::find(allowed->begin(), allowed->end(), chunk.node) == allowed->end())
        return grant::refused(fixed_text<160>{"node "}
                                  .append_number(chunk.node)
                                  .append(" is outside the process's cpuset now"));
    if (!chunk.weights.empty()) {
        if constexpr (os::interleavable_memory<Memory>) {
            const result<std::vector<unsigned>> over = memory.interleaved_over(address);
            if (over && over->size() != chunk.weights.size())
                return grant::refused("it is not interleaved over these nodes now");
        }
        return given;
    }
    const result<os::memory_policy> actual = memory.policy_of(address);
    if (!actual && given.state == grant_state::enforced)
        return grant::preferred(
            fixed_text<160>{"not confirmed: "}.append(actual.error().cause.view()));
    if (!actual) return given;
    const os::bind_mode mode =
        given.state == grant_state::enforced ? os::bind_mode::bind : actual->mode;
    if (mode != os::bind_mode::none && *actual == os::memory_policy{mode, chunk.node, true})
        return given;
    return grant::refused(fixed_text<160>{"the kernel's policy is "}
                              .append(name_of(actual->mode))
                              .append(" node ")
                              .append_number(actual->node)
                              .append(" now"));
}

/// The placement by totals, where pages cannot be asked about one by one.
template <os::placement_platform Placement>
[[nodiscard]] result<chunk_placement> by_totals(const ram_chunk& chunk, const std::byte* address,
                                                std::uint64_t page,
                                                const Placement& placement) noexcept {
    const result<std::vector<os::bytes_on_node>> totals =
        placement.mapped_bytes(address, chunk.bytes);
    if (!totals) return fail(totals);
    chunk_placement out;
    out.chunk = chunk;
    out.asked = chunk.bytes / page;
    std::uint64_t present = 0;
    for (const os::bytes_on_node& on : *totals) {
        out.on_nodes.push_back({on.node, on.bytes / page});
        present += on.bytes / page;
    }
    out.absent = out.asked - std::min(present, out.asked);
    out.asked = out.absent + present;
    return out;
}

/// For strict requests. Errors: mismatch; what the kernel refused.
[[nodiscard]] inline result<> check(const region_proof& proof) noexcept {
    if (proof.source == proof_source::nothing) return tl::unexpected<error>{proof.why_not_better};
    for (const chunk_proof& c : proof.chunks) {
        if (c.as_requested()) continue;
        const unsigned node = c.placement.chunk.node;
        if (c.wrong_pages() + c.placement.unknown != 0)
            return fail(errc::mismatch,
                        fixed_text<160>{"guest RAM: "}
                            .append_number(c.wrong_pages() + c.placement.unknown)
                            .append(" of ")
                            .append_number(c.placement.present() + c.placement.unknown)
                            .append(" pages are not known to lie on node ")
                            .append_number(node),
                        "free memory on that node, or do not verify strictly");
        return fail(c.binding.is_denied() ? c.binding.code : errc::mismatch,
                    fixed_text<160>{"guest RAM: "}.append(c.binding.cause),
                    c.binding.cure.empty()
                        ? "let the process bind memory, or do not verify strictly"
                        : c.binding.cure,
                    c.binding.os_error);
    }
    return {};
}

} // namespace ram_verification

/// Looks at a region now. What cannot be found out is in the proof, with its cause:
/// where pages cannot be asked about, the kernel's totals serve. Errors: only strict ones
/// (mismatch, permission_denied, unsupported). Takes some 50 ns a page.
template <os::memory_platform Memory, os::placement_platform Placement>
[[nodiscard]] result<region_proof>
verify_placement(const basic_ram_region<Memory>& region, const Memory& memory,
                 const Placement& placement, const verify_options& options = {}) noexcept {
    region_proof proof;
    const result<std::vector<unsigned>> allowed = placement.allowed_nodes();
    const result<placement_report> pages = region.placement(options.stride);
    proof.page_bytes = memory.page_bytes();
    if (pages) {
        proof.source = proof_source::page_query;
        proof.stride = pages->stride;
    } else {
        proof.why_not_better = pages.error();
    }
    for (std::size_t i = 0; i < region.chunks().size(); ++i) {
        const ram_chunk& chunk = region.chunks()[i];
        const std::byte* const address = region.data() + chunk.offset;
        chunk_proof& c = proof.chunks.emplace_back();
        c.binding = ram_verification::binding_now(chunk, address, memory, allowed);
        c.placement.chunk = chunk;
        if (pages) {
            c.placement = pages->chunks[i];
            continue;
        }
        const result<chunk_placement> totals =
            ram_verification::by_totals(chunk, address, proof.page_bytes, placement);
        if (!totals) continue;
        c.placement = *totals;
        proof.source = proof_source::mapping_totals;
    }
    if (options.strict) {
        if (const result<> kept = ram_verification::check(proof); !kept) return fail(kept);
    }
    return proof;
}

/// What the proofs and the accesses of all regions come to, for a report.
struct placement_summary {
    std::uint64_t verified = 0; ///< regions
    std::uint64_t pages = 0;
    std::uint64_t wrong_pages = 0;
    std::uint64_t chunks_as_requested = 0;
    std::uint64_t chunks = 0;
    proof_source source = proof_source::nothing; ///< the weakest
    local_access_rate accesses{};
    double mean_distance = 0;

    void add(const region_proof& proof) noexcept {
        source = verified == 0 ? proof.source : std::min(source, proof.source);
        ++verified;
        pages += proof.pages_present();
        wrong_pages += proof.wrong_pages();
        chunks += proof.chunks.size();
        for (const chunk_proof& c : proof.chunks)
            chunks_as_requested += c.as_requested() ? 1 : 0;
    }
    void add(const access_tracking& tracked) noexcept {
        accesses = tracked.all;
        mean_distance = tracked.mean_distance;
    }

    template <class Report>
    void report(Report& out) const {
        if (verified != 0) {
            out.fact("chunks verified", chunks);
            out.fact("chunks as requested", chunks_as_requested);
            out.fact("pages looked at", pages);
            out.fact("pages on wrong nodes", wrong_pages);
            out.fact("pages located by", name_of(source));
        }
        if (accesses.source != access_source::none) {
            out.fact("local access rate", accesses.rate);
            out.fact("local access rate by", name_of(accesses.source));
            out.fact("mean distance of an access", mean_distance);
        }
    }
};

} // namespace vm_accel::inline v0
