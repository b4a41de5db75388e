// The same as overtaken_test.cpp for a nested stream with SubstreamIDs: what the
// guest changes and invalidates at any moment of an access does not stay.
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

using S = spec::ste;
using C = spec::cd;

constexpr std::uint64_t mapped = 0xffff'0000;
constexpr std::uint32_t sid = 0x10;
constexpr substream_id own{3};
constexpr vmid vm{7};
constexpr asid space{1};

/// Guest memory that lets a test act after the n-th word of an access was read.
struct stepped_memory : region_map {
    std::optional<std::uint64_t> load64(pa address) const noexcept {
        const auto value = region_map::load64(address);
        ++loads;
        if (act && loads == act_after) std::exchange(act, nullptr)();
        return value;
    }
    mutable std::function<void()> act;
    mutable unsigned loads = 0;
    unsigned act_after = 0;
};

struct everything : default_smmu_options {
    static constexpr smmu_features features = full_features;
};

/// The fixture's driver builds the tables; a second SMMU shares its memory.
/// Stage 2 maps RAM one to one; the CDs and all of stage 1 lie behind it.
struct bench {
    using device =
        smmu<set_associative<64, 4>, bitmap_streams<64>, stepped_memory, counting_sink, everything>;

    bench() : iommu(std::make_unique<device>(memory, sink)) {
        namespace reg = spec::reg;
        builder.start();
        root = builder.take_pages();
        builder.map(root, mapped, builder.take_pages());
        cds = builder.take_pages();
        builder.store(cd_address(), builder.plain_cd(root, raw(space)));
        stage2 = (builder.take_pages(3) + 0x1fff) & ~std::uint64_t{0x1fff};
        blocks = builder.take_pages();
        builder.store64(stage2 + 8, blocks | 3);
        for (std::uint64_t i = 0; i < guest::ram_bytes >> 21; ++i)
            builder.store64(blocks + 8 * i, (guest::ram + (i << 21)) | 0x4fd);
        S ste = builder.plain_ste(spec::ste_config::s1_s2_translate, cds);
        set<S::S1CDMax>(ste, 3);
        set<S::S2VMID>(ste, raw(vm));
        set<S::S2T0SZ>(ste, 24);
        set<S::S2SL0>(ste, 1);
        set<S::S2PS>(ste, 4);
        set<S::S2AA64>(ste, 1);
        set<S::S2TTB>(ste, stage2 >> 4);
        builder.store(builder.ste_address(sid), ste);
        ring = builder.take_pages();
        REQUIRE(memory.add(pa{guest::ram}, builder.host(guest::ram), guest::ram_bytes));
        REQUIRE(iommu->init());
        iommu->mmio_write(reg::STRTAB_BASE, 8, guest::level1_table);
        iommu->mmio_write(reg::STRTAB_BASE_CFG, 4, 0x1'0210);
        iommu->mmio_write(reg::CMDQ_BASE, 8, ring | 8);
        iommu->mmio_write(reg::CR0, 4, 0x9);
        REQUIRE(iommu->attach_device("disk", builder.all_of_ram, stream_id{sid}));
    }
    std::uint64_t cd_address() const { return cds + raw(own) * sizeof(C); }
    void command(const spec::command& c) {
        builder.store(ring + prod * sizeof c, c);
        iommu->mmio_write(spec::reg::CMDQ_PROD, 4, ++prod);
    }
    /// Takes the 2 MiB of stage 2 away in which everything of the guest's lies.
    void unmap_stage2() {
        builder.store64(blocks + ((guest::first_free - guest::ram) >> 21) * 8, 0);
    }

    guest::machine<set_associative<64, 4>, everything> builder;
    stepped_memory memory;
    counting_sink sink;
    std::unique_ptr<device> iommu;
    std::uint64_t root = 0, cds = 0, stage2 = 0, blocks = 0, ring = 0;
    std::uint32_t prod = 0;
};

bool reads(bench::device::port& port) {
    std::array<std::byte, 8> bytes{};
    access_attributes attributes;
    attributes.has_substream = true;
    attributes.substream = own;
    return port.read(iova{mapped}, bytes, attributes);
}

struct row {
    const char* what;
    std::function<void(bench&)> change;
};

} // namespace

TEST_CASE("nothing that was invalidated during a nested access is kept", "[smmu][late_fill]") {
    const auto r = GENERATE(row{"stage 1's leaf goes, TLBI_NH_VA",
                                [](bench& b) {
                                    b.builder.unmap(b.root, mapped);
                                    b.command(spec::tlbi_nh_va(vm, space, iova{mapped}, true));
                                }},
                            row{"stage 1's leaf goes, TLBI_NH_ALL",
                                [](bench& b) {
                                    b.builder.unmap(b.root, mapped);
                                    b.command(spec::tlbi_nh_all(vm));
                                }},
                            row{"stage 2's block goes, TLBI_S12_VMALL",
                                [](bench& b) {
                                    b.unmap_stage2();
                                    b.command(spec::tlbi_s12_vmall(vm));
                                }},
                            row{"the CD becomes invalid, CFGI_CD",
                                [](bench& b) {
                                    b.builder.store(b.cd_address(), C{});
                                    b.command(spec::cmd_cfgi_cd(stream_id{sid}, own, true));
                                }},
                            row{"the CD becomes invalid, CFGI_CD_ALL",
                                [](bench& b) {
                                    b.builder.store(b.cd_address(), C{});
                                    b.command(spec::cmd_cfgi_cd_all(stream_id{sid}));
                                }},
                            row{"the STE becomes abort, CFGI_STE", [](bench& b) {
                                    b.builder.store(b.builder.ste_address(sid),
                                                    b.builder.plain_ste(spec::ste_config::abort));
                                    b.command(spec::cmd_cfgi_ste(stream_id{sid}, true));
                                }});
    CAPTURE(r.what);
    unsigned loads = 0;
    {
        bench b;
        auto port = b.iommu->make_port("disk").value();
        b.memory.loads = 0;
        REQUIRE(reads(port));
        loads = b.memory.loads;
        CHECK(loads > 20);
    }
    unsigned acted = 0;
    for (unsigned load = 1; load <= loads; ++load) {
        CAPTURE(load);
        bench b;
        auto port = b.iommu->make_port("disk").value();
        b.memory.loads = 0;
        b.memory.act_after = load;
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
    CHECK(acted == loads);
}
