/// How a TLB asks for translations that nobody has used yet.
#pragma once

#include <vm_accel/smmu/caches/tlb_policy.hpp>

#include <concepts>
#include <cstdint>

namespace vm_accel::inline v0 {

/// Addresses whose translations a TLB would like to have: first, first + step, ...
/// An address past the end of the address space is one at its other end.
struct prefetch_wish {
    std::uint64_t first = 0;
    std::uint64_t step = 0; ///< in bytes, modulo 2^64: may be a step down
    unsigned count = 0;     ///< none by default; at most most_prefetches are made

    static constexpr unsigned most_prefetches = 16;
    friend constexpr bool operator==(const prefetch_wish&, const prefetch_wish&) = default;
};

/// A TLB that wants more than it is given. The translator asks once after each
/// access that missed and was served, with the key of the access and the size of
/// the entry that it has now; and walks for what is wanted inside the same guard,
/// so the device waits for that. As after CMD_PREFETCH_ADDR, nothing comes of an
/// address that is not mapped: no event, no flag set in the tables.
/// Threads: any device thread may ask.
template <class T>
concept prefetching_tlb =
    tlb_policy<T> && requires(T tlb, const tlb_key& missed, unsigned size_log2) {
        { tlb.next_wanted(missed, size_log2) } noexcept -> std::same_as<prefetch_wish>;
    };

} // namespace vm_accel::inline v0
