/// The concepts of memory placement: archetypes, one near miss for each
/// obligation, and what must not be possible.
#include <vm_accel/numa/adaptive.hpp>
#include <vm_accel/numa/bandwidth_optimized.hpp>
#include <vm_accel/numa/load_balanced.hpp>
#include <vm_accel/numa/local_first.hpp>
#include <vm_accel/numa/migration.hpp>
#include <vm_accel/numa/node_pools.hpp>
#include <vm_accel/numa/numa_allocator.hpp>
#include <vm_accel/numa/object_pool.hpp>
#include <vm_accel/numa/standard_allocator.hpp>

#include <concepts>
#include <type_traits>

using namespace vm_accel;

namespace numa_archetypes {

struct strategy {
    static constexpr std::string_view name = "archetype";
    result<memory_plan> plan(const memory_inventory&,
                             std::span<const memory_request>) const noexcept;
};
static_assert(numa_strategy<strategy>);

struct strategy_without_name {
    result<memory_plan> plan(const memory_inventory&,
                             std::span<const memory_request>) const noexcept;
};
static_assert(!numa_strategy<strategy_without_name>);

struct strategy_with_state : strategy {
    result<memory_plan> plan(const memory_inventory&,
                             std::span<const memory_request>) noexcept; // not const
};
static_assert(!numa_strategy<strategy_with_state>);

struct strategy_that_throws : strategy {
    result<memory_plan> plan(const memory_inventory&, std::span<const memory_request>) const;
};
static_assert(!numa_strategy<strategy_that_throws>);

struct strategy_that_cannot_fail : strategy {
    memory_plan plan(const memory_inventory&, std::span<const memory_request>) const noexcept;
};
static_assert(!numa_strategy<strategy_that_cannot_fail>);

struct strategy_that_writes : strategy {
    result<memory_plan> plan(memory_inventory&, std::span<const memory_request>) const noexcept;
};
static_assert(!numa_strategy<strategy_that_writes>);

struct strategy_of_something : strategy {
    explicit strategy_of_something(int);
};
static_assert(!numa_strategy<strategy_of_something>);

struct planner {
    static constexpr std::string_view name = "archetype";
    result<migration_plan> migrate(const memory_inventory&, const migration_sample&,
                                   const migration_limits&) const noexcept;
};
static_assert(migration_planner<planner>);

struct planner_without_name {
    result<migration_plan> migrate(const memory_inventory&, const migration_sample&,
                                   const migration_limits&) const noexcept;
};
static_assert(!migration_planner<planner_without_name>);

struct planner_with_state : planner {
    result<migration_plan> migrate(const memory_inventory&, const migration_sample&,
                                   const migration_limits&) noexcept; // not const
};
static_assert(!migration_planner<planner_with_state>);

struct planner_that_throws : planner {
    result<migration_plan> migrate(const memory_inventory&, const migration_sample&,
                                   const migration_limits&) const;
};
static_assert(!migration_planner<planner_that_throws>);

struct planner_that_cannot_fail : planner {
    migration_plan migrate(const memory_inventory&, const migration_sample&,
                           const migration_limits&) const noexcept;
};
static_assert(!migration_planner<planner_that_cannot_fail>);

struct planner_without_limits : planner {
    result<migration_plan> migrate(const memory_inventory&, const migration_sample&) const noexcept;
};
static_assert(!migration_planner<planner_without_limits>);

struct planner_that_spends : planner {
    result<migration_plan> migrate(memory_inventory&, const migration_sample&,
                                   const migration_limits&) const noexcept;
};
static_assert(!migration_planner<planner_that_spends>);

struct planner_of_something : planner {
    explicit planner_of_something(int);
};
static_assert(!migration_planner<planner_of_something>);

struct memory {
    static constexpr std::string_view name = "archetype";
    static constexpr bool can_bind = true;
    static constexpr bool is_this_system = false;
    std::uint64_t page_bytes() const noexcept;
    std::uint64_t huge_page_bytes() const noexcept;
    result<os::raw_mapping> map(const os::mapping_request&) noexcept;
    void unmap(const os::raw_mapping&) noexcept;
    result<> bind(std::byte*, std::uint64_t, unsigned, os::bind_mode) noexcept;
    result<os::memory_policy> policy_of(const std::byte*) const noexcept;
    result<> advise_huge_pages(std::byte*, std::uint64_t) noexcept;
    result<> populate(std::byte*, std::uint64_t) noexcept;
    result<> page_nodes(const std::byte*, std::uint64_t, std::span<int>) const noexcept;
    result<std::uint64_t> free_bytes(unsigned) const noexcept;
};
static_assert(os::memory_platform<memory>);

struct no_map : memory {
    result<os::raw_mapping> map(const os::mapping_request&) = delete;
};
struct unmap_that_throws : memory {
    void unmap(const os::raw_mapping&);
};
struct bind_without_mode : memory {
    result<> bind(std::byte*, std::uint64_t, unsigned) noexcept;
};
struct policy_not_told : memory {
    result<> policy_of(const std::byte*) const noexcept;
};
struct advice_without_outcome : memory {
    void advise_huge_pages(std::byte*, std::uint64_t) noexcept;
};
struct populate_without_outcome : memory {
    void populate(std::byte*, std::uint64_t) noexcept;
};
struct query_that_changes : memory {
    result<> page_nodes(const std::byte*, std::uint64_t, std::span<int>) noexcept;
};
struct free_in_32_bits : memory {
    result<unsigned> free_bytes(unsigned) const noexcept;
};
struct page_of_unknown_size : memory {
    void page_bytes() const noexcept;
};
struct huge_page_that_throws : memory {
    std::uint64_t huge_page_bytes() const;
};
struct memory_without_copies : memory {
    memory_without_copies() = default;
    memory_without_copies(const memory_without_copies&) = delete;
};
struct memory_without_claim : memory {
    int can_bind() const;
};
struct memory_without_reality : memory {
    int is_this_system() const;
};
static_assert(!os::memory_platform<no_map>);
static_assert(!os::memory_platform<unmap_that_throws>);
static_assert(!os::memory_platform<bind_without_mode>);
static_assert(!os::memory_platform<policy_not_told>);
static_assert(!os::memory_platform<advice_without_outcome>);
static_assert(!os::memory_platform<populate_without_outcome>);
static_assert(!os::memory_platform<query_that_changes>);
static_assert(!os::memory_platform<free_in_32_bits>);
static_assert(!os::memory_platform<page_of_unknown_size>);
static_assert(!os::memory_platform<huge_page_that_throws>);
static_assert(!os::memory_platform<memory_without_copies>);
static_assert(!os::memory_platform<memory_without_claim>);
static_assert(!os::memory_platform<memory_without_reality>);

struct memory_with_features : memory {
    result<std::uint64_t> free_huge_pages(unsigned, std::uint64_t) const noexcept;
    result<os::raw_mapping> map_huge(const os::mapping_request&, std::uint64_t) noexcept;
    result<> populate_huge(std::byte*, std::uint64_t) noexcept;
    result<> lock(std::byte*, std::uint64_t) noexcept;
    result<> seal(const os::raw_mapping&) noexcept;
};
static_assert(os::huge_page_pools<memory_with_features> && !os::huge_page_pools<memory>);
static_assert(os::lockable_memory<memory_with_features> && !os::lockable_memory<memory>);
static_assert(os::sealable_memory<memory_with_features> && !os::sealable_memory<memory>);

struct pools_that_change_when_asked : memory_with_features {
    result<std::uint64_t> free_huge_pages(unsigned, std::uint64_t) noexcept;
};
struct pools_of_one_size : memory_with_features {
    result<os::raw_mapping> map_huge(const os::mapping_request&) noexcept;
};
struct pools_populated_in_hope : memory_with_features {
    void populate_huge(std::byte*, std::uint64_t) noexcept;
};
struct lock_that_throws : memory_with_features {
    result<> lock(std::byte*, std::uint64_t);
};
struct seal_without_outcome : memory_with_features {
    void seal(const os::raw_mapping&) noexcept;
};
static_assert(!os::huge_page_pools<pools_that_change_when_asked>);
static_assert(!os::huge_page_pools<pools_of_one_size>);
static_assert(!os::huge_page_pools<pools_populated_in_hope>);
static_assert(!os::lockable_memory<lock_that_throws>);
static_assert(!os::sealable_memory<seal_without_outcome>);

// A listener says whether to go on, and throws nothing.
struct listener {
    bool operator()(const prefault_progress&) noexcept;
};
struct listener_that_throws {
    bool operator()(const prefault_progress&);
};
struct listener_without_answer {
    void operator()(const prefault_progress&) noexcept;
};
static_assert(prefault_listener<listener> && !prefault_listener<listener_that_throws>);
static_assert(!prefault_listener<listener_without_answer>);

struct threads {
    static constexpr std::string_view name = "archetype";
    static constexpr bool can_pin_threads = true;
    result<> pin_current_thread(const os::cpu_set&) const noexcept;
    result<os::cpu_set> current_pin() const noexcept;
    result<os::cpu_set> allowed_cpus() const noexcept;
    result<unsigned> current_cpu() const noexcept;
};
static_assert(os::thread_platform<threads>);

struct pin_without_outcome : threads {
    void pin_current_thread(const os::cpu_set&) const noexcept;
};
struct pin_not_told : threads {
    result<> current_pin() const noexcept;
};
struct allowance_that_throws : threads {
    result<os::cpu_set> allowed_cpus() const;
};
struct cpu_that_may_be_negative : threads {
    result<int> current_cpu() const noexcept;
};
struct threads_without_claim : threads {
    int can_pin_threads() const;
};
static_assert(!os::thread_platform<pin_without_outcome>);
static_assert(!os::thread_platform<pin_not_told>);
static_assert(!os::thread_platform<allowance_that_throws>);
static_assert(!os::thread_platform<cpu_that_may_be_negative>);
static_assert(!os::thread_platform<threads_without_claim>);

} // namespace numa_archetypes

