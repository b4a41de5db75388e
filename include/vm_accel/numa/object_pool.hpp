/// Small objects of a VMM on a node of its choice, without a system call each.
///
/// Memory comes from the kernel in slabs, bound to the node. A slab is handed
/// out in runs, each cut into blocks of one size, a power of two. A freed block
/// goes back to the list of its size.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/numa/grant.hpp>
#include <vm_accel/numa/ram_binding.hpp>
#include <vm_accel/os/memory.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <new>
#include <utility>

namespace vm_accel::inline v0 {

/// For pools that several threads share. Held for a few instructions, and for
/// the system calls of a new slab or a large object.
class spin_lock {
public:
    void lock() noexcept {
        while (taken_.exchange(true, std::memory_order_acquire)) {
            while (taken_.load(std::memory_order_relaxed)) {}
        }
    }
    void unlock() noexcept { taken_.store(false, std::memory_order_release); }

private:
    std::atomic<bool> taken_{false};
};

/// For pools that one thread uses.
struct no_lock {
    void lock() noexcept {}
    void unlock() noexcept {}
};

struct object_pool_options {
    unsigned node = any_node;                ///< the operating system's number; any_node: unbound
    std::uint64_t capacity_bytes = 1u << 30; ///< the most that is taken from the kernel
};

struct object_pool_usage {
    std::uint64_t slabs = 0;        ///< taken from the kernel, and kept until close()
    std::uint64_t mapped_bytes = 0; ///< slabs and large objects
    std::uint64_t live_objects = 0;
};

/// allocate() answers nullptr when capacity_bytes or the machine is exhausted, and
/// goes on to serve sizes that it has blocks of. Blocks of up to `largest_block`
/// bytes come from slabs; larger objects are mapped one by one.
/// Threads: with spin_lock any thread may allocate, and free what any other
/// allocated; with no_lock one thread at a time. open() and close() alone.
template <class Lock = spin_lock, os::memory_platform Memory = os::native_memory>
class object_pool {
public:
    static constexpr std::uint64_t slab_bytes = 2u << 20;
    static constexpr std::uint64_t run_bytes = 64u << 10;
    static constexpr std::size_t smallest_block = 16;
    static constexpr std::size_t largest_block = run_bytes;

    object_pool() = default;
    explicit object_pool(Memory memory) noexcept : memory_(std::move(memory)) {}
    object_pool(const object_pool&) = delete;
    object_pool& operator=(const object_pool&) = delete;
    ~object_pool() { close(); }

    /// Takes the first slab. A node that the kernel refuses is no error: binding()
    /// tells. Errors: already_initialized, invalid_argument (capacity below one
    /// slab), exhausted (no memory).
    [[nodiscard]] result<> open(object_pool_options options = {}) noexcept {
        const std::lock_guard lock{lock_};
        if (slabs_ != nullptr)
            return fail(errc::already_initialized, "object pool: open() was called before",
                        "close() it first");
        if (options.capacity_bytes < slab_bytes)
            return fail(errc::invalid_argument,
                        "object pool: the capacity is below one slab of 2 MiB",
                        "give it at least 2 MiB");
        options_ = options;
        if (const result<> first = add_slab(); !first) return first;
        return {};
    }

    /// Gives all slabs back. Every object must have been freed before.
    void close() noexcept {
        const std::lock_guard lock{lock_};
        while (slabs_ != nullptr) {
            slab* const last = std::exchange(slabs_, slabs_->earlier);
            memory_.unmap(last->mapping);
            delete last;
        }
        lists_ = {};
        runs_ = {};
        cursor_ = end_ = nullptr;
        usage_ = {};
        binding_ = {};
    }

    /// `bytes` of memory aligned to `alignment`, a power of two of at most
    /// `largest_block`; nullptr if there is none, or before open(). 0 bytes get a
    /// block of their own, as operator new gives them.
    [[nodiscard]] void* allocate(std::size_t bytes,
                                 std::size_t alignment = alignof(std::max_align_t)) noexcept {
        const std::size_t block = block_for(bytes, alignment);
        const std::lock_guard lock{lock_};
        if (block > largest_block) return map_large(bytes, alignment);
        const unsigned size_class = class_of(block);
        free_block*& list = lists_[size_class];
        if (list != nullptr) [[likely]] {
            free_block* const taken = list;
            list = taken->next;
            ++usage_.live_objects;
            return taken;
        }
        return cut(size_class, block);
    }

