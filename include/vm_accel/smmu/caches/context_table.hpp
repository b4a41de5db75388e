/// Interned translation contexts, and the generations that age their entries.
///
/// A TLB entry is tagged with a context, not with an ASID: two streams that
/// share an ASID but differ in window, tables or permissions have different
/// contexts, and can never hit each other's entries.
///
/// Each context's tag holds a generation: the sum of counters that it shares
/// with other contexts (of its world, VMID and ASID) and one of its own. An
/// invalidation of all, of a VMID or of an ASID adds one to one counter, and
/// every entry under it is unreachable at once, however many there are.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/smmu/vocabulary/invalidation.hpp>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace vm_accel::inline v0 {

/// All that decides what a translation gives, besides the tables themselves.
struct context_identity {
    translation_tag tag{};
    pa_range window{};
    std::array<std::uint64_t, 8> parameters{}; ///< decoded STE and CD bits, table bases

    friend constexpr bool operator==(const context_identity&, const context_identity&) = default;
};

/// One context. Its tag and the page sizes it uses are read on every look-up,
/// and are therefore on one cache line.
class alignas(64) translation_context {
public:
    [[nodiscard]] const context_identity& identity() const noexcept { return identity_; }
    [[nodiscard]] std::uint32_t index() const noexcept { return index_; }

    /// Index and current generation.
    [[nodiscard]] std::uint64_t tag() const noexcept {
        const std::uint32_t generation =
            world_->load(std::memory_order_acquire) + vm_->load(std::memory_order_acquire) +
            space_->load(std::memory_order_acquire) + own_.load(std::memory_order_acquire);
        return std::uint64_t{index_} << 32 | (generation & mask_);
    }
    /// Page sizes that entries of this context have: bit n = 2^n bytes.
    [[nodiscard]] std::uint64_t page_sizes() const noexcept {
        return page_sizes_.load(std::memory_order_relaxed);
    }
    void note_page_size(unsigned size_log2) const noexcept {
        const std::uint64_t bit = std::uint64_t{1} << size_log2;
        if ((page_sizes_.load(std::memory_order_relaxed) & bit) == 0) {
            page_sizes_.fetch_or(bit, std::memory_order_relaxed);
        }
    }

private:
    friend class context_table;
    enum class state : std::uint8_t {
        clean,   ///< no entry in any TLB carries this index
        in_use,  ///< referred to by configurations
        retired, ///< unused, but entries may be left; can be revived
    };

    const std::atomic<std::uint32_t>* world_ = nullptr;
    const std::atomic<std::uint32_t>* vm_ = nullptr;
    const std::atomic<std::uint32_t>* space_ = nullptr;
    std::atomic<std::uint32_t> own_{0};
    std::uint32_t mask_ = ~std::uint32_t{0};
    std::uint32_t index_ = 0;
    mutable std::atomic<std::uint64_t> page_sizes_{0};
    context_identity identity_{};
    std::uint32_t references_ = 0;
    state state_ = state::clean;
};

/// A fixed number of contexts.
///
/// Threads: intern, release and swept are serialised by the caller; invalidate
/// by another caller's lock; tags are read by anyone at any time.
class context_table {
public:
    /// At most translation_contexts::most contexts and `generation_bits`: fewer bits
    /// in tests, which make them wrap.
    [[nodiscard]] bool allocate(std::size_t contexts, unsigned generation_bits) noexcept {
        contexts_.reset(new (std::nothrow) translation_context[contexts]);
        if (!contexts_) return false;
        size_ = contexts;
        generation_bits_ = generation_bits;
        for (std::size_t i = 0; i < contexts; ++i) {
            contexts_[i].index_ = static_cast<std::uint32_t>(i);
            contexts_[i].mask_ = generation_bits >= 32 ? ~std::uint32_t{0}
                                                       : (std::uint32_t{1} << generation_bits) - 1;
        }
        return true;
    }

    /// The context with this identity, new if there was none; null when every
    /// context is taken or waits for a sweep (then walk uncached).
    [[nodiscard]] const translation_context* intern(const context_identity& identity) noexcept {
        translation_context* fresh = nullptr;
        bool any_retired = false;
        for (std::size_t i = 0; i < size_; ++i) {
            translation_context& c = contexts_[i];
            if (c.state_ == translation_context::state::clean) {
                if (fresh == nullptr) fresh = &c;
            } else if (c.identity_ != identity) {
                any_retired = any_retired || c.state_ == translation_context::state::retired;
            } else {
                c.state_ = translation_context::state::in_use;
                ++c.references_;
                return &c;
            }
        }
        if (fresh == nullptr) {
            if (any_retired) sweep_wanted_.store(true, std::memory_order_relaxed);
            return nullptr;
        }
        fresh->identity_ = identity;
        fresh->world_ = &worlds_[static_cast<std::size_t>(identity.tag.world)];
        fresh->vm_ = &vms_[vm_slot(identity.tag)];
        fresh->space_ = &spaces_[space_slot(identity.tag)];
        fresh->page_sizes_.store(0, std::memory_order_relaxed);
        fresh->references_ = 1;
        fresh->state_ = translation_context::state::in_use;
        const std::uint64_t bit = std::uint64_t{1} << (fresh->index_ & 63);
        vm_contexts_[vm_slot(identity.tag)].fetch_or(bit, std::memory_order_seq_cst);
        space_contexts_[space_slot(identity.tag)].fetch_or(bit, std::memory_order_seq_cst);
        return fresh;
    }

