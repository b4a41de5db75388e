/// The concepts of following memory: archetypes, near misses, and that whoever uses them
/// needs nothing more.
#include <vm_accel/numa/rebalancer.hpp>
#include <vm_accel/numa/verification.hpp>
#include <vm_accel/os/interleaved_memory.hpp>
#include <vm_accel/os/memory_features.hpp>
#include <vm_accel/os/placement.hpp>

#include <concepts>
#include <type_traits>

using namespace vm_accel;
using namespace vm_accel::os;

namespace placement_archetypes {

struct platform {
    static constexpr std::string_view name = "archetype";
    static constexpr bool can_move = true;
    struct counters {
        result<counted_accesses> read() const noexcept;
    };
    result<> move_pages(std::span<std::byte* const>, unsigned, std::span<page_fate>) noexcept;
    result<thread_id> current_thread() const noexcept;
    result<thread_run> run_of(thread_id) const noexcept;
    result<std::vector<bytes_on_node>> mapped_bytes(const std::byte*, std::uint64_t) const noexcept;
    result<std::vector<unsigned>> allowed_nodes() const noexcept;
    result<counters> count_accesses(thread_id) noexcept;
};
static_assert(placement_platform<platform>);
static_assert(placement_platform<native_placement>);
static_assert(placement_platform<unsupported_placement>);

struct that_needs_a_thread : platform {
    explicit that_needs_a_thread(thread_id);
};
static_assert(!placement_platform<that_needs_a_thread>);

struct that_is_one_of_a_kind : platform {
    that_is_one_of_a_kind() = default;
    that_is_one_of_a_kind(const that_is_one_of_a_kind&) = delete;
};
static_assert(!placement_platform<that_is_one_of_a_kind>);

struct that_moves_and_tells_nothing : platform {
    result<> move_pages(std::span<std::byte* const>, unsigned) noexcept;
};
static_assert(!placement_platform<that_moves_and_tells_nothing>);

struct that_throws : platform {
    result<> move_pages(std::span<std::byte* const>, unsigned, std::span<page_fate>);
};
static_assert(!placement_platform<that_throws>);

struct that_numbers_threads : platform {
    result<int> current_thread() const noexcept;
};
static_assert(!placement_platform<that_numbers_threads>);

struct that_tells_the_cpu_alone : platform {
    result<unsigned> run_of(thread_id) const noexcept;
};
static_assert(!placement_platform<that_tells_the_cpu_alone>);

struct that_changes_by_looking : platform {
    result<std::vector<bytes_on_node>> mapped_bytes(const std::byte*, std::uint64_t) noexcept;
};
static_assert(!placement_platform<that_changes_by_looking>);

struct that_allows_one_node : platform {
    result<unsigned> allowed_nodes() const noexcept;
};
static_assert(!placement_platform<that_allows_one_node>);

struct with_counters_that_count_all : platform {
    struct counters {
        result<std::uint64_t> read() const noexcept;
    };
    result<counters> count_accesses(thread_id) noexcept;
};
static_assert(!placement_platform<with_counters_that_count_all>);

struct memory {
    static constexpr std::string_view name = "archetype";
    static constexpr bool can_bind = true;
    static constexpr bool is_this_system = false;
    std::uint64_t page_bytes() const noexcept;
    std::uint64_t huge_page_bytes() const noexcept;
    result<raw_mapping> map(const mapping_request&) noexcept;
    void unmap(const raw_mapping&) noexcept;
    result<> bind(std::byte*, std::uint64_t, unsigned, bind_mode) noexcept;
    result<memory_policy> policy_of(const std::byte*) const noexcept;
    result<> advise_huge_pages(std::byte*, std::uint64_t) noexcept;
    result<> populate(std::byte*, std::uint64_t) noexcept;
    result<> page_nodes(const std::byte*, std::uint64_t, std::span<int>) const noexcept;
    result<std::uint64_t> free_bytes(unsigned) const noexcept;
};
static_assert(memory_platform<memory> && !interleavable_memory<memory>);

struct interleaved : memory {
    result<> interleave(std::byte*, std::uint64_t, std::span<const unsigned>) noexcept;
    result<std::vector<unsigned>> interleaved_over(const std::byte*) const noexcept;
    result<unsigned> interleave_weight(unsigned) const noexcept;
    result<> set_interleave_weight(unsigned, unsigned) noexcept;
};
static_assert(interleavable_memory<interleaved>);

struct interleaved_blindly : memory {
    result<> interleave(std::byte*, std::uint64_t, std::span<const unsigned>) noexcept;
    result<unsigned> interleave_weight(unsigned) const noexcept;
    result<> set_interleave_weight(unsigned, unsigned) noexcept;
};
static_assert(!interleavable_memory<interleaved_blindly>);

struct interleaved_by_fixed_weights : memory {
    result<> interleave(std::byte*, std::uint64_t, std::span<const unsigned>) noexcept;
    result<std::vector<unsigned>> interleaved_over(const std::byte*) const noexcept;
    result<unsigned> interleave_weight(unsigned) const noexcept;
};
static_assert(!interleavable_memory<interleaved_by_fixed_weights>);

} // namespace placement_archetypes

// They may use nothing that the concepts do not promise.
template class vm_accel::rebalancer<adaptive, placement_archetypes::memory,
                                    placement_archetypes::platform>;
template result<region_proof>
vm_accel::verify_placement(const basic_ram_region<placement_archetypes::memory>&,
                           const placement_archetypes::memory&,
                           const placement_archetypes::platform&, const verify_options&) noexcept;

// A region that is followed must not go away in silence, nor two follow as one.
static_assert(!std::is_copy_constructible_v<rebalancer<>>);
static_assert(!std::is_polymorphic_v<rebalancer<>>);
static_assert(!std::is_convertible_v<unsigned, thread_id>);
