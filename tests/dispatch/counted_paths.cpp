/// Paths whose instructions are counted under callgrind: see count_instructions.py.
///
///   hit_...      a whole translation that hits, its guard included, behind a call
///   floor        an array look-up with length and permission check behind a call
///   empty_call   a call that does nothing: what the two above are counted too much
///   direct_...   a path that names the backend, and
///   composed_... the same path through acceleration_manager: as many instructions
/// Arguments: none. Prints nothing; exit status 1 if a path does not do what it is counted for.
#include <vm_accel/affinity/affinity.hpp>
#include <vm_accel/affinity/fixed_platform.hpp>
#include <vm_accel/guest/region_map.hpp>
#include <vm_accel/manager/acceleration_manager.hpp>
#include <vm_accel/numa/local_first.hpp>
#include <vm_accel/numa/numa_allocator.hpp>
#include <vm_accel/os/linux_memory.hpp>
#include <vm_accel/smmu/caches/set_associative.hpp>
#include <vm_accel/smmu/host/bitmap_streams.hpp>
#include <vm_accel/smmu/smmu.hpp>
#include <vm_accel/spec/cd.hpp>
#include <vm_accel/spec/commands.hpp>
#include <vm_accel/spec/registers.hpp>
#include <vm_accel/spec/ste.hpp>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <optional>
#include <span>
#include <vector>

namespace counted {

using namespace vm_accel;

struct full_options : default_smmu_options {
    static constexpr smmu_features features = full_features;
};
template <class Options>
using device =
    smmu<set_associative<256, 8>, bitmap_streams<64>, region_map, counting_sink, Options>;
using stage1 = device<default_smmu_options>;
using full = device<full_options>;
using placement = affinity<fixed_platform>;
/// What is free is read from text of the kernel's whose length changes from call to call.
struct steady_memory : os::linux_memory {
    [[nodiscard]] result<std::uint64_t> free_bytes(unsigned) const noexcept {
        return std::uint64_t{1} << 30;
    }
};
using nodes = numa_allocator<local_first, steady_memory>;
using composed = acceleration_manager<region_map, placement, nodes, stage1>;

inline constexpr std::uint64_t ram = 0x4000'0000;
inline constexpr std::uint64_t ram_bytes = 1U << 20;
inline constexpr std::uint64_t ring = ram + 0x10000;
inline constexpr unsigned ring_log2 = 8;
inline constexpr std::uint64_t events = ram + 0x20000;
inline constexpr std::uint64_t streams = ram + 0x30000;
inline constexpr std::uint64_t descriptor = ram + 0x40000;
inline constexpr std::uint64_t tables = ram + 0x50000; ///< of levels 0 to 3
inline constexpr std::uint64_t data = ram + 0x80000;
inline constexpr std::uint64_t first_page = 0x1'0000'0000;
inline constexpr std::uint64_t pages = 64;

alignas(4096) std::array<std::byte, ram_bytes> stage1_ram;
alignas(4096) std::array<std::byte, ram_bytes> full_ram;
alignas(4096) std::array<std::byte, ram_bytes> composed_ram;

region_map stage1_map;
region_map full_map;
stage1 stage1_smmu;
full full_smmu;
nodes direct_nodes;
composed host;

[[noreturn]] void wrong(const char* what) {
    std::cerr << "counted_paths: " << what << '\n';
    std::exit(1);
}
template <class Result>
void require(const Result& r, const char* what) {
    if (!r) wrong(what);
}

/// What a guest's driver writes: one stream, 64 pages, both queues.
struct driver {
    std::byte* memory;

