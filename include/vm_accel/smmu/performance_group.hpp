/// An SMMU's performance monitor and the sums behind it.
#pragma once

#include <vm_accel/core/field.hpp>
#include <vm_accel/guest/interrupt_sink.hpp>
#include <vm_accel/smmu/control/id_registers.hpp>
#include <vm_accel/smmu/control/performance_monitor.hpp>
#include <vm_accel/smmu/host/attachment_set.hpp>
#include <vm_accel/smmu/host/stream_totals.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>

namespace vm_accel::inline v0 {

/// The sums that a counter group reads: of ports that are, and of ports that were.
class attachment_sums {
public:
    attachment_sums(const attachment_set& attachments, const stream_totals& ports) noexcept
        : attachments_(attachments), ports_(ports) {}

    [[nodiscard]] event_totals totals(const stream_filter& filter) noexcept {
        event_totals total = ports_.of_ports(filter);
        attachments_.for_each([&](const attachment_record& record) {
            if (filter.matches(raw(record.subject.stream))) total += record.finished;
        });
        return total;
    }
    /// A clock of 1 GHz.
    [[nodiscard]] std::uint64_t clock() noexcept {
        const auto now = std::chrono::steady_clock::now().time_since_epoch();
        return static_cast<std::uint64_t>(
            std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
    }

private:
    const attachment_set& attachments_;
    const stream_totals& ports_;
};

/// Keeps the books of one SMMU. Threads: all under its control lock.
template <smmu_features F>
class performance_group {
public:
    static constexpr bool enabled = true;
    using monitor_type =
        performance_monitor<performance_monitor_shape{.counters = F.performance_counters,
                                                      .stream_bits = F.stream_bits,
                                                      .ats = F.ats,
                                                      .msi = F.msi,
                                                      .aidr = id_registers<F>::release()}>;

    [[nodiscard]] bool allocate(std::size_t ports) noexcept { return ports_.allocate(ports); }
    void claimed(std::size_t place, const attachment_record& owner,
                 const port_counters& counters) noexcept {
        ports_.claimed(place, owner, counters);
    }
    void released(std::size_t place, attachment_record& owner) noexcept {
        ports_.released(place, owner);
    }
    /// The record is about to go, and its sums with it.
    void leaving(const attachment_record& record) noexcept {
        monitor_.forget(raw(record.subject.stream), record.finished);
    }
    /// The registers; the books go on.
    void reset() noexcept { monitor_.reset(); }
    [[nodiscard]] monitor_type& monitor() noexcept { return monitor_; }
    [[nodiscard]] attachment_sums sums(const attachment_set& attachments) const noexcept {
        return {attachments, ports_};
    }

private:
    stream_totals ports_;
    monitor_type monitor_;
};

/// Without counters there are no books.
template <smmu_features F>
    requires(F.performance_counters == 0)
class performance_group<F> {
public:
    static constexpr bool enabled = false;
    [[nodiscard]] static bool allocate(std::size_t) noexcept { return true; }
    static void claimed(std::size_t, const attachment_record&, const port_counters&) noexcept {}
    static void released(std::size_t, attachment_record&) noexcept {}
    static void leaving(const attachment_record&) noexcept {}
    static void reset() noexcept {}
};

/// Runs use(monitor, sums) on the monitor of an SMMU, then tells of an overflow.
template <class Parts, class Use>
void use_performance_monitor(Parts& parts, Use&& use) noexcept {
    if (!parts.is_initialized()) return;
    typename Parts::performance_type::monitor_type::interrupt told;
    {
        const auto held = parts.lock();
        attachment_sums sums = parts.performance.sums(parts.attachments);
        auto& monitor = parts.performance.monitor();
        use(monitor, sums);
        told = monitor.take_interrupt();
        // To memory under the lock, because memory goes away under it only.
        const le32 data{told.message.data};
        if (told.message && parts.own_memory().write(pa{told.message.address},
                                                     std::as_bytes(std::span{&data, 1}))) {
            told.message = {};
        }
    }
    if (!told.wanted() || parts.injection.drops(wired_interrupt::performance)) return;
    if (told.wired) {
        parts.interrupts.fetch_add(1, std::memory_order_relaxed);
        parts.sink->pulse(wired_interrupt::performance);
    } else if (!parts.sink->signal_msi(Parts::message_requester, pa{told.message.address},
                                       told.message.data)) {
        const auto held = parts.lock();
        parts.performance.monitor().message_aborted();
    }
}

/// A counter group as a device that the VMM maps: `mmio_size` bytes where the
/// node of the device tree (arm,smmu-v3-pmcg) or the IORT says. `Parts` is the
/// SMMU's assembly. Threads: any, and no access waits for a device.
template <class Parts>
class performance_registers {
public:
    static constexpr std::uint64_t mmio_size = Parts::performance_type::monitor_type::window_size;

    explicit performance_registers(Parts& parts) noexcept : parts_(&parts) {}

    [[nodiscard]] std::uint64_t mmio_read(std::uint64_t offset, unsigned size) noexcept {
        std::uint64_t value = 0;
        use_performance_monitor(
            *parts_, [&](auto& monitor, auto& sums) { value = monitor.read(offset, size, sums); });
        return value;
    }
    void mmio_write(std::uint64_t offset, unsigned size, std::uint64_t value) noexcept {
        use_performance_monitor(
            *parts_, [&](auto& monitor, auto& sums) { monitor.write(offset, size, value, sums); });
    }

private:
    Parts* parts_;
};

} // namespace vm_accel::inline v0