    /// Gives back what allocate() gave for the same bytes and alignment; nullptr
    /// is ignored.
    void deallocate(void* address, std::size_t bytes,
                    std::size_t alignment = alignof(std::max_align_t)) noexcept {
        if (address == nullptr) return;
        const std::size_t block = block_for(bytes, alignment);
        const std::lock_guard lock{lock_};
        --usage_.live_objects;
        if (block > largest_block) {
            const std::uint64_t whole = whole_pages(bytes);
            usage_.mapped_bytes -= whole;
            memory_.unmap({static_cast<std::byte*>(address), whole, -1});
            return;
        }
        free_block*& list = lists_[class_of(block)];
        list = ::new (address) free_block{list};
    }

    [[nodiscard]] object_pool_usage usage() const noexcept {
        const std::lock_guard lock{lock_};
        return usage_;
    }
    /// What the kernel made of binding the latest slab to the node.
    [[nodiscard]] grant binding() const noexcept {
        const std::lock_guard lock{lock_};
        return binding_;
    }
    [[nodiscard]] unsigned node() const noexcept { return options_.node; }

private:
    struct free_block {
        free_block* next;
    };
    struct slab {
        os::raw_mapping mapping;
        slab* earlier;
    };
    static constexpr unsigned class_count =
        static_cast<unsigned>(std::countr_zero(largest_block) - std::countr_zero(smallest_block)) +
        1;

    /// What is left of the run that a size is cut from.
    struct open_run {
        std::byte* next = nullptr;
        std::byte* end = nullptr;
    };

    [[nodiscard]] static constexpr std::size_t block_for(std::size_t bytes,
                                                         std::size_t alignment) noexcept {
        const std::size_t least = std::max({bytes, alignment, smallest_block});
        return least > largest_block ? least : std::bit_ceil(least);
    }
    [[nodiscard]] static constexpr unsigned class_of(std::size_t block) noexcept {
        return static_cast<unsigned>(std::countr_zero(block) - std::countr_zero(smallest_block));
    }
    [[nodiscard]] std::uint64_t whole_pages(std::uint64_t bytes) noexcept {
        const std::uint64_t page = memory_.page_bytes();
        return (bytes + page - 1) / page * page;
    }

    [[nodiscard]] void* cut(unsigned size_class, std::size_t block) noexcept {
        open_run& run = runs_[size_class];
        if (run.next == run.end) {
            if (cursor_ == end_ && (slabs_ == nullptr || !add_slab())) return nullptr;
            run = {cursor_, cursor_ + run_bytes};
            cursor_ += run_bytes;
        }
        void* const taken = run.next;
        run.next += block;
        ++usage_.live_objects;
        return taken;
    }

    [[nodiscard]] result<> add_slab() noexcept {
        if (usage_.mapped_bytes + slab_bytes > options_.capacity_bytes)
            return fail(errc::exhausted, "object pool: its capacity is used up",
                        "open it with more capacity_bytes");
        const result<os::raw_mapping> mapped = memory_.map({slab_bytes, slab_bytes, false});
        if (!mapped) return fail(mapped);
        // The heap may be exhausted where the kernel is not: that is no exception here.
        slab* const made = new (std::nothrow) slab{*mapped, slabs_};
        if (made == nullptr) {
            memory_.unmap(*mapped);
            return fail(errc::exhausted, "object pool: no memory to note a slab", "free some");
        }
        place(*mapped);
        slabs_ = made;
        cursor_ = mapped->address;
        end_ = mapped->address + slab_bytes;
        ++usage_.slabs;
        usage_.mapped_bytes += slab_bytes;
        return {};
    }

    [[nodiscard]] void* map_large(std::uint64_t bytes, std::size_t alignment) noexcept {
        if (slabs_ == nullptr || bytes > options_.capacity_bytes) return nullptr;
        const std::uint64_t whole = whole_pages(bytes);
        if (usage_.mapped_bytes + whole > options_.capacity_bytes) return nullptr;
        const result<os::raw_mapping> made = memory_.map({whole, alignment, false});
        if (!made) return nullptr;
        place(*made);
        usage_.mapped_bytes += whole;
        ++usage_.live_objects;
        return made->address;
    }

    /// Objects prefer their node: a full node must not end the VMM.
    void place(const os::raw_mapping& memory) noexcept {
        if (options_.node == any_node) return;
        binding_ = ram_binding::bind(memory_, memory.address, memory.bytes, options_.node,
                                     os::bind_mode::prefer);
        if (binding_.state == grant_state::preferred)
            binding_ = grant::preferred("objects use other nodes when theirs is full");
    }

    [[no_unique_address]] Memory memory_{};
    [[no_unique_address]] mutable Lock lock_{};
    object_pool_options options_{};
    slab* slabs_ = nullptr; ///< the latest; each knows the one before
    std::array<free_block*, class_count> lists_{};
    std::array<open_run, class_count> runs_{};
    std::byte* cursor_ = nullptr; ///< runs of the latest slab not yet opened
    std::byte* end_ = nullptr;
    object_pool_usage usage_{};
    grant binding_{};
};

} // namespace vm_accel::inline v0
