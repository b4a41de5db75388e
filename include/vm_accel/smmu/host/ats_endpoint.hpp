/// What the SMMU tells a PCIe device that has a translation cache (ATC):
/// responses to its page requests, and what to forget.
#pragma once

#include <vm_accel/smmu/vocabulary/ats.hpp>
#include <vm_accel/smmu/vocabulary/page_request.hpp>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>

namespace vm_accel::inline v0 {

/// One attached device's mailbox. Nothing in it waits for the device.
///
/// Invalidations are outstanding until the device says that they are done, or
/// that they failed. Beyond Invalidations, what follows is asked for as one
/// invalidation of everything. Beyond Responses, responses are lost, as on a
/// link: a device has fewer groups open than that.
///
/// Threads: any member from any thread; wait() alone waits.
template <std::size_t Invalidations = 32, std::size_t Responses = 512>
class basic_ats_endpoint {
public:
    // For the control side.

    void invalidate(const atc_invalidation& asked) noexcept {
        {
            const std::lock_guard lock{mutex_};
            entry* const free = find(state::free);
            if (free == nullptr || everything_owed_) {
                everything_owed_ = true;
            } else {
                send(*free, asked);
            }
        }
        tell();
    }
    void respond(const page_response& response) noexcept {
        {
            const std::lock_guard lock{mutex_};
            if (response_count_ == Responses) {
                ++responses_lost_;
                return;
            }
            responses_[(first_response_ + response_count_++) % Responses] = response;
        }
        tell();
    }
    /// Whether some invalidation is outstanding.
    [[nodiscard]] bool owes() const noexcept {
        const std::lock_guard lock{mutex_};
        return everything_owed_ || outstanding_ != 0;
    }
    /// Whether one has failed since this was last asked.
    [[nodiscard]] bool take_failure() noexcept {
        const std::lock_guard lock{mutex_};
        const bool failed = failed_;
        failed_ = false;
        return failed;
    }
    /// Forgets everything: the device is gone, or starts over.
    void clear() noexcept {
        {
            const std::lock_guard lock{mutex_};
            for (entry& e : entries_)
                release(e);
            everything_owed_ = failed_ = false;
            outstanding_ = 0;
            response_count_ = 0;
        }
        tell();
    }

