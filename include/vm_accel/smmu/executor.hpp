/// What commands and registers set in motion outside the control plane.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/smmu/control/command_executor.hpp>
#include <vm_accel/smmu/control/effects.hpp>
#include <vm_accel/smmu/host/attachment.hpp>
#include <vm_accel/smmu/translation/address_translation.hpp>
#include <vm_accel/smmu/translation/counted_memory.hpp>
#include <vm_accel/smmu/vocabulary/access.hpp>
#include <vm_accel/smmu/vocabulary/outcome.hpp>

#include <algorithm>
#include <cstdint>
#include <utility>

namespace vm_accel::inline v0 {

/// A command_executor on the parts of one SMMU (see smmu_assembly), which it
/// refers to for the time of one call.
template <class Parts>
class executor {
    static constexpr auto F = Parts::F;

public:
    explicit executor(Parts& parts) noexcept : parts_(parts) {}

    void forget_streams(std::uint32_t first, std::uint32_t last) noexcept {
        parts_.attachments.empty_slots(parts_.configurations, first, last);
    }
    void forget_context(const command_action& action) noexcept {
        parts_.attachments.empty_slots(parts_.configurations, action.first_stream,
                                       action.last_stream, action.substream);
    }

    void forget_partitions(const command_action& action) noexcept {
        parts_.attachments.empty_slots_of(parts_.configurations, action.scope.tag.vm);
    }

    /// No more than a few translations: the rest of a large request is worth
    /// less than the time that it takes (4.2.2).
    void prefetch(const command_action& action) noexcept {
        constexpr std::uint64_t most = 32;
        auto* const record = parts_.attachments.find(action.stream());
        if (record == nullptr) return;
        transaction asked;
        asked.has_substream = action.has_substream;
        asked.substream = action.substream;
        asked.length = 0; // the configuration only
        const auto registers = [this] { return parts_.stream_registers(); };
        look_up_cost cost;
        parts_.translate_by().prefetch(record->subject, record->slot_for(asked), asked, registers,
                                       cost);
        asked.length = 1;
        for (std::uint64_t i = 0; i < std::min(action.pages, most); ++i) {
            asked.address = iova{action.first + (i << action.stride_log2)};
            parts_.translate_by().prefetch(record->subject, record->slot_for(asked), asked,
                                           registers, cost);
        }
        record->finished += cost;
    }

    /// A device without an ATC is not told: it has nothing to forget.
    [[nodiscard]] effects invalidate_atc(const command_action& action) noexcept {
        if (ats_endpoint* const device = endpoint(action.stream())) {
            device->invalidate({.first = action.first,
                                .last = action.last,
                                .has_substream = action.has_substream,
                                .global = action.global,
                                .substream = action.substream});
        }
        return {};
    }
    /// A command of a secure queue for the non-secure state; false = illegal there.
    [[nodiscard]] bool pass_on(const spec::command& command) noexcept {
        return parts_.other_state.pass_on(command);
    }
    [[nodiscard]] atc_progress atc() noexcept {
        if constexpr (F.state == security_state::secure) {
            return parts_.other_state.settled() ? atc_progress::done : atc_progress::pending;
        }
        bool failed = false;
        bool pending = false;
        if constexpr (F.ats) {
            parts_.attachments.for_each([&](const attachment_record& record) {
                if (record.ats == nullptr) return;
                failed = record.ats->take_failure() || failed;
                pending = record.ats->owes() || pending;
            });
        }
        return failed ? atc_progress::failed : pending ? atc_progress::pending : atc_progress::done;
    }
    [[nodiscard]] effects answer_pages(const command_action& action) noexcept {
        if (ats_endpoint* const device = endpoint(action.stream())) {
            device->respond({.group = action.tag,
                             .code = action.response == 2   ? page_response_code::success
                                     : action.response == 1 ? page_response_code::invalid_request
                                                            : page_response_code::failure,
                             .has_substream = action.has_substream,
                             .substream = action.substream});
        }
        return {};
    }

    [[nodiscard]] effects resume(const command_action& action) noexcept {
        if constexpr (F.stalls) {
            parts_.stalls.resume(action.stream(), action.tag,
                                 action.retry   ? stall_decision::retry
                                 : action.abort ? stall_decision::aborted
                                                : stall_decision::terminated);
        }
        return {};
    }
    [[nodiscard]] effects terminate_stalls(const command_action& action) noexcept {
        if constexpr (F.stalls) parts_.stalls.abort(action.stream());
        return {};
    }
    [[nodiscard]] bool settle_events(effects& out) noexcept {
        if (parts_.events.is_settled()) return true;
        out |= parts_.drain_events();
        if (std::exchange(out.drain_events, false)) out.wake_poll = true;
        return parts_.events.is_settled();
    }
    void smmu_disabled() noexcept {
        if constexpr (F.stalls) parts_.stalls.abort_all();
    }
    /// Answers at once, so that nobody sees RUN at 1.
    void run_atos() noexcept {
        if constexpr (Parts::F.atos) {
            const auto pending = parts_.registers.atos().pending();
            if (!pending) return;
            const auto asked = address_translation_request::from(pending->sid, pending->address);
            const stream_table_registers registers = parts_.stream_registers();
            counted_memory counted{parts_.own_memory()};
            guest_tables structures{counted, !asked.updates_inhibited};
            guest_tables tables{parts_.own_memory(), !asked.updates_inhibited};
            address_translation<Parts::F, decltype(structures), decltype(tables)> operation{
                structures, tables, registers};
            parts_.registers.atos().finish(operation.run(asked));
            if (auto* const record = parts_.attachments.find(asked.stream)) {
                record->finished += look_up_cost{.configuration_accesses = counted.accesses(),
                                                 .walk_accesses = tables.accesses()};
            }
        }
    }

private:
    [[nodiscard]] ats_endpoint* endpoint(stream_id stream) noexcept {
        if constexpr (F.ats) {
            const attachment_record* const record = parts_.attachments.find(stream);
            if (record != nullptr) return record->ats.get();
        }
        return nullptr;
    }

    Parts& parts_;
};

} // namespace vm_accel::inline v0
