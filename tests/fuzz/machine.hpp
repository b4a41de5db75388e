/// What all fuzzers share: a small machine with every feature, in a good state.
#pragma once

#include "../smmu/guest_driver.hpp"
#include "input.hpp"

#include <cstdio>
#include <cstdlib>

namespace fuzz {

using namespace vm_accel;

/// Everything small, so that pools run out and generations wrap.
struct options : default_smmu_options {
    static constexpr smmu_features features = full_features;
    using quiescence = single_threaded;
    using walk_cache = vm_accel::walk_cache<8, 8>;
    static constexpr std::size_t configurations = 4;
    static constexpr std::size_t contexts = 4;
    static constexpr unsigned generation_bits = 7;
    static constexpr unsigned commands_per_call = 64;
};
using machine = guest::machine<set_associative<4, 2>, options>;
using port = machine::device::port;

/// The pages that fuzzers write to: tables and data, after the driver's rings.
inline constexpr std::uint64_t arena = guest::first_free;
inline constexpr std::uint64_t arena_bytes = 0x40000;

/// Ends the run with a message: what a fuzzer calls a finding.
[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "fuzz: %s\n", what);
    std::abort();
}
inline void check(bool condition, const char* what) {
    if (!condition) fail(what);
}

/// One device, its port, and a driver that has started.
class started_machine {
public:
    static constexpr std::uint32_t stream = 5;

    started_machine() {
        check(m.iommu().attach_device("device", m.all_of_ram, stream_id{stream}).has_value(),
              "attach failed");
        m.start();
        port_.emplace(m.iommu().make_port("device").value());
    }

    /// Makes the machine good again, for the next input. Building a new one takes
    /// much longer.
    void start_over() {
        check(m.iommu().reset().has_value(), "reset failed");
        m.restart_ring();
        m.forget_pages();
        m.clear_tables();
        m.start();
    }

    outcome ask(const transaction& asked) {
        auto held = port_->open();
        access_attributes attributes;
        attributes.privileged = asked.privileged;
        attributes.instruction = asked.instruction;
        return held.translate(asked.address, asked.length, asked.kind, attributes);
    }

    /// The invariant: with no invalidation owed, what the caches answer is what a
    /// fresh look at memory answers. Asked twice, so that the second may hit.
    void compare_with_memory(iova address, vm_accel::access kind) {
        for (int i = 0; i < 2; ++i) {
            const outcome cached = ask({.address = address, .length = 1, .kind = kind});
            const result<pa> fresh = m.iommu().translate_dma_addr("device", address, 1, kind);
            if (cached.is_stalled()) {
                check(!fresh.has_value(), "stalled, but memory allows it");
                continue;
            }
            const bool reached = cached.is_span() || cached.is_mmio();
            check(reached == fresh.has_value(),
                  reached ? "cached allows, memory refuses" : "cached refuses, memory allows");
            if (reached) check(cached.address() == *fresh, "cached leads elsewhere than memory");
        }
    }

    machine m;

private:
    std::optional<port> port_;
};

/// Built once per process.
inline started_machine& shared_machine() {
    static started_machine one;
    one.start_over();
    return one;
}

} // namespace fuzz
