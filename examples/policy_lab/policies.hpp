/// The TLB policies that the lab compares, each at several capacities.
#pragma once

#include "replay.hpp"

#include <vm_accel/smmu/caches/direct_mapped.hpp>
#include <vm_accel/smmu/caches/duelling.hpp>
#include <vm_accel/smmu/caches/fully_associative.hpp>
#include <vm_accel/smmu/caches/partitioned.hpp>
#include <vm_accel/smmu/caches/prefetching.hpp>
#include <vm_accel/smmu/caches/set_associative.hpp>
#include <vm_accel/smmu/caches/two_level.hpp>

#include <array>
#include <cstddef>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

namespace policy_lab {

/// Entries.
inline constexpr std::array<std::size_t, 4> capacities{32, 128, 512, 2048};

/// A policy: a name, what it is for, and a TLB of `Entries`.
template <template <std::size_t> class Of>
struct policy {
    std::string_view name;
    std::string_view remark;

    /// One result per capacity.
    [[nodiscard]] std::vector<replay_result> run(const prepared_trace& trace) const {
        return [&]<std::size_t... I>(std::index_sequence<I...>) {
            return std::vector<replay_result>{replay<Of<capacities[I]>>(trace)...};
        }(std::make_index_sequence<capacities.size()>{});
    }
};

namespace choices {
using namespace vm_accel;
template <class Replacement>
struct four_ways {
    template <std::size_t Entries>
    using of = set_associative<Entries / 4, 4, Replacement>;
};
template <std::size_t Entries>
using exact_lru = fully_associative<Entries>;
template <std::size_t Entries>
using near_and_far = two_level<direct_mapped<Entries / 8>, set_associative<Entries / 4, 4>>;
template <std::size_t Entries>
using in_parts = partitioned<set_associative<Entries / 16, 4>, 4>;
template <std::size_t Entries>
using with_next_page = prefetching<set_associative<Entries / 4, 4>>;
template <std::size_t Entries>
using with_stride = prefetching<set_associative<Entries / 4, 4>, constant_stride<>>;
template <std::size_t Entries>
using duelling = set_duelling<Entries / 4, 4>;
} // namespace choices

inline constexpr std::tuple all_policies{
    policy<vm_accel::direct_mapped>{"direct_mapped", "one way"},
    policy<choices::four_ways<vm_accel::clock>::of>{"clock", "set_associative, 4 ways"},
    policy<choices::four_ways<vm_accel::lru>::of>{"lru", "set_associative, 4 ways"},
    policy<choices::four_ways<vm_accel::tree_plru>::of>{"tree_plru", "set_associative, 4 ways"},
    policy<choices::four_ways<vm_accel::fifo>::of>{"fifo", "set_associative, 4 ways"},
    policy<choices::four_ways<vm_accel::random>::of>{"random", "set_associative, 4 ways"},
    policy<choices::exact_lru>{"fully_associative", "exact LRU, behind a lock"},
    policy<choices::near_and_far>{"two_level", "direct_mapped before clock"},
    policy<choices::duelling>{"set_duelling", "clock that resists streams, 4 ways"},
    policy<choices::in_parts>{"partitioned", "clock in 4 parts"},
    policy<choices::with_next_page>{"next_page", "clock, prefetching 4 pages"},
    policy<choices::with_stride>{"constant_stride", "clock, prefetching 4 strides"}};

/// What one policy did with one trace.
struct row {
    std::string_view name;
    std::string_view remark;
    std::vector<replay_result> results; ///< by capacity
};

/// `Policies`: a tuple of policies.
template <class Policies>
[[nodiscard]] std::vector<row> run_all(const prepared_trace& trace, const Policies& policies) {
    return std::apply(
        [&](const auto&... each) {
            return std::vector<row>{row{each.name, each.remark, each.run(trace)}...};
        },
        policies);
}

} // namespace policy_lab
