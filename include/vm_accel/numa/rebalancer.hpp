/// Memory that follows its vCPUs: sample, decide, migrate, as often as the VMM likes.
///
/// There is no hidden thread: rebalance() does one round on the thread that calls it.
/// Between the samples and the moves stands a pure planner (migration.hpp); nobody takes
/// the guest's access to a page away to find out who uses it.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/numa/access_tracking.hpp>
#include <vm_accel/numa/adaptive.hpp>
#include <vm_accel/numa/followed_memory.hpp>
#include <vm_accel/numa/grant.hpp>
#include <vm_accel/numa/migration.hpp>
#include <vm_accel/numa/page_mover.hpp>
#include <vm_accel/numa/ram_planning.hpp>
#include <vm_accel/numa/ram_region.hpp>
#include <vm_accel/numa/vcpu_sampler.hpp>
#include <vm_accel/os/memory.hpp>
#include <vm_accel/os/placement.hpp>
#include <vm_accel/topology/cpu_topology.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

namespace vm_accel::inline v0 {

struct rebalance_options {
    migration_limits limits{}; ///< budget, hysteresis and rest
    following_options following{};
    unsigned keep_free_percent = 3; ///< of a node's memory, never filled by moves
};

/// What one round saw and did.
struct rebalance_round {
    std::uint64_t number = 0;   ///< from 1
    std::size_t vcpus_seen = 0; ///< of those followed
    access_tracking accesses{}; ///< as they were before the moves
    migration_plan plan{};      ///< by indices of pieces and of the topology's nodes
    move_counts pages{};        ///< what came of it
    std::uint64_t bytes_moved = 0;
    unsigned pieces_bound = 0; ///< to their new nodes
    grant sampling{}; ///< of memory: enforced; preferred, if only a part was seen; or why not
    grant moving{};   ///< not_requested, if nothing was to be moved
};

/// Threads: any; a call waits for the round that is going on. A region must stay until it
/// is removed, a vCPU's thread may end at any time.
template <migration_planner Planner = adaptive, os::memory_platform Memory = os::native_memory,
          os::placement_platform Placement = os::native_placement>
class rebalancer {
public:
    /// Memory moves among `topology`'s nodes only.
    explicit rebalancer(cpu_topology topology, const rebalance_options& options = {},
                        Memory memory = {}, Placement placement = {})
        : topology_(std::move(topology)),
          options_(options),
          memory_(std::move(memory)),
          placement_(std::move(placement)),
          vcpus_(topology_),
          pieces_(options.following) {}
    rebalancer(const rebalancer&) = delete;
    rebalancer& operator=(const rebalancer&) = delete;

    /// Follows a region from now on. The region's own chunks() go on telling where it was
    /// put at first; pieces() tells where it is bound now.
    void add_region(const basic_ram_region<Memory>& region) {
        const std::lock_guard lock{mutex_};
        pieces_.add(region, memory_);
    }
    /// Before a region is given up.
    void remove_region(const basic_ram_region<Memory>& region) {
        const std::lock_guard lock{mutex_};
        pieces_.remove(region);
    }

    /// Follows a vCPU's thread, which uses the memory of its guest node, or with any_node
    /// all of it.
    void add_vcpu(os::thread_id thread, unsigned guest_node = any_node) {
        const std::lock_guard lock{mutex_};
        vcpus_.add(placement_, thread, guest_node);
    }
    /// The same for the thread that calls it. Errors: unsupported.
    [[nodiscard]] result<> add_this_vcpu(unsigned guest_node = any_node) {
        const result<os::thread_id> self = placement_.current_thread();
        if (!self) return fail(self);
        add_vcpu(*self, guest_node);
        return {};
    }
    void remove_vcpu(os::thread_id thread) {
        const std::lock_guard lock{mutex_};
        vcpus_.remove(thread);
    }

    /// Looks where the vCPUs are, between rounds: the more often, the more a round knows.
    void sample_vcpus() {
        const std::lock_guard lock{mutex_};
        vcpus_.sample(placement_);
    }

    /// One round: looks, decides, moves. What the kernel refuses is told in the round and
    /// is no error. Takes as long as moving the budget does. Errors: unsupported (the
    /// topology is not this system's); what the planner finds wrong.
    [[nodiscard]] result<rebalance_round> rebalance() {
        const std::lock_guard lock{mutex_};
        if (!ram_planning::means_this_system<Memory>(topology_))
            return fail(errc::unsupported,
                        "rebalancing: the topology is a description, not this system",
                        "give it load_topology()'s");
        rebalance_round round;
        round.number = ++rounds_;
        round.vcpus_seen = vcpus_.sample(placement_);
        vcpus_.read_counters();
        std::vector<region_sample> regions = pieces_.look(topology_, memory_, round.sampling);
        const migration_sample sample{vcpus_.residency(), regions};
        round.accesses = track_accesses(topology_, sample, vcpus_.counted());
        result<migration_plan> plan = Planner{}.migrate(stock(), sample, options_.limits);
        if (!plan) return fail(plan);
        round.plan = std::move(*plan);
        for (const migration& m : round.plan)
            carry_out(round, m, regions[m.region]);
        vcpus_.forget();
        remember(round);
        return round;
    }

