/// The concepts of affinity: archetype, one near miss for each obligation, and
/// what must not be possible.
#include <vm_accel/affinity/affinity.hpp>
#include <vm_accel/affinity/fixed_platform.hpp>
#include <vm_accel/affinity/linux_platform.hpp>

#include <cstdint>
#include <type_traits>

using namespace vm_accel;

namespace affinity_archetypes {

/// Everything the concept promises, nothing else: no copy, no comparison.
struct archetype {
    static constexpr std::string_view name = "archetype";
    static constexpr bool can_pin_threads = true;
    static constexpr bool can_follow_cpuset = true;
    static constexpr bool can_set_priority = true;
    static constexpr bool can_clamp_utilization = true;
    static constexpr bool can_group_cores = true;
    static constexpr bool pins_are_real = false;
    archetype() = default;
    archetype(const archetype&) = delete;
    archetype& operator=(const archetype&) = delete;
    result<cpu_topology> load() noexcept;
    result<cpu_topology> reload() noexcept;
    os::thread_id current_thread() noexcept;
    result<> pin(os::thread_id, const os::cpu_set&) noexcept;
    result<os::cpu_set> pinned(os::thread_id) noexcept;
    result<os::cpu_set> allowed_cpus() noexcept;
    result<os::given_priority> set_priority(const os::thread_priority&) noexcept;
    result<os::given_priority> priority() noexcept;
    result<os::utilization_clamp> clamp_utilization(const os::utilization_clamp&) noexcept;
    result<os::core_group> start_core_group() noexcept;
    result<os::core_group> join_core_group(os::thread_id) noexcept;
    result<os::core_group> current_core_group() noexcept;
};
static_assert(affinity_platform<archetype>);

/// Claims nothing, so owes nothing but the topology.
struct without_claims : claims_nothing {
    static constexpr std::string_view name = "without_claims";
    result<cpu_topology> load() noexcept;
};
static_assert(affinity_platform<without_claims>);
static_assert(!pinning_platform<without_claims> && !following_platform<without_claims> &&
              !priority_platform<without_claims> && !clamping_platform<without_claims> &&
              !core_grouping_platform<without_claims>);

// Each claim alone obliges.
struct claims_to_pin : without_claims {
    static constexpr bool can_pin_threads = true;
};
struct claims_to_follow : without_claims {
    static constexpr bool can_follow_cpuset = true;
};
struct claims_priorities : without_claims {
    static constexpr bool can_set_priority = true;
};
struct claims_clamps : without_claims {
    static constexpr bool can_clamp_utilization = true;
};
struct claims_groups : without_claims {
    static constexpr bool can_group_cores = true;
};
static_assert(topology_platform<claims_to_pin> && !affinity_platform<claims_to_pin>);
static_assert(topology_platform<claims_to_follow> && !affinity_platform<claims_to_follow>);
static_assert(topology_platform<claims_priorities> && !affinity_platform<claims_priorities>);
static_assert(topology_platform<claims_clamps> && !affinity_platform<claims_clamps>);
static_assert(topology_platform<claims_groups> && !affinity_platform<claims_groups>);

// A claim that is not made is not the same as one that is false.
template <class Base>
struct silent_on_pins : Base {
    int can_pin_threads() const;
};
template <class Base>
struct silent_on_following : Base {
    int can_follow_cpuset() const;
};
template <class Base>
struct silent_on_priority : Base {
    int can_set_priority() const;
};
template <class Base>
struct silent_on_clamps : Base {
    int can_clamp_utilization() const;
};
template <class Base>
struct silent_on_groups : Base {
    int can_group_cores() const;
};
static_assert(!affinity_platform<silent_on_pins<without_claims>>);
static_assert(!affinity_platform<silent_on_following<without_claims>>);
static_assert(!affinity_platform<silent_on_priority<without_claims>>);
static_assert(!affinity_platform<silent_on_clamps<without_claims>>);
static_assert(!affinity_platform<silent_on_groups<without_claims>>);

struct no_name : archetype {
    int name() const;
};
static_assert(!affinity_platform<no_name>);

struct load_that_throws : archetype {
    result<cpu_topology> load();
};
static_assert(!affinity_platform<load_that_throws>);

struct load_without_result : archetype {
    cpu_topology load() noexcept;
};
static_assert(!affinity_platform<load_without_result>);

struct pin_that_throws : archetype {
    result<> pin(os::thread_id, const os::cpu_set&);
};
static_assert(topology_platform<pin_that_throws> && !affinity_platform<pin_that_throws>);

struct pin_without_outcome : archetype {
    void pin(os::thread_id, const os::cpu_set&) noexcept;
};
static_assert(!affinity_platform<pin_without_outcome>);

struct pins_itself_only : archetype {
    result<> pin(const os::cpu_set&) noexcept;
};
static_assert(!affinity_platform<pins_itself_only>);

struct no_reading_back : archetype {
    result<os::cpu_set> pinned(os::thread_id) = delete;
};
static_assert(!affinity_platform<no_reading_back>);

struct threads_without_a_name : archetype {
    std::uint64_t current_thread() noexcept;
};
static_assert(!affinity_platform<threads_without_a_name>);

struct silent_on_reality : archetype {
    int pins_are_real() const;
};
static_assert(!affinity_platform<silent_on_reality>);

struct no_allowance : archetype {
    result<os::cpu_set> allowed_cpus() = delete;
};
struct no_reload : archetype {
    result<cpu_topology> reload() = delete;
};
static_assert(pinning_platform<no_allowance> && !affinity_platform<no_allowance>);
static_assert(pinning_platform<no_reload> && !affinity_platform<no_reload>);

struct priority_on_trust : archetype { // not read back
    result<> set_priority(const os::thread_priority&) noexcept;
};
struct priority_untold : archetype {
    result<os::given_priority> priority() = delete;
};
static_assert(!priority_platform<priority_on_trust> && !affinity_platform<priority_on_trust>);
static_assert(!priority_platform<priority_untold> && !affinity_platform<priority_untold>);

struct clamp_on_trust : archetype {
    result<> clamp_utilization(const os::utilization_clamp&) noexcept;
};
static_assert(!clamping_platform<clamp_on_trust> && !affinity_platform<clamp_on_trust>);

struct groups_of_one : archetype {
    result<os::core_group> join_core_group(os::thread_id) = delete;
};
struct groups_nobody_starts : archetype {
    result<os::core_group> start_core_group() = delete;
};
struct groups_untold : archetype {
    result<os::core_group> current_core_group() = delete;
};
static_assert(!core_grouping_platform<groups_of_one> && !affinity_platform<groups_of_one>);
static_assert(!core_grouping_platform<groups_nobody_starts>);
static_assert(!core_grouping_platform<groups_untold>);

struct needs_arguments : archetype {
    explicit needs_arguments(int);
};
static_assert(!affinity_platform<needs_arguments>);

} // namespace affinity_archetypes

