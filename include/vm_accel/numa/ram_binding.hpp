/// Asking the kernel for what a plan says, and telling what it granted.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/numa/grant.hpp>
#include <vm_accel/numa/ram_region.hpp>
#include <vm_accel/numa/strategy.hpp>
#include <vm_accel/os/memory_platform.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace vm_accel::inline v0::ram_binding {

/// Binds memory to a node and reads the policy back: success alone is no proof,
/// as some sandboxes accept mbind and do nothing. A binding that is refused is
/// tried again as a preference.
template <os::memory_platform Memory>
[[nodiscard]] grant bind(Memory& memory, std::byte* address, std::uint64_t bytes, unsigned node,
                         os::bind_mode mode) noexcept {
    if (mode == os::bind_mode::none) return {};
    grant preference = grant::preferred("the node has no room for all of it");
    result<> done = memory.bind(address, bytes, node, mode);
    if (!done && mode == os::bind_mode::bind) {
        const error first = done.error();
        done = memory.bind(address, bytes, node, os::bind_mode::prefer);
        if (!done) return grant::denied(first);
        preference = grant::preferred(first);
        mode = os::bind_mode::prefer;
    }
    if (!done) return grant::denied(done.error());
    const result<os::memory_policy> actual = memory.policy_of(address);
    if (!actual)
        return grant::preferred(
            fixed_text<160>{"accepted but not confirmed: "}.append(actual.error().cause.view()));
    if (*actual != os::memory_policy{mode, node, true})
        return grant::refused(fixed_text<160>{"accepted, but the kernel's policy is "}
                                  .append(name_of(actual->mode))
                                  .append(" node ")
                                  .append_number(actual->node));
    return mode == os::bind_mode::bind ? grant::enforced() : preference;
}

/// Advice can be followed or not, so the best that comes of it is `preferred`.
template <os::memory_platform Memory>
[[nodiscard]] grant advise(Memory& memory, std::byte* address, std::uint64_t bytes) noexcept {
    const result<> done = memory.advise_huge_pages(address, bytes);
    if (!done) return grant::denied(done.error());
    return grant::preferred("advice accepted; the kernel uses huge pages where it can");
}

/// For strict requests, before anything is mapped. Errors: exhausted.
[[nodiscard]] inline result<> check_room(const memory_plan& plan) noexcept {
    for (const memory_chunk& chunk : plan) {
        if (chunk.mode == os::bind_mode::prefer)
            return fail(errc::exhausted,
                        fixed_text<160>{"guest RAM: no room on the nodes for "}
                            .append_number(chunk.bytes >> 20)
                            .append(" MiB of guest node ")
                            .append_number(chunk.request),
                        "ask for less, free memory, enable more nodes, or do not ask for strict");
    }
    return {};
}

/// A grant that fell short as the error it stands for.
[[nodiscard]] inline tl::unexpected<error> fail_short(const grant& given) noexcept {
    return fail(given.code, given.cause,
                given.cure.empty()
                    ? fixed_text<160>{"do not ask for strict, or let the process do it"}
                    : given.cure,
                given.os_error);
}

/// For strict requests, the first grant that fell short. Errors: what the kernel
/// said (unsupported, permission_denied, exhausted, invalid_argument), and
/// permission_denied where it only did something else.
[[nodiscard]] inline result<> check_grants(std::span<const ram_chunk> chunks,
                                           const ram_grants& whole = {}) noexcept {
    for (const grant* given : {&whole.sharing, &whole.sealing})
        if (given->is_denied()) return fail_short(*given);
    for (const ram_chunk& chunk : chunks) {
        if (chunk.mode != os::bind_mode::none && chunk.binding.state != grant_state::enforced)
            return fail_short(chunk.binding);
        for (const grant* given : {&chunk.huge_pages, &chunk.locking, &chunk.prefault})
            if (given->is_denied()) return fail_short(*given);
    }
    return {};
}

/// For pages from pools, which must all be there before anybody touches one.
/// Errors: what refused them (exhausted, unsupported).
[[nodiscard]] inline result<> check_prefault(std::span<const ram_chunk> chunks) noexcept {
    for (const ram_chunk& chunk : chunks)
        if (chunk.prefault.is_denied()) return fail_short(chunk.prefault);
    return {};
}

/// For strict requests that were prefaulted. Errors: mismatch, and those of
/// basic_ram_region::placement.
template <os::memory_platform Memory>
[[nodiscard]] result<> check_placement(const basic_ram_region<Memory>& region) noexcept {
    const result<placement_report> report = region.placement();
    if (!report) return fail(report);
    for (const chunk_placement& c : report->chunks) {
        if (c.as_planned() && c.absent == 0) continue;
        return fail(errc::mismatch,
                    fixed_text<160>{"guest RAM: "}
                        .append_number(c.asked - c.local())
                        .append(" of ")
                        .append_number(c.asked)
                        .append(" pages are not on node ")
                        .append_number(c.chunk.node),
                    "free memory on that node, or do not ask for strict");
    }
    return {};
}

} // namespace vm_accel::inline v0::ram_binding
