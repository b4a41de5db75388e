/// A machine whose pages lie where a test says and move as a test allows, and whose
/// threads run where it says. Copies share one machine.
#pragma once

#include <vm_accel/os/memory_platform.hpp>
#include <vm_accel/os/placement_platform.hpp>

#include <algorithm>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <vector>

namespace vm_accel_test {

using namespace vm_accel;

struct paged_machine {
    static constexpr std::uint64_t page = 4096;
    static constexpr std::size_t alignment = 2u << 20;

    // Memory.
    std::byte* start = nullptr; ///< of the latest mapping
    std::vector<std::byte*> all{};
    std::vector<int> nodes{}; ///< by page; os::page_absent for none
    std::map<unsigned, std::uint64_t> free{};
    std::optional<error> refuse_query{};
    std::optional<error> refuse_bind{};
    // Moving.
    std::optional<error> refuse_move{};
    std::map<std::size_t, os::page_fate> stuck{}; ///< by page: what it answers instead of moving
    std::size_t huge = 1;                         ///< pages that move together
    bool lies = false;                            ///< says "on the node" and does nothing
    std::optional<std::vector<unsigned>> allowed{};
    std::optional<error> refuse_totals{};
    std::vector<os::bytes_on_node> totals{};
    // Threads.
    std::map<std::uint64_t, os::thread_run> threads{};
    std::map<std::uint64_t, os::counted_accesses> counted{};

    // What happened.
    struct call {
        std::size_t pages;
        unsigned node;
    };
    std::vector<call> moves{};
    struct binding {
        std::size_t first_page, pages;
        unsigned node;
        os::bind_mode mode;
    };
    std::vector<binding> bindings{};

    paged_machine() = default;
    paged_machine(const paged_machine&) = delete;
    paged_machine& operator=(const paged_machine&) = delete;
    ~paged_machine() {
        for (std::byte* mapped : all)
            ::operator delete(mapped, std::align_val_t{alignment});
    }
    [[nodiscard]] std::size_t page_of(const std::byte* address) const {
        return static_cast<std::size_t>(address - start) / page;
    }
    [[nodiscard]] std::size_t pages_on(int node) const {
        return static_cast<std::size_t>(std::count(nodes.begin(), nodes.end(), node));
    }
};

struct paged_memory {
    static constexpr std::string_view name = "paged";
    static constexpr bool can_bind = true;
    static constexpr bool is_this_system = false;

    std::shared_ptr<paged_machine> machine = std::make_shared<paged_machine>();

    std::uint64_t page_bytes() const noexcept { return paged_machine::page; }
    std::uint64_t huge_page_bytes() const noexcept { return 16 * paged_machine::page; }
    result<os::raw_mapping> map(const os::mapping_request& request) noexcept {
        machine->start = static_cast<std::byte*>(
            ::operator new(request.bytes, std::align_val_t{paged_machine::alignment}));
        machine->all.push_back(machine->start);
        machine->nodes.assign(request.bytes / paged_machine::page, os::page_absent);
        return os::raw_mapping{machine->start, request.bytes, -1};
    }
    void unmap(const os::raw_mapping&) noexcept {}
    result<> bind(std::byte* address, std::uint64_t bytes, unsigned node,
                  os::bind_mode mode) noexcept {
        if (machine->refuse_bind) return tl::unexpected<error>{*machine->refuse_bind};
        machine->bindings.push_back(
            {machine->page_of(address), bytes / paged_machine::page, node, mode});
        return {};
    }
    result<os::memory_policy> policy_of(const std::byte* address) const noexcept {
        const std::size_t at = machine->page_of(address);
        for (auto b = machine->bindings.rbegin(); b != machine->bindings.rend(); ++b)
            if (at >= b->first_page && at < b->first_page + b->pages)
                return os::memory_policy{b->mode, b->node, true};
        return os::memory_policy{};
    }
    result<> advise_huge_pages(std::byte*, std::uint64_t) noexcept { return {}; }
    result<> populate(std::byte* address, std::uint64_t bytes) noexcept {
        for (std::uint64_t at = 0; at < bytes; at += paged_machine::page)
            machine->nodes[machine->page_of(address + at)] =
                static_cast<int>(policy_of(address + at)->node);
        return {};
    }
    result<> page_nodes(const std::byte* address, std::uint64_t stride,
                        std::span<int> nodes) const noexcept {
        if (machine->refuse_query) return tl::unexpected<error>{*machine->refuse_query};
        for (std::size_t i = 0; i < nodes.size(); ++i)
            nodes[i] = machine->nodes.at(machine->page_of(address + i * stride));
        return {};
    }
    result<std::uint64_t> free_bytes(unsigned node) const noexcept { return machine->free[node]; }
};

struct paged_placement {
    static constexpr std::string_view name = "paged";
    static constexpr bool can_move = true;

    std::shared_ptr<paged_machine> machine = std::make_shared<paged_machine>();

    struct counters {
        std::shared_ptr<paged_machine> machine{};
        std::uint64_t thread = 0;
        result<os::counted_accesses> read() const noexcept { return machine->counted[thread]; }
    };

    result<> move_pages(std::span<std::byte* const> pages, unsigned node,
                        std::span<os::page_fate> fates) noexcept {
        machine->moves.push_back({pages.size(), node});
        if (machine->refuse_move) return tl::unexpected<error>{*machine->refuse_move};
        for (std::size_t i = 0; i < pages.size(); ++i) {
            const std::size_t at = machine->page_of(pages[i]);
            const auto stuck = machine->stuck.find(at);
            fates[i] = stuck != machine->stuck.end() ? stuck->second : os::page_fate::on_node;
            if (fates[i] != os::page_fate::on_node || machine->lies) continue;
            const std::size_t first = at - at % machine->huge;
            for (std::size_t k = first; k < first + machine->huge; ++k)
                go(k, node);
        }
        return {};
    }
    void go(std::size_t page, unsigned node) noexcept {
        machine->free[static_cast<unsigned>(machine->nodes[page])] += paged_machine::page;
        machine->free[node] -= paged_machine::page;
        machine->nodes[page] = static_cast<int>(node);
    }
    result<os::thread_id> current_thread() const noexcept { return os::thread_id{1}; }
    result<os::thread_run> run_of(os::thread_id thread) const noexcept {
        const auto found = machine->threads.find(static_cast<std::uint64_t>(thread));
        if (found == machine->threads.end()) return fail(errc::not_found, "no such thread");
        return found->second;
    }
    result<std::vector<os::bytes_on_node>> mapped_bytes(const std::byte*,
                                                        std::uint64_t) const noexcept {
        if (machine->refuse_totals) return tl::unexpected<error>{*machine->refuse_totals};
        return machine->totals;
    }
    result<std::vector<unsigned>> allowed_nodes() const noexcept {
        if (!machine->allowed) return fail(errc::unsupported, "no cpusets");
        return *machine->allowed;
    }
    result<counters> count_accesses(os::thread_id thread) const noexcept {
        const auto number = static_cast<std::uint64_t>(thread);
        if (!machine->counted.contains(number))
            return fail(errc::unsupported, "no events by node", "use the estimate");
        return counters{machine, number};
    }
};

static_assert(os::memory_platform<paged_memory> && os::placement_platform<paged_placement>);

} // namespace vm_accel_test
