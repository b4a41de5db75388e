/// Giving guest RAM its pages: in parallel, by threads on the node they are for.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/numa/grant.hpp>
#include <vm_accel/os/cpu_set.hpp>
#include <vm_accel/os/memory_features.hpp>
#include <vm_accel/os/memory_platform.hpp>
#include <vm_accel/os/thread_platform.hpp>
#include <vm_accel/os/worker_thread.hpp>

#include <algorithm>
#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace vm_accel::inline v0 {

/// A range to populate, and the CPUs that are near its memory.
struct prefault_range {
    std::byte* address = nullptr;
    std::uint64_t bytes = 0;
    unsigned node = 0;  ///< ranges of one node share threads
    os::cpu_set cpus{}; ///< empty: populate from any CPU
};

/// How many of `threads` serve a node that has `bytes` of `total`: its share, but
/// at least one, and no more than it has granules.
[[nodiscard]] constexpr unsigned threads_for(std::uint64_t bytes, std::uint64_t total,
                                             unsigned threads, std::uint64_t granule) noexcept {
    if (bytes == 0 || total == 0) return 0;
    const std::uint64_t step = std::max<std::uint64_t>(granule, 1);
    const std::uint64_t most = bytes / step + (bytes % step != 0 ? 1 : 0);
    const std::uint64_t all = std::max<std::uint64_t>(total / step, 1);
    const std::uint64_t share = (most * std::min(threads, 0xffffu) + all / 2) / all;
    return static_cast<unsigned>(std::clamp<std::uint64_t>(share, 1, most));
}

/// How far a prefault has come.
struct prefault_progress {
    std::uint64_t done = 0;  ///< bytes that have their pages
    std::uint64_t total = 0; ///< bytes asked for

    friend constexpr bool operator==(const prefault_progress&, const prefault_progress&) = default;
};

/// Told of a prefault's progress by the thread that asked for it, while others
/// populate: some 64 MiB apart, `done` growing with each call; the last call says
/// that all is done, unless something was refused. False ends the prefault as soon
/// as each thread has finished the piece it is at.
template <class L>
concept prefault_listener = requires(L listener, const prefault_progress& progress) {
    { listener(progress) } noexcept -> std::same_as<bool>;
};

/// Hears nothing and lets every prefault go on.
struct no_listener {
    [[nodiscard]] constexpr bool operator()(const prefault_progress&) const noexcept {
        return true;
    }
};
static_assert(prefault_listener<no_listener>);

/// Populates every range and returns one grant for each: enforced, preferred
/// (populated, but not from the node's CPUs) or what refused it. All threads are
/// placed before the first page is touched. A thread that cannot be started has
/// its work done by the caller, unplaced.
template <os::memory_platform Memory, os::thread_platform Threads>
class prefault {
public:
    /// What is populated between two looks at whether to go on.
    static constexpr std::uint64_t piece_bytes = 64u << 20;

    /// `reserved` ranges lie in pages from pools: see os::huge_page_pools.
    prefault(Memory& memory, const Threads& threads, std::span<const prefault_range> ranges,
             unsigned thread_count, std::uint64_t granule, bool reserved = false) noexcept
        : memory_(memory),
          threads_(threads),
          ranges_(ranges),
          granule_(std::max<std::uint64_t>(granule, 1)),
          piece_(std::max(piece_bytes / granule_, std::uint64_t{1}) * granule_),
          reserved_(reserved) {
        for (const prefault_range& range : ranges)
            total_ += range.bytes;
        for (std::size_t i = 0; i < ranges.size(); ++i) {
            const bool seen = std::any_of(
                ranges.begin(), ranges.begin() + static_cast<std::ptrdiff_t>(i),
                [&](const prefault_range& other) { return other.node == ranges[i].node; });
            if (seen) continue;
            std::uint64_t bytes = 0;
            for (const prefault_range& range : ranges)
                bytes += range.node == ranges[i].node ? range.bytes : 0;
            const unsigned count = threads_for(bytes, total_, std::max(thread_count, 1u), granule_);
            for (unsigned k = 0; k < count; ++k)
                jobs_.push_back({*this, ranges[i].node, ranges[i].cpus, k, count});
        }
        for (job& j : jobs_)
            j.failures.resize(ranges.size());
    }
    prefault(const prefault&) = delete;
    prefault& operator=(const prefault&) = delete;

    [[nodiscard]] std::size_t thread_count() const noexcept { return jobs_.size(); }

