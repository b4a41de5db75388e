/// Saving and restoring one SMMU: what belongs to its state, and when it is
/// read and written. `Parts` is the SMMU's assembly.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/smmu/control/id_registers.hpp>
#include <vm_accel/smmu/host/attachment_set.hpp>
#include <vm_accel/smmu/host/host_errors.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/smmu/vocabulary/saved_state.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace vm_accel::inline v0 {

/// What a saved state is for: the features that decide what is in it, and what
/// the guest has been told.
template <smmu_features F>
[[nodiscard]] constexpr std::uint64_t state_fingerprint() noexcept {
    using ids = id_registers<F>;
    std::uint64_t sum = 0xcbf2'9ce4'8422'2325 ^ static_cast<std::uint64_t>(F.state);
    for (const std::uint64_t word :
         {std::uint64_t{ids::IDR0}, std::uint64_t{ids::IDR1}, std::uint64_t{ids::IDR3},
          std::uint64_t{ids::IDR5}, std::uint64_t{ids::AIDR}, std::uint64_t{F.stall_max},
          std::uint64_t{F.ecmdq_log2}, std::uint64_t{F.performance_counters}}) {
        sum = (sum ^ word) * 0x9e37'79b9'7f4a'7c15;
        sum ^= sum >> 29;
    }
    return sum;
}

/// What devices with an ATC have been told and not answered yet, by StreamID.
template <class Parts, class Visit>
void visit_devices(Parts& parts, Visit& visit) noexcept {
    std::uint64_t here = 0;
    parts.attachments.for_each(
        [&](const attachment_record& record) { here += record.ats != nullptr ? 1 : 0; });
    const char* const missing = "tells of a device that is not attached with ATS here";
    const std::uint64_t count = visit(here, ~std::uint64_t{0});
    visit.require(count == here, missing);
    std::uint64_t visited = 0;
    parts.attachments.for_each([&](const attachment_record& record) {
        if (record.ats == nullptr || visited == count) return;
        ++visited;
        // Devices may have been attached in another order.
        std::uint32_t stream = raw(record.subject.stream);
        const attachment_record* const meant = parts.attachments.find(
            stream_id{static_cast<std::uint32_t>(visit(stream, 0xffff'ffff))});
        visit.require(meant != nullptr && meant->ats != nullptr, missing);
        (meant != nullptr && meant->ats != nullptr ? *meant : record).ats->visit_state(visit);
    });
}

/// All of the state. Caches are no part of it: they are filled again.
template <class Parts, class Visit>
void visit_state(Parts& parts, Visit& visit) noexcept {
    visit.section(state_section::registers);
    parts.registers.visit_state(visit);
    visit.section(state_section::commands);
    parts.control.visit_state(visit);
    visit.section(state_section::stalls);
    if constexpr (Parts::F.stalls) parts.stalls.visit_state(visit);
    visit.section(state_section::devices);
    if constexpr (Parts::F.ats) visit_devices(parts, visit);
    visit.section(state_section::performance);
    if constexpr (Parts::performance_type::enabled) parts.performance.monitor().visit_state(visit);
    visit.section(state_section::end);
}

/// Bytes that save_state() writes.
template <class Parts>
[[nodiscard]] std::size_t state_size(Parts& parts) noexcept {
    const auto held = parts.lock();
    state_writer count{{}};
    visit_state(parts, count);
    return count.bytes();
}

/// See smmu::save().
template <class Parts>
[[nodiscard]] result<std::size_t> save_state(Parts& parts, std::span<std::byte> out) noexcept {
    result<std::size_t> written = 0;
    const result<> waited =
        parts.waiting([]() noexcept -> result<> { return {}; },
                      [&]() noexcept {
                          if constexpr (Parts::performance_type::enabled) {
                              auto sums = parts.performance.sums(parts.attachments);
                              parts.performance.monitor().settle(sums);
                          }
                          state_writer writer{out};
                          visit_state(parts, writer);
                          if (writer.bytes() > out.size()) {
                              written = host_error::state_does_not_fit(writer.bytes());
                              return;
                          }
                          writer.finish(state_fingerprint<Parts::F>());
                          written = writer.bytes();
                      });
    if (!waited) return fail(waited);
    return written;
}

/// See smmu::restore(). Everything is checked first.
template <class Parts>
[[nodiscard]] result<> restore_state(Parts& parts, std::span<const std::byte> state) noexcept {
    if (!parts.is_initialized()) return host_error::not_initialized();
    if (const result<> sound = saved_state::check_header(state, state_fingerprint<Parts::F>());
        !sound) {
        return sound;
    }
    {
        const auto held = parts.lock();
        state_reader check{state, state_reader::purpose::check};
        visit_state(parts, check);
        if (const result<> sound = check.finish(); !sound) return sound;
    }
    return parts.waiting(
        [&]() noexcept -> result<> {
            parts.control.begin_reset(parts.execute_by());
            parts.settle_stalls();
            return {};
        },
        [&]() noexcept {
            parts.control.finish_reset(parts.execute_by());
            state_reader load{state, state_reader::purpose::load};
            visit_state(parts, load);
            if constexpr (Parts::performance_type::enabled) {
                auto sums = parts.performance.sums(parts.attachments);
                parts.performance.monitor().rebase(sums);
            }
            parts.control.restored(parts.execute_by());
            parts.settle_stalls();
        });
}

} // namespace vm_accel::inline v0
