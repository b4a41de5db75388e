/// What PCIe devices do besides reading and writing: translation requests, page
/// requests, and a cache of their own that they are told to empty.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/smmu/host/attachment.hpp>
#include <vm_accel/smmu/vocabulary/access.hpp>
#include <vm_accel/smmu/vocabulary/access_attributes.hpp>
#include <vm_accel/smmu/vocabulary/ats.hpp>
#include <vm_accel/smmu/vocabulary/fault.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/smmu/vocabulary/page_request.hpp>

#include <atomic>
#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// Part of dma_port, whose rules hold here too.
template <class Port, smmu_features F>
class pcie_port {
public:
    /// Tells the guest's driver what the device will soon access: a hint that asks
    /// for no answer and may get lost (E_PAGE_REQUEST, 3.12.4.1). At most 255
    /// pages are told.
    void announce(iova address, std::uint64_t length, access kind,
                  access_attributes attributes = {}) noexcept {
        translation_fault hint;
        hint.event = spec::event_id::E_PAGE_REQUEST;
        hint.stream = self().stream();
        hint.access_made = {address, length, kind, attributes.privileged, attributes.instruction};
        hint.substream = attributes.substream;
        hint.substream_valid = attributes.has_substream;
        const translation_subject& subject = self().attachment_->subject;
        if (!is_sound(hint.access_made.address, hint.access_made.length) || subject.managed ||
            subject.detached.load(std::memory_order_acquire)) {
            return;
        }
        const auto held = self().open();
        self().device_->settle_guard();
        self().pending_ |= self().device_->record(hint);
        self().slot_->note_effects();
    }

    /// Asks for a translation to keep (PCIe ATS). Of a device that was attached
    /// without `ats`: unsupported. Bytes beyond the answer's piece: ask again.
    [[nodiscard]] ats_completion ats_translate(const ats_request& asked) noexcept
        requires(F.ats)
    {
        if (self().attachment_->ats == nullptr) return {};
        const auto held = self().open();
        self().device_->settle_guard();
        translation_fault fault;
        self().slot_->counters.ats_requests.add();
        const ats_completion answer = self().device_->ats_translate(*self().attachment_, asked,
                                                                    self().slot_->counters, fault);
        if (fault.has_event()) {
            self().pending_ |= self().device_->record(fault);
            self().slot_->note_effects();
        }
        return answer;
    }
    /// The next thing to forget, or nothing. When no access uses it any more, say
    /// so with invalidated(): the guest's CMD_SYNC waits for that.
    [[nodiscard]] std::optional<atc_invalidation> next_invalidation() noexcept
        requires(F.ats)
    {
        if (self().attachment_->ats == nullptr) return std::nullopt;
        return self().attachment_->ats->next_invalidation();
    }
    /// Also when the device refused it as unsupported (3.9.1.5).
    void invalidated(std::uint32_t token) noexcept
        requires(F.ats)
    {
        acknowledge(token, true);
    }
    /// The device did not answer in time: the guest's CMD_SYNC ends with
    /// CERROR_ATC_INV_SYNC (3.9.1.4).
    void invalidation_failed(std::uint32_t token) noexcept
        requires(F.ats)
    {
        acknowledge(token, false);
    }
    /// Asks the guest's driver for a page (PCIe PRI). Takes the SMMU's lock for a
    /// moment: call it with no guard open.
    void request_page(const page_request& asked) noexcept
        requires(F.pri)
    {
        if (self().attachment_->ats != nullptr)
            self().device_->request_page(*self().attachment_, asked);
    }
    /// The next answer to a group of page requests, or nothing.
    [[nodiscard]] std::optional<page_response> next_page_response() noexcept
        requires(F.pri)
    {
        if (self().attachment_->ats == nullptr) return std::nullopt;
        return self().attachment_->ats->next_response();
    }
    /// Counts invalidations and responses as they come; wait_for_news() waits,
    /// with no guard open, while the count is `seen`. A detach counts too.
    [[nodiscard]] std::uint32_t news() const noexcept
        requires(F.ats)
    {
        return self().attachment_->ats == nullptr ? 0 : self().attachment_->ats->news();
    }
    void wait_for_news(std::uint32_t seen) const noexcept
        requires(F.ats)
    {
        if (self().attachment_->ats != nullptr) self().attachment_->ats->wait(seen);
    }
    /// Ends wait_for_news() in every thread that waits for this device, as news
    /// does: for one that is to stop. Any thread.
    void wake() noexcept
        requires(F.ats)
    {
        if (self().attachment_->ats != nullptr) self().attachment_->ats->wake();
    }

private:
    friend Port;
    pcie_port() noexcept = default;

    void acknowledge(std::uint32_t token, bool done) noexcept {
        if (self().attachment_->ats == nullptr ||
            !self().attachment_->ats->acknowledge(token, done))
            return;
        self().pending_.drain_commands = true;
        self().slot_->note_effects();
        self().act(); // when the outermost guard closes, if there is one
    }

    [[nodiscard]] Port& self() noexcept { return static_cast<Port&>(*this); }
    [[nodiscard]] const Port& self() const noexcept { return static_cast<const Port&>(*this); }
};

} // namespace vm_accel::inline v0