    template <class Structure>
    void store(std::uint64_t address, const Structure& s) const {
        std::memcpy(memory + (address - ram), &s, sizeof s);
    }
    void build() const {
        using C = spec::cd;
        spec::ste ste;
        set<spec::ste::V>(ste, 1);
        set<spec::ste::Config>(ste, static_cast<std::uint64_t>(spec::ste_config::s1_translate));
        set<spec::ste::S1ContextPtr>(ste, descriptor >> spec::ste::S1ContextPtr::low);
        store(streams, ste);
        C cd;
        set<C::T0SZ>(cd, 16);
        set<C::T1SZ>(cd, 16);
        set<C::TG1>(cd, 2);
        set<C::EPD1>(cd, 1);
        set<C::V>(cd, 1);
        set<C::IPS>(cd, 4);
        set<C::AA64>(cd, 1);
        set<C::R>(cd, 1);
        set<C::A>(cd, 1);
        set<C::ASET>(cd, 1);
        set<C::ASID>(cd, 7);
        set<C::TTB0>(cd, tables >> C::TTB0::low);
        store(descriptor, cd);
        for (unsigned level = 0; level < 3; ++level) {
            const std::uint64_t index = first_page >> (39 - 9 * level) & 0x1ff;
            store(tables + level * 0x1000 + index * 8,
                  std::uint64_t{tables + (level + 1) * 0x1000U} | 3U);
        }
        for (std::uint64_t i = 0; i < pages; ++i)
            store(tables + 0x3000 + i * 8, std::uint64_t{data + i * 0x1000} | 0xf43U);
    }
    template <class Device>
    void start(Device& device) const {
        namespace reg = spec::reg;
        const auto write = [&](std::uint64_t offset, unsigned size, std::uint64_t value) {
            device.mmio_write(offset, size, value);
        };
        write(reg::STRTAB_BASE, 8, streams);
        write(reg::STRTAB_BASE_CFG, 4, 0); // linear, one entry
        write(reg::CMDQ_BASE, 8, ring | ring_log2);
        write(reg::EVENTQ_BASE, 8, events | 3);
        write(reg::CR0, 4, 0xd);
        require(device.attach_device("disk", {pa{ram}, ram_bytes}, stream_id{0}),
                "the device could not be attached");
    }
};

/// Puts CMD_TLBI_NH_VA of a page that nobody uses and CMD_SYNC into the ring; the next PROD.
std::uint32_t put_commands(std::byte* memory, std::uint32_t prod) {
    const driver d{memory};
    d.store(ring + prod % (1U << ring_log2) * 16,
            spec::tlbi_nh_va(vmid{0}, asid{9}, iova{first_page}, true));
    d.store(ring + (prod + 1) % (1U << ring_log2) * 16,
            spec::cmd_sync(spec::sync_signal::SIG_NONE));
    return (prod + 2) % (2U << ring_log2);
}

/// Calls through an address that the compiler does not know: nothing is inlined or specialised.
template <class Function, class... Arguments>
void repeat(unsigned times, Function* function, Arguments... arguments) {
    Function* volatile hidden = function;
    for (unsigned i = 0; i < times; ++i)
        (void)(*hidden)(arguments...);
}

template <class Port>
[[gnu::always_inline]] inline std::byte* hit(Port& port, std::uint64_t address,
                                             std::uint64_t length) {
    auto guard = port.open();
    return guard.translate(iova{address}, length, access::read).host();
}

struct flat_entry {
    std::byte* host = nullptr;
    std::uint64_t output = 0;
    unsigned allowed = 0;
};
std::vector<flat_entry> flat;

} // namespace counted

extern "C" {
using namespace counted;

[[gnu::noinline]] std::byte* hit_stage1(stage1::port* port, std::uint64_t address,
                                        std::uint64_t length) {
    return hit(*port, address, length);
}
[[gnu::noinline]] std::byte* hit_full(full::port* port, std::uint64_t address,
                                      std::uint64_t length) {
    return hit(*port, address, length);
}
[[gnu::noinline]] std::byte* floor_look_up(std::uint64_t address, std::uint64_t length) {
    const std::uint64_t index = (address - first_page) >> 12;
    if (index >= flat.size() || (flat[index].allowed & 1) == 0) return nullptr;
    const std::uint64_t offset = address & 4095;
    return length <= 4096 - offset ? flat[index].host + offset : nullptr;
}

[[gnu::noinline]] void empty_call(std::uint64_t, std::uint64_t) { asm volatile(""); }

// Each pair does the same to a backend of its own, and differs in how it is named.
[[gnu::noinline]] void direct_mmio_write(std::uint32_t prod) {
    stage1_smmu.mmio_write(spec::reg::CMDQ_PROD, 4, prod);
}
[[gnu::noinline]] void composed_mmio_write(std::uint32_t prod) {
    host.smmu().mmio_write(spec::reg::CMDQ_PROD, 4, prod);
}
[[gnu::noinline]] std::uint64_t direct_mmio_read(std::uint64_t offset) {
    return stage1_smmu.mmio_read(offset, 4);
}
[[gnu::noinline]] std::uint64_t composed_mmio_read(std::uint64_t offset) {
    return host.smmu().mmio_read(offset, 4);
}
[[gnu::noinline]] bool direct_translate(std::uint64_t address) {
    return stage1_smmu.translate_dma_addr("disk", iova{address}, 64, access::read).has_value();
}
[[gnu::noinline]] bool composed_translate(std::uint64_t address) {
    return host.smmu().translate_dma_addr("disk", iova{address}, 64, access::read).has_value();
}
[[gnu::noinline]] bool direct_dma(std::uint64_t address) {
    auto port = stage1_smmu.make_port("disk");
    std::array<std::byte, 64> out;
    return port && port->read(iova{address}, out);
}
[[gnu::noinline]] bool composed_dma(std::uint64_t address) {
    auto port = host.smmu().make_port("disk");
    std::array<std::byte, 64> out;
    return port && port->read(iova{address}, out);
}
[[gnu::noinline]] bool direct_allocate(std::uint64_t bytes) {
    return direct_nodes.allocate({.bytes = bytes}).has_value();
}
[[gnu::noinline]] bool composed_allocate(std::uint64_t bytes) {
    return host.memory().allocate({.bytes = bytes}).has_value();
}
}

