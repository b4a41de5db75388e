/// Page request records: what a PCIe device asks of the driver (IHI 0070, chapter 8).
#pragma once

#include <vm_accel/core/field.hpp>

#include <array>
#include <cstdint>

namespace vm_accel::inline v0::spec {

/// An entry of the page request queue: 16 bytes.
struct page_request_record {
    using StreamID = field<0, 31, 0>;
    using SubstreamID = field<0, 51, 32>;
    using Priv = field<0, 58, 58>;
    using X = field<0, 59, 59>;
    using R = field<0, 60, 60>;
    using W = field<0, 61, 61>;
    using Last = field<0, 62, 62>; ///< the last request of its group
    using SSV = field<0, 63, 63>;  ///< SubstreamID is valid
    using PRGIndex = field<1, 8, 0>;
    using Addr = field<1, 63, 12>; ///< address bits [63:12]

    std::array<le64, 2> word{};
};
static_assert(sizeof(page_request_record) == 16);

// Golden words, as Linux's driver takes them apart: stream 8, PASID 5, a user
// write to page 0xdeadb, the last of group 3.
static_assert([] {
    using P = page_request_record;
    P record;
    set<P::StreamID>(record, 8);
    set<P::SubstreamID>(record, 5);
    set<P::SSV>(record, 1);
    set<P::Last>(record, 1);
    set<P::W>(record, 1);
    set<P::R>(record, 1);
    set<P::PRGIndex>(record, 3);
    set<P::Addr>(record, 0xdeadb);
    return record.word[0].value() == 0xf000'0005'0000'0008 &&
           record.word[1].value() == 0x0000'0000'dead'b003;
}());

} // namespace vm_accel::inline v0::spec
