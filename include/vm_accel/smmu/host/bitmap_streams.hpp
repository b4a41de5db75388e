/// StreamIDs from a bitmap: the lowest free one first.
#pragma once

#include <vm_accel/smmu/host/stream_allocator.hpp>

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace vm_accel::inline v0 {

/// The StreamIDs 0 to N - 1, one bit each; allocate() gives the lowest free
/// one. While others release at the same moment it may miss a lower one that
/// comes free behind its search.
/// Cost: N/8 bytes; allocate() looks at up to N/64 words. Lock free.
template <std::size_t N>
class bitmap_streams {
    static_assert(N >= 1 && N <= (std::uint64_t{1} << 32), "a StreamID has at most 32 bits");

public:
    static constexpr std::size_t capacity = N;

    bitmap_streams() noexcept {
        // Bits past the last StreamID are held for ever.
        if constexpr (N % 64 != 0) words_.back().store(~std::uint64_t{0} << (N % 64));
    }
    bitmap_streams(const bitmap_streams&) = delete;
    bitmap_streams& operator=(const bitmap_streams&) = delete;

    [[nodiscard]] result<stream_id> allocate() noexcept {
        for (std::size_t i = 0; i < words_.size(); ++i) {
            std::uint64_t held = words_[i].load(std::memory_order_relaxed);
            while (held != ~std::uint64_t{0}) {
                const auto bit = static_cast<unsigned>(std::countr_one(held));
                if (words_[i].compare_exchange_weak(held, held | (std::uint64_t{1} << bit),
                                                    std::memory_order_acquire,
                                                    std::memory_order_relaxed)) {
                    return stream_id{static_cast<std::uint32_t>(i * 64 + bit)};
                }
            }
        }
        return stream_error::all_held(capacity);
    }

    [[nodiscard]] result<> reserve(stream_id id) noexcept {
        if (raw(id) >= capacity) return stream_error::too_large(id, capacity);
        if ((word(id).fetch_or(bit(id), std::memory_order_acquire) & bit(id)) != 0) {
            return stream_error::already_held(id);
        }
        return {};
    }

    [[nodiscard]] result<> release(stream_id id) noexcept {
        if (raw(id) >= capacity) return stream_error::too_large(id, capacity);
        if ((word(id).fetch_and(~bit(id), std::memory_order_release) & bit(id)) == 0) {
            return stream_error::not_held(id);
        }
        return {};
    }

    [[nodiscard]] bool is_held(stream_id id) const noexcept {
        return raw(id) < capacity &&
               (words_[raw(id) / 64].load(std::memory_order_acquire) & bit(id)) != 0;
    }

private:
    [[nodiscard]] std::atomic<std::uint64_t>& word(stream_id id) noexcept {
        return words_[raw(id) / 64];
    }
    [[nodiscard]] static std::uint64_t bit(stream_id id) noexcept {
        return std::uint64_t{1} << (raw(id) % 64);
    }

    std::array<std::atomic<std::uint64_t>, (N + 63) / 64> words_{};
};

static_assert(stream_allocator<bitmap_streams<1>> && stream_allocator<bitmap_streams<65536>>);

} // namespace vm_accel::inline v0