    /// See saved_state.hpp. Tokens stay good: the device acknowledges them where
    /// it is now.
    template <class Visit>
    void visit_state(Visit& visit) noexcept {
        {
            const std::lock_guard lock{mutex_};
            std::uint64_t outstanding = 0;
            for (std::size_t i = 0; i < Invalidations; ++i) {
                entry& e = entries_[i];
                const std::uint64_t at = visit(e.at, 3);
                visit.require(at <= static_cast<std::uint64_t>(state::seen));
                outstanding += at != static_cast<std::uint64_t>(state::free) ? 1 : 0;
                visit(e.order, ~std::uint64_t{0});
                visit(e.asked.first, ~std::uint64_t{0});
                visit(e.asked.last, ~std::uint64_t{0});
                visit(e.asked.has_substream, 1);
                visit(e.asked.global, 1);
                visit(e.asked.substream, 0xf'ffff);
                const std::uint64_t token = visit(e.asked.token, 0xffff'ffff);
                visit.require(token == 0 || token % Invalidations == i);
            }
            visit.require(visit(outstanding_, ~std::uint64_t{0}) == outstanding);
            visit(order_, ~std::uint64_t{0});
            // Something is owed only while every place is taken.
            const std::uint64_t owed = visit(everything_owed_, 1);
            visit.require(owed == 0 || outstanding == Invalidations);
            visit(failed_, 1);
            const std::uint64_t count = visit(response_count_, ~std::uint64_t{0});
            visit.require(count <= Responses);
            for (std::uint64_t i = 0; i < count && i < Responses; ++i) {
                page_response response = responses_[(first_response_ + i) % Responses];
                visit(response.group, 0x1ff);
                const std::uint64_t code = visit(response.code, 0xf);
                visit.require(code <= 1 || code == 0xf);
                visit(response.has_substream, 1);
                visit(response.substream, 0xf'ffff);
                if (visit.is_loading()) responses_[i] = response;
            }
            if (visit.is_loading()) first_response_ = 0;
        }
        if (visit.is_loading()) tell();
    }

    // For the device.

    /// The oldest invalidation that the device has not seen, if any.
    [[nodiscard]] std::optional<atc_invalidation> next_invalidation() noexcept {
        const std::lock_guard lock{mutex_};
        entry* oldest = nullptr;
        for (entry& e : entries_) {
            if (e.at == state::sent && (oldest == nullptr || e.order < oldest->order)) oldest = &e;
        }
        if (oldest == nullptr) return std::nullopt;
        oldest->at = state::seen;
        return oldest->asked;
    }
    /// The invalidation is done, or failed (it timed out). False = it is not
    /// outstanding: acknowledged before, or forgotten by a reset.
    bool acknowledge(std::uint32_t token, bool done) noexcept {
        {
            const std::lock_guard lock{mutex_};
            entry& e = entries_[token % Invalidations];
            if (e.at == state::free || e.asked.token != token) return false;
            release(e);
            --outstanding_;
            failed_ = failed_ || !done;
            if (!everything_owed_) return true;
            everything_owed_ = false;
            send(e, {.global = true});
        }
        tell();
        return true;
    }
    [[nodiscard]] std::optional<page_response> next_response() noexcept {
        const std::lock_guard lock{mutex_};
        if (response_count_ == 0) return std::nullopt;
        const page_response response = responses_[first_response_];
        first_response_ = (first_response_ + 1) % Responses;
        --response_count_;
        return response;
    }
    /// Counts what came; wait until it is no longer `seen`.
    [[nodiscard]] std::uint32_t news() const noexcept {
        return news_.load(std::memory_order_acquire);
    }
    void wait(std::uint32_t seen) const noexcept { news_.wait(seen, std::memory_order_acquire); }
    /// Ends every wait, as news does.
    void wake() noexcept { tell(); }
    [[nodiscard]] std::uint64_t responses_lost() const noexcept {
        const std::lock_guard lock{mutex_};
        return responses_lost_;
    }

private:
    enum class state : std::uint8_t { free, sent, seen };
    struct entry {
        state at = state::free;
        std::uint64_t order = 0;
        atc_invalidation asked{};
    };

    [[nodiscard]] entry* find(state wanted) noexcept {
        for (entry& e : entries_) {
            if (e.at == wanted) return &e;
        }
        return nullptr;
    }
    void send(entry& e, const atc_invalidation& asked) noexcept {
        const std::uint32_t used = e.asked.token;
        e.asked = asked;
        // Its place, and how often that was used: a late acknowledgement meets nothing.
        e.asked.token = used == 0
                            ? static_cast<std::uint32_t>(
                                  static_cast<std::size_t>(&e - entries_.data()) + Invalidations)
                            : used + static_cast<std::uint32_t>(Invalidations);
        e.order = ++order_;
        e.at = state::sent;
        ++outstanding_;
    }
    static void release(entry& e) noexcept { e.at = state::free; }
    void tell() noexcept {
        news_.fetch_add(1, std::memory_order_release);
        news_.notify_all();
    }

    mutable std::mutex mutex_;
    std::array<entry, Invalidations> entries_{};
    std::array<page_response, Responses> responses_{};
    std::size_t first_response_ = 0;
    std::size_t response_count_ = 0;
    std::size_t outstanding_ = 0;
    std::uint64_t order_ = 0;
    std::uint64_t responses_lost_ = 0;
    bool everything_owed_ = false;
    bool failed_ = false;
    std::atomic<std::uint32_t> news_{0};
};

using ats_endpoint = basic_ats_endpoint<>;

} // namespace vm_accel::inline v0
