/// StreamIDs in contiguous blocks: for devices that need several in a row.
///
/// The free StreamIDs are kept as blocks that touch nowhere. Taking a range
/// cuts a block, giving one back joins it with its neighbours, so that what was
/// one block once is one again when all of it is free.
#pragma once

#include <vm_accel/os/reserved_array.hpp>
#include <vm_accel/smmu/host/stream_allocator.hpp>

#include <boost/intrusive/set.hpp>

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <mutex>
#include <type_traits>

namespace vm_accel::inline v0 {

/// `count` StreamIDs from `first` on.
struct stream_range {
    stream_id first{};
    std::uint64_t count = 0;

    friend constexpr bool operator==(const stream_range&, const stream_range&) = default;
};

/// Which free block a range is cut from: the lowest that it fits into.
struct first_fit {};
/// The smallest that it fits into, which keeps large blocks whole; the lowest
/// of several.
struct best_fit {};

/// The StreamIDs 0 to N - 1, singly or in ranges.
///
/// Cost: 64 bytes per free block in memory that comes as it is needed, none per
/// StreamID. All is O(log n) in the number n of free blocks; but allocating with
/// first_fit looks at the blocks one by one. Under a mutex of its own.
template <std::size_t N, class Fit = first_fit>
class range_streams {
    static_assert(N >= 1 && N <= (std::uint64_t{1} << 32), "a StreamID has at most 32 bits");
    static_assert(std::is_same_v<Fit, first_fit> || std::is_same_v<Fit, best_fit>);

public:
    static constexpr std::size_t capacity = N;

    range_streams() noexcept {
        // Free blocks do not touch, so there are never more than this. Without
        // address space for them nothing can be allocated.
        if (pool_.reserve(N / 2 + 1)) insert(0, N);
    }
    range_streams(const range_streams&) = delete;
    range_streams& operator=(const range_streams&) = delete;
    ~range_streams() {
        by_first_.clear();
        by_count_.clear();
    }

    [[nodiscard]] result<stream_id> allocate() noexcept {
        const result<stream_range> one = allocate_range(1);
        if (!one) return fail(one);
        return one->first;
    }
    [[nodiscard]] result<> reserve(stream_id id) noexcept { return reserve_range({id, 1}); }
    [[nodiscard]] result<> release(stream_id id) noexcept { return release_range({id, 1}); }
    [[nodiscard]] bool is_held(stream_id id) const noexcept {
        const std::lock_guard lock{mutex_};
        return raw(id) < capacity && block_with(raw(id)) == nullptr;
    }

    /// Takes `count` in a row, the first of them a multiple of `alignment`.
    /// Errors: exhausted (no free block has room); invalid_argument (count is 0,
    /// alignment is no power of two).
    [[nodiscard]] result<stream_range> allocate_range(std::uint64_t count,
                                                      std::uint64_t alignment = 1) noexcept {
        if (count == 0 || alignment == 0 || (alignment & (alignment - 1)) != 0) {
            return fail(errc::invalid_argument,
                        fixed_text<160>{"StreamIDs: "}
                            .append_number(count)
                            .append(" in a row, aligned to ")
                            .append_number(alignment),
                        "ask for at least one, aligned to a power of two");
        }
        const std::lock_guard lock{mutex_};
        block* const found = fitting(count, alignment);
        if (found == nullptr) {
            if (by_first_.empty()) return stream_error::all_held(capacity);
            return fail(
                errc::exhausted,
                fixed_text<160>{"StreamIDs: no "}.append_number(count).append(" in a row are free"),
                "detach devices, ask for fewer, or choose a larger capacity");
        }
        const std::uint64_t first = aligned(found->first, alignment);
        cut(*found, first, count);
        return stream_range{stream_id{static_cast<std::uint32_t>(first)}, count};
    }

    /// Takes that very range, whole or not at all. Errors: as reserve(), naming
    /// the first StreamID that is in the way; invalid_argument (empty).
    [[nodiscard]] result<> reserve_range(stream_range range) noexcept {
        if (const result<> sound = check(range); !sound) return sound;
        const std::lock_guard lock{mutex_};
        const std::uint64_t first = raw(range.first);
        block* const found = block_with(first);
        if (found == nullptr) return stream_error::already_held(range.first);
        if (found->end() - first < range.count) {
            return stream_error::already_held(stream_id{static_cast<std::uint32_t>(found->end())});
        }
        cut(*found, first, range.count);
        return {};
    }

    /// Gives back any StreamIDs in a row, taken together or not, whole or not at
    /// all. Errors: as release(); invalid_argument (empty).
    [[nodiscard]] result<> release_range(stream_range range) noexcept {
        if (const result<> sound = check(range); !sound) return sound;
        const std::lock_guard lock{mutex_};
        if (pool_.size() == 0) return stream_error::not_held(range.first);
        const std::uint64_t first = raw(range.first);
        const std::uint64_t end = first + range.count;
        const auto after = by_first_.lower_bound(first, before{});
        if (block_with(first) != nullptr) return stream_error::not_held(range.first);
        if (after != by_first_.end() && after->first < end) {
            return stream_error::not_held(stream_id{static_cast<std::uint32_t>(after->first)});
        }
        block* const above = after != by_first_.end() && after->first == end ? &*after : nullptr;
        block* below = after != by_first_.begin() ? &*std::prev(after) : nullptr;
        if (below != nullptr && below->end() != first) below = nullptr;
        if (below != nullptr && above != nullptr) {
            const std::uint64_t joined = above->end() - below->first;
            erase(*above);
            change(*below, below->first, joined);
        } else if (below != nullptr) {
            change(*below, below->first, below->count + range.count);
        } else if (above != nullptr) {
            change(*above, first, above->count + range.count);
        } else {
            insert(first, range.count);
        }
        return {};
    }

