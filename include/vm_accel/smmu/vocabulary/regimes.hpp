/// Decoded translation regimes: what a CD and an STE say about tables.
#pragma once

#include <array>
#include <cstdint>

namespace vm_accel::inline v0 {

/// One half of a stage-1 input space: what TTB0 or TTB1 translates.
struct stage1_half {
    std::uint64_t table = 0;      ///< address of the first-level table
    std::uint8_t input_bits = 48; ///< 64 - TxSZ
    std::uint8_t granule_bits = 12;
    std::uint8_t shareability = 3; ///< SH0 or SH1: of every page when descriptors have no SH (DS)
    bool enabled = false;          ///< EPD clear
    bool ignore_top_byte = false;  ///< TBI
    bool flat_permissions = false; ///< HAD: table attributes are ignored
    bool user_forbidden = false;   ///< E0PD: unprivileged accesses fault
    bool non_secure = false;       ///< NSCFG: the first table is in the non-secure space
};

/// A stage-1 translation regime, decoded from a CD (IHI 0070, 5.4).
struct stage1_regime {
    std::array<stage1_half, 2> half{};
    std::uint64_t memory_types = 0;       ///< MAIR
    std::uint8_t output_bits = 44;        ///< effective IPS
    bool wide_format = false;             ///< DS; nothing to 64 KiB granules
    bool big_endian = false;              ///< ENDI
    bool access_flag_ignored = false;     ///< AFFD; nothing with HA
    bool updates_access_flag = false;     ///< HA
    bool updates_dirty_state = false;     ///< HD, with HA
    bool write_execute_never = false;     ///< WXN
    bool privileged_access_never = false; ///< PAN
    bool enhanced_pan = false;            ///< EPAN: PAN also covers execute-only user pages
    bool one_privilege = false;           ///< NS-EL2 without E2H: AP[1] and PXN have no meaning
};

/// A stage-2 translation regime, decoded from an STE (IHI 0070, 5.2).
struct stage2_regime {
    std::uint64_t table = 0;      ///< S2TTB
    std::uint8_t input_bits = 40; ///< 64 - S2T0SZ
    std::uint8_t granule_bits = 12;
    std::int8_t start_level = 0;      ///< -1 to 3; the first table may be concatenated
    std::uint8_t output_bits = 44;    ///< effective S2PS
    std::uint8_t shareability = 3;    ///< S2SH0: of every page when descriptors have no SH (S2DS)
    bool wide_format = false;         ///< S2DS
    bool big_endian = false;          ///< S2ENDI
    bool access_flag_ignored = false; ///< S2AFFD
    bool updates_access_flag = false; ///< S2HA
    bool updates_dirty_state = false; ///< S2HD, with S2HA
    bool protected_tables = false;    ///< S2PTW: stage-1 tables in Device memory fault
    bool decides_types = false;       ///< S2FWB: MemAttr replaces stage 1's type, or keeps it
};

/// Both stages of one stream. A stage that is off passes its input on.
struct translation_regimes {
    stage1_regime stage1{};
    stage2_regime stage2{};
    bool stage1_enabled = false;
    bool stage2_enabled = false;
    // Of secure streams:
    bool untranslated_non_secure = false; ///< NSCFG: where stage 1 is off
    bool fetches_secure_only = false;     ///< S_CR0.SIF: no instructions from non-secure memory
};

} // namespace vm_accel::inline v0
