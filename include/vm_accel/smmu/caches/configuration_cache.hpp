/// Decoded configurations: what an STE and its CD say, ready to use.
///
/// Each attachment has a slot that holds the current configuration, or is
/// empty. Configurations are immutable, come from a fixed pool, and go back to
/// it only after every guard that could have seen them has closed. An
/// exhausted pool means uncached work, never a failure.
#pragma once

#include <vm_accel/smmu/caches/change_epoch.hpp>
#include <vm_accel/smmu/caches/context_table.hpp>
#include <vm_accel/smmu/vocabulary/access.hpp>
#include <vm_accel/smmu/vocabulary/fault.hpp>
#include <vm_accel/smmu/vocabulary/memory_attributes.hpp>
#include <vm_accel/smmu/vocabulary/regimes.hpp>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>

namespace vm_accel::inline v0 {

/// How a stream's transactions are handled.
enum class stream_mode : std::uint8_t {
    abort,     ///< refused, without an event
    bypass,    ///< the output is the input
    translate, ///< stage 1, stage 2 or both
};

/// A stream's decoded configuration. What a hit reads is on its first cache line.
struct alignas(64) stream_configuration {
    stream_mode mode = stream_mode::abort;
    silent_abort why = silent_abort::ste_abort; ///< for mode abort
    bool record_stage1_faults = true;           ///< CD.R
    bool record_stage2_faults = true;           ///< STE.S2R, and address sizes in bypass
    bool stall_stage1_faults = false;           ///< CD.S, without STE.S1STALLD
    bool stall_stage2_faults = false;           ///< STE.S2S
    bool quiet_stage1_faults = false;           ///< CD.A = 0
    bool is_substream = false;                  ///< made for accesses with this SubstreamID
    substream_id substream{};
    /// STE.PRIVCFG and INSTCFG, on bit 1 (privileged) and bit 2 (instruction).
    std::uint8_t attributes_kept = 0b110;
    std::uint8_t attributes_forced = 0;
    std::uint8_t ignored_top_bytes = 0; ///< TBI0 on bit 0, TBI1 on bit 1
    /// Which of all that were ever published; 0 = not published.
    std::uint64_t serial = 0;
    /// Null = nothing of this configuration may be cached.
    const translation_context* context = nullptr;
    /// What stage 2 alone gives, whoever asks; null = nothing of that may be cached.
    const translation_context* stage2_context = nullptr;
    pa_range window{};
    translation_regimes regimes{};
    /// What an access has before translation, STE overrides included.
    memory_attributes incoming{};
    std::uint8_t ats = 0;             ///< STE.EATS: 0 none, 1 full, 2 split stage (with ATSCHK)
    std::uint8_t partition_group = 0; ///< MPAM: PMG of the accesses
    std::uint16_t partition = 0;      ///< MPAM: PARTID of the accesses
    context_identity identity{};

    /// All that decides what stage 2 gives for an intermediate address.
    [[nodiscard]] constexpr context_identity stage2_identity() const noexcept {
        context_identity of{.tag = {stream_world::stage2, identity.tag.vm, asid{0}}};
        of.parameters[4] = identity.parameters[4];
        of.parameters[5] = identity.parameters[5];
        return of;
    }

    /// Whether it was made for accesses like this one: without a SubstreamID,
    /// or with the same.
    [[nodiscard]] constexpr bool serves(const transaction& asked) const noexcept {
        return asked.has_substream == is_substream &&
               (!is_substream || asked.substream == substream);
    }
    /// The access with privilege and instruction as the STE has them: so it is
    /// checked, and so events report it (IHI 0070, 7.3).
    [[nodiscard]] constexpr transaction overridden(transaction asked) const noexcept {
        const unsigned attributes =
            (((asked.privileged ? 0b010U : 0U) | (asked.instruction ? 0b100U : 0U)) &
             attributes_kept) |
            attributes_forced;
        asked.privileged = (attributes & 0b010) != 0;
        asked.instruction = (attributes & 0b100) != 0;
        return asked;
    }

    /// The bit of `permissions` that an access needs, after STE overrides.
    [[nodiscard]] constexpr unsigned needed(const transaction& asked) const noexcept {
        const transaction seen = overridden(asked);
        return permissions::needed(seen.kind, seen.privileged, seen.instruction);
    }

