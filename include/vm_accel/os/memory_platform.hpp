/// Host memory and the NUMA nodes it lies on: what every platform is asked.
///
/// Everything that the kernel may refuse (containers, old kernels, cpusets) is
/// an error value with its cause; what to make of it is the caller's decision.
#pragma once

#include <vm_accel/core/fixed_text.hpp>
#include <vm_accel/core/result.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace vm_accel::inline v0::os {

/// How strongly memory is tied to a node.
enum class bind_mode : std::uint8_t {
    none,   ///< the kernel's default: the node of the thread that touches a page first
    prefer, ///< this node, others when it is full
    bind,   ///< this node only; running out is an out-of-memory condition
};

[[nodiscard]] constexpr std::string_view name_of(bind_mode mode) noexcept {
    switch (mode) {
    case bind_mode::none:
        return "none";
    case bind_mode::prefer:
        return "prefer";
    case bind_mode::bind:
        return "bind";
    }
    return "unknown";
}

/// The policy that the kernel holds for an address.
struct memory_policy {
    bind_mode mode = bind_mode::none;
    unsigned node = 0;           ///< the lowest node of the policy; 0 with `none`
    bool only_that_node = false; ///< the policy names no second node

    friend constexpr bool operator==(const memory_policy&, const memory_policy&) = default;
};

struct mapping_request {
    std::uint64_t bytes = 0;     ///< multiple of the platform's page_bytes()
    std::uint64_t alignment = 0; ///< of the address; a power of two, 0 means a page
    bool shared_file = false;    ///< back it with an anonymous file that can be shared
};

/// A mapping as the kernel gave it. Owns nothing: see numa/ram_region.hpp.
struct raw_mapping {
    std::byte* address = nullptr;
    std::uint64_t bytes = 0;
    int file = -1; ///< the anonymous file of a shared mapping, else -1

    friend constexpr bool operator==(const raw_mapping&, const raw_mapping&) = default;
};

/// What page_nodes() stores for a page that has no memory yet.
inline constexpr int page_absent = -1;
/// What page_nodes() stores for a page whose node the kernel would not tell.
inline constexpr int page_unknown = -2;

/// Maps memory, ties it to nodes and tells where it is.
/// map() gives zeroed memory without touching it; populate() gives a range real
/// pages and keeps its contents; page_nodes() stores, for each page_bytes()-page from
/// `address` on, `stride` bytes apart, the node it lies on, page_absent or page_unknown.
/// `is_this_system` tells whether node numbers mean this machine's nodes; a
/// described topology is then of no use for binding.
/// policy_of() is the kernel's view of a binding, for comparison.
/// free_bytes(n) is what node n can give without swapping; an estimate.
/// Copies stand for the same platform.
/// Threads: calls about disjoint ranges are independent.
/// Errors: `unsupported` (no such call or feature), `permission_denied`
/// (refused), `exhausted`, `invalid_argument` (absent or excluded node).
template <class T>
concept memory_platform =
    std::default_initializable<T> && std::copyable<T> &&
    requires(T t, const T view, const mapping_request& request, const raw_mapping& mapping,
             std::byte* address, std::uint64_t bytes, unsigned node, bind_mode mode,
             std::span<int> nodes) {
        { T::name } -> std::convertible_to<std::string_view>;
        { T::can_bind } -> std::convertible_to<bool>;
        { T::is_this_system } -> std::convertible_to<bool>;
        { view.page_bytes() } noexcept -> std::same_as<std::uint64_t>;
        { view.huge_page_bytes() } noexcept -> std::same_as<std::uint64_t>;
        { t.map(request) } noexcept -> std::same_as<result<raw_mapping>>;
        { t.unmap(mapping) } noexcept -> std::same_as<void>;
        { t.bind(address, bytes, node, mode) } noexcept -> std::same_as<result<>>;
        { view.policy_of(address) } noexcept -> std::same_as<result<memory_policy>>;
        { t.advise_huge_pages(address, bytes) } noexcept -> std::same_as<result<>>;
        { t.populate(address, bytes) } noexcept -> std::same_as<result<>>;
        { view.page_nodes(address, bytes, nodes) } noexcept -> std::same_as<result<>>;
        { view.free_bytes(node) } noexcept -> std::same_as<result<std::uint64_t>>;
    };

/// Models memory_platform where nothing is known: every answer is `unsupported`.
struct unsupported_memory {
    static constexpr std::string_view name = "unsupported";
    static constexpr bool can_bind = false;
    static constexpr bool is_this_system = true;

    [[nodiscard]] std::uint64_t page_bytes() const noexcept { return 4096; }
    [[nodiscard]] std::uint64_t huge_page_bytes() const noexcept { return 2u << 20; }
    [[nodiscard]] result<raw_mapping> map(const mapping_request&) const noexcept {
        return refuse();
    }
    void unmap(const raw_mapping&) const noexcept {}
    [[nodiscard]] result<> bind(std::byte*, std::uint64_t, unsigned, bind_mode) const noexcept {
        return refuse();
    }
    [[nodiscard]] result<memory_policy> policy_of(const std::byte*) const noexcept {
        return refuse();
    }
    [[nodiscard]] result<> advise_huge_pages(std::byte*, std::uint64_t) const noexcept {
        return refuse();
    }
    [[nodiscard]] result<> populate(std::byte*, std::uint64_t) const noexcept { return refuse(); }
    [[nodiscard]] result<> page_nodes(const std::byte*, std::uint64_t,
                                      std::span<int>) const noexcept {
        return refuse();
    }
    [[nodiscard]] result<std::uint64_t> free_bytes(unsigned) const noexcept { return refuse(); }

private:
    [[nodiscard]] static tl::unexpected<error> refuse() noexcept {
        return fail(errc::unsupported, "memory: this platform has no call to place memory",
                    "allocate guest memory yourself, or run on Linux");
    }
};

} // namespace vm_accel::inline v0::os
