/// The paths that must hold no indirect call, instantiated for the disassembler: translation and
/// everything below it, register accesses and the commands they execute, allocation; with few and
/// with all features, and each TLB policy and stream allocator by itself.
#include <vm_accel/vm_accel.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

// No unnamed namespace: the compiler would see all uses of what is in it, and could turn an
// indirect call there into a direct one that users of the library do not get.
namespace dispatch {

using namespace vm_accel;

struct plain_options : default_smmu_options {
    using quiescence = single_threaded;
};
struct fence_options : default_smmu_options {
    using quiescence = fence_quiescence;
};

struct full_options : default_smmu_options {
    static constexpr smmu_features features = full_features;
};

using usual = smmu<set_associative<256, 4>, bitmap_streams<256>>;
using without_tlb = smmu<no_tlb, lockfree_streams<64>, region_map, counting_sink, plain_options>;
using fenced = smmu<prefetching<set_associative<64, 8>>, bitmap_streams<64>, region_map,
                    counting_sink, fence_options>;
using full =
    smmu<set_associative<256, 4>, range_streams<256>, region_map, counting_sink, full_options>;

template <class Device>
std::byte* translate(typename Device::port& port, iova address, std::uint64_t length) {
    auto guard = port.open();
    const outcome o = guard.translate(address, length, access::read);
    return o.is_span() ? o.host() : nullptr;
}

template <class Device>
std::uint64_t registers(Device& device, std::uint64_t offset, unsigned size, std::uint64_t value) {
    device.mmio_write(offset, size, value);
    while (device.poll()) {}
    return device.mmio_read(offset, size);
}

/// All that an SMMU asks of a TLB.
template <class Tlb>
std::uint64_t tlb_paths(Tlb& tlb, const tlb_key& key, const tlb_entry& entry,
                        const invalidation_scope& scope) {
    const std::optional<tlb_hit> before = tlb.lookup(key);
    tlb.fill(tlb.begin_fill(key), entry);
    std::uint64_t sum = before ? before->output : 0;
    if constexpr (prefetching_tlb<Tlb>) sum += tlb.next_wanted(key, 12).first;
    tlb.invalidate(scope);
    return sum;
}
template <class Streams>
bool stream_paths(Streams& streams, stream_id wanted) {
    const result<stream_id> given = streams.allocate();
    return given && streams.release(*given) && streams.reserve(wanted);
}

} // namespace dispatch

extern "C" {
using namespace dispatch;

std::byte* hot_translate(usual::port& port, iova address, std::uint64_t length) {
    return translate<usual>(port, address, length);
}
std::byte* hot_translate_without_tlb(without_tlb::port& port, iova address, std::uint64_t length) {
    return translate<without_tlb>(port, address, length);
}
std::byte* hot_translate_fenced(fenced::port& port, iova address, std::uint64_t length) {
    return translate<fenced>(port, address, length);
}
std::byte* hot_translate_full(full::port& port, iova address, std::uint64_t length) {
    return translate<full>(port, address, length);
}
bool hot_read_full(full::port& port, iova address, std::span<std::byte> out) {
    return port.read(address, out);
}
bool hot_write_full(full::port& port, iova address, std::span<const std::byte> in) {
    return port.write(address, in);
}
bool hot_read(usual::port& port, iova address, std::span<std::byte> out) {
    return port.read(address, out);
}
bool hot_write(usual::port& port, iova address, std::span<const std::byte> in) {
    return port.write(address, in);
}
std::uint64_t hot_registers(usual& device, std::uint64_t offset, unsigned size,
                            std::uint64_t value) {
    return registers(device, offset, size, value);
}
std::uint64_t hot_registers_full(full& device, std::uint64_t offset, unsigned size,
                                 std::uint64_t value) {
    return registers(device, offset, size, value);
}
std::uint64_t hot_registers_without_tlb(without_tlb& device, std::uint64_t offset, unsigned size,
                                        std::uint64_t value) {
    return registers(device, offset, size, value);
}
std::uint64_t hot_registers_fenced(fenced& device, std::uint64_t offset, unsigned size,
                                   std::uint64_t value) {
    return registers(device, offset, size, value);
}

#define VM_ACCEL_TEST_TLB(name, ...)                                                               \
    std::uint64_t hot_tlb_##name(__VA_ARGS__& tlb, const tlb_key& key, const tlb_entry& entry,     \
                                 const invalidation_scope& scope) {                                \
        return tlb_paths(tlb, key, entry, scope);                                                  \
    }
VM_ACCEL_TEST_TLB(fifo, set_associative<64, 4, fifo>)
VM_ACCEL_TEST_TLB(lru, set_associative<64, 4, lru>)
VM_ACCEL_TEST_TLB(tree_plru, set_associative<64, 4, tree_plru>)
VM_ACCEL_TEST_TLB(random, set_associative<64, 4, vm_accel::random>)
VM_ACCEL_TEST_TLB(duelling, set_duelling<64, 4>)
VM_ACCEL_TEST_TLB(direct_mapped, direct_mapped<64>)
VM_ACCEL_TEST_TLB(fully_associative, fully_associative<64>)
VM_ACCEL_TEST_TLB(two_level, two_level<set_associative<4, 4>, set_associative<64, 4>>)
VM_ACCEL_TEST_TLB(partitioned, partitioned<set_associative<64, 4>, 4>)
VM_ACCEL_TEST_TLB(by_vmid, partitioned<set_associative<64, 4>, 4, by_vmid>)
VM_ACCEL_TEST_TLB(next_page, prefetching<set_associative<64, 4>, next_page<>>)
VM_ACCEL_TEST_TLB(constant_stride, prefetching<set_associative<64, 4>, constant_stride<>>)
#undef VM_ACCEL_TEST_TLB

bool hot_stream_bitmap(bitmap_streams<256>& streams, stream_id wanted) {
    return stream_paths(streams, wanted);
}
bool hot_stream_lockfree(lockfree_streams<64>& streams, stream_id wanted) {
    return stream_paths(streams, wanted);
}
bool hot_stream_range(range_streams<256>& streams, stream_id wanted) {
    return stream_paths(streams, wanted);
}
bool hot_stream_pci(pci_streams<>& streams, stream_id wanted) {
    return stream_paths(streams, wanted);
}

void* hot_pool_allocate(object_pool<>& pool, std::size_t bytes) { return pool.allocate(bytes); }
void hot_pool_deallocate(object_pool<>& pool, void* address, std::size_t bytes) {
    pool.deallocate(address, bytes);
}
bool hot_allocate(numa_allocator<local_first>& allocator, const guest_ram_request& request) {
    return allocator.allocate(request).has_value();
}
bool hot_allocate_balanced(numa_allocator<load_balanced>& allocator,
                           const guest_ram_request& request) {
    return allocator.allocate(request).has_value();
}
}
