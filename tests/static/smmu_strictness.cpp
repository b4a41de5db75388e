// Concepts of fault injection, strict mode and performance monitors: archetypes
// that offer no more than is promised, and one near miss for each obligation.
#include <vm_accel/guest/region_map.hpp>
#include <vm_accel/smmu/caches/no_tlb.hpp>
#include <vm_accel/smmu/control/performance_monitor.hpp>
#include <vm_accel/smmu/host/bitmap_streams.hpp>
#include <vm_accel/smmu/smmu.hpp>
#include <vm_accel/smmu/vocabulary/fault_injection.hpp>
#include <vm_accel/smmu/vocabulary/lint.hpp>

#include <cstdint>
#include <type_traits>

namespace {

using namespace vm_accel;

// --- fault_injection ---------------------------------------------------------

struct injection_archetype {
    static constexpr bool enabled = true;
    bool fails(memory_operation, pa) noexcept { return false; }
    bool overflows(output_queue) noexcept { return false; }
    bool drops(wired_interrupt) noexcept { return false; }
};
static_assert(fault_injection<injection_archetype>);

struct injection_without_enabled {
    bool fails(memory_operation, pa) noexcept;
    bool overflows(output_queue) noexcept;
    bool drops(wired_interrupt) noexcept;
};
struct injection_that_throws : injection_archetype {
    bool fails(memory_operation, pa) { return false; }
};
struct injection_that_counts : injection_archetype {
    int overflows(output_queue) noexcept;
};
struct injection_without_interrupts : injection_archetype {
    void drops() noexcept;
};
struct injection_that_needs_a_plan : injection_archetype {
    explicit injection_that_needs_a_plan(int) {}
};
static_assert(!fault_injection<injection_without_enabled>);
static_assert(!fault_injection<injection_that_throws>);
static_assert(!fault_injection<injection_that_counts>);
static_assert(!fault_injection<injection_without_interrupts>);
static_assert(!fault_injection<injection_that_needs_a_plan>);

// --- lint_policy -------------------------------------------------------------

struct lint_archetype {
    static constexpr bool enabled = true;
    void report(const lint_finding&) noexcept {}
};
static_assert(lint_policy<lint_archetype>);

struct lint_without_enabled {
    void report(const lint_finding&) noexcept;
};
struct lint_that_throws : lint_archetype {
    void report(const lint_finding&) {}
};
struct lint_that_answers : lint_archetype {
    bool report(const lint_finding&) noexcept;
};
static_assert(!lint_policy<lint_without_enabled>);
static_assert(!lint_policy<lint_that_throws>);
static_assert(!lint_policy<lint_that_answers>);

// --- event_source ------------------------------------------------------------

struct source_archetype {
    event_totals totals(const stream_filter&) noexcept { return {}; }
    std::uint64_t clock() noexcept { return 0; }
};
static_assert(event_source<source_archetype>);

struct source_without_clock {
    event_totals totals(const stream_filter&) noexcept;
};
struct source_that_throws : source_archetype {
    event_totals totals(const stream_filter&) { return {}; }
};
struct source_with_a_coarse_clock : source_archetype {
    std::uint32_t clock() noexcept;
};
static_assert(!event_source<source_without_clock>);
static_assert(!event_source<source_that_throws>);
static_assert(!event_source<source_with_a_coarse_clock>);

// --- what is absent costs nothing ---------------------------------------------

struct archetype_options : default_smmu_options {
    using fault_injection = injection_archetype;
    using lint = lint_archetype;
};
static_assert(smmu_options<archetype_options>);
static_assert(std::is_empty_v<no_fault_injection> && std::is_empty_v<no_lint>);
static_assert(std::is_empty_v<strict_mode<no_lint>>);
static_assert(std::is_empty_v<performance_group<stage1_features>>);
static_assert(std::is_same_v<smmu_memory<region_map, no_fault_injection>, region_map>);

} // namespace

// The templates use no more than the concepts promise.
template class vm_accel::smmu<vm_accel::no_tlb, vm_accel::bitmap_streams<16>, vm_accel::region_map,
                              vm_accel::counting_sink, archetype_options>;
template std::uint64_t
vm_accel::performance_monitor<vm_accel::performance_monitor_shape{}>::read<source_archetype>(
    std::uint64_t, unsigned, source_archetype&) noexcept;
template void
vm_accel::performance_monitor<vm_accel::performance_monitor_shape{}>::write<source_archetype>(
    std::uint64_t, unsigned, std::uint64_t, source_archetype&) noexcept;
