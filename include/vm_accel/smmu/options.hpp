/// What else an SMMU is built with: the last template parameter.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/smmu/caches/tlb_policy.hpp>
#include <vm_accel/smmu/caches/walk_cache.hpp>
#include <vm_accel/smmu/control/quiescence.hpp>
#include <vm_accel/smmu/vocabulary/fault_injection.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/smmu/vocabulary/lint.hpp>

#include <concepts>
#include <cstddef>

namespace vm_accel::inline v0 {

/// An SMMU of one security state.
struct no_other_state {};

template <class NonSecure>
class non_secure_link;

/// Derive from this and hide what you want otherwise:
/// `struct mine : default_smmu_options { using quiescence = single_threaded; };`
struct default_smmu_options {
    /// What the guest is offered.
    static constexpr smmu_features features = stage1_features;
    /// Who pays for CMD_SYNC waiting until device threads are done.
    using quiescence = membarrier_quiescence;
    /// What walks start from; no_walk_cache: from the root, always.
    using walk_cache = vm_accel::walk_cache<>;
    /// Whether the SMMU's own accesses can be made to fail: planned_faults.
    using fault_injection = no_fault_injection;
    /// Whether a driver's mistakes are looked for: guest_lint.
    using lint = no_lint;
    /// Of a secure interface: the non-secure one of the same SMMU (secure_interface.hpp).
    using other_state = no_other_state;
    /// The requester of the SMMU's own messages: its DeviceID, none of a device.
    static constexpr stream_id message_requester{0xffff'ffff};
    /// Most dma_ports alive at once.
    static constexpr std::size_t ports = 256;
    /// Decoded configurations kept; streams beyond it work uncached.
    static constexpr std::size_t configurations = 512;
    /// Translation contexts kept, at most 4095; likewise. Stage 2 takes one of its own per VMID.
    static constexpr std::size_t contexts = 512;
    /// Places for configurations per device whose accesses carry SubstreamIDs, a
    /// power of two; SubstreamIDs that share a place work, one of them uncached.
    static constexpr std::size_t substream_slots = 64;
    /// Width of generations: smaller only to make them wrap in tests.
    static constexpr unsigned generation_bits = translation_contexts::generation_bits;
    /// Most commands that one MMIO access or poll() executes.
    static constexpr unsigned commands_per_call = 256;
};

template <class O>
concept smmu_options = requires {
    { O::features } -> std::convertible_to<smmu_features>;
    requires quiescence_policy<typename O::quiescence>;
    requires walk_cache_policy<typename O::walk_cache>;
    requires fault_injection<typename O::fault_injection>;
    requires lint_policy<typename O::lint>;
    typename O::other_state;
    { O::message_requester } -> std::convertible_to<stream_id>;
    { O::ports } -> std::convertible_to<std::size_t>;
    { O::configurations } -> std::convertible_to<std::size_t>;
    { O::contexts } -> std::convertible_to<std::size_t>;
    { O::substream_slots } -> std::convertible_to<std::size_t>;
    { O::generation_bits } -> std::convertible_to<unsigned>;
    { O::commands_per_call } -> std::convertible_to<unsigned>;
    requires smmu_features { O::features }
    .is_consistent();
    requires(O::substream_slots & (O::substream_slots - 1)) == 0;
    requires O::generation_bits >= 2;
    requires O::generation_bits <= translation_contexts::generation_bits;
    requires O::contexts <= translation_contexts::most;
    requires O::ports > 0 && O::configurations > 0 && O::contexts > 0 && O::commands_per_call > 0;
};

static_assert(smmu_options<default_smmu_options>);

} // namespace vm_accel::inline v0
