/// How an entry of a set-associative cache is asked for again and again.
#pragma once

#include <vm_accel/smmu/caches/shared_entry.hpp>
#include <vm_accel/smmu/caches/tlb_policy.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace vm_accel::inline v0 {

/// What a context's tag and a page size make of an address. `Geometry` is a
/// set_geometry.
template <class Geometry>
class prepared_key {
public:
    static constexpr unsigned entry_log2 = 5; ///< of the bytes of an entry

    constexpr prepared_key() noexcept = default;
    constexpr prepared_key(std::uint64_t context, unsigned size_log2) noexcept
        : salt_(Geometry::salt(context, size_log2) ^ size_log2),
          tag_(translation_contexts::packed(context)),
          shift_(size_log2 - entry_log2) {}

    /// What an entry has as key: its first address, with the page size in the
    /// bits that are zero there, and the context's part of the home way.
    [[nodiscard]] constexpr std::uint64_t key(std::uint64_t first) const noexcept {
        return first ^ salt_;
    }
    [[nodiscard]] constexpr std::uint64_t key_around(std::uint64_t address) const noexcept {
        return key(address >> shift_ >> entry_log2 << entry_log2 << shift_);
    }
    [[nodiscard]] constexpr std::uint64_t page(std::uint64_t key) const noexcept {
        return key >> shift_ >> entry_log2;
    }
    /// The context's tag, as it is in a state.
    [[nodiscard]] constexpr std::uint32_t tag() const noexcept { return tag_; }
    /// log2 of the page size, less that of an entry's.
    [[nodiscard]] constexpr std::uint32_t shift() const noexcept { return shift_; }

    /// Whether a state is of this context, in this generation or another.
    [[nodiscard]] constexpr bool is_of_context(std::uint64_t state) const noexcept {
        return distance(state) <= translation_contexts::generations;
    }
    /// In another.
    [[nodiscard]] constexpr bool is_outdated(std::uint64_t state) const noexcept {
        return distance(state) - 1 < translation_contexts::generations;
    }

    /// What an entry with this state holds. Torn unless the state is still the same
    /// afterwards.
    [[nodiscard]] static tlb_entry held_in(const shared_entry& from, std::uint64_t state,
                                           std::uint64_t owner) noexcept {
        constexpr auto order = std::memory_order_relaxed;
        const std::uint64_t key = from.key.load(order);
        const std::uint64_t output = from.output.load(order);
        tlb_entry held;
        held.set_owner(owner);
        held.context = translation_contexts::unpacked(static_cast<std::uint32_t>(state));
        held.size_log2 = static_cast<std::uint8_t>(key & 0x3f);
        held.base = Geometry::page_in(key, held.context, held.size_log2) << held.size_log2;
        if ((output & shared_entry::not_memory) == 0)
            held.host = reinterpret_cast<std::byte*>(held.base + from.distance.load(order));
        held.output = output & shared_entry::address_bits;
        held.allowed = permissions{~static_cast<unsigned>(output)};
        held.attributes = memory_attributes::unpacked(output >> shared_entry::attributes_shift);
        return held;
    }

private:
    [[nodiscard]] constexpr std::uint32_t distance(std::uint64_t state) const noexcept {
        return static_cast<std::uint32_t>(state) ^ tag_;
    }

    std::uint64_t salt_ = 0;
    std::uint32_t tag_ = 0;
    std::uint32_t shift_ = 0;
};

} // namespace vm_accel::inline v0
