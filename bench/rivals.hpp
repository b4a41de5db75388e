/// The floor, and how translation caches are made elsewhere: what our figures stand beside.
///
/// Written here, for their algorithm; no product's code. Where an algorithm leaves a choice, it is
/// the quick one: the hash table is open, its entries lie in it, and nothing is allocated.
#pragma once

#include <vm_accel/core/address.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace bench {

using vm_accel::iova;

/// What a contender knows of one page: where it is and what is allowed.
struct flat_entry {
    std::byte* host = nullptr;
    std::uint64_t output = 0;
    unsigned allowed = 0;
};
struct flat_answer {
    std::byte* host = nullptr;
    std::uint64_t length = 0;
};
[[nodiscard]] inline flat_answer answer_in(const flat_entry& entry, std::uint64_t offset,
                                           std::uint64_t size, std::uint64_t length) noexcept {
    return {entry.host + offset, std::min(length, size - offset)};
}

// --- the floor -----------------------------------------------------------------------------------

/// An array with an entry per page.
class flat_table {
public:
    flat_table(std::uint64_t base, unsigned size_log2, std::uint64_t pages)
        : base_(base), size_log2_(size_log2), entries_(pages) {}
    void fill(std::uint64_t address, flat_entry entry) {
        entries_[(address - base_) >> size_log2_] = entry;
    }
    [[nodiscard, gnu::noinline]] flat_answer lookup(iova address, std::uint64_t length,
                                                    unsigned needed) const noexcept {
        const std::uint64_t index = (raw(address) - base_) >> size_log2_;
        if (index >= entries_.size() || (entries_[index].allowed & needed) == 0) return {};
        const std::uint64_t size = std::uint64_t{1} << size_log2_;
        return answer_in(entries_[index], raw(address) & (size - 1), size, length);
    }

private:
    std::uint64_t base_;
    unsigned size_log2_;
    std::vector<flat_entry> entries_;
};

// --- rivals --------------------------------------------------------------------------------------

/// A hash table by page, ASID, VMID, granule and level behind a mutex, as the most used emulator
/// has it. A look-up does not know at which level the entry is, and tries each from the first level
/// of the walk on. An invalidation of an ASID looks at every entry.
class hash_by_level {
public:
    /// Room for `entries`, half full at most.
    explicit hash_by_level(std::size_t entries)
        : slots_(std::bit_ceil(entries * 2)), mask_(slots_.size() - 1) {}

    void fill(std::uint64_t address, unsigned size_log2, std::uint16_t space, flat_entry entry) {
        const std::lock_guard lock{mutex_};
        const key wanted = key_of(address, level_of(size_log2), space);
        slot* at = find(wanted);
        if (at == nullptr) at = &slots_[hash(wanted) & mask_];
        while (at->state == is::used && !(at->what == wanted))
            at = next(at);
        *at = {wanted, entry, is::used};
    }
    [[nodiscard, gnu::noinline]] flat_answer lookup(iova address, std::uint16_t space,
                                                    std::uint64_t length, unsigned needed) {
        const std::lock_guard lock{mutex_};
        for (std::uint8_t level = 0; level <= 3; ++level) {
            const slot* const found = find(key_of(raw(address), level, space));
            if (found == nullptr) continue;
            if ((found->entry.allowed & needed) == 0) return {};
            const std::uint64_t size = std::uint64_t{1} << bits_of(level);
            return answer_in(found->entry, raw(address) & (size - 1), size, length);
        }
        return {};
    }
    [[gnu::noinline]] void invalidate_space(std::uint16_t space) {
        const std::lock_guard lock{mutex_};
        for (slot& s : slots_) {
            if (s.state == is::used && s.what.space == space) s.state = is::gone;
        }
    }
    /// The page may have been mapped at any level.
    [[gnu::noinline]] void invalidate_page(std::uint64_t address, std::uint16_t space) {
        const std::lock_guard lock{mutex_};
        for (std::uint8_t level = 0; level <= 3; ++level) {
            if (slot* const found = find(key_of(address, level, space))) found->state = is::gone;
        }
    }

private:
    struct key {
        std::uint64_t page = 0;
        std::uint16_t space = 0;
        std::uint16_t machine = 0;
        std::uint8_t granule = 0;
        std::uint8_t level = 0;
        friend bool operator==(const key&, const key&) = default;
    };
    enum class is : std::uint8_t { empty, used, gone };
    struct slot {
        key what{};
        flat_entry entry{};
        is state = is::empty;
    };
    slot* next(slot* at) { return at == &slots_.back() ? &slots_.front() : at + 1; }
    static unsigned bits_of(std::uint8_t level) { return 12U + 9U * (3U - level); }
    static std::uint8_t level_of(unsigned size_log2) {
        return static_cast<std::uint8_t>(3 - (size_log2 - 12) / 9);
    }
    static key key_of(std::uint64_t address, std::uint8_t level, std::uint16_t space) {
        return {address >> bits_of(level), space, 0, 1, level};
    }
    static std::size_t hash(const key& k) noexcept {
        std::uint64_t h = k.page ^ std::uint64_t{k.space} << 40 ^ std::uint64_t{k.machine} << 52 ^
                          std::uint64_t{k.level} << 37 ^ std::uint64_t{k.granule} << 39;
        h *= 0x9e37'79b9'7f4a'7c15;
        return static_cast<std::size_t>(h ^ h >> 32);
    }
    slot* find(const key& wanted) {
        slot* at = &slots_[hash(wanted) & mask_];
        for (; at->state != is::empty; at = next(at)) {
            if (at->state == is::used && at->what == wanted) return at;
        }
        return nullptr;
    }

