/// The backend concept, the order of set-up and the size of a manager.
#include <vm_accel/affinity/affinity.hpp>
#include <vm_accel/affinity/fixed_platform.hpp>
#include <vm_accel/guest/region_map.hpp>
#include <vm_accel/hypervisor/kvm.hpp>
#include <vm_accel/manager/acceleration_manager.hpp>

#include <type_traits>

using namespace vm_accel;

namespace manager_archetypes {

// The archetype of every role has what the concept promises and nothing else.
struct any_role {
    static constexpr std::string_view name = "any_role";
};
struct least {
    using role = any_role;
    static constexpr std::string_view name = "least";
    least() = default;
    least(const least&) = delete;
    least& operator=(const least&) = delete;
};
struct with_set_up {
    static constexpr std::string_view name = "with_set_up";
    result<> init() noexcept;
    bool is_initialized() const noexcept;
};
struct ram : least {
    using role = roles::guest_memory;
};
struct device : with_set_up {
    using role = roles::smmu;
    void connect(ram&) noexcept;
};
struct hypervisor_archetype : with_set_up {
    using role = roles::hypervisor;
};
struct vcpus : least {
    using role = roles::vcpus;
    int topology() const noexcept;
    result<int> plan(unsigned) noexcept;
};
struct nodes : least {
    using role = roles::memory;
    result<> enable(unsigned) noexcept;
    result<> disable() noexcept;
    bool is_enabled() const noexcept;
};
static_assert(backend<least>);
static_assert(backend<ram>);
static_assert(backend<device>);
static_assert(backend<hypervisor_archetype>);
static_assert(backend<vcpus>);
static_assert(backend<nodes>);

// Shapes that are offered in full are accepted.
struct tells_bool : least {
    static bool is_available() noexcept;
};
struct tells_result : least {
    static result<int> detect() noexcept;
    void report(report_section&) const;
};
struct tells_capabilities : least {
    struct capabilities {
        bool available;
    };
    static capabilities detect() noexcept;
    template <class Section>
    void report(Section& section) const {
        section.fact("one", 1);
        section.given("it");
    }
};
static_assert(backend<tells_bool>);
static_assert(backend<tells_result>);
static_assert(backend<tells_capabilities>);

// Near misses, one for each obligation.
struct no_role {
    static constexpr std::string_view name = "no_role";
};
struct nameless_role {
    using role = int;
    static constexpr std::string_view name = "nameless_role";
};
struct no_name {
    using role = any_role;
};
struct name_is_a_number {
    using role = any_role;
    static constexpr int name = 1;
};
struct dispatches {
    using role = any_role;
    static constexpr std::string_view name = "dispatches";
    virtual ~dispatches() = default;
};
struct init_may_throw : least {
    result<> init();
    bool is_initialized() const noexcept;
};
struct init_gives_bool : least {
    bool init() noexcept;
    bool is_initialized() const noexcept;
};
struct init_without_answer : least {
    result<> init() noexcept;
};
struct answer_without_init : least {
    bool is_initialized() const noexcept;
};
struct answer_is_not_const : least {
    result<> init() noexcept;
    bool is_initialized() noexcept;
};
struct detect_needs_an_object : least {
    bool detect() const noexcept;
};
struct detect_gives_a_number : least {
    static int detect() noexcept;
};
struct availability_may_throw : least {
    static bool is_available();
};
struct report_changes_it : least {
    void report(report_section&);
};
struct report_gives_text : least {
    std::string report(report_section&) const;
};
struct report_prints : least {
    void report() const;
};
struct smmu_without_init : least {
    using role = roles::smmu;
};
struct hypervisor_without_init : least {
    using role = roles::hypervisor;
};
struct vcpus_without_topology : least {
    using role = roles::vcpus;
    result<int> plan(unsigned) noexcept;
};
struct vcpus_without_plan : least {
    using role = roles::vcpus;
    int topology() const noexcept;
};
struct vcpus_with_bare_plan : least {
    using role = roles::vcpus;
    int topology() const noexcept;
    int plan(unsigned) noexcept;
};
struct vcpus_with_bare_configure : least {
    using role = roles::vcpus;
    int topology() const noexcept;
    void configure(unsigned) noexcept;
    result<int> plan(unsigned) noexcept;
};
struct memory_without_disable : least {
    using role = roles::memory;
    result<> enable(unsigned) noexcept;
    bool is_enabled() const noexcept;
};
static_assert(!backend<int>);
static_assert(!backend<least&>);
static_assert(!backend<no_role>);
static_assert(!backend<nameless_role>);
static_assert(!backend<no_name>);
static_assert(!backend<name_is_a_number>);
static_assert(!backend<dispatches>);
static_assert(!backend<init_may_throw>);
static_assert(!backend<init_gives_bool>);
static_assert(!backend<init_without_answer>);
static_assert(!backend<answer_without_init>);
static_assert(!backend<answer_is_not_const>);
static_assert(!backend<detect_needs_an_object>);
static_assert(!backend<detect_gives_a_number>);
static_assert(!backend<availability_may_throw>);
static_assert(!backend<report_changes_it>);
static_assert(!backend<report_gives_text>);
static_assert(!backend<report_prints>);
static_assert(!backend<smmu_without_init>);
static_assert(!backend<hypervisor_without_init>);
static_assert(!backend<vcpus_without_topology>);
static_assert(!backend<vcpus_without_plan>);
static_assert(!backend<vcpus_with_bare_plan>);
static_assert(!backend<vcpus_with_bare_configure>);
static_assert(!backend<memory_without_disable>);

// The order of set-up.
template <int N>
struct own_role {
    static constexpr std::string_view name = "own";
};
template <int N>
struct own : least {
    using role = own_role<N>;
    static constexpr int number = N;
};
struct takes_own_1 : own<2> {
    void connect(own<1>&) noexcept;
};
struct takes_device : ram {
    void connect(device&) noexcept;
};
struct takes_anything_with_a_number : own<3> {
    template <class B>
        requires requires { B::number; }
    void connect(B&) noexcept;
};
struct circle_a;
struct circle_b : own<4> {
    void connect(circle_a&) noexcept;
};
struct circle_a : own<5> {
    void connect(circle_b&) noexcept;
};
struct half_connects : own<6> {
    void connect(own<1>&);
};

template <std::size_t... I>
inline constexpr std::array<std::size_t, sizeof...(I)> as_order{I...};
static_assert(composition<>::order.empty());
static_assert(composition<hypervisor_archetype, device, nodes, vcpus, ram>::order ==
              as_order<4, 3, 2, 1, 0>);
static_assert(composition<own<1>, own<2>, ram>::order == as_order<2, 0, 1>); // own roles last
static_assert(composition<takes_own_1, own<1>>::order == as_order<1, 0>);
static_assert(composition<takes_anything_with_a_number, own<2>, own<1>>::order ==
              as_order<1, 2, 0>);
static_assert(composition<circle_a, own<1>>::has_order);
static_assert(!composition<circle_a, circle_b>::has_order);
static_assert(!composition<half_connects, own<1>>::connections_are_documented);
static_assert(composition<half_connects, own<2>>::connections_are_documented);
static_assert(composition<device, ram>::smmu_takes_guest_memory);
static_assert(!composition<device, takes_device>::has_order);
static_assert(!composition<device, region_map>::smmu_takes_guest_memory);
static_assert(!composition<ram, nodes, ram>::roles_are_distinct);

// What others wrote is a backend as it is.
static_assert(backend<region_map>);
static_assert(backend<affinity<fixed_platform>>);
static_assert(backend<kvm>);

// A manager is its parts and a bounded account of each; nothing virtual, no heap.
template <class... Backends>
inline constexpr bool is_bounded =
    sizeof(acceleration_manager<Backends...>) <=
        (std::size_t{0} + ... + (sizeof(Backends) + 2 * alignof(Backends))) +
            sizeof...(Backends) * acceleration_manager<Backends...>::bytes_per_backend +
            acceleration_manager<Backends...>::bytes_fixed &&
    !std::is_polymorphic_v<acceleration_manager<Backends...>>;
static_assert(is_bounded<>);
static_assert(is_bounded<least>);
static_assert(is_bounded<region_map, affinity<fixed_platform>, kvm>);
static_assert(acceleration_manager<>::bytes_per_backend <= 768);
static_assert(acceleration_manager<>::bytes_fixed <= 256);

static_assert(!std::is_copy_constructible_v<acceleration_manager<least>>);
static_assert(!std::is_move_constructible_v<acceleration_manager<least>>);

} // namespace manager_archetypes

// The archetypes suffice: everything the manager can do, it does with them.
using namespace manager_archetypes;
template class vm_accel::acceleration_manager<hypervisor_archetype, device, nodes, vcpus, ram>;
