/// What an SMMU offers its guest, chosen at compile time.
///
/// The ID registers advertise exactly this, and the walker, the configuration
/// checks and the command decoder accept exactly this.
#pragma once

#include <vm_accel/core/security_state.hpp>

#include <cstdint>

namespace vm_accel::inline v0 {

/// Widths and capabilities, named as in the ID registers where they have a name
/// there. Sizes are in bits unless said otherwise.
struct smmu_features {
    /// Whose programming interface: every part that F is a parameter of is made for
    /// this state. See secure_interface.hpp for a device that has both.
    security_state state = security_state::non_secure;
    // Translation.
    bool stage1 = true;
    bool stage2 = false;
    bool granule_4k = true;
    bool granule_16k = false;
    bool granule_64k = false;
    unsigned output_bits = 44; ///< OAS: 32, 36, 40, 42, 44, 48 or 52
    bool vax52 = false;        ///< IDR5.VAX: 52-bit input addresses with 64 KiB granules
    bool ds = false;           ///< IDR5.DS: 52-bit addresses with 4 and 16 KiB granules
    bool stt = false;          ///< IDR3.STT: small translation tables, TxSZ up to 48
    bool mixed_endian = false; ///< IDR0.TTENDIAN: big-endian tables too
    unsigned bbml = 0;         ///< IDR3.BBML: break-before-make level 0 to 2
    // Permissions and attributes.
    unsigned httu = 0; ///< IDR0.HTTU: 1 access flag, 2 access flag and dirty state
    bool hierarchical_attribute_disable = true; ///< IDR3.HAD
    bool xnx = false;                           ///< IDR3.XNX
    bool fwb = false;                  ///< IDR3.FWB: STE.S2FWB, stage 2 decides about memory types
    bool e0pd = false;                 ///< IDR3.E0PD
    bool epan = false;                 ///< IDR3.EPAN
    bool permission_overrides = false; ///< IDR1.ATTR_PERMS_OVR: PRIVCFG, INSTCFG
    bool type_overrides = false;       ///< IDR1.ATTR_TYPES_OVR: MTCFG, SHCFG, ALLOCCFG
    // Streams.
    unsigned stream_bits = 16;   ///< IDR1.SIDSIZE, at most 32
    unsigned substream_bits = 0; ///< IDR1.SSIDSIZE, at most 20
    bool two_level_stream_table = true;
    bool two_level_cd_table = false; ///< IDR0.CD2L
    bool asid16 = true;
    bool vmid16 = false;
    bool hyp = false;     ///< IDR0.Hyp: NS-EL2 streams, with and without E2H
    bool mpam = false;    ///< IDR3.MPAM: PARTIDs, and the VMS that maps a VM's
    bool coherent = true; ///< IDR0.COHACC
    // Queues, faults and interrupts.
    unsigned command_queue_log2 = 19;
    unsigned event_queue_log2 = 19;
    unsigned page_request_queue_log2 = 0; ///< IDR1.PRIQS
    bool range_invalidation = true;       ///< IDR3.RIL
    bool stalls = false;                  ///< IDR0.STALL_MODEL = 0b00: faults may stall
    unsigned stall_max = 64;              ///< IDR5.STALL_MAX: accesses stalled at a time
    bool quiet_termination = false; ///< IDR0.TERM_MODEL = 0: CD.A = 0, read as zero, ignore writes
    bool ats = false;
    bool pri = false;
    bool msi = false;
    /// An interrupt that is sent as a message pulses its wire as well, as where a
    /// system has both (3.18.2, 4.7.3); else it is the one or the other.
    bool wires_beside_messages = false;
    bool atos = false;
    unsigned ecmdq_log2 = 0;           ///< enhanced command queues per page, 0 = none
    unsigned performance_counters = 0; ///< of the PMCG, 0 = none, at most 64

    friend constexpr bool operator==(const smmu_features&, const smmu_features&) = default;

    /// Whether a feature set is one that this library can be built with.
    [[nodiscard]] constexpr bool is_consistent() const noexcept {
        const bool known_size = output_bits == 32 || output_bits == 36 || output_bits == 40 ||
                                output_bits == 42 || output_bits == 44 || output_bits == 48 ||
                                output_bits == 52;
        const bool translation = (stage1 || stage2) && (granule_4k || granule_16k || granule_64k) &&
                                 known_size && bbml <= 2 && httu <= 2 &&
                                 (!ds || granule_4k || granule_16k) && (!vax52 || granule_64k);
        const bool streams = stream_bits >= 1 && stream_bits <= 32 && substream_bits <= 20 &&
                             (substream_bits == 0 || stage1) && (!hyp || (stage1 && stage2)) &&
                             (!mpam || stage2);
        const bool queues = command_queue_log2 <= 19 && event_queue_log2 <= 19 &&
                            page_request_queue_log2 <= 19 && (!pri || ats) && ecmdq_log2 <= 8 &&
                            (ecmdq_log2 == 0 || (msi && coherent)) && stall_max >= 1 &&
                            stall_max <= 0xffff && performance_counters <= 64;
        // What is built of the secure interface: stage 1 (3.10.2.2: SEL2 = 0), and
        // addresses that leave room for non_secure_space_bit.
        const bool state_is_built = state == security_state::non_secure ||
                                    (state == security_state::secure && stage1 && !stage2 &&
                                     output_bits <= 48 && !vax52 && !ds && !stalls && !ats &&
                                     !pri && !atos && ecmdq_log2 == 0 && performance_counters == 0);
        return translation && streams && queues && state_is_built;
    }
};

/// Stage 1 with 4 KiB pages: what an ordinary guest driver needs.
inline constexpr smmu_features stage1_features{};

/// Everything that this library implements.
inline constexpr smmu_features full_features{
    .stage2 = true,
    .granule_16k = true,
    .granule_64k = true,
    .output_bits = 52,
    .vax52 = true,
    .ds = true,
    .stt = true,
    .mixed_endian = true,
    .bbml = 2,
    .httu = 2,
    .xnx = true,
    .fwb = true,
    .e0pd = true,
    .epan = true,
    .permission_overrides = true,
    .type_overrides = true,
    .stream_bits = 32,
    .substream_bits = 20,
    .two_level_cd_table = true,
    .vmid16 = true,
    .hyp = true,
    .mpam = true,
    .page_request_queue_log2 = 19,
    .stalls = true,
    .quiet_termination = true,
    .ats = true,
    .pri = true,
    .msi = true,
    .wires_beside_messages = true,
    .atos = true,
    .ecmdq_log2 = 2,
    .performance_counters = 8,
};
static_assert(stage1_features.is_consistent() && full_features.is_consistent());

} // namespace vm_accel::inline v0
