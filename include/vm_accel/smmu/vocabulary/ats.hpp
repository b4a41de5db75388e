/// PCIe address translation services: what a device with a translation cache
/// (ATC) asks and is told (IHI 0070, 3.9.1).
#pragma once

#include <vm_accel/core/address.hpp>

#include <cstdint>

namespace vm_accel::inline v0 {

/// A translation request for the page of one address.
struct ats_request {
    iova address{};
    bool write = false;      ///< NW = 0: the device means to write; dirty state is set
    bool execute = false;    ///< with a SubstreamID only
    bool privileged = false; ///< likewise
    bool has_substream = false;
    substream_id substream{};
};

enum class ats_status : std::uint8_t {
    success,             ///< but see the permissions: none = the page cannot be accessed
    unsupported_request, ///< ATS is off for this device
    completer_abort,     ///< its configuration is broken
};

/// The answer. Valid until an invalidation of the device's ATC covers it.
struct ats_completion {
    ats_status status = ats_status::unsupported_request;
    std::uint64_t address = 0;   ///< of the request's byte, for accesses marked translated
    std::uint8_t size_log2 = 12; ///< of the aligned piece around it that is alike
    bool read = false;
    bool write = false;
    bool execute = false;
    bool privileged = false;        ///< as in the request
    bool untranslated_only = false; ///< U: make untranslated accesses there

    [[nodiscard]] constexpr bool allows_nothing() const noexcept { return !read && !write; }
};

/// "Forget what you know of [first, last]": of one PASID, of accesses without,
/// or (global) of all.
struct atc_invalidation {
    std::uint64_t first = 0;
    std::uint64_t last = ~std::uint64_t{0};
    bool has_substream = false;
    bool global = false;
    substream_id substream{};
    std::uint32_t token = 0; ///< to acknowledge it with
};

} // namespace vm_accel::inline v0
