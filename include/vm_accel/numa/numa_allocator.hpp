/// Guest RAM on the NUMA nodes where it belongs, and proof of it.
///
/// make() tells the whole story: plan, map, bind, advise, populate, check.
/// What the kernel refuses is recorded in the region, and is an error only if
/// the request is strict.
#pragma once

#include <vm_accel/core/detection.hpp>
#include <vm_accel/core/result.hpp>
#include <vm_accel/core/roles.hpp>
#include <vm_accel/numa/guest_ram_request.hpp>
#include <vm_accel/numa/interleaving.hpp>
#include <vm_accel/numa/prefault.hpp>
#include <vm_accel/numa/ram_backing.hpp>
#include <vm_accel/numa/ram_binding.hpp>
#include <vm_accel/numa/ram_planning.hpp>
#include <vm_accel/numa/ram_region.hpp>
#include <vm_accel/numa/strategy.hpp>
#include <vm_accel/numa/verification.hpp>
#include <vm_accel/os/memory.hpp>
#include <vm_accel/os/placement.hpp>
#include <vm_accel/os/threads.hpp>
#include <vm_accel/topology/load.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace vm_accel::inline v0 {

/// Threads: any member may be called by any thread at any time, but for init(),
/// which must return before a reference from topology() is used. Regions outlive
/// the allocator.
template <numa_strategy Strategy, os::memory_platform Memory = os::native_memory,
          os::thread_platform Threads = os::native_threads>
class numa_allocator {
public:
    using role = roles::memory;
    using strategy_type = Strategy;
    using region_type = basic_ram_region<Memory>;
    static constexpr std::string_view name = "numa_allocator";

    numa_allocator() = default;
    explicit numa_allocator(Memory memory, Threads threads = {}) noexcept
        : memory_(std::move(memory)), threads_(std::move(threads)) {}
    numa_allocator(const numa_allocator&) = delete;
    numa_allocator& operator=(const numa_allocator&) = delete;

    /// What this machine has. Keeps nothing.
    [[nodiscard]] static detection detect() noexcept {
        const result<const cpu_topology*> shared = shared_topology();
        if (!shared) return {false, shared.error().cause};
        const cpu_topology& topology = **shared;
        fixed_text<160> text;
        text.append_number(topology.memory_node_count()).append(" NUMA nodes with memory");
        if (!Memory::can_bind) text.append("; memory cannot be bound here");
        if (!topology.is_this_system()) text.append("; described, not this system");
        return {Memory::can_bind && topology.memory_node_count() != 0, text};
    }

    /// Loads this machine's topology and takes every node with memory into use.
    /// Errors: already_initialized, unavailable, and those of load_topology.
    [[nodiscard]] result<> init() noexcept {
        if (is_initialized()) return already_initialized();
        const result<const cpu_topology*> topology = shared_topology();
        if (!topology) return fail(topology);
        return init(**topology);
    }
    /// The same with a topology that is at hand already.
    [[nodiscard]] result<> init(cpu_topology topology) noexcept {
        const std::lock_guard lock{mutex_};
        if (initialized_) return already_initialized();
        if (topology.memory_node_count() == 0) return numa_planning::no_memory_node();
        topology_ = std::move(topology);
        // Memory without CPUs is slow or special: it is taken into use last.
        for (const bool without_cpus : {false, true}) {
            for (unsigned i = 0; i < topology_.nodes.size(); ++i) {
                const numa_node& node = topology_.nodes[i];
                if (node.memory_bytes != 0 && node.cpus.empty() == without_cpus)
                    memory_nodes_.push_back(i);
            }
        }
        nodes_in_use_ = memory_nodes_.size();
        initialized_ = true;
        return {};
    }
    [[nodiscard]] bool is_initialized() const noexcept {
        const std::lock_guard lock{mutex_};
        return initialized_;
    }

    /// Places memory on the first `nodes` nodes that have any, those with CPUs
    /// before those without, from now on.
    /// Errors: not_initialized, invalid_argument (0), out_of_range (more than
    /// there are); what was in force then stays.
    [[nodiscard]] result<> enable(unsigned nodes) noexcept {
        const std::lock_guard lock{mutex_};
        if (!initialized_) return not_initialized();
        if (nodes == 0)
            return fail(errc::invalid_argument, "numa: 0 nodes asked for",
                        "ask for at least 1, or call disable()");
        if (nodes > memory_nodes_.size())
            return fail(errc::out_of_range,
                        fixed_text<160>{"numa: "}
                            .append_number(nodes)
                            .append(" nodes asked for, ")
                            .append_number(memory_nodes_.size())
                            .append(" have memory that this process may use"),
                        "ask for fewer nodes, or widen the process's cpuset");
        nodes_in_use_ = nodes;
        return {};
    }
    /// Leaves placement to the kernel, from now on. Errors: not_initialized.
    [[nodiscard]] result<> disable() noexcept {
        const std::lock_guard lock{mutex_};
        if (!initialized_) return not_initialized();
        nodes_in_use_ = 0;
        return {};
    }
    [[nodiscard]] bool is_enabled() const noexcept {
        const std::lock_guard lock{mutex_};
        return nodes_in_use_ != 0;
    }
    /// The nodes in use, by the operating system's numbers.
    [[nodiscard]] std::vector<unsigned> nodes_in_use() const {
        std::vector<unsigned> numbers;
        for (const unsigned node : current_nodes())
            numbers.push_back(topology_.nodes[node].os_index);
        return numbers;
    }