    /// Which contexts an invalidation by address may be about: see
    /// invalidation_scope::contexts. Some that are not may be among them.
    [[nodiscard]] const std::atomic<std::uint64_t>&
    contexts_of(const invalidation_scope& scope) const noexcept {
        return scope.what == invalidation_scope::kind::address
                   ? space_contexts_[space_slot(scope.tag)]
                   : vm_contexts_[vm_slot(scope.tag)];
    }

    void release(const translation_context* context) noexcept {
        translation_context& c = contexts_[context->index_];
        if (--c.references_ == 0) c.state_ = translation_context::state::retired;
    }

    /// Ages every entry inside a scope that names no addresses. Constant time.
    /// True = the caller must now sweep the TLB (remove all entries), because
    /// generations are about to be used a second time.
    [[nodiscard]] bool invalidate(const invalidation_scope& scope) noexcept {
        switch (scope.what) {
        case invalidation_scope::kind::everything:
            // Stage 2 before those whose entries hold what stage 2 gave.
            for (std::size_t i = worlds_.size(); i-- != 0;)
                bump(worlds_[i]);
            break;
        case invalidation_scope::kind::world:
            bump(worlds_[static_cast<std::size_t>(scope.tag.world)]);
            break;
        case invalidation_scope::kind::vm:
            bump(vms_[vm_slot(scope.tag)]);
            break;
        case invalidation_scope::kind::space:
            bump(spaces_[space_slot(scope.tag)]);
            break;
        case invalidation_scope::kind::context:
            if (scope.context_index < size_) bump(contexts_[scope.context_index].own_);
            break;
        case invalidation_scope::kind::address:
        case invalidation_scope::kind::any_space:
            return false;
        }
        // Any one context's sum grows by at most one per call, so between two
        // uses of a generation there are two sweeps or more.
        const std::uint64_t period = std::uint64_t{1} << (generation_bits_ - 1);
        return ++invalidations_ % period == 0;
    }

    /// Whether retired contexts wait for a sweep before they can be reused.
    [[nodiscard]] bool sweep_wanted() const noexcept {
        return sweep_wanted_.load(std::memory_order_relaxed);
    }
    /// The TLB was emptied after the last release: what was retired is clean.
    void swept() noexcept {
        for (std::size_t i = 0; i < size_; ++i) {
            if (contexts_[i].state_ == translation_context::state::retired) {
                contexts_[i].state_ = translation_context::state::clean;
            }
        }
        sweep_wanted_.store(false, std::memory_order_relaxed);
    }

    [[nodiscard]] std::size_t size() const noexcept { return size_; }

private:
    static constexpr std::size_t vm_slots = 64;
    static constexpr std::size_t space_slots = 1024;

    [[nodiscard]] static std::size_t vm_slot(const translation_tag& tag) noexcept {
        return (raw(tag.vm) ^ static_cast<std::size_t>(tag.world) << 4) % vm_slots;
    }
    [[nodiscard]] static std::size_t space_slot(const translation_tag& tag) noexcept {
        return (raw(tag.space) ^ raw(tag.vm) * std::size_t{0x9e5} ^
                static_cast<std::size_t>(tag.world) << 7) %
               space_slots;
    }
    /// Sequentially consistent: ordered before the fence that CMD_SYNC relies on.
    static void bump(std::atomic<std::uint32_t>& generation) noexcept {
        generation.fetch_add(1, std::memory_order_seq_cst);
    }

    std::unique_ptr<translation_context[]> contexts_;
    std::size_t size_ = 0;
    unsigned generation_bits_ = 32;
    std::uint64_t invalidations_ = 0;
    std::atomic<bool> sweep_wanted_{false};
    std::array<std::atomic<std::uint32_t>, 6> worlds_{};
    std::array<std::atomic<std::uint32_t>, vm_slots> vms_{};
    std::array<std::atomic<std::uint32_t>, space_slots> spaces_{};
    // Bit n: contexts whose indexes are n modulo 64.
    std::array<std::atomic<std::uint64_t>, vm_slots> vm_contexts_{};
    std::array<std::atomic<std::uint64_t>, space_slots> space_contexts_{};
};

} // namespace vm_accel::inline v0
