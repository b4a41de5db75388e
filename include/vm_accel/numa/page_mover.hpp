/// Moving what lies of a range on one node to another, in small steps, with a count of
/// what came of every page.
#pragma once

#include <vm_accel/numa/grant.hpp>
#include <vm_accel/os/memory_platform.hpp>
#include <vm_accel/os/placement_platform.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace vm_accel::inline v0 {

/// Pages by what came of them.
struct move_counts {
    std::uint64_t moved = 0;         ///< lay on the old node before, and lie on the new one
    std::uint64_t already_there = 0; ///< lay on the new node before
    std::uint64_t absent = 0;        ///< had no memory, or lost it meanwhile
    std::uint64_t elsewhere = 0;     ///< lay on a third node, or the kernel would not tell
    std::uint64_t busy = 0;          ///< held by the kernel or a device: pinned, or under I/O
    std::uint64_t shared = 0;        ///< other processes map them
    std::uint64_t no_room = 0;       ///< the new node had none
    std::uint64_t refused = 0;       ///< for other reasons, or accepted and not done

    friend bool operator==(const move_counts&, const move_counts&) = default;

    /// Pages that were to move and did not.
    [[nodiscard]] constexpr std::uint64_t failed() const noexcept {
        return busy + shared + no_room + refused;
    }
    constexpr move_counts& operator+=(const move_counts& other) noexcept {
        moved += other.moved;
        already_there += other.already_there;
        absent += other.absent;
        elsewhere += other.elsewhere;
        busy += other.busy;
        shared += other.shared;
        no_room += other.no_room;
        refused += other.refused;
        return *this;
    }
};

/// "12 moved, 3 busy"
template <class Stream>
    requires requires(Stream& out, std::string_view text) { out << text; }
Stream& operator<<(Stream& out, const move_counts& counts) {
    fixed_text<160> text;
    text.append_number(counts.moved).append(" moved");
    const auto tell = [&text](std::uint64_t pages, std::string_view what) {
        if (pages != 0) text.append(", ").append_number(pages).append(" ").append(what);
    };
    tell(counts.already_there, "there already");
    tell(counts.absent, "absent");
    tell(counts.elsewhere, "elsewhere");
    tell(counts.busy, "busy");
    tell(counts.shared, "shared with other processes");
    tell(counts.no_room, "without room");
    tell(counts.refused, "refused");
    out << text.view();
    return out;
}

/// A piece of memory whose pages can move one by one.
struct movable_range {
    std::byte* address = nullptr;
    std::uint64_t bytes = 0;
    std::uint64_t page_bytes = 4096; ///< of the pages behind it, e.g. 2 MiB of a pool
};

struct move_outcome {
    move_counts pages{};
    /// enforced; preferred, if pages stayed behind; or what refused the call itself.
    grant given{};
};

/// Moves pages by the platform's call and believes only where they lie afterwards.
/// Each step is of at most `step_bytes` (or one page): a guest that touches a page
/// on its way waits for that step at most.
template <os::memory_platform Memory, os::placement_platform Placement>
class page_mover {
public:
    explicit page_mover(Memory& memory, Placement& placement,
                        std::uint64_t step_bytes = 2u << 20) noexcept
        : memory_(memory), placement_(placement), step_bytes_(step_bytes) {}

    /// Moves up to `most` bytes of what lies on node `from` to node `to` (the operating
    /// system's numbers), lower addresses first. Pages that stay behind count towards
    /// `most`, so that a range that cannot move costs no more than one that can. Ends
    /// early where the call is refused or the node is full.
    [[nodiscard]] move_outcome move(const movable_range& range, unsigned from, unsigned to,
                                    std::uint64_t most) noexcept {
        move_outcome outcome{{}, grant::enforced()};
        const std::uint64_t page = std::max<std::uint64_t>(range.page_bytes, 1);
        const std::uint64_t step =
            std::clamp<std::uint64_t>(step_bytes_ / page, 1, most_pages) * page;
        std::uint64_t left = most / page;
        for (std::uint64_t at = 0; at < range.bytes && left != 0; at += step) {
            const std::uint64_t bytes = std::min(step, range.bytes - at);
            const auto pages = static_cast<std::size_t>((bytes + page - 1) / page);
            if (!one_step(outcome, range.address + at, page, pages, from, to, left)) break;
        }
        if (outcome.given.state == grant_state::enforced && outcome.pages.failed() != 0)
            outcome.given = grant::preferred(cause_of(outcome.pages, to));
        return outcome;
    }

private:
    static constexpr std::size_t most_pages = 512;