    /// The topology that init() loaded, empty before. It never changes after.
    [[nodiscard]] const cpu_topology& topology() const noexcept { return topology_; }

    /// What the strategy makes of a request now, by the nodes' free memory; nodes
    /// are indices into topology(). Nothing is allocated. Errors: as allocate().
    [[nodiscard]] result<memory_plan> plan(const guest_ram_request& request) noexcept {
        if (request.huge_pages == huge_page_use::reserve) {
            result<memory_plan> planned =
                plan(request, ram_backing::page_size_of(memory_, request));
            if (planned || request.strict) return planned;
        }
        return plan(request, 0);
    }

    /// Guest RAM. Not strict: whatever the kernel grants is good enough and is told in
    /// the region's chunks and grants(). Strict: every binding is enforced, advice
    /// accepted, all else that was asked for given, and prefaulted pages lie where they
    /// should, or it fails. `listener` hears of a prefault's progress; see prefault.hpp.
    /// Errors: not_initialized; invalid_argument (sizes); out_of_range (a host
    /// node not in use, or any while placement is off); exhausted (no address
    /// space; strict: no room on the nodes); cancelled (by the listener); strict: also
    /// what the kernel answered (unsupported, permission_denied, exhausted,
    /// invalid_argument) and mismatch. Nothing stays allocated after an error.
    template <prefault_listener Listener = no_listener>
    [[nodiscard]] result<region_type> allocate(const guest_ram_request& request,
                                               Listener&& listener = {}) noexcept {
        if (request.huge_pages != huge_page_use::reserve) return make(request, 0, {}, listener);
        result<region_type> made =
            make(request, ram_backing::page_size_of(memory_, request), {}, listener);
        if (made || request.strict || made.error() == errc::cancelled) return made;
        return make(request, 0, made.error(), listener);
    }

    /// What became of a region: requested against given, chunk by chunk, and on which
    /// nodes its pages lie now. The report tells of all regions verified. Errors: only
    /// strict ones; see verification.hpp.
    template <os::placement_platform Placement = os::native_placement>
    [[nodiscard]] result<region_proof> verify(const region_type& region,
                                              const verify_options& options = {},
                                              const Placement& placement = {}) noexcept {
        result<region_proof> proof = verify_placement(region, memory_, placement, options);
        const std::lock_guard lock{mutex_};
        if (proof) summary_.add(*proof);
        return proof;
    }
    /// How local the accesses of vCPUs to a verified region are; see track_accesses().
    /// vCPUs name nodes as indices into topology(). The report tells of the last call.
    [[nodiscard]] access_tracking
    track(const region_proof& proof, std::span<const vcpu_residency> vcpus,
          std::span<const std::optional<os::counted_accesses>> counted = {}) {
        const std::vector<region_sample> regions = proof.samples(topology_);
        access_tracking tracked = track_accesses(topology_, {vcpus, regions}, counted);
        const std::lock_guard lock{mutex_};
        summary_.add(tracked);
        return tracked;
    }

    /// For a diagnostic report: `out.given(text)`, and `out.fact(name, value)` for each fact.
    template <class Report>
    void report(Report& out) const {
        const std::lock_guard lock{mutex_};
        fixed_text<160> given;
        given.append_number(nodes_in_use_).append(" of ");
        given.append_number(memory_nodes_.size()).append(" nodes in use, ");
        out.given(given.append_number(bytes_ >> 20).append(" MiB allocated").view());
        out.fact("strategy", std::string_view{Strategy::name});
        out.fact("nodes with memory", memory_nodes_.size());
        out.fact("nodes in use", nodes_in_use_);
        out.fact("regions allocated", regions_);
        out.fact("bytes allocated", bytes_);
        out.fact("chunks bound, enforced", enforced_);
        out.fact("chunks bound, preferred", preferred_);
        out.fact("chunks not bound", denied_);
        out.fact("chunks not prefaulted", not_prefaulted_);
        out.fact("bytes of reserved huge pages", reserved_bytes_);
        if (!last_denial_.empty()) out.fact("last refusal", last_denial_.view());
        summary_.report(out);
    }

private:
    [[nodiscard]] static tl::unexpected<error> already_initialized() noexcept {
        return fail(errc::already_initialized, "numa: init() was called before", "call it once");
    }
    [[nodiscard]] static tl::unexpected<error> not_initialized() noexcept {
        return fail(errc::not_initialized, "numa: the topology is not loaded", "call init() first");
    }

