/// What an invalidation covers.
#pragma once

#include <vm_accel/core/address.hpp>

#include <atomic>
#include <cstdint>

namespace vm_accel::inline v0 {

/// Translation regime that an entry belongs to (IHI 0070, 3.4, StreamWorld),
/// and two regimes of our own that no TLB command reaches. EL1 is that of the
/// SMMU's security state: each state has caches of its own.
enum class stream_world : std::uint8_t {
    ns_el1,     ///< NS-EL1, stage 1 with or without stage 2
    ns_el2,     ///< NS-EL2; of secure streams EL3, which has no ASIDs either
    ns_el2_e2h, ///< NS-EL2 with host extensions
    stage2,     ///< stage 2 only: tagged by VMID, input addresses are IPAs
    bypass,     ///< untranslated: SMMUEN = 0 or STE.Config = bypass
    managed,    ///< the VMM's own one-to-one mapping of a device's window
};

/// Identity under which a translation is cached and found by TLB commands.
struct translation_tag {
    stream_world world = stream_world::ns_el1;
    vmid vm{};
    asid space{};

    friend constexpr bool operator==(const translation_tag&, const translation_tag&) = default;
};

/// A set of cached translations.
struct invalidation_scope {
    enum class kind : std::uint8_t {
        everything, ///< all entries of all worlds
        world,      ///< all entries of one world
        vm,         ///< all entries of one world and VMID
        space,      ///< non-global entries of one world, VMID and ASID
        address,    ///< entries that translate [first, last], of one ASID or global
        any_space,  ///< entries that translate [first, last], of any ASID
        context,    ///< entries of one interned context (see context_table)
    };

    kind what = kind::everything;
    translation_tag tag{};
    std::uint64_t first = 0;         ///< first input address covered
    std::uint64_t last = ~0ULL;      ///< last input address covered
    bool leaf_only = false;          ///< walk caches may keep their entries
    std::uint32_t context_index = 0; ///< for kind::context
    /// By address: bit n = the scope may cover non-global entries of contexts whose
    /// indexes are n modulo 64. To be read after the invalidation is visible to
    /// fills. Null = of all contexts.
    const std::atomic<std::uint64_t>* contexts = nullptr;

    [[nodiscard]] static constexpr invalidation_scope all() noexcept { return {}; }
    [[nodiscard]] static constexpr invalidation_scope all_of(stream_world world) noexcept {
        return {.what = kind::world, .tag = {world, {}, {}}};
    }
    [[nodiscard]] static constexpr invalidation_scope all_of(stream_world world, vmid vm) noexcept {
        return {.what = kind::vm, .tag = {world, vm, {}}};
    }
    [[nodiscard]] static constexpr invalidation_scope all_of(translation_tag tag) noexcept {
        return {.what = kind::space, .tag = tag};
    }
    [[nodiscard]] static constexpr invalidation_scope
    addresses(translation_tag tag, std::uint64_t first, std::uint64_t last, bool leaf) noexcept {
        return {.what = kind::address, .tag = tag, .first = first, .last = last, .leaf_only = leaf};
    }

    /// Whether addresses alone do not decide: the cheap, generation-based kinds.
    [[nodiscard]] constexpr bool by_address() const noexcept {
        return what == kind::address || what == kind::any_space;
    }
    /// Whether the scope covers a translation of `size` bytes (a power of two)
    /// around `base`, cached under `tag`.
    [[nodiscard]] constexpr bool covers(const translation_tag& other, bool global,
                                        std::uint32_t context, std::uint64_t base,
                                        std::uint64_t size) const noexcept {
        switch (what) {
        case kind::everything:
            return true;
        case kind::world:
            return other.world == tag.world;
        case kind::vm:
            return other.world == tag.world && other.vm == tag.vm;
        case kind::space:
            return other == tag && !global;
        case kind::context:
            return context == context_index;
        case kind::address:
            if (other.space != tag.space && !global) return false;
            [[fallthrough]];
        case kind::any_space:
            return other.world == tag.world && other.vm == tag.vm && first <= base + (size - 1) &&
                   base <= last;
        }
        return true;
    }
};

} // namespace vm_accel::inline v0