    std::mutex mutex_;
    std::vector<slot> slots_;
    std::size_t mask_;
};

/// A list in the order of use and an index into it, behind a mutex. Pages of one size.
class lru_list {
public:
    lru_list(std::size_t capacity, unsigned size_log2)
        : capacity_(capacity), size_log2_(size_log2) {
        index_.reserve(capacity * 2);
    }
    void fill(std::uint64_t address, std::uint16_t space, flat_entry entry) {
        const std::lock_guard lock{mutex_};
        if (order_.size() == capacity_) {
            index_.erase(order_.back().key);
            order_.pop_back();
        }
        order_.push_front({key_of(address, space), entry});
        index_[order_.front().key] = order_.begin();
    }
    [[nodiscard, gnu::noinline]] flat_answer lookup(iova address, std::uint16_t space,
                                                    std::uint64_t length, unsigned needed) {
        const std::lock_guard lock{mutex_};
        const auto found = index_.find(key_of(raw(address), space));
        if (found == index_.end()) return {};
        order_.splice(order_.begin(), order_, found->second);
        const flat_entry& entry = found->second->entry;
        if ((entry.allowed & needed) == 0) return {};
        const std::uint64_t size = std::uint64_t{1} << size_log2_;
        return answer_in(entry, raw(address) & (size - 1), size, length);
    }
    [[gnu::noinline]] void invalidate_space(std::uint16_t space) {
        const std::lock_guard lock{mutex_};
        for (auto at = order_.begin(); at != order_.end();) {
            if (at->key >> 48 == space) {
                index_.erase(at->key);
                at = order_.erase(at);
            } else {
                ++at;
            }
        }
    }

private:
    struct node {
        std::uint64_t key = 0;
        flat_entry entry{};
    };
    [[nodiscard]] std::uint64_t key_of(std::uint64_t address, std::uint16_t space) const {
        return address >> size_log2_ | std::uint64_t{space} << 48;
    }
    std::mutex mutex_;
    std::size_t capacity_;
    unsigned size_log2_;
    std::list<node> order_;
    std::unordered_map<std::uint64_t, std::list<node>::iterator> index_;
};

/// Intervals by first address. No lock: nobody changes it while it is read.
class interval_map {
public:
    void fill(std::uint64_t address, unsigned size_log2, flat_entry entry) {
        map_[address] = {address + ((std::uint64_t{1} << size_log2) - 1), entry};
    }
    [[nodiscard, gnu::noinline]] flat_answer lookup(iova address, std::uint64_t length,
                                                    unsigned needed) const {
        auto found = map_.upper_bound(raw(address));
        if (found == map_.begin()) return {};
        --found;
        const auto& [last, entry] = found->second;
        if (raw(address) > last || (entry.allowed & needed) == 0) return {};
        return answer_in(entry, raw(address) - found->first, last - found->first + 1, length);
    }

private:
    struct interval {
        std::uint64_t last = 0;
        flat_entry entry{};
    };
    std::map<std::uint64_t, interval> map_;
};

} // namespace bench
