/// The errors that the host face of the SMMU gives, worded once.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/smmu/host/attachment.hpp>
#include <vm_accel/smmu/vocabulary/outcome.hpp>

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace vm_accel::inline v0::host_error {

[[nodiscard]] constexpr std::string_view name_of(silent_abort why) noexcept {
    switch (why) {
    case silent_abort::none:
        return "an event";
    case silent_abort::ste_abort:
        return "the guest's STE aborts this stream";
    case silent_abort::gbpa_abort:
        return "the SMMU is disabled and GBPA.ABORT is set";
    case silent_abort::outside_window:
        return "the address lies outside the device's window";
    case silent_abort::detached:
        return "the device is detached";
    case silent_abort::bad_access:
        return "the access is empty";
    }
    return "unknown";
}

[[nodiscard]] inline tl::unexpected<error> initialized_twice() noexcept {
    return fail(errc::already_initialized, "smmu: init() was called before",
                "use the SMMU as it is; reset() gives its power-on state");
}
[[nodiscard]] inline tl::unexpected<error> no_memory_connected() noexcept {
    return fail(errc::not_initialized, "smmu: no guest memory is connected",
                "call connect(memory) before init()");
}
[[nodiscard]] inline tl::unexpected<error> no_sink_connected() noexcept {
    return fail(errc::not_initialized, "smmu: no interrupt sink is connected",
                "call connect(sink) before init(): this sink cannot be made by itself");
}
[[nodiscard]] inline tl::unexpected<error> stream_too_wide(stream_id stream,
                                                           unsigned bits) noexcept {
    return fail(errc::out_of_range,
                fixed_text<160>{"smmu: StreamID "}
                    .append_number(raw(stream), 16)
                    .append(" has more than ")
                    .append_number(bits)
                    .append(" bits"),
                "choose a smaller StreamID, or raise smmu_features::stream_bits");
}
[[nodiscard]] inline tl::unexpected<error> not_initialized() noexcept {
    return fail(errc::not_initialized, "smmu: not initialized", "call init() first");
}
[[nodiscard]] inline tl::unexpected<error> state_does_not_fit(std::uint64_t needed) noexcept {
    return fail(errc::exhausted,
                fixed_text<160>{"saving the SMMU's state: it has "}.append_number(needed).append(
                    " bytes, and there is no room for them"),
                "give as many bytes as saved_state_size() says");
}
[[nodiscard]] inline tl::unexpected<error> out_of_memory() noexcept {
    return fail(errc::exhausted, "smmu: out of host memory",
                "free memory, or choose smaller Options or a smaller TLB");
}
[[nodiscard]] inline tl::unexpected<error> guard_open() noexcept {
    return fail(errc::would_deadlock, "smmu: the calling thread has a DMA guard open",
                "close the guard first: this call waits until every open guard has closed");
}
[[nodiscard]] inline tl::unexpected<error> unknown_device(std::string_view device_id) noexcept {
    return fail(errc::not_found,
                fixed_text<160>{"smmu: no device '"}.append(device_id).append("' is attached"),
                "attach it first; list_attached_devices() names those that are");
}
[[nodiscard]] inline tl::unexpected<error> unknown_stream(stream_id stream) noexcept {
    return fail(
        errc::not_found,
        fixed_text<160>{"smmu: no attached device has StreamID "}.append_number(raw(stream), 16),
        "list_attached_devices() gives the StreamIDs in use");
}
[[nodiscard]] inline tl::unexpected<error> attached_already(std::string_view device_id) noexcept {
    return fail(errc::already_exists,
                fixed_text<160>{"smmu: device '"}.append(device_id).append("' is attached already"),
                "detach it first, or choose another id");
}
[[nodiscard]] inline tl::unexpected<error> no_port_left(std::size_t ports) noexcept {
    return fail(errc::exhausted,
                fixed_text<160>{"smmu: all "}.append_number(ports).append(" ports are in use"),
                "destroy a port, or raise Options::ports");
}
[[nodiscard]] inline tl::unexpected<error> bad_dma_range(iova address,
                                                         std::uint64_t size) noexcept {
    return fail(errc::invalid_argument,
                fixed_text<160>{"smmu: DMA range "}
                    .append_number(raw(address), 16)
                    .append(" + ")
                    .append_number(size, 16)
                    .append(" is empty or wraps"),
                "give a size above 0 that ends within 64 bits");
}
[[nodiscard]] inline tl::unexpected<error> refused(std::string_view device_id, iova address,
                                                   const outcome& o) noexcept {
    fixed_text<160> cause{"smmu: "};
    cause.append(device_id).append(" at ").append_number(raw(address), 16).append(": ");
    cause.append(o.why() == silent_abort::none ? spec::name_of(o.event()) : name_of(o.why()));
    return fail(errc::permission_denied, cause,
                "map the address in the guest's tables, inside the device's window");
}
[[nodiscard]] inline tl::unexpected<error> not_contiguous(std::string_view device_id,
                                                          iova address) noexcept {
    return fail(errc::mismatch,
                fixed_text<160>{"smmu: "}
                    .append(device_id)
                    .append(": physical addresses are not contiguous at ")
                    .append_number(raw(address), 16),
                "translate page by page");
}

/// Whether an attachment is well formed. Error: invalid_argument.
[[nodiscard]] inline result<> check_attach(std::string_view device_id, pa_range window) noexcept {
    if (device_id.empty() || device_id.size() > device_id_capacity) {
        return fail(
            errc::invalid_argument,
            fixed_text<160>{"smmu: device id of "}.append_number(device_id.size()).append(" bytes"),
            "give an id of 1 to 63 bytes");
    }
    const bool aligned = ((raw(window.base) | window.size) & 0xfff) == 0;
    if (window.empty() || !window.is_valid() || !aligned) {
        return fail(errc::invalid_argument,
                    fixed_text<160>{"smmu: DMA window "}
                        .append_number(raw(window.base), 16)
                        .append(" + ")
                        .append_number(window.size, 16)
                        .append(" is empty, unaligned or past the end"),
                    "give a base and a size that are multiples of 4096, size above 0");
    }
    return {};
}

} // namespace vm_accel::inline v0::host_error
