/// A memory platform with nodes that do not exist: what is asked of it is written
/// down, and it refuses what a test tells it to. Copies share one machine.
#pragma once

#include <vm_accel/os/memory_features.hpp>
#include <vm_accel/os/memory_platform.hpp>
#include <vm_accel/os/thread_platform.hpp>

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace vm_accel_test {

using namespace vm_accel;

/// Windows has no std::aligned_alloc.
inline void* allocate(std::size_t alignment, std::size_t bytes) {
#if defined(_WIN32)
    return ::_aligned_malloc(bytes, alignment);
#else
    return std::aligned_alloc(alignment, bytes);
#endif
}
inline void release(void* memory) {
#if defined(_WIN32)
    ::_aligned_free(memory);
#else
    std::free(memory);
#endif
}

struct simulated_machine {
    // What it refuses.
    std::optional<error> refuse_bind{};
    std::optional<error> refuse_prefer{};
    std::optional<error> refuse_policy{};
    std::optional<error> refuse_advice{};
    std::optional<error> refuse_populate{};
    std::optional<error> refuse_query{};
    std::optional<error> refuse_map{};
    std::optional<error> refuse_shared{}; ///< mapping in a shared file
    std::optional<error> refuse_lock{};
    std::optional<error> refuse_seal{};
    std::optional<error> refuse_pools{};      ///< asking for free pages of pools
    std::optional<error> refuse_reserving{};  ///< mapping with pages of pools
    std::optional<error> refuse_huge_pages{}; ///< populating with pages of pools
    bool forget_bindings = false;             ///< accepts a binding and does nothing
    std::optional<unsigned> stray_node;       ///< populated pages land there
    std::map<unsigned, std::uint64_t> free{};
    bool tells_free = false;
    std::map<unsigned, std::uint64_t> pools{}; ///< free pages of 2 MiB by node

    // What happened.
    std::mutex mutex{};
    std::vector<std::string> log{};
    struct range {
        std::byte* address;
        std::uint64_t bytes;
        unsigned node;
        os::bind_mode mode;
    };
    std::vector<range> bindings{};
    std::vector<range> populated{};
    std::vector<range> mapped{};
    std::vector<os::cpu_set> pins{};
    std::optional<error> refuse_pin{};

    void note(std::string what) {
        const std::lock_guard lock{mutex};
        log.push_back(std::move(what));
    }
    std::uint64_t live_bytes() const {
        std::uint64_t total = 0;
        for (const range& m : mapped)
            total += m.bytes;
        return total;
    }
};

inline error refusal(errc code, const char* cause) { return {code, 1, cause, "none"}; }

struct simulated_memory {
    static constexpr std::string_view name = "simulated";
    static constexpr bool can_bind = true;
    static constexpr bool is_this_system = false;

    std::shared_ptr<simulated_machine> machine = std::make_shared<simulated_machine>();

    std::uint64_t page_bytes() const noexcept { return 4096; }
    std::uint64_t huge_page_bytes() const noexcept { return 2u << 20; }

    result<os::raw_mapping> map(const os::mapping_request& request) noexcept {
        machine->note("map");
        if (machine->refuse_map) return tl::unexpected<error>{*machine->refuse_map};
        if (request.shared_file && machine->refuse_shared)
            return tl::unexpected<error>{*machine->refuse_shared};
        const std::size_t alignment = request.alignment == 0 ? 4096 : request.alignment;
        const std::size_t bytes = (request.bytes + alignment - 1) / alignment * alignment;
        auto* const address = static_cast<std::byte*>(allocate(alignment, bytes));
        const std::lock_guard lock{machine->mutex};
        machine->mapped.push_back({address, request.bytes, 0, os::bind_mode::none});
        return os::raw_mapping{address, request.bytes, request.shared_file ? 1000 : -1};
    }
    void unmap(const os::raw_mapping& mapping) noexcept {
        machine->note("unmap");
        const std::lock_guard lock{machine->mutex};
        std::erase_if(machine->mapped, [&](const auto& m) {
            return m.address == mapping.address && m.bytes == mapping.bytes;
        });
        release(mapping.address);
    }
    result<> bind(std::byte* address, std::uint64_t bytes, unsigned node,
                  os::bind_mode mode) noexcept {
        machine->note(std::string{name_of(mode)} + " " + std::to_string(node));
        const auto& refused =
            mode == os::bind_mode::bind ? machine->refuse_bind : machine->refuse_prefer;
        if (refused) return tl::unexpected<error>{*refused};
        const std::lock_guard lock{machine->mutex};
        if (!machine->forget_bindings) machine->bindings.push_back({address, bytes, node, mode});
        return {};
    }
    result<os::memory_policy> policy_of(const std::byte* address) const noexcept {
        if (machine->refuse_policy) return tl::unexpected<error>{*machine->refuse_policy};
        const std::lock_guard lock{machine->mutex};
        for (auto it = machine->bindings.rbegin(); it != machine->bindings.rend(); ++it)
            if (address >= it->address && address < it->address + it->bytes)
                return os::memory_policy{it->mode, it->node, true};
        return os::memory_policy{};
    }
    result<> advise_huge_pages(std::byte*, std::uint64_t) noexcept {
        machine->note("advise");
        if (machine->refuse_advice) return tl::unexpected<error>{*machine->refuse_advice};
        return {};
    }
    result<> populate(std::byte* address, std::uint64_t bytes) noexcept {
        machine->note("populate");
        if (machine->refuse_populate) return tl::unexpected<error>{*machine->refuse_populate};
        const std::lock_guard lock{machine->mutex};
        unsigned node = 0;
        for (const auto& b : machine->bindings)
            if (address >= b.address && address < b.address + b.bytes) node = b.node;
        machine->populated.push_back(
            {address, bytes, machine->stray_node.value_or(node), os::bind_mode::none});
        return {};
    }
    result<> page_nodes(const std::byte* address, std::uint64_t stride,
                        std::span<int> nodes) const noexcept {
        if (machine->refuse_query) return tl::unexpected<error>{*machine->refuse_query};
        const std::lock_guard lock{machine->mutex};
        for (std::size_t i = 0; i < nodes.size(); ++i) {
            nodes[i] = os::page_absent;
            for (const auto& p : machine->populated)
                if (address + i * stride >= p.address && address + i * stride < p.address + p.bytes)
                    nodes[i] = static_cast<int>(p.node);
        }
        return {};
    }
    result<std::uint64_t> free_bytes(unsigned node) const noexcept {
        if (!machine->tells_free) return fail(errc::unsupported, "free memory: not told");
        return machine->free[node];
    }
};

/// The same with all that os/memory_features.hpp names.
struct simulated_features : simulated_memory {
    result<std::uint64_t> free_huge_pages(unsigned node, std::uint64_t bytes) const noexcept {
        if (machine->refuse_pools) return tl::unexpected<error>{*machine->refuse_pools};
        if (bytes != huge_page_bytes()) return fail(errc::unsupported, "no pool of that size");
        return machine->pools[node];
    }
    result<os::raw_mapping> map_huge(const os::mapping_request& request, std::uint64_t) noexcept {
        machine->note("reserve");
        if (machine->refuse_reserving) return tl::unexpected<error>{*machine->refuse_reserving};
        return map(request);
    }
    result<> populate_huge(std::byte* address, std::uint64_t bytes) noexcept {
        if (machine->refuse_huge_pages) {
            machine->note("populate");
            return tl::unexpected<error>{*machine->refuse_huge_pages};
        }
        return populate(address, bytes);
    }
    result<> lock(std::byte*, std::uint64_t) noexcept {
        machine->note("lock");
        if (machine->refuse_lock) return tl::unexpected<error>{*machine->refuse_lock};
        return {};
    }
    result<> seal(const os::raw_mapping&) noexcept {
        machine->note("seal");
        if (machine->refuse_seal) return tl::unexpected<error>{*machine->refuse_seal};
        return {};
    }
};

/// Threads of that machine: pins are written down.
struct simulated_threads {
    static constexpr std::string_view name = "simulated";
    static constexpr bool can_pin_threads = true;

    std::shared_ptr<simulated_machine> machine = std::make_shared<simulated_machine>();

    result<> pin_current_thread(const os::cpu_set& set) const noexcept {
        machine->note("pin");
        const std::lock_guard lock{machine->mutex};
        if (machine->refuse_pin) return tl::unexpected<error>{*machine->refuse_pin};
        machine->pins.push_back(set);
        return {};
    }
    result<os::cpu_set> current_pin() const noexcept { return os::cpu_set{}; }
    result<os::cpu_set> allowed_cpus() const noexcept { return os::cpu_set{}; }
    result<unsigned> current_cpu() const noexcept { return 0u; }
};

static_assert(os::memory_platform<simulated_memory>);
static_assert(!os::huge_page_pools<simulated_memory> && !os::lockable_memory<simulated_memory>);
static_assert(os::huge_page_pools<simulated_features> && os::lockable_memory<simulated_features>);
static_assert(os::sealable_memory<simulated_features>);
static_assert(os::thread_platform<simulated_threads>);

} // namespace vm_accel_test
