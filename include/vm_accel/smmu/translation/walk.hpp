/// What a table walk is asked, what it answers, and how it reaches memory.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/guest/guest_memory.hpp>
#include <vm_accel/smmu/vocabulary/access.hpp>
#include <vm_accel/smmu/vocabulary/fault.hpp>
#include <vm_accel/smmu/vocabulary/memory_attributes.hpp>
#include <vm_accel/spec/events.hpp>

#include <concepts>
#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// One look-up. Permissions are part of the walk, because stage 1 is checked
/// before stage 2 sees the output, and because they decide what is marked dirty.
struct walk_request {
    std::uint64_t address = 0;    ///< canonical: see stream_configuration::canonical
    unsigned needed = 0;          ///< the bit of `permissions` that the access needs
    memory_attributes incoming{}; ///< what the access has when stage 1 is off
};

/// Where a walk ended: a leaf, or an event.
struct walk_result {
    std::optional<spec::event_id> event{}; ///< set = the walk faulted
    bool stage2 = false;                   ///< the fault is of stage 2
    spec::fault_class cls = spec::fault_class::IN;
    bool table_write = false;        ///< class TT: the access was an update of flags
    std::uint64_t ipa = 0;           ///< of a stage-2 fault
    std::uint64_t fetch_address = 0; ///< F_WALK_EABT: the descriptor's address
    std::uint64_t input_base = 0;    ///< first input address of the leaf
    std::uint64_t output_base = 0;   ///< first output address of the leaf
    std::uint8_t size_log2 = 12;     ///< log2 of the bytes that this answer covers
    /// log2 of the page that an invalidation by address takes as a whole: stage
    /// 1's, of which a smaller page of stage 2 may show only a part.
    std::uint8_t page_size_log2 = 12;
    std::int8_t level = 0; ///< of the descriptor that ended it, in its stage; 0 = none was read
    permissions allowed{}; ///< what later accesses may do without a walk
    bool global = false;
    memory_attributes attributes{};

    [[nodiscard]] static constexpr walk_result fault(spec::event_id id, std::uint64_t address = 0,
                                                     int level = 0) noexcept {
        walk_result r;
        r.event = id;
        r.fetch_address = address;
        r.level = static_cast<std::int8_t>(level);
        return r;
    }
};

/// How a walk reaches tables: by physical address, 64 bits at a time, in host
/// order. Nullopt = not memory.
template <class T>
concept table_access = requires(T& tables, std::uint64_t at, std::uint64_t value) {
    { tables.load(at) } noexcept -> std::same_as<std::optional<std::uint64_t>>;
    {
        tables.compare_exchange(at, value, value)
    } noexcept -> std::same_as<std::optional<std::uint64_t>>;
};

/// Tables in guest memory. With `updates` off, flags are never written and
/// every update seems to succeed: for look-ups that must leave no trace.
template <guest_memory Memory>
class guest_tables {
public:
    explicit guest_tables(Memory& memory, bool updates = true) noexcept
        : memory_(memory), updates_(updates) {}

    /// Loads and updates so far.
    [[nodiscard]] std::uint64_t accesses() const noexcept { return accesses_; }
    /// Whether a walk owed an update that was not made: its result is no
    /// translation to keep.
    [[nodiscard]] bool owes_update() const noexcept { return owes_update_; }

    [[nodiscard, gnu::always_inline]] std::optional<std::uint64_t> load(std::uint64_t at) noexcept {
        ++accesses_;
        return memory_.load64(pa{at});
    }
    /// Gives what was found; equal to `expected` = replaced.
    [[nodiscard]] std::optional<std::uint64_t>
    compare_exchange(std::uint64_t at, std::uint64_t expected, std::uint64_t desired) noexcept {
        ++accesses_;
        if (!updates_) {
            owes_update_ = true;
            return memory_.load64(pa{at}) ? std::optional{expected} : std::nullopt;
        }
        return memory_.compare_exchange64(pa{at}, expected, desired);
    }

private:
    Memory& memory_;
    std::uint64_t accesses_ = 0;
    bool updates_;
    bool owes_update_ = false;
};

} // namespace vm_accel::inline v0