// The templates use nothing that the concepts do not promise.
template class vm_accel::numa_allocator<numa_archetypes::strategy, numa_archetypes::memory,
                                        numa_archetypes::threads>;
template class vm_accel::numa_allocator<
    numa_archetypes::strategy, numa_archetypes::memory_with_features, numa_archetypes::threads>;
template result<basic_ram_region<numa_archetypes::memory_with_features>>
vm_accel::numa_allocator<numa_archetypes::strategy, numa_archetypes::memory_with_features,
                         numa_archetypes::threads>::allocate(const guest_ram_request&,
                                                             numa_archetypes::listener&);
template class vm_accel::basic_ram_region<numa_archetypes::memory>;
template class vm_accel::object_pool<no_lock, numa_archetypes::memory>;
template class vm_accel::node_pools<no_lock, numa_archetypes::memory, numa_archetypes::threads>;

// A region owns its memory: it moves and is never copied.
static_assert(!std::is_copy_constructible_v<ram_region> && !std::is_copy_assignable_v<ram_region>);
static_assert(std::is_nothrow_move_constructible_v<ram_region>);
static_assert(std::is_nothrow_move_assignable_v<ram_region>);

// No dispatch at run time; stateless platforms take no room.
static_assert(!std::is_polymorphic_v<numa_allocator<local_first>>);
static_assert(!std::is_polymorphic_v<object_pool<>> && !std::is_polymorphic_v<node_pools<>>);
static_assert(sizeof(standard_allocator<int>) == sizeof(void*));
static_assert(std::is_empty_v<local_first> && std::is_empty_v<load_balanced>);
static_assert(std::is_empty_v<bandwidth_optimized> && std::is_empty_v<adaptive>);
// Placing is not migrating: of the strategies one does both.
static_assert(migration_planner<adaptive> && !migration_planner<local_first>);
static_assert(!migration_planner<bandwidth_optimized>);
static_assert(std::is_empty_v<os::native_memory> && std::is_empty_v<os::native_threads>);

// Roles and names, as a manager finds them.
static_assert(std::is_same_v<numa_allocator<local_first>::role, roles::memory>);
static_assert(numa_allocator<load_balanced>::name == "numa_allocator");

// Standard allocators rebind and compare.
using rebound = std::allocator_traits<standard_allocator<int>>::rebind_alloc<long>;
static_assert(std::is_same_v<rebound, standard_allocator<long>>);
static_assert(std::equality_comparable<standard_allocator<int>>);
static_assert(!std::is_default_constructible_v<standard_allocator<int>>);
