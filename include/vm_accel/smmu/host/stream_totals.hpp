/// What each stream's devices have done: the ports' counters, by attachment.
#pragma once

#include <vm_accel/smmu/host/attachment.hpp>
#include <vm_accel/smmu/vocabulary/statistics.hpp>

#include <cstddef>
#include <memory>
#include <new>

namespace vm_accel::inline v0 {

/// A port's counters outlive the port and serve the next one; here it is
/// remembered who owns them and where they stood when it took them over.
/// Threads: all under the control lock, while ports count.
class stream_totals {
public:
    /// False = out of memory.
    [[nodiscard]] bool allocate(std::size_t ports) noexcept {
        shares_.reset(new (std::nothrow) share[ports]);
        size_ = ports;
        return shares_ != nullptr;
    }
    void claimed(std::size_t place, const attachment_record& owner,
                 const port_counters& counters) noexcept {
        shares_[place] = {&owner, &counters, event_totals::from(counters)};
    }
    /// What the port has done stays with the attachment.
    void released(std::size_t place, attachment_record& owner) noexcept {
        owner.finished += since_claimed(place);
        shares_[place].owner = nullptr;
    }
    /// What all ports of today have done, for streams that the filter matches.
    [[nodiscard]] event_totals of_ports(const stream_filter& filter) const noexcept {
        event_totals total;
        for (std::size_t i = 0; i < size_; ++i) {
            const attachment_record* const owner = shares_[i].owner;
            if (owner != nullptr && filter.matches(raw(owner->subject.stream))) {
                total += since_claimed(i);
            }
        }
        return total;
    }

private:
    struct share {
        const attachment_record* owner = nullptr;
        const port_counters* counters = nullptr;
        event_totals start{};
    };
    [[nodiscard]] event_totals since_claimed(std::size_t place) const noexcept {
        event_totals now = event_totals::from(*shares_[place].counters);
        now -= shares_[place].start;
        return now;
    }

    std::unique_ptr<share[]> shares_;
    std::size_t size_ = 0;
};

} // namespace vm_accel::inline v0
