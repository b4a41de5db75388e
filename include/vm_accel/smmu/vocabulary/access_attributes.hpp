/// What an access carries besides its address, length and direction.
#pragma once

#include <vm_accel/core/address.hpp>

namespace vm_accel::inline v0 {

/// Attributes of the accesses that a device makes, besides their direction.
struct access_attributes {
    bool privileged = false;
    bool instruction = false;
    bool has_substream = false; ///< the access carries a SubstreamID (PCIe: a PASID)
    bool translated = false;    ///< its address came from ats_translate()
    substream_id substream{};   ///< meaningful with has_substream
};

} // namespace vm_accel::inline v0
