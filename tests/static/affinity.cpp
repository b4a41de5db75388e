/// The concepts of affinity: archetype, one near miss for each obligation, and
/// what must not be possible.
#include <vm_accel/affinity/affinity.hpp>
#include <vm_accel/affinity/fixed_platform.hpp>
#include <vm_accel/affinity/linux_platform.hpp>

#include <type_traits>

using namespace vm_accel;

namespace affinity_archetypes {

/// Everything the concept promises, nothing else: no copy, no comparison.
struct archetype {
    static constexpr std::string_view name = "archetype";
    static constexpr bool can_pin_threads = true;
    static constexpr bool pins_are_real = false;
    archetype() = default;
    archetype(const archetype&) = delete;
    archetype& operator=(const archetype&) = delete;
    result<cpu_topology> load() noexcept;
    result<> pin(const os::cpu_set&) noexcept;
    result<os::cpu_set> pinned() noexcept;
};
static_assert(affinity_platform<archetype>);

/// Claims nothing, so owes no pinning.
struct without_pinning {
    static constexpr std::string_view name = "without_pinning";
    static constexpr bool can_pin_threads = false;
    result<cpu_topology> load() noexcept;
};
static_assert(affinity_platform<without_pinning>);
static_assert(!pinning_platform<without_pinning>);

/// Claims to pin and cannot.
struct claims_only : without_pinning {
    static constexpr bool can_pin_threads = true;
};
static_assert(topology_platform<claims_only> && !affinity_platform<claims_only>);

struct no_name : archetype {
    int name() const;
};
static_assert(!affinity_platform<no_name>);

struct no_claim {
    static constexpr std::string_view name = "no_claim";
    result<cpu_topology> load() noexcept;
};
static_assert(!affinity_platform<no_claim>);

struct load_that_throws : archetype {
    result<cpu_topology> load();
};
static_assert(!affinity_platform<load_that_throws>);

struct load_without_result : archetype {
    cpu_topology load() noexcept;
};
static_assert(!affinity_platform<load_without_result>);

struct pin_that_throws : archetype {
    result<> pin(const os::cpu_set&);
};
static_assert(topology_platform<pin_that_throws> && !affinity_platform<pin_that_throws>);

struct pin_without_outcome : archetype {
    void pin(const os::cpu_set&) noexcept;
};
static_assert(!affinity_platform<pin_without_outcome>);

struct no_reading_back : archetype {
    result<os::cpu_set> pinned() = delete;
};
static_assert(!affinity_platform<no_reading_back>);

struct silent_on_reality {
    static constexpr std::string_view name = "silent_on_reality";
    static constexpr bool can_pin_threads = true;
    result<cpu_topology> load() noexcept;
    result<> pin(const os::cpu_set&) noexcept;
    result<os::cpu_set> pinned() noexcept;
};
static_assert(!affinity_platform<silent_on_reality>);

struct needs_arguments : archetype {
    explicit needs_arguments(int);
};
static_assert(!affinity_platform<needs_arguments>);

} // namespace affinity_archetypes

// The template uses nothing that the concept does not promise.
template class vm_accel::affinity<affinity_archetypes::archetype>;
template class vm_accel::affinity<affinity_archetypes::without_pinning>;
using archetype_affinity = vm_accel::affinity<affinity_archetypes::archetype>;
static_assert(std::is_default_constructible_v<archetype_affinity>);
static_assert(noexcept(std::declval<archetype_affinity&>().init()));
static_assert(noexcept(std::declval<archetype_affinity&>().configure(1u)));
static_assert(noexcept(std::declval<archetype_affinity&>().pin_current_thread(0u)));
static_assert(!std::is_copy_constructible_v<archetype_affinity>);
static_assert(!std::is_polymorphic_v<vm_accel::affinity<linux_platform>>);
static_assert(!std::is_polymorphic_v<fixed_platform> && !std::is_polymorphic_v<linux_platform>);

// Roles and names, as a manager finds them.
static_assert(std::is_same_v<vm_accel::affinity<linux_platform>::role, roles::vcpus>);
static_assert(vm_accel::affinity<fixed_platform>::name == "affinity");

// Plain data.
static_assert(std::is_trivially_copyable_v<os::cpu_set>);
static_assert(std::is_trivially_copyable_v<vcpu_assignment>);
static_assert(std::is_copy_constructible_v<cpu_topology> && std::is_aggregate_v<cpu_topology>);
static_assert(std::is_aggregate_v<vcpu_request> && std::is_aggregate_v<vcpu_plan>);
static_assert(std::is_trivially_copyable_v<vcpu_request>);
static_assert(noexcept(plan_vcpus(std::declval<const cpu_topology&>(), vcpu_request{})));

// A set is usable in constant expressions.
constexpr os::cpu_set three = [] {
    os::cpu_set set;
    set.insert(1);
    set.insert(64);
    set.insert(65);
    return set;
}();
static_assert(three.count() == 3 && three.next(2) == 64 && !three.contains(0));
