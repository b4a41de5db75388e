/// Where threads ran, where their memory went, and moving it: what every platform is asked.
///
/// Which node a page lies on is asked of memory_platform; this is what following
/// vCPUs takes beside it. Nothing here makes a page inaccessible to find out who uses it.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/thread_id.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace vm_accel::inline v0::os {

/// What is known of a thread's running.
struct thread_run {
    unsigned cpu = 0;         ///< where it runs, or ran last, by the operating system's number
    std::uint64_t run_ns = 0; ///< on all CPUs since it started; 0 where that is not told
};

/// What came of moving one page.
enum class page_fate : std::uint8_t {
    untried, ///< the call ended before it
    on_node, ///< it lies on the node, moved or not
    absent,  ///< it has no memory that could move
    busy,    ///< the kernel or a device holds it now: pinned, or under I/O
    shared,  ///< other processes map it too
    no_room, ///< the node has no free memory
    refused, ///< for another reason
};

[[nodiscard]] constexpr std::string_view name_of(page_fate fate) noexcept {
    switch (fate) {
    case page_fate::untried:
        return "not tried";
    case page_fate::on_node:
        return "on the node";
    case page_fate::absent:
        return "absent";
    case page_fate::busy:
        return "busy";
    case page_fate::shared:
        return "shared with other processes";
    case page_fate::no_room:
        return "no room on the node";
    case page_fate::refused:
        return "refused";
    }
    return "unknown";
}

struct bytes_on_node {
    unsigned node = 0; ///< the operating system's number
    std::uint64_t bytes = 0;

    friend bool operator==(const bytes_on_node&, const bytes_on_node&) = default;
};

/// What a thread's accesses to memory were, as the processor counted them since the
/// counters were opened.
struct counted_accesses {
    std::uint64_t local = 0;  ///< answered by memory of the node it ran on
    std::uint64_t remote = 0; ///< answered by another node

    friend bool operator==(const counted_accesses&, const counted_accesses&) = default;
};

/// move_pages() moves each page (any address in it) to the node and tells each one's
/// fate; an error means that the call itself was refused, though some may have moved.
/// run_of() is about a thread of this process. mapped_bytes() tells from the kernel's
/// totals for whole mappings what of a range lies where; where a mapping is larger than
/// the range its total is shared out evenly, so it is an estimate. allowed_nodes() are
/// those from which this process may get memory. count_accesses() opens counters of the
/// processor for a thread; `counters::read()` reads them.
/// Threads: stateless, any. Errors: `unsupported` (no such call, event or kernel
/// option), `permission_denied`, `invalid_argument` (a node that is not there),
/// `not_found` (no such thread).
template <class T>
concept placement_platform =
    std::default_initializable<T> && std::copyable<T> &&
    requires(T t, const T view, std::span<std::byte* const> pages, std::span<page_fate> fates,
             unsigned node, thread_id thread, const std::byte* address, std::uint64_t bytes,
             const typename T::counters& counters) {
        { T::name } -> std::convertible_to<std::string_view>;
        { T::can_move } -> std::convertible_to<bool>;
        { t.move_pages(pages, node, fates) } noexcept -> std::same_as<result<>>;
        { view.current_thread() } noexcept -> std::same_as<result<thread_id>>;
        { view.run_of(thread) } noexcept -> std::same_as<result<thread_run>>;
        {
            view.mapped_bytes(address, bytes)
        } noexcept -> std::same_as<result<std::vector<bytes_on_node>>>;
        { view.allowed_nodes() } noexcept -> std::same_as<result<std::vector<unsigned>>>;
        { t.count_accesses(thread) } noexcept -> std::same_as<result<typename T::counters>>;
        { counters.read() } noexcept -> std::same_as<result<counted_accesses>>;
    };

/// Models placement_platform where nothing is known: every answer is `unsupported`.
struct unsupported_placement {
    static constexpr std::string_view name = "unsupported";
    static constexpr bool can_move = false;

    struct counters {
        [[nodiscard]] result<counted_accesses> read() const noexcept { return refuse(); }
    };

    [[nodiscard]] result<> move_pages(std::span<std::byte* const>, unsigned,
                                      std::span<page_fate>) const noexcept {
        return refuse();
    }
    [[nodiscard]] result<thread_id> current_thread() const noexcept { return refuse(); }
    [[nodiscard]] result<thread_run> run_of(thread_id) const noexcept { return refuse(); }
    [[nodiscard]] result<std::vector<bytes_on_node>> mapped_bytes(const std::byte*,
                                                                  std::uint64_t) const noexcept {
        return refuse();
    }
    [[nodiscard]] result<std::vector<unsigned>> allowed_nodes() const noexcept { return refuse(); }
    [[nodiscard]] result<counters> count_accesses(thread_id) const noexcept { return refuse(); }

private:
    [[nodiscard]] static tl::unexpected<error> refuse() noexcept {
        return fail(errc::unsupported, "placement: this platform has no call to follow memory",
                    "leave memory where it is, or run on Linux");
    }
};

} // namespace vm_accel::inline v0::os