// The template uses nothing that the concept does not promise.
template class vm_accel::affinity<affinity_archetypes::archetype>;
template class vm_accel::affinity<affinity_archetypes::without_claims>;
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
static_assert((three & os::cpu_set::of(64)) == os::cpu_set::of(64));
static_assert((three - os::cpu_set::of(64)).count() == 2 && (three - three).empty());
static_assert((three | os::cpu_set::of(0)).count() == 4 && (three | three) == three);
static_assert(three.count() == 3 && three.next(2) == 64 && !three.contains(0));

// Requests are sound or they are not, before any platform is asked.
static_assert(os::thread_priority{}.is_sound() && os::thread_priority::high().is_sound());
static_assert(os::thread_priority::normal(-20).is_sound() &&
              os::thread_priority::normal(19).is_sound());
static_assert(!os::thread_priority::normal(-21).is_sound() &&
              !os::thread_priority::normal(20).is_sound());
static_assert(os::thread_priority::fifo(1).is_sound() &&
              os::thread_priority::round_robin(99).is_sound());
static_assert(!os::thread_priority::fifo(0).is_sound() &&
              !os::thread_priority::round_robin(100).is_sound());
static_assert(!os::thread_priority{os::priority_class::fifo, 1, 5}.is_sound() &&
              !os::thread_priority{os::priority_class::high, 1, 0}.is_sound() &&
              !os::thread_priority{os::priority_class::normal, 0, 1}.is_sound());
static_assert(os::utilization_clamp{}.is_sound() && os::utilization_clamp{512, 512}.is_sound());
static_assert(!os::utilization_clamp{513, 512}.is_sound() &&
              !os::utilization_clamp{0, 1025}.is_sound());
