/// The paths that must hold no indirect call, instantiated for the disassembler: translation and
/// everything below it, register accesses and the commands they execute, allocation.
#include <vm_accel/vm_accel.hpp>

#include <cstddef>
#include <cstdint>
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

using usual = smmu<set_associative<256, 4>, bitmap_streams<256>>;
using without_tlb = smmu<no_tlb, lockfree_streams<64>, region_map, counting_sink, plain_options>;
using fenced =
    smmu<set_associative<64, 8>, bitmap_streams<64>, region_map, counting_sink, fence_options>;

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
std::uint64_t hot_registers_without_tlb(without_tlb& device, std::uint64_t offset, unsigned size,
                                        std::uint64_t value) {
    return registers(device, offset, size, value);
}
std::uint64_t hot_registers_fenced(fenced& device, std::uint64_t offset, unsigned size,
                                   std::uint64_t value) {
    return registers(device, offset, size, value);
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
