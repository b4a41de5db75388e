/// What the SMMU needs of guest memory.
///
/// A guest writes its memory while the model reads it. Everything is copied
/// first and decided on the copy; no reference into guest memory is ever
/// handed out by read() or load64(). Every address is checked, and no sum of
/// address and length is ever formed that could overflow.
#pragma once

#include <vm_accel/core/address.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace vm_accel::inline v0 {

/// A run of guest memory as the host sees it: `bytes` host bytes at `host`
/// back guest addresses [base, base + bytes).
struct host_run {
    std::byte* host = nullptr;
    pa base{};
    std::uint64_t bytes = 0;
};

/// Meaning:
/// - read/write copy `span.size()` bytes, all or nothing; false = some byte of
///   the range is not RAM, and then nothing was copied.
/// - load64 reads an aligned little-endian 64-bit word single-copy atomically
///   and gives it in host order; nullopt = unaligned or not RAM.
/// - compare_exchange64 replaces such a word if it still holds `expected`;
///   gives the word it found (host order), nullopt = unaligned or not RAM.
/// - find gives the whole region that holds `address`, nullopt = not RAM. The
///   host pointer may be used only inside a guard (see dma_port).
/// - note_write is called after bytes were written through a host pointer.
/// Threads: all of these from any number of threads at once, also while
/// regions are added or removed by another.
template <class M>
concept guest_memory = requires(M& memory, const M& view, pa address, std::uint64_t value,
                                std::span<std::byte> out, std::span<const std::byte> in) {
    { view.read(address, out) } noexcept -> std::same_as<bool>;
    { memory.write(address, in) } noexcept -> std::same_as<bool>;
    { view.load64(address) } noexcept -> std::same_as<std::optional<std::uint64_t>>;
    {
        memory.compare_exchange64(address, value, value)
    } noexcept -> std::same_as<std::optional<std::uint64_t>>;
    { view.find(address) } noexcept -> std::same_as<std::optional<host_run>>;
    { memory.note_write(address, value) } noexcept -> std::same_as<void>;
};

} // namespace vm_accel::inline v0