    /// The most that allocate_range() could give in a row now.
    [[nodiscard]] std::uint64_t largest_free() const noexcept {
        const std::lock_guard lock{mutex_};
        return by_count_.empty() ? 0 : by_count_.rbegin()->count;
    }

private:
    using hook = boost::intrusive::set_member_hook<
        boost::intrusive::link_mode<boost::intrusive::normal_link>,
        boost::intrusive::optimize_size<true>>;
    /// Free StreamIDs [first, end()). Spare blocks are chained by `first`.
    struct block {
        hook by_first{};
        hook by_count{};
        std::uint64_t first = 0;
        std::uint64_t count = 0;

        [[nodiscard]] std::uint64_t end() const noexcept { return first + count; }
    };
    struct before {
        bool operator()(const block& a, const block& b) const noexcept { return a.first < b.first; }
        bool operator()(const block& a, std::uint64_t b) const noexcept { return a.first < b; }
        bool operator()(std::uint64_t a, const block& b) const noexcept { return a < b.first; }
    };
    struct smaller {
        bool operator()(const block& a, const block& b) const noexcept {
            return a.count != b.count ? a.count < b.count : a.first < b.first;
        }
        bool operator()(const block& a, std::uint64_t b) const noexcept { return a.count < b; }
        bool operator()(std::uint64_t a, const block& b) const noexcept { return a < b.count; }
    };
    using no_size = boost::intrusive::constant_time_size<false>;
    using first_order =
        boost::intrusive::set<block, boost::intrusive::member_hook<block, hook, &block::by_first>,
                              boost::intrusive::compare<before>, no_size>;
    using count_order =
        boost::intrusive::set<block, boost::intrusive::member_hook<block, hook, &block::by_count>,
                              boost::intrusive::compare<smaller>, no_size>;

    [[nodiscard]] static std::uint64_t aligned(std::uint64_t first,
                                               std::uint64_t alignment) noexcept {
        return (first + (alignment - 1)) & ~(alignment - 1);
    }
    [[nodiscard]] static bool fits(const block& b, std::uint64_t count,
                                   std::uint64_t alignment) noexcept {
        const std::uint64_t first = aligned(b.first, alignment);
        return first >= b.first && first < b.end() && b.end() - first >= count;
    }
    [[nodiscard]] block* fitting(std::uint64_t count, std::uint64_t alignment) noexcept {
        if constexpr (std::is_same_v<Fit, first_fit>) {
            for (block& b : by_first_)
                if (fits(b, count, alignment)) return &b;
        } else {
            for (auto b = by_count_.lower_bound(count, smaller{}); b != by_count_.end(); ++b)
                if (fits(*b, count, alignment)) return &*b;
        }
        return nullptr;
    }
    /// The free block that holds that StreamID, or null.
    [[nodiscard]] block* block_with(std::uint64_t id) const noexcept {
        const auto after = by_first_.upper_bound(id, before{});
        if (after == by_first_.begin()) return nullptr;
        const auto found = std::prev(after);
        return found->end() > id ? const_cast<block*>(&*found) : nullptr;
    }
    [[nodiscard]] static result<> check(stream_range range) noexcept {
        if (range.count == 0) {
            return fail(errc::invalid_argument, "StreamIDs: an empty range",
                        "give a range of at least one");
        }
        if (raw(range.first) >= capacity) return stream_error::too_large(range.first, capacity);
        if (capacity - raw(range.first) < range.count) {
            return stream_error::too_large(stream_id{static_cast<std::uint32_t>(capacity)},
                                           capacity);
        }
        return {};
    }

    /// Takes [first, first + count) out of a block that holds it.
    void cut(block& b, std::uint64_t first, std::uint64_t count) noexcept {
        const std::uint64_t end = b.end();
        const std::uint64_t below = first - b.first;
        const std::uint64_t above = end - (first + count);
        if (below != 0) {
            change(b, b.first, below);
            if (above != 0) insert(first + count, above);
        } else if (above != 0) {
            change(b, first + count, above);
        } else {
            erase(b);
        }
    }
    void change(block& b, std::uint64_t first, std::uint64_t count) noexcept {
        by_count_.erase(by_count_.iterator_to(b));
        b.first = first; // stays between the same neighbours
        b.count = count;
        by_count_.insert(b);
    }
    void insert(std::uint64_t first, std::uint64_t count) noexcept {
        block* b = spare_;
        if (b != nullptr) {
            spare_ = b->first == 0 ? nullptr : &pool_[b->first - 1];
        } else {
            b = std::construct_at(&pool_[fresh_++]);
        }
        b->first = first;
        b->count = count;
        by_first_.insert(*b);
        by_count_.insert(*b);
    }
    void erase(block& b) noexcept {
        by_first_.erase(by_first_.iterator_to(b));
        by_count_.erase(by_count_.iterator_to(b));
        b.first = spare_ == nullptr ? 0 : static_cast<std::uint64_t>(spare_ - &pool_[0]) + 1;
        spare_ = &b;
    }

    mutable std::mutex mutex_;
    os::reserved_array<block> pool_;
    std::size_t fresh_ = 0; ///< blocks of the pool that were ever used
    block* spare_ = nullptr;
    first_order by_first_{};
    count_order by_count_{};
};

static_assert(stream_allocator<range_streams<1>> &&
              stream_allocator<range_streams<65536, best_fit>>);

} // namespace vm_accel::inline v0
