/// The concepts of guest memory and interrupt sinks: an archetype that offers
/// exactly what they promise, and one near miss per obligation.
#include <vm_accel/guest/guest_memory.hpp>
#include <vm_accel/guest/interrupt_sink.hpp>
#include <vm_accel/guest/region_map.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <type_traits>

namespace {

using namespace vm_accel;
using word = std::optional<std::uint64_t>;

// ---- guest_memory ------------------------------------------------------------------------------
struct memory_archetype {
    memory_archetype() = delete;
    memory_archetype(const memory_archetype&) = delete;
    memory_archetype& operator=(const memory_archetype&) = delete;
    bool read(pa, std::span<std::byte>) const noexcept;
    bool write(pa, std::span<const std::byte>) noexcept;
    word load64(pa) const noexcept;
    word compare_exchange64(pa, std::uint64_t, std::uint64_t) noexcept;
    std::optional<host_run> find(pa) const noexcept;
    void note_write(pa, std::uint64_t) noexcept;
};
static_assert(guest_memory<memory_archetype>);
static_assert(guest_memory<region_map>);

// Each near miss hides one member of the archetype behind a wrong one.
struct read_throws : memory_archetype {
    bool read(pa, std::span<std::byte>) const;
};
struct read_changes_memory : memory_archetype {
    bool read(pa, std::span<std::byte>) noexcept;
};
struct read_says_nothing : memory_archetype {
    void read(pa, std::span<std::byte>) const noexcept;
};
struct read_mixes_address_spaces : memory_archetype {
    bool read(ipa, std::span<std::byte>) const noexcept;
};
struct write_throws : memory_archetype {
    bool write(pa, std::span<const std::byte>);
};
struct write_wants_mutable_bytes : memory_archetype {
    bool write(pa, std::span<std::byte>) noexcept;
};
struct write_returns_a_count : memory_archetype {
    std::size_t write(pa, std::span<const std::byte>) noexcept;
};
struct load_cannot_fail : memory_archetype {
    std::uint64_t load64(pa) const noexcept;
};
struct load_throws : memory_archetype {
    word load64(pa) const;
};
struct exchange_hides_what_it_found : memory_archetype {
    bool compare_exchange64(pa, std::uint64_t, std::uint64_t) noexcept;
};
struct exchange_throws : memory_archetype {
    word compare_exchange64(pa, std::uint64_t, std::uint64_t);
};
struct find_gives_a_bare_pointer : memory_archetype {
    std::byte* find(pa) const noexcept;
};
struct find_throws : memory_archetype {
    std::optional<host_run> find(pa) const;
};
struct note_write_throws : memory_archetype {
    void note_write(pa, std::uint64_t);
};
struct note_write_answers : memory_archetype {
    bool note_write(pa, std::uint64_t) noexcept;
};

static_assert(!guest_memory<read_throws>);
static_assert(!guest_memory<read_changes_memory>);
static_assert(!guest_memory<read_says_nothing>);
static_assert(!guest_memory<read_mixes_address_spaces>);
static_assert(!guest_memory<write_throws>);
static_assert(!guest_memory<write_wants_mutable_bytes>);
static_assert(!guest_memory<write_returns_a_count>);
static_assert(!guest_memory<load_cannot_fail>);
static_assert(!guest_memory<load_throws>);
static_assert(!guest_memory<exchange_hides_what_it_found>);
static_assert(!guest_memory<exchange_throws>);
static_assert(!guest_memory<find_gives_a_bare_pointer>);
static_assert(!guest_memory<find_throws>);
static_assert(!guest_memory<note_write_throws>);
static_assert(!guest_memory<note_write_answers>);
static_assert(!guest_memory<int>);

// ---- interrupt_sink ----------------------------------------------------------------------------
struct sink_archetype {
    sink_archetype() = delete;
    sink_archetype(const sink_archetype&) = delete;
    sink_archetype& operator=(const sink_archetype&) = delete;
    void pulse(wired_interrupt) noexcept;
    bool is_doorbell(pa) noexcept;
    bool signal_msi(stream_id, pa, std::uint32_t) noexcept;
};
static_assert(interrupt_sink<sink_archetype>);
static_assert(interrupt_sink<counting_sink>);

struct pulse_throws : sink_archetype {
    void pulse(wired_interrupt);
};
struct pulse_answers : sink_archetype {
    bool pulse(wired_interrupt) noexcept;
};
struct pulse_takes_a_number : sink_archetype {
    void pulse(int) noexcept;
};
struct doorbell_throws : sink_archetype {
    bool is_doorbell(pa);
};
struct doorbell_by_intermediate_address : sink_archetype {
    bool is_doorbell(ipa) noexcept;
};
struct msi_throws : sink_archetype {
    bool signal_msi(stream_id, pa, std::uint32_t);
};
struct msi_without_requester : sink_archetype {
    bool signal_msi(pa, std::uint32_t) noexcept;
};
struct msi_never_refused : sink_archetype {
    void signal_msi(stream_id, pa, std::uint32_t) noexcept;
};

static_assert(!interrupt_sink<pulse_throws>);
static_assert(!interrupt_sink<pulse_answers>);
static_assert(!interrupt_sink<pulse_takes_a_number>);
static_assert(!interrupt_sink<doorbell_throws>);
static_assert(!interrupt_sink<doorbell_by_intermediate_address>);
static_assert(!interrupt_sink<msi_throws>);
static_assert(!interrupt_sink<msi_without_requester>);
static_assert(!interrupt_sink<msi_never_refused>);

// A region map is shared by threads: never copied or moved from under them.
static_assert(!std::is_copy_constructible_v<region_map> &&
              !std::is_move_constructible_v<region_map>);

} // namespace
