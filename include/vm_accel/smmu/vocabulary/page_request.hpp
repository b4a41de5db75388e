/// PCIe page requests and their responses (IHI 0070, chapter 8).
#pragma once

#include <vm_accel/core/address.hpp>

#include <cstdint>

namespace vm_accel::inline v0 {

/// A device asks for one page. Requests with the same `group` form a page
/// request group; the last of them says so, and the group gets one response.
struct page_request {
    iova address{}; ///< of the page; bits [11:0] are ignored
    bool read = true;
    bool write = false;
    bool execute = false;    ///< with a SubstreamID only
    bool privileged = false; ///< likewise
    bool last = true;
    std::uint16_t group = 0; ///< PRGIndex, 9 bits
    bool has_substream = false;
    substream_id substream{};

    /// "No more requests of this PASID": is not answered.
    [[nodiscard]] constexpr bool is_stop_marker() const noexcept {
        return has_substream && last && !read && !write;
    }
};

/// PCIe's response codes (8.3).
enum class page_response_code : std::uint8_t {
    success = 0b0000,
    invalid_request = 0b0001, ///< some page does not exist, or not for such accesses
    failure = 0b1111,         ///< for good: the device stops asking
};

/// What became of a group.
struct page_response {
    std::uint16_t group = 0;
    page_response_code code = page_response_code::failure;
    bool has_substream = false;
    substream_id substream{};
};

} // namespace vm_accel::inline v0