    template <prefault_listener Listener = no_listener>
    [[nodiscard]] std::vector<grant> run(Listener&& listener = {}) noexcept {
        std::vector<os::worker_thread> workers(jobs_.size());
        unsigned started = 0;
        for (std::size_t i = 0; i < jobs_.size(); ++i) {
            if (const result<> done = workers[i].start(jobs_[i]); done) {
                ++started;
            } else {
                jobs_[i].placement = done;
                jobs_[i].by_caller = true;
            }
        }
        // The barrier: nobody touches a page before everybody is placed.
        for (unsigned n = ready_.load(); n != started; n = ready_.load())
            ready_.wait(n);
        at_work_.store(started);
        open_.store(true);
        open_.notify_all();
        for (job& j : jobs_)
            if (j.by_caller) j.populate([&] { tell(listener); });
        for (bool working = true; working;) {
            const unsigned heard = news_.load();
            working = at_work_.load() != 0;
            tell(listener);
            if (working) news_.wait(heard);
        }
        for (os::worker_thread& worker : workers)
            worker.join();
        std::vector<grant> grants(ranges_.size());
        for (std::size_t r = 0; r < ranges_.size(); ++r)
            grants[r] = grant_of(r);
        return grants;
    }

    /// After run(): how far it came, and whether the listener ended it.
    [[nodiscard]] prefault_progress progress() const noexcept { return {done_.load(), total_}; }
    [[nodiscard]] bool was_cancelled() const noexcept { return cancelled_.load(); }

private:
    struct job {
        prefault& owner;
        unsigned node;
        os::cpu_set cpus;
        unsigned index; ///< this is thread `index` of `count` on the node
        unsigned count;
        bool by_caller = false;
        result<> placement{};
        std::vector<std::optional<error>> failures{}; ///< by range

        void operator()() noexcept {
            if (!cpus.empty()) placement = owner.threads_.pin_current_thread(cpus);
            owner.ready_.fetch_add(1);
            owner.ready_.notify_one();
            owner.open_.wait(false);
            populate([&] { owner.announce(); });
            owner.at_work_.fetch_sub(1);
            owner.announce();
        }

        /// The job's share of every range, piece by piece, with a call after each.
        template <class After>
        void populate(After after) noexcept {
            for (std::size_t r = 0; r < owner.ranges_.size(); ++r) {
                const prefault_range& range = owner.ranges_[r];
                if (range.node != node) continue;
                const std::uint64_t last = cut(range.bytes, index + 1);
                for (std::uint64_t at = cut(range.bytes, index); at != last;) {
                    if (owner.cancelled_.load()) return;
                    const std::uint64_t bytes = std::min(last - at, owner.piece_);
                    const result<> done = owner.give_pages(range.address + at, bytes);
                    if (!done) {
                        failures[r] = done.error();
                        break;
                    }
                    at += bytes;
                    owner.done_.fetch_add(bytes);
                    after();
                }
            }
        }

        /// Where piece `n` of a range starts: on a granule, the last at its end.
        [[nodiscard]] std::uint64_t cut(std::uint64_t bytes, unsigned n) const noexcept {
            if (n == count) return bytes;
            const std::uint64_t granules = bytes / owner.granule_;
            return granules / count * owner.granule_ * n +
                   granules % count * n / count * owner.granule_;
        }
    };

    [[nodiscard]] result<> give_pages(std::byte* address, std::uint64_t bytes) noexcept {
        if constexpr (os::huge_page_pools<Memory>) {
            if (reserved_) return memory_.populate_huge(address, bytes);
        }
        return memory_.populate(address, bytes);
    }

    void announce() noexcept {
        news_.fetch_add(1);
        news_.notify_one();
    }

    /// By the calling thread only.
    template <class Listener>
    void tell(Listener& listener) noexcept {
        const std::uint64_t done = done_.load();
        if (done == told_) return;
        told_ = done;
        if (!listener(prefault_progress{done, total_})) cancelled_.store(true);
    }

    [[nodiscard]] grant grant_of(std::size_t r) const noexcept {
        grant given = grant::enforced();
        if (cancelled_.load()) return grant::refused("the prefault was cancelled");
        for (const job& j : jobs_) {
            if (j.node != ranges_[r].node) continue;
            if (const std::optional<error>& failure = j.failures[r]; failure)
                return grant::denied(*failure);
            if (!j.placement) given = grant::preferred(j.placement.error().cause);
        }
        if (ranges_[r].cpus.empty() && given.state == grant_state::enforced)
            return grant::preferred("populated from any CPU: the node's CPUs are not known");
        return given;
    }

    Memory& memory_;
    const Threads& threads_;
    std::span<const prefault_range> ranges_;
    std::uint64_t granule_;
    std::uint64_t piece_;
    bool reserved_;
    std::uint64_t total_ = 0;
    std::uint64_t told_ = 0; ///< what the listener heard last
    std::vector<job> jobs_{};
    std::atomic<unsigned> ready_{0};
    std::atomic<bool> open_{false};
    std::atomic<unsigned> at_work_{0};   ///< threads not done yet
    std::atomic<unsigned> news_{0};      ///< grows with each piece and each thread's end
    std::atomic<std::uint64_t> done_{0}; ///< bytes
    std::atomic<bool> cancelled_{false};
};

} // namespace vm_accel::inline v0
