/// Who gives a device its StreamID.
///
/// A device tree or an IORT often fixes the StreamID; otherwise an allocator
/// picks one. Both ways go through the same allocator, so that no two devices
/// hold the same one.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/result.hpp>

#include <concepts>
#include <cstddef>

namespace vm_accel::inline v0 {

/// Holds the StreamIDs 0 to capacity - 1; each is free or held.
/// - capacity: how many there are, at least 1.
/// - allocate() takes a free one and gives it. Which one is the policy's
///   choice. Error: exhausted.
/// - reserve(id) takes that very one. Errors: already_exists (held),
///   out_of_range (not below capacity).
/// - release(id) frees it; allocate() and reserve() may give it again once
///   release() has returned. Errors: not_found (not held), out_of_range.
/// - is_held(id): whether it is held now; false beyond capacity.
/// A failed call changes nothing.
/// Threads: all of these from any number of threads at once; each StreamID has
/// at most one holder at any time.
template <class T>
concept stream_allocator =
    std::default_initializable<T> && requires(T& allocator, const T& view, stream_id id) {
        { T::capacity } -> std::convertible_to<std::size_t>;
        { allocator.allocate() } noexcept -> std::same_as<result<stream_id>>;
        { allocator.reserve(id) } noexcept -> std::same_as<result<>>;
        { allocator.release(id) } noexcept -> std::same_as<result<>>;
        { view.is_held(id) } noexcept -> std::same_as<bool>;
    };

/// The errors that every allocator gives, worded once.
namespace stream_error {

[[nodiscard]] constexpr tl::unexpected<error> all_held(std::size_t capacity) noexcept {
    return fail(errc::exhausted,
                fixed_text<160>{"StreamIDs: all "}.append_number(capacity).append(" are held"),
                "detach a device, or choose a stream allocator with a larger capacity");
}
[[nodiscard]] constexpr tl::unexpected<error> already_held(stream_id id) noexcept {
    return fail(errc::already_exists,
                fixed_text<160>{"StreamID "}.append_number(raw(id), 16).append(" is held already"),
                "attach with another StreamID, or detach the device that has it");
}
[[nodiscard]] constexpr tl::unexpected<error> too_large(stream_id id,
                                                        std::size_t capacity) noexcept {
    return fail(errc::out_of_range,
                fixed_text<160>{"StreamID "}
                    .append_number(raw(id), 16)
                    .append(": the allocator's StreamIDs end at ")
                    .append_number(capacity - 1, 16),
                "choose a stream allocator with a larger capacity");
}
[[nodiscard]] constexpr tl::unexpected<error> not_held(stream_id id) noexcept {
    return fail(errc::not_found,
                fixed_text<160>{"StreamID "}.append_number(raw(id), 16).append(" is not held"),
                "release each StreamID once, after it was allocated or reserved");
}

} // namespace stream_error

} // namespace vm_accel::inline v0
