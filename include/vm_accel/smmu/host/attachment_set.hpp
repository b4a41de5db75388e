/// All devices behind one SMMU.
#pragma once

#include <vm_accel/smmu/caches/configuration_cache.hpp>
#include <vm_accel/smmu/host/attachment.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

namespace vm_accel::inline v0 {

/// Threads: serialised by the SMMU's control lock. Records do not move; device
/// threads use theirs without the lock.
class attachment_set {
public:
    attachment_set() = default;
    attachment_set(const attachment_set&) = delete;
    attachment_set& operator=(const attachment_set&) = delete;
    ~attachment_set() {
        while (first_ != nullptr)
            first_ = std::move(first_->next);
    }

    /// The attached device of that name, or null.
    [[nodiscard]] attachment_record* find(std::string_view device_id) const noexcept {
        return find_if([&](const attachment_record& r) { return r.device_id == device_id; });
    }
    /// The attached device with that StreamID, or null.
    [[nodiscard]] attachment_record* find(stream_id stream) const noexcept {
        return find_if([&](const attachment_record& r) { return r.subject.stream == stream; });
    }

    /// False = out of memory, and nothing has changed. `substream_slots` is 0
    /// or a power of two.
    [[nodiscard]] bool attach(std::string_view device_id, pa_range window, stream_id stream,
                              attach_options options, std::size_t substream_slots = 0) noexcept {
        std::unique_ptr<attachment_record> record{new (std::nothrow) attachment_record};
        if (!record) return false;
        if (substream_slots != 0) {
            record->substream_slots.reset(new (std::nothrow) configuration_slot[substream_slots]);
            if (!record->substream_slots) return false;
            record->substream_mask = static_cast<std::uint32_t>(substream_slots - 1);
        }
        if (options.ats) {
            record->ats.reset(new (std::nothrow) ats_endpoint);
            if (!record->ats) return false;
        }
        record->device_id = device_name{device_id};
        record->subject.stream = stream;
        record->subject.window = window;
        record->subject.managed = options.managed;
        record->subject.incoming = options.incoming;
        std::unique_ptr<attachment_record>* end = &first_;
        while (*end != nullptr)
            end = &(*end)->next;
        *end = std::move(record);
        return true;
    }

    /// Marks a device detached and empties its slot; a configuration decoded
    /// before can no longer be published.
    void detach(attachment_record& record, configuration_cache& configurations) noexcept {
        record.subject.detached.store(true, std::memory_order_seq_cst);
        if (record.ats != nullptr) record.ats->clear();
        empty_all(configurations, record);
        forget_if_unused(record);
    }
    void release_port(attachment_record& record) noexcept {
        --record.ports;
        forget_if_unused(record);
    }

    /// Empties the configuration slots of StreamIDs [first, last]: all of them,
    /// or those that may have been made from one CD. CD 0 also serves accesses
    /// without a SubstreamID.
    void empty_slots(configuration_cache& configurations, std::uint32_t first, std::uint32_t last,
                     std::optional<substream_id> context = {}) noexcept {
        for (attachment_record* r = first_.get(); r != nullptr; r = r->next.get()) {
            const std::uint32_t stream = raw(r->subject.stream);
            if (stream < first || last < stream) continue;
            if (!context || r->substream_slots == nullptr) {
                empty_all(configurations, *r);
                continue;
            }
            if (raw(*context) == 0) configurations.empty(r->slot);
            configurations.empty(r->substream_slots[raw(*context) & r->substream_mask]);
        }
    }
    /// Empties the slots that may hold something of a VMID (CMD_CFGI_VMS_PIDM).
    void empty_slots_of(configuration_cache& configurations, vmid vm) noexcept {
        const auto visit = [&](configuration_slot& slot) noexcept {
            // An empty slot may be filled at this moment, with anything.
            const stream_configuration* current = slot.get();
            if (current == nullptr || current->identity.tag.vm == vm) configurations.empty(slot);
        };
        for (attachment_record* r = first_.get(); r != nullptr; r = r->next.get())
            for_each_slot(*r, visit);
    }

    /// Calls visit(record) for each record, detached ones included.
    template <class Visit>
    void for_each(Visit&& visit) const noexcept {
        for (const attachment_record* r = first_.get(); r != nullptr; r = r->next.get())
            visit(*r);
    }

    [[nodiscard]] std::size_t attached() const noexcept {
        std::size_t count = 0;
        for (const attachment_record* r = first_.get(); r != nullptr; r = r->next.get()) {
            if (is_attached(*r)) ++count;
        }
        return count;
    }
    /// In the order in which they were attached.
    [[nodiscard]] std::vector<attachment_info> list() const {
        std::vector<attachment_info> all;
        for (const attachment_record* r = first_.get(); r != nullptr; r = r->next.get()) {
            if (is_attached(*r)) all.push_back(r->info());
        }
        return all;
    }

private:
    [[nodiscard]] static bool is_attached(const attachment_record& record) noexcept {
        return !record.subject.detached.load(std::memory_order_relaxed);
    }
    template <class Predicate>
    [[nodiscard]] attachment_record* find_if(Predicate matches) const noexcept {
        for (attachment_record* r = first_.get(); r != nullptr; r = r->next.get()) {
            if (is_attached(*r) && matches(*r)) return r;
        }
        return nullptr;
    }
    template <class Visit>
    static void for_each_slot(attachment_record& record, Visit&& visit) noexcept {
        visit(record.slot);
        if (record.substream_slots == nullptr) return;
        for (std::size_t i = 0; i <= record.substream_mask; ++i)
            visit(record.substream_slots[i]);
    }
    static void empty_all(configuration_cache& configurations, attachment_record& record) noexcept {
        for_each_slot(record,
                      [&](configuration_slot& slot) noexcept { configurations.empty(slot); });
    }
    void forget_if_unused(attachment_record& record) noexcept {
        if (is_attached(record) || record.ports != 0) return;
        std::unique_ptr<attachment_record>* at = &first_;
        while (at->get() != &record)
            at = &(*at)->next;
        *at = std::move(record.next);
    }

    /// A list that owns its records: attaching can fail without an exception.
    std::unique_ptr<attachment_record> first_;
};

} // namespace vm_accel::inline v0
