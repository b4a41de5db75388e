// The guest changes something and invalidates it at every single moment of an
// access: what the access itself gives may be old or new, but nothing old stays.
#include "guest_driver.hpp"

#include <catch2/catch.hpp>

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

using namespace vm_accel;

namespace {

constexpr iova mapped{0xffff'0000};
constexpr std::uint32_t sid = 0x10;

/// Guest memory that lets a test act after the n-th word of an access was read.
struct stepped_memory : region_map {
    std::optional<std::uint64_t> load64(pa address) const noexcept {
        const auto value = region_map::load64(address);
        if (act && loads_left-- == 0) std::exchange(act, nullptr)();
        return value;
    }
    mutable std::function<void()> act;
    mutable unsigned loads_left = 0;
};

/// The fixture's driver builds the tables; a second SMMU shares its memory.
struct bench {
    using device = smmu<set_associative<64, 4>, bitmap_streams<64>, stepped_memory>;

    bench() : iommu(std::make_unique<device>(memory, sink)) {
        namespace reg = spec::reg;
        builder.start();
        root = builder.stage1_stream(sid, 1);
        target = builder.take_pages();
        builder.map(root, raw(mapped), target);
        ring = builder.take_pages();
        REQUIRE(memory.add(pa{guest::ram}, builder.host(guest::ram), guest::ram_bytes));
        REQUIRE(iommu->init());
        iommu->mmio_write(reg::STRTAB_BASE, 8, guest::level1_table);
        iommu->mmio_write(reg::STRTAB_BASE_CFG, 4, 0x1'0210);
        iommu->mmio_write(reg::CMDQ_BASE, 8, ring | 8);
        iommu->mmio_write(reg::CR0, 4, 0x9);
        REQUIRE(iommu->attach_device("disk", builder.all_of_ram, stream_id{sid}));
    }
    void command(const spec::command& c) {
        builder.store(ring + prod * sizeof c, c);
        iommu->mmio_write(spec::reg::CMDQ_PROD, 4, ++prod);
    }
    std::uint64_t cd_address() {
        return builder.load64(builder.ste_address(sid)) & spec::ste::S1ContextPtr::mask;
    }

    guest::machine<> builder;
    stepped_memory memory;
    counting_sink sink;
    std::unique_ptr<device> iommu;
    std::uint64_t root = 0, target = 0, ring = 0;
    std::uint32_t prod = 0;
};

bool reads(bench::device::port& port) {
    std::array<std::byte, 8> bytes{};
    return port.read(mapped, bytes);
}

/// From STE to leaf: level-1 descriptor, STE, CD, four levels of tables.
constexpr unsigned loads_of_an_access = 1 + 8 + 8 + 4;

} // namespace

TEST_CASE("nothing that was invalidated during an access is kept", "[smmu][late_fill]") {
    struct row {
        const char* what;
        std::function<void(bench&)> change;
    };
    const auto r =
        GENERATE(row{"the leaf goes, TLBI_NH_VA",
                     [](bench& b) {
                         b.builder.unmap(b.root, raw(mapped));
                         b.command(spec::tlbi_nh_va(vmid{0}, asid{1}, mapped, true));
                     }},
                 row{"the leaf goes, TLBI_NH_ASID",
                     [](bench& b) {
                         b.builder.unmap(b.root, raw(mapped));
                         b.command(spec::tlbi_nh_asid(vmid{0}, asid{1}));
                     }},
                 row{"a table goes, TLBI_NSNH_ALL",
                     [](bench& b) {
                         b.builder.store64(b.builder.descriptor_slot(b.root, raw(mapped), 1), 0);
                         b.command(spec::tlbi_nsnh_all());
                     }},
                 row{"the CD's half is switched off, CFGI_CD",
                     [](bench& b) {
                         spec::cd c = b.builder.plain_cd(b.root, 1);
                         set<spec::cd::EPD0>(c, 1);
                         b.builder.store(b.cd_address(), c);
                         b.command(spec::cmd_cfgi_cd(stream_id{sid}, substream_id{0}, true));
                     }},
                 row{"the STE becomes abort, CFGI_STE",
                     [](bench& b) {
                         b.builder.store(b.builder.ste_address(sid),
                                         b.builder.plain_ste(spec::ste_config::abort));
                         b.command(spec::cmd_cfgi_ste(stream_id{sid}, true));
                     }},
                 row{"the STE becomes invalid, CFGI_ALL",
                     [](bench& b) {
                         b.builder.store(b.builder.ste_address(sid), spec::ste{});
                         b.command(spec::cmd_cfgi_all());
                     }},
                 row{"the VMM forgets the stream, after the leaf went",
                     [](bench& b) {
                         b.builder.unmap(b.root, raw(mapped));
                         (void)b.iommu->invalidate_tlb(stream_id{sid}).has_value();
                     }},
                 row{"GBPA aborts and the SMMU goes off", [](bench& b) {
                         b.iommu->mmio_write(spec::reg::GBPA, 4, 0x8010'0000);
                         b.iommu->mmio_write(spec::reg::CR0, 4, 0x8);
                     }});
    CAPTURE(r.what);
    unsigned acted = 0;
    for (unsigned load = 0; load < loads_of_an_access; ++load) {
        CAPTURE(load);
        bench b;
        auto port = b.iommu->make_port("disk").value();
        b.memory.loads_left = load;
        b.memory.act = [&] {
            ++acted;
            r.change(b);
            b.command(spec::cmd_sync(spec::sync_signal::SIG_NONE));
        };
        (void)reads(port); // old or new
        b.memory.act = nullptr;
        CHECK_FALSE(reads(port));
        CHECK_FALSE(reads(port));
        CHECK((b.iommu->mmio_read(spec::reg::CMDQ_CONS, 4) & 0xff) == b.prod);
    }
    CHECK(acted == loads_of_an_access);
}

TEST_CASE("with a cached configuration, a walk may be overtaken too", "[smmu][late_fill]") {
    for (unsigned load = 0; load < 4; ++load) {
        CAPTURE(load);
        bench b;
        auto port = b.iommu->make_port("disk").value();
        REQUIRE(reads(port));
        b.command(spec::tlbi_nsnh_all());
        b.memory.loads_left = load;
        b.memory.act = [&] {
            b.builder.unmap(b.root, raw(mapped));
            b.command(spec::tlbi_nh_va(vmid{0}, asid{1}, mapped, true));
            b.command(spec::cmd_sync(spec::sync_signal::SIG_NONE));
        };
        (void)reads(port);
        CHECK_FALSE(b.memory.act);
        CHECK_FALSE(reads(port));
    }
}