    /// False to stop.
    [[nodiscard]] bool one_step(move_outcome& outcome, std::byte* address, std::uint64_t page,
                                std::size_t pages, unsigned from, unsigned to,
                                std::uint64_t& left) noexcept {
        const std::span before{before_.data(), pages};
        const std::span after{after_.data(), pages};
        if (!ask(outcome, address, page, before)) return false;
        std::size_t chosen = 0;
        for (std::size_t i = 0; i < pages; ++i) {
            if (before[i] == static_cast<int>(to)) ++outcome.pages.already_there;
            if (before[i] == os::page_absent) ++outcome.pages.absent;
            if (before[i] != static_cast<int>(from)) {
                const bool known =
                    before[i] == static_cast<int>(to) || before[i] == os::page_absent;
                outcome.pages.elsewhere += known ? 0 : 1;
                continue;
            }
            if (chosen == left) continue;
            chosen_[chosen] = i;
            addresses_[chosen++] = address + i * page;
        }
        if (chosen == 0) return true;
        const std::span fates{fates_.data(), chosen};
        std::fill(fates.begin(), fates.end(), os::page_fate::untried);
        const result<> done = placement_.move_pages(std::span{addresses_}.first(chosen), to, fates);
        if (!done) outcome.given = grant::denied(done.error());
        if (!ask(outcome, address, page, after)) return false;
        for (std::size_t i = 0; i < pages; ++i) // a huge page takes its neighbours along
            if (before[i] == static_cast<int>(from) && after[i] == static_cast<int>(to))
                ++outcome.pages.moved;
        for (std::size_t k = 0; k < chosen; ++k)
            if (after[chosen_[k]] != static_cast<int>(to)) count(outcome.pages, fates[k]);
        left -= chosen;
        return done.has_value() && outcome.pages.no_room == 0;
    }

    [[nodiscard]] bool ask(move_outcome& outcome, const std::byte* address, std::uint64_t page,
                           std::span<int> nodes) noexcept {
        std::fill(nodes.begin(), nodes.end(), os::page_unknown);
        const result<> asked = memory_.page_nodes(address, page, nodes);
        if (!asked) outcome.given = grant::denied(asked.error());
        return asked.has_value();
    }

    static void count(move_counts& pages, os::page_fate fate) noexcept {
        switch (fate) {
        case os::page_fate::absent:
            ++pages.absent;
            return;
        case os::page_fate::busy:
            ++pages.busy;
            return;
        case os::page_fate::shared:
            ++pages.shared;
            return;
        case os::page_fate::no_room:
            ++pages.no_room;
            return;
        case os::page_fate::untried: // the call was refused before it: told by the grant
            return;
        case os::page_fate::on_node: // it says so, and is not there
        case os::page_fate::refused:
            ++pages.refused;
            return;
        }
    }

    [[nodiscard]] static fixed_text<160> cause_of(const move_counts& pages, unsigned to) noexcept {
        fixed_text<160> why;
        why.append_number(pages.failed()).append(" pages did not go to node ").append_number(to);
        const auto tell = [&why](std::uint64_t some, std::string_view what) {
            if (some != 0) why.append(", ").append_number(some).append(" ").append(what);
        };
        tell(pages.busy, "busy");
        tell(pages.shared, "shared with other processes");
        tell(pages.no_room, "without room there");
        tell(pages.refused, "refused");
        return why;
    }

    Memory& memory_;
    Placement& placement_;
    std::uint64_t step_bytes_;
    std::array<int, most_pages> before_{};
    std::array<int, most_pages> after_{};
    std::array<std::size_t, most_pages> chosen_{};
    std::array<std::byte*, most_pages> addresses_{};
    std::array<os::page_fate, most_pages> fates_{};
};

} // namespace vm_accel::inline v0
