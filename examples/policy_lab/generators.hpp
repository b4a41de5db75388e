/// Traces that no machine has made: the shapes that decide between policies.
#pragma once

#include "trace.hpp"

#include <algorithm>
#include <cstdint>
#include <random>
#include <string_view>
#include <utility>
#include <vector>

namespace policy_lab {

/// Makes traces, the same ones on every machine.
class generator {
public:
    /// The names, in the order in which they are shown.
    static constexpr std::string_view names[] = {"streaming", "strided",   "zipf",
                                                 "rings",     "neighbour", "many-devices"};

    /// A trace of at least `accesses` accesses; empty: no such name.
    [[nodiscard]] static trace make(std::string_view name, std::uint64_t accesses) {
        generator g;
        g.made_.name = name;
        if (name == "streaming") {
            g.stream(accesses);
        } else if (name == "strided") {
            g.stride(accesses);
        } else if (name == "zipf") {
            g.zipf(accesses);
        } else if (name == "rings") {
            g.rings(accesses);
        } else if (name == "neighbour") {
            g.neighbour(accesses);
        } else if (name == "many-devices") {
            g.many_devices(accesses);
        }
        return std::move(g.made_);
    }

private:
    static constexpr std::uint64_t page = 0x1000;

    /// Its accesses to one context: a device with ASID `device` from 1 on.
    void from(std::uint32_t device) {
        if (device == now_) return;
        now_ = device;
        trace_record r;
        r.stream = device;
        made_.records.push_back(r);
        if (std::find(known_.begin(), known_.end(), device) != known_.end()) return;
        known_.push_back(device);
        r.what = trace_record::kind::page; // so that the device has its ASID
        r.tag.space = vm_accel::asid{static_cast<std::uint16_t>(device)};
        made_.records.push_back(r);
    }
    void map(std::uint64_t address, std::uint64_t bytes) {
        for (const std::uint64_t end = address + bytes; address < end; address += page) {
            trace_record r{.what = trace_record::kind::page};
            r.address = address;
            r.tag.space = vm_accel::asid{static_cast<std::uint16_t>(now_)};
            made_.records.push_back(r);
        }
    }
    void access(std::uint64_t address, std::uint64_t bytes = 64) {
        trace_record r{.what = trace_record::kind::read};
        r.address = address;
        r.bytes = bytes;
        made_.records.push_back(r);
    }
    [[nodiscard]] std::uint64_t below(std::uint64_t end) { return random_() % end; }
    [[nodiscard]] double share() { return static_cast<double>(random_() >> 11) * 0x1p-53; }

    /// A network card: a few pages of descriptors again and again, and between
    /// them buffers of 4 KiB that never come back, mapped 64 before their use.
    void stream(std::uint64_t accesses) {
        from(1);
        map(0x1000'0000, 33 * page);
        map(0x2000'0000, 64 * page);
        for (std::uint64_t i = 0; i < accesses; i += 4) {
            const std::uint64_t buffer = 0x2000'0000 + i / 4 * page;
            map(buffer + 64 * page, page);
            access(0x1000'0000 + i * 4 % (8 * page)); // 16 bytes of a ring
            access(buffer, page);
            access(0x1001'0000 + i * 2 % (8 * page));
            access(0x1002'0000); // an index
        }
    }
    /// Columns of a matrix of 16 MiB, every 16th page: each four times, and then
    /// the ones next to these.
    void stride(std::uint64_t accesses) {
        from(1);
        map(0x4000'0000, 4096 * page);
        for (std::uint64_t i = 0; i < accesses; ++i)
            access(0x4000'0000 + i % 256 * 16 * page + i / 1024 % 16 * page);
    }
    /// 4,096 pages, the n-th as often as 1/n says.
    void zipf(std::uint64_t accesses) {
        from(1);
        constexpr std::uint64_t pages = 4096;
        std::vector<double> up_to(pages);
        double sum = 0;
        for (std::uint64_t n = 0; n < pages; ++n)
            up_to[n] = sum += 1.0 / static_cast<double>(n + 1);
        for (std::uint64_t i = 0; i < accesses; ++i) {
            const auto at = std::upper_bound(up_to.begin(), up_to.end() - 1, share() * sum);
            const auto rank = static_cast<std::uint64_t>(at - up_to.begin());
            access(0x8000'0000 + rank * 0x9e5 % pages * page); // popular ones lie anywhere
        }
    }
    /// A driver of the strict kind: maps, lets a device work on it, and takes it back.
    void rings(std::uint64_t accesses) {
        from(1);
        for (std::uint64_t i = 0; i < accesses; i += 20) {
            const std::uint64_t buffer = 0xf000'0000 - i / 20 % 64 * 8 * page;
            map(buffer, 8 * page);
            for (std::uint64_t k = 0; k < 4; ++k)
                access(0xffff'0000 + (i + k) * 16 % (4 * page), 16);
            for (std::uint64_t k = 0; k < 16; ++k)
                access(buffer + k * 2048, 2048);
            trace_record r{.what = trace_record::kind::forget};
            r.scope = vm_accel::invalidation_scope::addresses(
                {vm_accel::stream_world::ns_el1, {}, vm_accel::asid{1}}, buffer,
                buffer + 8 * page - 1, true);
            made_.records.push_back(r);
        }
    }
    /// Device 1 uses 48 pages; device 2 touches as many new ones as it can.
    void neighbour(std::uint64_t accesses) {
        std::uint64_t fresh = 0;
        for (std::uint64_t i = 0; i < accesses; i += 9) {
            from(1);
            access(0x1000'0000 + below(48) * page);
            from(2);
            for (unsigned k = 0; k < 8; ++k)
                access(0x1'0000'0000 + fresh++ * page);
        }
    }
    /// 32 devices in bursts of 16, each with 24 pages at the same addresses.
    void many_devices(std::uint64_t accesses) {
        for (std::uint64_t i = 0; i < accesses; i += 16) {
            from(1 + static_cast<std::uint32_t>(below(32)));
            for (unsigned k = 0; k < 16; ++k)
                access(0x1000'0000 + below(24) * page);
        }
    }

    trace made_;
    std::uint32_t now_ = 0;
    std::vector<std::uint32_t> known_;
    std::mt19937_64 random_{7};
};

} // namespace policy_lab
