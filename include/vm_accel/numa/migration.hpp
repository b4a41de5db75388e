/// Moving guest RAM after it was placed: what is sampled, what is decided, and the
/// concept of who decides.
///
/// Whoever samples (the vCPU threads' CPUs, page placement, access counters) and
/// whoever moves pages stands outside: between them is a pure function.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/numa/strategy.hpp>

#include <concepts>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace vm_accel::inline v0 {

/// How much of something belongs to a node, in any one unit.
struct share_of_node {
    unsigned node = 0; ///< index of the host node
    std::uint64_t share = 0;

    friend bool operator==(const share_of_node&, const share_of_node&) = default;
};

/// Where one vCPU ran since the last round.
struct vcpu_residency {
    unsigned guest_node = any_node;        ///< any_node: it belongs to all
    std::vector<share_of_node> on_nodes{}; ///< time, in the same unit for all vCPUs
};

/// How often one vCPU was seen to access a region.
struct vcpu_accesses {
    unsigned vcpu = 0; ///< index into the sampled vCPUs
    std::uint64_t accesses = 0;
};

/// A part of guest RAM, such as a ram_chunk or a piece of one, and where it lies.
struct region_sample {
    unsigned guest_node = any_node;        ///< whose vCPUs use it; any_node: all do
    std::vector<share_of_node> on_nodes{}; ///< bytes that lie on each node
    /// Who accessed it how often; give it for every region or for none. Empty: the
    /// vCPUs of its guest node, by the time they ran, one access for each granule.
    std::vector<vcpu_accesses> accesses{};
    unsigned rounds_in_place = ~0u; ///< since a part of it was last moved
};

/// One round of samples.
struct migration_sample {
    std::span<const vcpu_residency> vcpus{};
    std::span<const region_sample> regions{};
};

/// How eager a round may be.
struct migration_limits {
    std::uint64_t budget = 256u << 20; ///< bytes that may be moved in one round
    /// A move has to bring accesses nearer by more than this: the mean distance after
    /// it, and so many percent more, is still below the one before.
    unsigned hysteresis_percent = 20;
    unsigned settle_rounds = 2; ///< a region that was moved stays for so many rounds
};

/// So many bytes of a region that lie on one node are better off on another.
struct migration {
    unsigned region = 0; ///< index into the sampled regions
    unsigned from = 0;   ///< index of the host node
    unsigned to = 0;
    std::uint64_t bytes = 0;
    double gain = 0; ///< accesses to these bytes times the distance that each saves

    friend bool operator==(const migration&, const migration&) = default;
};

using migration_plan = std::vector<migration>;

/// Decides what to move. `inventory.free_bytes` is what each node can take now; a
/// node with 0 gets nothing, but what lies there may leave it. What this round
/// frees is not given away in the same round.
/// migrate() moves no more than the budget, no more to a node than its free_bytes
/// and no more from a region's node than lies there, most gain for a byte first. With
/// samples that stay the same but for its own moves it comes to an end: after some
/// rounds it proposes nothing. It answers the same question in the same way.
/// Errors: invalid_argument, for a sample that names a node or vCPU that is not there.
/// Threads: const, so any.
template <class P>
concept migration_planner =
    std::default_initializable<P> &&
    requires(const P planner, const memory_inventory& inventory, const migration_sample& sample,
             const migration_limits& limits) {
        { P::name } -> std::convertible_to<std::string_view>;
        {
            planner.migrate(inventory, sample, limits)
        } noexcept -> std::same_as<result<migration_plan>>;
    };

} // namespace vm_accel::inline v0