int main() {
    driver{stage1_ram.data()}.build();
    driver{full_ram.data()}.build();
    driver{composed_ram.data()}.build();

    stage1_smmu.connect(stage1_map);
    full_smmu.connect(full_map);
    require(stage1_map.add(pa{ram}, stage1_ram.data(), ram_bytes), "memory");
    require(full_map.add(pa{ram}, full_ram.data(), ram_bytes), "memory");
    require(stage1_smmu.init(), "init");
    require(full_smmu.init(), "init");
    require(direct_nodes.init(), "the direct allocator");
    require(host.setup_full_acceleration(), "the manager");
    require(host.smmu().add_memory(pa{ram}, composed_ram.data(), ram_bytes), "memory");
    driver{stage1_ram.data()}.start(stage1_smmu);
    driver{full_ram.data()}.start(full_smmu);
    driver{composed_ram.data()}.start(host.smmu());

    constexpr unsigned times = 100;
    constexpr std::uint64_t address = first_page + 0x5040;
    auto stage1_port = stage1_smmu.make_port("disk");
    auto full_port = full_smmu.make_port("disk");
    auto composed_port = host.smmu().make_port("disk");
    require(stage1_port && full_port && composed_port, "ports");
    // The first access of each walks; only what comes later is to be counted as a hit.
    if (hit(*stage1_port, address, 64) != stage1_ram.data() + (data + 0x5040 - ram) ||
        hit(*full_port, address, 64) != full_ram.data() + (data + 0x5040 - ram) ||
        hit(*composed_port, address, 64) == nullptr) {
        wrong("a translation gave another place");
    }
    flat.resize(pages);
    for (std::uint64_t i = 0; i < pages; ++i)
        flat[i] = {stage1_ram.data() + (data + i * 0x1000 - ram), data, 1};

    repeat(times, hit_stage1, &*stage1_port, address, std::uint64_t{64});
    repeat(times, hit_full, &*full_port, address, std::uint64_t{64});
    repeat(times, floor_look_up, address, std::uint64_t{64});
    repeat(times, empty_call, address, std::uint64_t{64});
    if (stage1_smmu.stats().misses != 1 || full_smmu.stats().misses != 1)
        wrong("a counted access missed");

    // Before each pair both are used once, so that what only the first use does is not counted to
    // one of them.
    std::uint32_t prod = 0;
    for (unsigned i = 0; i < times; ++i) {
        (void)put_commands(stage1_ram.data(), prod);
        prod = put_commands(composed_ram.data(), prod);
        repeat(1, direct_mmio_write, prod);
        repeat(1, composed_mmio_write, prod);
    }
    if (stage1_smmu.stats().commands != 2 * times || host.smmu().stats().commands != 2 * times)
        wrong("not every command was executed");
    repeat(times, direct_mmio_read, std::uint64_t{spec::reg::CMDQ_CONS});
    repeat(times, composed_mmio_read, std::uint64_t{spec::reg::CMDQ_CONS});
    repeat(times, direct_translate, address);
    repeat(times, composed_translate, address);
    if (!direct_translate(address) || !composed_translate(address))
        wrong("a diagnosis was refused");
    repeat(times, direct_dma, address);
    repeat(times, composed_dma, address);
    if (!direct_dma(address) || !composed_dma(address)) wrong("a read was refused");
    if (!direct_allocate(2U << 20) || !composed_allocate(2U << 20)) wrong("no memory");
    repeat(4, direct_allocate, std::uint64_t{2U << 20});
    repeat(4, composed_allocate, std::uint64_t{2U << 20});
    return 0;
}