    [[nodiscard]] std::vector<unsigned> current_nodes() const {
        const std::lock_guard lock{mutex_};
        return {memory_nodes_.begin(),
                memory_nodes_.begin() + static_cast<std::ptrdiff_t>(nodes_in_use_)};
    }

    /// The plan with pages from pools of size `page`, or with ordinary ones (0).
    [[nodiscard]] result<memory_plan> plan(const guest_ram_request& request,
                                           std::uint64_t page) noexcept {
        if (!is_initialized()) return not_initialized();
        const result<std::uint64_t> total = total_of(request, memory_.page_bytes());
        if (!total) return fail(total);
        const std::vector<unsigned> nodes = current_nodes();
        const auto questions =
            ram_planning::questions_of(request, *total, topology_, nodes, local_node());
        if (!questions) return fail(questions);
        if (page != 0) {
            if (const result<> whole = ram_backing::check_sizes(*questions, page); !whole)
                return fail(whole);
        }
        memory_inventory stock;
        if (page != 0 && ram_planning::means_this_system<Memory>(topology_)) {
            result<memory_inventory> pools = ram_backing::take_stock_of_pools(
                memory_, topology_, nodes.empty() ? memory_nodes_ : nodes, page, *total);
            if (!pools) return fail(pools);
            stock = std::move(*pools);
        } else {
            stock = ram_planning::take_stock(memory_, topology_, nodes, granule_of(request, page));
        }
        if (nodes.empty()) return ram_planning::unplaced(*questions);
        return Strategy{}.plan(stock, *questions);
    }

    /// The whole story. `page`: of pages from pools, or 0; `no_pools`: why not, where
    /// they were asked for.
    template <class Listener>
    [[nodiscard]] result<region_type> make(const guest_ram_request& request, std::uint64_t page,
                                           const std::optional<error>& no_pools,
                                           Listener& listener) noexcept {
        const result<memory_plan> planned = plan(request, page);
        if (!planned) return fail(planned);
        if (request.strict || page != 0) {
            if (const result<> room = ram_binding::check_room(*planned); !room) return fail(room);
        }
        std::vector<ram_chunk> chunks = ram_planning::lay_out(*planned, topology_);
        ram_grants grants;
        grants.reserved_page_bytes = page;
        const result<os::raw_mapping> mapped = ram_backing::map(
            memory_, request, chunks, ram_planning::means_this_system<Memory>(topology_), page,
            grants.sharing);
        if (!mapped) return fail(mapped);
        grants.sealing = ram_backing::seal(memory_, *mapped);
        if (request.interleave != interleave_use::never && !request.strict && page == 0 &&
            ram_planning::means_this_system<Memory>(topology_))
            grants.interleaving =
                ram_interleaving::realise(memory_, mapped->address, chunks, request.interleave);
        for (ram_chunk& chunk : chunks)
            if (chunk.weights.empty()) chunk.binding = bind(mapped->address + chunk.offset, chunk);
        for (ram_chunk& chunk : chunks)
            advise(mapped->address + chunk.offset, chunk, request, page, no_pools);
        const bool populated = request.prefault_threads != 0 || page != 0;
        bool cancelled = false;
        if (populated) cancelled = !populate(mapped->address, chunks, request, page, listener);
        region_type region{memory_, *mapped, std::move(chunks), grants};
        if (cancelled)
            return fail(errc::cancelled, "guest RAM: the listener ended the prefault",
                        "let it return true to go on");
        if (page != 0) {
            if (const result<> kept = ram_binding::check_prefault(region.chunks()); !kept)
                return fail(kept);
        }
        if (request.strict) {
            const result<> kept = ram_binding::check_grants(region.chunks(), grants);
            if (!kept) return fail(kept);
            const result<> lies = populated ? ram_binding::check_placement(region) : result<>{};
            if (!lies) return fail(lies);
        }
        count(region);
        return region;
    }

    /// Chunks end on huge pages whether or not these are asked for, so that the
    /// kernel's own huge pages fit.
    [[nodiscard]] std::uint64_t granule_of(const guest_ram_request& request,
                                           std::uint64_t page) const noexcept {
        if (page != 0) return page;
        if (request.huge_pages != huge_page_use::none) return memory_.huge_page_bytes();
        return std::max<std::uint64_t>(memory_.page_bytes(), 2u << 20);
    }

