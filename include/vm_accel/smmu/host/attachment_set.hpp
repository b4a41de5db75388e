/// All devices behind one SMMU.
///
/// A device is found by its StreamID with one look into a map over all
/// StreamIDs: 8 bytes each, of which only the pages that hold an attached one
/// cost memory. By name it is found through a hash.
#pragma once

#include <vm_accel/os/reserved_array.hpp>
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

    /// Before anything is attached: StreamIDs are below `streams`. False = out of
    /// memory; may be tried again.
    [[nodiscard]] bool allocate(std::uint64_t streams) noexcept {
        by_name_.reset(new (std::nothrow) attachment_record*[names]());
        return by_name_ != nullptr && by_stream_.reserve(static_cast<std::size_t>(streams));
    }

    /// The attached device of that name, or null.
    [[nodiscard]] attachment_record* find(std::string_view device_id) const noexcept {
        if (by_name_ == nullptr) return nullptr;
        attachment_record* r = by_name_[hash(device_id)];
        while (r != nullptr && r->device_id != device_id)
            r = r->next_of_name;
        return r;
    }
    /// The attached device with that StreamID, or null.
    [[nodiscard]] attachment_record* find(stream_id stream) const noexcept {
        return raw(stream) < by_stream_.size() ? by_stream_[raw(stream)] : nullptr;
    }

    /// False = out of memory, and nothing has changed. Neither the name nor the
    /// StreamID is attached already. `substream_slots` is 0 or a power of two.
    [[nodiscard]] bool attach(std::string_view device_id, pa_range window, stream_id stream,
                              attach_options options, std::size_t substream_slots = 0) noexcept {
        if (raw(stream) >= by_stream_.size()) return false;
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
        record->previous = last_;
        record->next_of_name = std::exchange(by_name_[hash(device_id)], record.get());
        by_stream_[raw(stream)] = record.get();
        std::unique_ptr<attachment_record>& end = last_ == nullptr ? first_ : last_->next;
        last_ = record.get();
        end = std::move(record);
        ++attached_;
        return true;
    }

    /// Marks a device detached and empties its slot; a configuration decoded
    /// before can no longer be published.
    void detach(attachment_record& record, configuration_cache& configurations) noexcept {
        record.subject.detached.store(true, std::memory_order_seq_cst);
        if (record.ats != nullptr) record.ats->clear();
        empty_all(configurations, record);
        by_stream_[raw(record.subject.stream)] = nullptr;
        attachment_record** at = &by_name_[hash(record.device_id.view())];
        while (*at != &record)
            at = &(*at)->next_of_name;
        *at = record.next_of_name;
        --attached_;
        forget_if_unused(record);
    }
    void release_port(attachment_record& record) noexcept {
        --record.ports;
        forget_if_unused(record);
    }

    /// Empties the configuration slots of StreamIDs [first, last]: all of them,
    /// or those that may have been made from one CD. CD 0 also serves accesses
    /// without a SubstreamID. A detached device's are empty and stay so.
    void empty_slots(configuration_cache& configurations, std::uint32_t first, std::uint32_t last,
                     std::optional<substream_id> context = {}) noexcept {
        if (last - first < attached_) {
            for (std::uint64_t stream = first; stream <= last; ++stream) {
                attachment_record* const r = find(stream_id{static_cast<std::uint32_t>(stream)});
                if (r != nullptr) empty_slots(configurations, *r, context);
            }
            return;
        }
        for (attachment_record* r = first_.get(); r != nullptr; r = r->next.get()) {
            const std::uint32_t stream = raw(r->subject.stream);
            if (first <= stream && stream <= last) empty_slots(configurations, *r, context);
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

    [[nodiscard]] std::size_t attached() const noexcept { return attached_; }
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
    /// FNV-1a.
    [[nodiscard]] static std::size_t hash(std::string_view name) noexcept {
        std::uint32_t value = 0x811c'9dc5;
        for (const char c : name)
            value = (value ^ static_cast<unsigned char>(c)) * 0x0100'0193;
        return (value ^ value >> 16) % names;
    }
    static void empty_slots(configuration_cache& configurations, attachment_record& r,
                            std::optional<substream_id> context) noexcept {
        if (!context || r.substream_slots == nullptr) {
            empty_all(configurations, r);
            return;
        }
        if (raw(*context) == 0) configurations.empty(r.slot);
        configurations.empty(r.substream_slots[raw(*context) & r.substream_mask]);
    }
    template <class Visit>
    static void for_each_slot(attachment_record& record, Visit&& visit) noexcept {
        visit(record.slot);
        if (record.substream_slots == nullptr) return;
        for (std::size_t i = 0; i <= record.substream_mask; ++i)
            visit(record.substream_slots[i]);
    }
    static void empty_all(configuration_cache& configurations, attachment_record& record) noexcept {
        configurations.empty(record.slot);
        if (record.substream_slots == nullptr || !record.subject.take_substreams()) return;
        for (std::size_t i = 0; i <= record.substream_mask; ++i)
            configurations.empty(record.substream_slots[i]);
    }
    void forget_if_unused(attachment_record& record) noexcept {
        if (is_attached(record) || record.ports != 0) return;
        if (record.next != nullptr) record.next->previous = record.previous;
        if (last_ == &record) last_ = record.previous;
        auto& place = record.previous == nullptr ? first_ : record.previous->next;
        const std::unique_ptr<attachment_record> gone = std::move(place);
        place = std::move(record.next);
    }

    static constexpr std::size_t names = 1024;

    /// A list that owns its records: attaching can fail without an exception.
    std::unique_ptr<attachment_record> first_;
    attachment_record* last_ = nullptr;
    std::unique_ptr<attachment_record*[]> by_name_;    ///< attached ones, by hash
    os::reserved_array<attachment_record*> by_stream_; ///< attached ones
    std::size_t attached_ = 0;
};

} // namespace vm_accel::inline v0
