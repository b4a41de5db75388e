/// Every TLB policy, small: for tests that hold for all of them.
#pragma once

#include "smmu/tlb_model.hpp"

#include <vm_accel/smmu/caches/direct_mapped.hpp>
#include <vm_accel/smmu/caches/duelling.hpp>
#include <vm_accel/smmu/caches/fully_associative.hpp>
#include <vm_accel/smmu/caches/no_tlb.hpp>
#include <vm_accel/smmu/caches/partitioned.hpp>
#include <vm_accel/smmu/caches/prefetching.hpp>
#include <vm_accel/smmu/caches/set_associative.hpp>
#include <vm_accel/smmu/caches/two_level.hpp>

#include <cstddef>
#include <tuple>

namespace tlb_tests {

// What is filled first may be left in the near level alone; one context fills one part.
template <class Near, class Far>
struct tlb_shape<two_level<Near, Far>> {
    static constexpr std::size_t capacity = tlb_shape<Far>::capacity;
    static constexpr std::size_t beyond = Near::capacity;
};
template <class Tlb, std::size_t N, class By>
struct tlb_shape<partitioned<Tlb, N, By>> : tlb_shape<Tlb> {};

using every_policy = std::tuple<
    no_tlb, set_associative<1, 1>, set_associative<1, 4>, set_associative<16, 1>,
    set_associative<16, 4>, set_associative<16, 4, fifo>, set_associative<64, 16>,
    set_associative<16, 4, lru>, set_associative<4, 7, lru>, set_associative<16, 8, tree_plru>,
    set_associative<16, 3, ::vm_accel::random>, set_duelling<32, 4>, direct_mapped<16>,
    fully_associative<1>, fully_associative<24>, fully_associative<16, fifo>,
    fully_associative<16, ::vm_accel::clock>, fully_associative<16, ::vm_accel::random>,
    two_level<direct_mapped<4>, set_associative<16, 4>>,
    two_level<set_associative<1, 2>, fully_associative<16>>, partitioned<set_associative<16, 2>, 4>,
    partitioned<fully_associative<8>, 3, by_vmid>,
    two_level<direct_mapped<4>, partitioned<set_associative<8, 2>, 2, by_vmid>>,
    prefetching<set_associative<16, 4>>, prefetching<fully_associative<4>, constant_stride<>>>;

} // namespace tlb_tests
