/// The library's SMMU as the device that a replay judges.
#pragma once

#include "page_memory.hpp"
#include "replay.hpp"

#include <vm_accel/smmu/caches/replacement.hpp>
#include <vm_accel/smmu/caches/set_associative.hpp>
#include <vm_accel/smmu/host/bitmap_streams.hpp>
#include <vm_accel/smmu/smmu.hpp>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>

namespace replay {

/// 4096 cached translations: more than a session's t lines, so that a stale one
/// is never lost by chance.
template <class TlbPolicy = set_associative<512, 8>>
class smmu_device {
public:
    explicit smmu_device(page_memory& memory) : device_(memory, sink_) {}

    [[nodiscard]] result<> init() { return device_.init(); }

    void write(std::uint64_t offset, unsigned size, std::uint64_t value) {
        device_.mmio_write(offset, size, value);
    }
    [[nodiscard]] std::uint64_t read(std::uint64_t offset, unsigned size) {
        return device_.mmio_read(offset, size);
    }
    [[nodiscard]] bool poll() { return device_.poll(); }

    /// The device may reach all of memory: only the recorded tables decide.
    [[nodiscard]] bool attach(stream_id sid) {
        const std::string name = "stream " + hex(raw(sid));
        const pa_range everywhere{pa{0}, std::uint64_t{1} << 52};
        if (!device_.attach_device(name, everywhere, sid)) return false;
        auto port = device_.make_port(name);
        if (!port) return false;
        ports_.emplace(raw(sid), std::move(*port));
        return true;
    }

    [[nodiscard]] std::optional<pa> access(stream_id sid, iova address, vm_accel::access kind) {
        auto guard = ports_.at(raw(sid)).open();
        const outcome o = guard.translate(address, 1, kind);
        if (o.is_fault() || o.is_stalled()) return std::nullopt;
        return o.address();
    }

    [[nodiscard]] smmu_statistics stats() const { return device_.stats(); }

private:
    using device_type = vm_accel::smmu<TlbPolicy, bitmap_streams<65536>, page_memory>;

    counting_sink sink_;
    device_type device_;
    std::map<std::uint32_t, typename device_type::port> ports_;
};

} // namespace replay