    /// What is followed, as it stands.
    [[nodiscard]] std::vector<followed_piece> pieces() const {
        const std::lock_guard lock{mutex_};
        return {pieces_.pieces().begin(), pieces_.pieces().end()};
    }
    /// The accesses that the last round saw.
    [[nodiscard]] access_tracking accesses() const {
        const std::lock_guard lock{mutex_};
        return accesses_;
    }
    /// Why a vCPU was not seen, if one was not.
    [[nodiscard]] std::optional<error> why_not_seen() const {
        const std::lock_guard lock{mutex_};
        return vcpus_.last_failure();
    }
    /// Why the processor's counters are not used, if they are not.
    [[nodiscard]] std::optional<error> why_not_counted() const {
        const std::lock_guard lock{mutex_};
        return vcpus_.why_not_counted();
    }

    /// For a diagnostic report: `out.fact(name, value)` for each fact.
    template <class Report>
    void report(Report& out) const {
        const std::lock_guard lock{mutex_};
        out.fact("rebalancing rounds", rounds_);
        out.fact("bytes that followed vCPUs", bytes_moved_);
        out.fact("pages not moved, busy", total_.busy);
        out.fact("pages not moved, shared", total_.shared);
        out.fact("pages not moved, no room", total_.no_room);
        out.fact("pages not moved, refused", total_.refused);
        out.fact("local access rate", accesses_.all.rate);
        out.fact("local access rate by", name_of(accesses_.all.source));
        out.fact("mean distance of an access", accesses_.mean_distance);
        if (!last_refusal_.empty()) out.fact("last refusal of a move", last_refusal_.view());
        if (vcpus_.why_not_counted())
            out.fact("accesses not counted", vcpus_.why_not_counted()->cause.view());
    }

private:
    /// What nodes can take: free, allowed to this process, and not the last of it.
    [[nodiscard]] memory_inventory stock() {
        const result<std::vector<unsigned>> allowed = placement_.allowed_nodes();
        std::vector<unsigned> nodes;
        for (unsigned i = 0; i < topology_.nodes.size(); ++i) {
            const numa_node& node = topology_.nodes[i];
            const bool is_allowed = !allowed || std::find(allowed->begin(), allowed->end(),
                                                          node.os_index) != allowed->end();
            if (node.memory_bytes != 0 && is_allowed) nodes.push_back(i);
        }
        memory_inventory inventory = ram_planning::take_stock(
            memory_, topology_, nodes, pieces_.granule(memory_.huge_page_bytes()));
        for (const unsigned node : nodes) {
            const std::uint64_t kept =
                topology_.nodes[node].memory_bytes / 100 * options_.keep_free_percent;
            inventory.free_bytes[node] -= std::min(inventory.free_bytes[node], kept);
        }
        return inventory;
    }

    /// Does one move, and keeps the samples true to it.
    void carry_out(rebalance_round& round, const migration& m, region_sample& region) {
        std::uint64_t elsewhere = 0;
        for (share_of_node& on : region.on_nodes) {
            if (on.node == m.from) on.share -= std::min(on.share, m.bytes);
            elsewhere += on.node != m.to ? on.share : 0;
        }
        bool bound = false;
        const move_outcome outcome =
            pieces_.move(m, topology_, elsewhere, memory_, placement_, bound);
        round.pages += outcome.pages;
        round.bytes_moved += outcome.pages.moved * pieces_.pieces()[m.region].page_bytes;
        round.pieces_bound += bound ? 1 : 0;
        // The worst outcome is told.
        if (round.moving.state < outcome.given.state) round.moving = outcome.given;
    }

    void remember(const rebalance_round& round) {
        total_ += round.pages;
        bytes_moved_ += round.bytes_moved;
        accesses_ = round.accesses;
        for (const grant* given : {&round.sampling, &round.moving})
            if (given->is_denied()) last_refusal_ = given->cause;
    }

    mutable std::mutex mutex_{};
    cpu_topology topology_;
    rebalance_options options_;
    [[no_unique_address]] Memory memory_;
    [[no_unique_address]] Placement placement_;
    vcpu_sampler<Placement> vcpus_;
    followed_memory<Memory, Placement> pieces_;
    std::uint64_t rounds_ = 0;
    std::uint64_t bytes_moved_ = 0;
    move_counts total_{};
    access_tracking accesses_{};
    fixed_text<160> last_refusal_{};
};

} // namespace vm_accel::inline v0