    /// The node of the CPU that the caller runs on; the first where none is known.
    [[nodiscard]] unsigned local_node() noexcept {
        if (!ram_planning::means_this_system<Memory>(topology_)) return 0;
        const result<unsigned> number = threads_.current_cpu();
        const unsigned cpu = number ? topology_.find_cpu(*number) : no_index;
        if (cpu == no_index || topology_.cpus[cpu].node == no_index) return 0;
        return topology_.cpus[cpu].node;
    }

    [[nodiscard]] grant bind(std::byte* address, const ram_chunk& chunk) noexcept {
        if (chunk.mode == os::bind_mode::none) return {};
        if (!ram_planning::means_this_system<Memory>(topology_))
            return grant::refused("the topology is a description, not this system's");
        if constexpr (os::node_mapping_memory<Memory>) {
            return grant::preferred("the system chose this node when it mapped the memory, and "
                                    "keeps to it while there is room");
        }
        return ram_binding::bind(memory_, address, chunk.bytes, chunk.node, chunk.mode);
    }

    /// What the kernel is told about a chunk before it gets pages.
    void advise(std::byte* address, ram_chunk& chunk, const guest_ram_request& request,
                std::uint64_t page, const std::optional<error>& no_pools) noexcept {
        if (page != 0) {
            chunk.huge_pages = grant::enforced();
        } else if (request.huge_pages != huge_page_use::none) {
            chunk.huge_pages = ram_binding::advise(memory_, address, chunk.bytes);
            if (no_pools && chunk.huge_pages.is_denied())
                chunk.huge_pages = grant::denied(*no_pools);
            if (no_pools && !chunk.huge_pages.is_denied())
                chunk.huge_pages = grant::preferred(*no_pools);
        }
        if (request.locked)
            chunk.locking = ram_backing::lock(memory_, address, chunk.bytes, page != 0);
    }

    /// False if the listener ended it.
    template <class Listener>
    [[nodiscard]] bool populate(std::byte* address, std::vector<ram_chunk>& chunks,
                                const guest_ram_request& request, std::uint64_t page,
                                Listener& listener) noexcept {
        const bool known = ram_planning::means_this_system<Memory>(topology_);
        std::vector<prefault_range> ranges;
        for (const ram_chunk& chunk : chunks) {
            const unsigned node = known ? topology_.find_node(chunk.node) : no_index;
            ranges.push_back({address + chunk.offset, chunk.bytes, chunk.node,
                              ram_planning::cpus_near(topology_, node)});
        }
        prefault<Memory, Threads> work{
            memory_,  threads_, ranges, request.prefault_threads, granule_of(request, page),
            page != 0};
        const std::vector<grant> grants = work.run(listener);
        for (std::size_t i = 0; i < chunks.size(); ++i)
            chunks[i].prefault = grants[i];
        return !work.was_cancelled();
    }

    void count(const region_type& region) noexcept {
        const std::lock_guard lock{mutex_};
        ++regions_;
        bytes_ += region.bytes();
        if (region.grants().reserved_page_bytes != 0) reserved_bytes_ += region.bytes();
        for (const grant* given :
             {&region.grants().sharing, &region.grants().sealing, &region.grants().interleaving})
            if (given->is_denied()) last_denial_ = given->cause;
        for (const ram_chunk& chunk : region.chunks()) {
            enforced_ += chunk.binding.state == grant_state::enforced ? 1 : 0;
            preferred_ += chunk.binding.state == grant_state::preferred ? 1 : 0;
            not_prefaulted_ += chunk.prefault.is_denied() ? 1 : 0;
            denied_ += chunk.binding.is_denied() ? 1 : 0;
            for (const grant* given :
                 {&chunk.huge_pages, &chunk.locking, &chunk.binding, &chunk.prefault})
                if (given->is_denied()) last_denial_ = given->cause;
        }
    }

    [[no_unique_address]] Memory memory_{};
    [[no_unique_address]] Threads threads_{};
    mutable std::mutex mutex_{};
    bool initialized_ = false;
    cpu_topology topology_{};
    std::vector<unsigned> memory_nodes_{}; ///< indices of nodes that have memory
    std::size_t nodes_in_use_ = 0;         ///< the first so many of them; 0 is off
    std::uint64_t regions_ = 0;
    std::uint64_t bytes_ = 0;
    std::uint64_t enforced_ = 0;
    std::uint64_t preferred_ = 0;
    std::uint64_t denied_ = 0;
    std::uint64_t not_prefaulted_ = 0;
    std::uint64_t reserved_bytes_ = 0;
    fixed_text<160> last_denial_{};
    placement_summary summary_{};
};

} // namespace vm_accel::inline v0