    /// The address as the TLB and the walker see it: without an ignored top byte.
    [[nodiscard]] std::uint64_t canonical(std::uint64_t address) const noexcept {
        if (ignored_top_bytes == 0) [[likely]]
            return address;
        const bool upper = (address >> 55 & 1) != 0;
        if ((ignored_top_bytes >> (upper ? 1 : 0) & 1) == 0) return address;
        constexpr std::uint64_t top_byte = std::uint64_t{0xff} << 56;
        return upper ? address | top_byte : address & ~top_byte;
    }
};

/// What a translator needs to know about the device that asks.
struct translation_subject {
    stream_id stream{};
    pa_range window{};
    memory_attributes incoming{};      ///< of the device's accesses
    bool managed = false;              ///< the STE is ignored, the window is seen one to one
    std::atomic<bool> detached{false}; ///< refuse everything from now on

    /// After begin_fill() of an access with a SubstreamID, before its first read: who
    /// empties the stream's slots next looks at those of SubstreamIDs too. A fill
    /// that begins earlier, and reads earlier, is seen; any other reads what is new.
    void note_substream() const noexcept {
        (void)substreams_.exchange(true, std::memory_order_seq_cst);
    }
    /// Whether one was noted since this was asked last. Slots are emptied afterwards.
    [[nodiscard]] bool take_substreams() noexcept {
        return substreams_.exchange(false, std::memory_order_seq_cst);
    }

private:
    mutable std::atomic<bool> substreams_{false};
};

/// Names one emptiness of a slot: a publish with an older ticket fails.
struct configuration_ticket {
    std::uintptr_t word = 0;
};

/// A stream's place for its configuration. Holds a pointer, or an odd number
/// that counts how often the slot was emptied.
class configuration_slot {
public:
    /// The configuration, or null when there is none.
    [[nodiscard]] const stream_configuration* get() const noexcept {
        const std::uintptr_t word = word_.load(std::memory_order_acquire);
        return (word & 1) != 0 ? nullptr : reinterpret_cast<const stream_configuration*>(word);
    }
    /// Before the first read of what the configuration is made from.
    [[nodiscard]] configuration_ticket begin_fill() const noexcept {
        return {word_.load(std::memory_order_seq_cst)};
    }

private:
    friend class configuration_cache;
    std::atomic<std::uintptr_t> word_{1};
    std::uintptr_t emptied_ = 1; ///< control side
};

/// The pool behind all slots.
///
/// Threads: publish from any device thread; it never waits, but gives up when
/// another thread publishes. All else from the control side, serialised by its
/// lock; none of it waits for a publisher.
class configuration_cache {
public:
    /// False = out of memory; may be tried again.
    [[nodiscard]] bool allocate(std::size_t configurations, std::size_t contexts,
                                unsigned generation_bits) noexcept {
        pool_.reset(new (std::nothrow) stream_configuration[configurations]);
        links_.reset(new (std::nothrow) std::size_t[configurations]);
        if (!pool_ || !links_ || !contexts_.allocate(contexts, generation_bits)) return false;
        free_ = waiting_ = retired_ = none;
        returned_.store(none, std::memory_order_relaxed);
        for (std::size_t i = 0; i < configurations; ++i)
            push(free_, i);
        return true;
    }

    /// Stores a decoded configuration and puts it into the slot, unless the
    /// slot was emptied since the ticket was taken. Null = not cached: the
    /// caller goes on with its own copy, whose `context` stays null.
    [[nodiscard]] const stream_configuration*
    publish(configuration_slot& slot, configuration_ticket ticket,
            const stream_configuration& decoded) noexcept {
        if ((ticket.word & 1) == 0) return nullptr;
        const std::unique_lock lock{mutex_, std::try_to_lock};
        if (!lock) return nullptr;
        take_back();
        if (free_ == none) return nullptr;
        const translation_context* context = nullptr;
        const translation_context* stage2 = nullptr;
        if (decoded.mode != stream_mode::abort) {
            context = contexts_.intern(decoded.identity);
            if (context == nullptr) return nullptr;
            if (decoded.regimes.stage2_enabled)
                stage2 = contexts_.intern(decoded.stage2_identity());
        }
        const std::size_t index = pop(free_);
        pool_[index] = decoded;
        pool_[index].context = context;
        pool_[index].stage2_context = stage2;
        pool_[index].serial = ++published_;
        std::uintptr_t expected = ticket.word;
        if (!slot.word_.compare_exchange_strong(expected,
                                                reinterpret_cast<std::uintptr_t>(&pool_[index]),
                                                std::memory_order_seq_cst)) {
            release_contexts(pool_[index]);
            push(free_, index);
            return nullptr;
        }
        return &pool_[index];
    }

