/// All devices behind one SMMU.
#pragma once

#include <vm_accel/smmu/caches/configuration_cache.hpp>
#include <vm_accel/smmu/host/attachment.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <string_view>
#include <vector>

namespace vm_accel::inline v0 {

/// Threads: serialised by the SMMU's control lock. Records do not move; device
/// threads use theirs without the lock.
class attachment_set {
public:
    /// The attached device of that name, or null.
    [[nodiscard]] attachment_record* find(std::string_view device_id) const noexcept {
        for (const auto& record : records_) {
            if (is_attached(*record) && record->device_id == device_id) return record.get();
        }
        return nullptr;
    }
    /// The attached device with that StreamID, or null.
    [[nodiscard]] attachment_record* find(stream_id stream) const noexcept {
        for (const auto& record : records_) {
            if (is_attached(*record) && record->subject.stream == stream) return record.get();
        }
        return nullptr;
    }

    /// False = out of memory, and nothing has changed.
    [[nodiscard]] bool attach(std::string_view device_id, pa_range window, stream_id stream,
                              attach_options options) noexcept {
        std::unique_ptr<attachment_record> record{new (std::nothrow) attachment_record};
        if (!record || !make_room()) return false;
        record->device_id = device_name{device_id};
        record->subject.stream = stream;
        record->subject.window = window;
        record->subject.managed = options.managed;
        records_.push_back(std::move(record));
        return true;
    }

    /// Marks a device detached and empties its slot; a configuration decoded
    /// before can no longer be published.
    void detach(attachment_record& record, configuration_cache& configurations) noexcept {
        record.subject.detached.store(true, std::memory_order_seq_cst);
        configurations.empty(record.slot);
        forget_if_unused(record);
    }
    void release_port(attachment_record& record) noexcept {
        --record.ports;
        forget_if_unused(record);
    }

    /// Empties the configuration slots of StreamIDs [first, last].
    void empty_slots(configuration_cache& configurations, std::uint32_t first,
                     std::uint32_t last) noexcept {
        for (const auto& record : records_) {
            const std::uint32_t stream = raw(record->subject.stream);
            if (first <= stream && stream <= last) configurations.empty(record->slot);
        }
    }

    [[nodiscard]] std::size_t attached() const noexcept {
        return static_cast<std::size_t>(std::count_if(
            records_.begin(), records_.end(), [](const auto& r) { return is_attached(*r); }));
    }
    [[nodiscard]] std::vector<attachment_info> list() const {
        std::vector<attachment_info> all;
        for (const auto& record : records_) {
            if (is_attached(*record)) all.push_back(record->info());
        }
        return all;
    }

private:
    [[nodiscard]] static bool is_attached(const attachment_record& record) noexcept {
        return !record.subject.detached.load(std::memory_order_relaxed);
    }
    void forget_if_unused(attachment_record& record) noexcept {
        if (is_attached(record) || record.ports != 0) return;
        std::erase_if(records_, [&](const auto& r) { return r.get() == &record; });
    }
    /// Room for one more record, without an exception that escapes.
    [[nodiscard]] bool make_room() noexcept {
        if (records_.size() < records_.capacity()) return true;
#if defined(__cpp_exceptions)
        try {
            records_.reserve(records_.size() * 2 + 8);
        } catch (...) {
            return false;
        }
#else
        records_.reserve(records_.size() * 2 + 8);
#endif
        return true;
    }

    std::vector<std::unique_ptr<attachment_record>> records_;
};

} // namespace vm_accel::inline v0
