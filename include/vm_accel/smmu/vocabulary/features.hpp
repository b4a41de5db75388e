/// What an SMMU offers its guest, chosen at compile time.
///
/// The ID registers advertise exactly this, and the walker, the configuration
/// checks and the command decoder accept exactly this.
#pragma once

#include <cstdint>

namespace vm_accel::inline v0 {

/// Widths and capabilities. Sizes are in bits unless said otherwise.
struct smmu_features {
    bool stage1 = true;
    bool stage2 = false;
    bool granule_4k = true;
    bool granule_16k = false;
    bool granule_64k = false;
    unsigned output_bits = 44;   ///< OAS: 32, 36, 40, 42, 44 or 48
    unsigned stream_bits = 16;   ///< IDR1.SIDSIZE, at most 32
    unsigned substream_bits = 0; ///< IDR1.SSIDSIZE, at most 20
    unsigned command_queue_log2 = 19;
    unsigned event_queue_log2 = 19;
    bool two_level_stream_table = true;
    bool asid16 = true;
    bool vmid16 = false;
    bool range_invalidation = true;
    bool hierarchical_attribute_disable = true;
    bool hyp = false;
    bool coherent = true; ///< IDR0.COHACC

    /// Whether a feature set is one that this library can be built with.
    [[nodiscard]] constexpr bool is_consistent() const noexcept {
        const bool known_size = output_bits == 32 || output_bits == 36 || output_bits == 40 ||
                                output_bits == 42 || output_bits == 44 || output_bits == 48;
        const bool implemented = stage1 && granule_4k && !granule_16k && !granule_64k && !stage2 &&
                                 !hyp && !vmid16 && substream_bits == 0;
        return known_size && implemented && stream_bits >= 1 && stream_bits <= 32 &&
               command_queue_log2 <= 19 && event_queue_log2 <= 19;
    }
};

/// Stage 1 with 4 KiB pages: what an ordinary guest driver needs.
inline constexpr smmu_features stage1_features{};

} // namespace vm_accel::inline v0