    /// Empties a slot: later look-ups decode afresh, fills under way are dropped.
    /// What was copied of it is outdated, and a copy of nothing there is not.
    void empty(configuration_slot& slot) noexcept {
        slot.emptied_ += 2;
        const std::uintptr_t old = slot.word_.exchange(slot.emptied_, std::memory_order_seq_cst);
        if ((old & 1) == 0) {
            epoch_.changed();
            push(retired_, static_cast<std::size_t>(
                               reinterpret_cast<const stream_configuration*>(old) - pool_.get()));
        }
    }

    /// A grace period starts. True = it carries what is retired now: when it has
    /// ended, and only then, call grace_ended(). One grace period carries at a
    /// time; what is retired later waits for the next.
    [[nodiscard]] bool grace_started() noexcept {
        if (waiting_ != none || retired_ == none) return false;
        waiting_ = retired_;
        retired_ = none;
        return true;
    }
    /// Every guard that was open when the carrying grace period started has
    /// closed. The next publisher takes back what is free now.
    void grace_ended() noexcept {
        while (waiting_ != none) {
            const std::size_t index = pop(waiting_);
            std::size_t head = returned_.load(std::memory_order_relaxed);
            do {
                links_[index] = head;
            } while (!returned_.compare_exchange_weak(head, index, std::memory_order_release,
                                                      std::memory_order_relaxed));
        }
    }

    /// Ages entries; see context_table::invalidate.
    [[nodiscard]] bool invalidate(const invalidation_scope& scope) noexcept {
        const bool sweep_due = contexts_.invalidate(scope);
        if (!scope.by_address()) epoch_.changed();
        return sweep_due;
    }
    /// See context_table::contexts_of.
    [[nodiscard]] const std::atomic<std::uint64_t>&
    contexts_of(const invalidation_scope& scope) const noexcept {
        return contexts_.contexts_of(scope);
    }
    /// Of configurations in slots, and of the tags of their contexts.
    [[nodiscard]] const change_epoch& epoch() const noexcept { return epoch_; }
    [[nodiscard]] change_epoch& epoch() noexcept { return epoch_; }

    [[nodiscard]] bool sweep_wanted() const noexcept { return contexts_.sweep_wanted(); }
    /// Runs `empty_tlb` and makes retired contexts usable again; does neither
    /// when a publisher is at work: try again later.
    template <class F>
    void sweep(F&& empty_tlb) noexcept {
        const std::unique_lock lock{mutex_, std::try_to_lock};
        if (!lock) return;
        empty_tlb();
        contexts_.swept();
    }

private:
    static constexpr std::size_t none = ~std::size_t{0};

    void push(std::size_t& list, std::size_t index) noexcept {
        links_[index] = list;
        list = index;
    }
    [[nodiscard]] std::size_t pop(std::size_t& list) noexcept {
        const std::size_t index = list;
        list = links_[index];
        return index;
    }
    /// Moves what the control side has returned to the free list.
    void take_back() noexcept {
        std::size_t list = returned_.exchange(none, std::memory_order_acquire);
        while (list != none) {
            const std::size_t index = pop(list);
            release_contexts(pool_[index]);
            push(free_, index);
        }
    }
    void release_contexts(const stream_configuration& of) noexcept {
        if (of.context != nullptr) contexts_.release(of.context);
        if (of.stage2_context != nullptr) contexts_.release(of.stage2_context);
    }

    change_epoch epoch_;
    std::mutex mutex_; ///< publishers, and the sweep
    std::unique_ptr<stream_configuration[]> pool_;
    std::unique_ptr<std::size_t[]> links_;
    std::size_t free_ = none;                 ///< publishers
    std::uint64_t published_ = 0;             ///< publishers
    std::atomic<std::size_t> returned_{none}; ///< control side to publishers
    std::size_t waiting_ = none;              ///< control side
    std::size_t retired_ = none;              ///< control side
    context_table contexts_;
};

} // namespace vm_accel::inline v0
