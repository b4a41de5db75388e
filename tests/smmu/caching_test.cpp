// What the caches together may and may not do: contexts, late fills, generations.
#include "guest_driver.hpp"

#include <catch2/catch.hpp>

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

using namespace vm_accel;

namespace {

constexpr iova mapped{0xffff'0000};

struct two_bit_generations : default_smmu_options {
    static constexpr unsigned generation_bits = 2;
};
struct few_of_all : default_smmu_options {
    static constexpr std::size_t configurations = 2;
    static constexpr std::size_t contexts = 2;
};

/// Guest memory that lets a test act in the middle of a walk.
struct hooked_memory : region_map {
    std::optional<std::uint64_t> load64(pa address) const noexcept {
        const auto value = region_map::load64(address);
        if (on_load) {
            const auto act = std::exchange(on_load, nullptr);
            act(raw(address));
        }
        return value;
    }
    mutable std::function<void(std::uint64_t)> on_load;
};

bool reads(auto& port, iova address) {
    std::array<std::byte, 8> bytes{};
    return port.read(address, bytes);
}

} // namespace

TEST_CASE("streams that share an ASID but not a window do not share entries", "[smmu][context]") {
    guest::machine<> m;
    m.start();
    const std::uint64_t root = m.take_pages();
    const std::uint64_t cd_page = m.take_pages();
    const std::uint64_t target = m.take_pages();
    m.store(cd_page, m.plain_cd(root, 1));
    for (const std::uint32_t sid : {0x10U, 0x11U}) {
        m.store(m.ste_address(sid), m.plain_ste(spec::ste_config::s1_translate, cd_page));
    }
    m.map(root, raw(mapped), target);
    REQUIRE(m.iommu().attach_device("wide", m.all_of_ram, stream_id{0x10}));
    REQUIRE(m.iommu().attach_device("narrow", {pa{guest::ram}, 0x1000}, stream_id{0x11}));
    auto wide = m.iommu().make_port("wide").value();
    auto narrow = m.iommu().make_port("narrow").value();
    for (int round = 0; round < 3; ++round) {
        CHECK(reads(wide, mapped));
        CHECK_FALSE(reads(narrow, mapped));
    }
    CHECK_FALSE(m.event()); // the window is the VMM's affair
    CHECK(m.iommu().stats().faults == 3);
}

TEST_CASE("streams of one domain share entries, and one ASID's TLBI reaches both",
          "[smmu][context]") {
    guest::machine<> m;
    m.start();
    const std::uint64_t root = m.take_pages();
    const std::uint64_t cd_page = m.take_pages();
    m.store(cd_page, m.plain_cd(root, 1));
    m.map(root, raw(mapped), m.take_pages());
    for (const std::uint32_t sid : {0x10U, 0x11U}) {
        m.store(m.ste_address(sid), m.plain_ste(spec::ste_config::s1_translate, cd_page));
    }
    REQUIRE(m.iommu().attach_device("a", m.all_of_ram, stream_id{0x10}));
    REQUIRE(m.iommu().attach_device("b", m.all_of_ram, stream_id{0x11}));
    auto a = m.iommu().make_port("a").value();
    auto b = m.iommu().make_port("b").value();
    CHECK(reads(a, mapped));
    CHECK(reads(b, mapped));
    CHECK(m.iommu().stats().hits == 1);
    m.unmap(root, raw(mapped));
    m.command(spec::tlbi_nh_asid(vmid{0}, asid{1}));
    m.sync();
    CHECK_FALSE(reads(a, mapped));
    CHECK_FALSE(reads(b, mapped));
}

TEST_CASE("an entry stays until it is invalidated, and no longer", "[smmu][tlbi]") {
    using tlbi = std::function<spec::command()>;
    struct row {
        const char* what;
        tlbi command;
        bool gone;
    };
    const auto va = [](std::uint64_t address, spec::tlbi_range range = {}) {
        return [=] { return spec::tlbi_nh_va(vmid{0}, asid{1}, iova{address}, true, range); };
    };
    const auto r = GENERATE_COPY(
        row{"NH_VA", va(0xffff'0000), true},
        row{"NH_VA of the page before", va(0xfffe'f000), false},
        row{"NH_VA, ASID of another",
            [] { return spec::tlbi_nh_va(vmid{0}, asid{2}, mapped, true); }, false},
        row{"NH_VAA", [] { return spec::tlbi_nh_vaa(vmid{0}, mapped, true); }, true},
        row{"NH_ASID", [] { return spec::tlbi_nh_asid(vmid{0}, asid{1}); }, true},
        row{"NH_ASID of another", [] { return spec::tlbi_nh_asid(vmid{0}, asid{2}); }, false},
        row{"NH_ALL", [] { return spec::tlbi_nh_all(vmid{0}); }, true},
        row{"NSNH_ALL", [] { return spec::tlbi_nsnh_all(); }, true},
        row{"range of 16 pages that ends with it",
            va(0xfffe'1000, {.num = 15, .scale = 0, .tg = 1}), true},
        row{"range of 15 pages that ends before it",
            va(0xfffe'1000, {.num = 14, .scale = 0, .tg = 1}), false},
        row{"range of 3 x 2^5 pages", va(0xfff9'5000, {.num = 2, .scale = 5, .tg = 1}), true},
        row{"range past the top", va(0xffff'0000, {.num = 31, .scale = 63, .tg = 1}), true},
        row{"CFGI_STE alone", [] { return spec::cmd_cfgi_ste(stream_id{0x10}, true); }, false});
    CAPTURE(r.what);
    guest::machine<> m;
    m.start();
    REQUIRE(m.iommu().attach_device("disk", m.all_of_ram, stream_id{0x10}));
    const std::uint64_t root = m.stage1_stream(0x10, 1);
    m.map(root, raw(mapped), m.take_pages());
    auto port = m.iommu().make_port("disk").value();
    REQUIRE(reads(port, mapped));
    m.unmap(root, raw(mapped));
    REQUIRE(reads(port, mapped)); // stale, as the architecture allows
    m.command(r.command());
    m.sync();
    REQUIRE(m.commands_done());
    CHECK(reads(port, mapped) == !r.gone);
}

TEST_CASE("a walk that an invalidation overtakes leaves nothing behind", "[smmu][late_fill]") {
    hooked_memory memory;
    counting_sink sink;
    guest::machine<> builder; // builds the tables; this SMMU only shares its memory
    builder.start();
    const std::uint64_t root = builder.stage1_stream(0x10, 1);
    const std::uint64_t target = builder.take_pages();
    builder.map(root, raw(mapped), target);
    REQUIRE(memory.add(pa{guest::ram}, builder.host(guest::ram), guest::ram_bytes));
    using device = smmu<set_associative<64, 4>, bitmap_streams<64>, hooked_memory, counting_sink>;
    auto iommu = std::make_unique<device>(memory, sink);
    REQUIRE(iommu->init());
    iommu->mmio_write(spec::reg::CR2, 4, 0x6);
    iommu->mmio_write(spec::reg::STRTAB_BASE, 8, guest::level1_table);
    iommu->mmio_write(spec::reg::STRTAB_BASE_CFG, 4, 0x1'0210);
    const std::uint64_t ring = builder.take_pages();
    iommu->mmio_write(spec::reg::CMDQ_BASE, 8, ring | 8);
    iommu->mmio_write(spec::reg::CR0, 4, 0x9);
    REQUIRE(iommu->attach_device("disk", builder.all_of_ram, stream_id{0x10}));
    auto port = iommu->make_port("disk").value();
    std::uint32_t prod = 0;
    const auto command = [&](const spec::command& c) {
        builder.store(ring + prod * sizeof c, c);
        iommu->mmio_write(spec::reg::CMDQ_PROD, 4, ++prod);
    };

    SECTION("TLBI while the leaf is being read") {
        const auto scope = GENERATE(0, 1, 2);
        REQUIRE(reads(port, mapped)); // the configuration is cached now
        REQUIRE(iommu->invalidate_tlb(stream_id{0x10}));
        REQUIRE(reads(port, iova{0}) == false);
        memory.on_load = [&](std::uint64_t) {
            builder.unmap(root, raw(mapped));
            command(scope == 0   ? spec::tlbi_nh_va(vmid{0}, asid{1}, mapped, true)
                    : scope == 1 ? spec::tlbi_nh_asid(vmid{0}, asid{1})
                                 : spec::tlbi_nsnh_all());
            command(spec::cmd_sync(spec::sync_signal::SIG_NONE));
        };
        (void)reads(port, mapped); // this one may see either
        CHECK_FALSE(memory.on_load);
        CHECK(iommu->stats().syncs == 1);
        CHECK_FALSE(reads(port, mapped));
    }
    SECTION("CFGI_STE while the STE is being read") {
        memory.on_load = [&](std::uint64_t) {
            builder.store(builder.ste_address(0x10),
                          guest::machine<>::plain_ste(spec::ste_config::abort));
            command(spec::cmd_cfgi_ste(stream_id{0x10}, true));
            command(spec::cmd_sync(spec::sync_signal::SIG_NONE));
        };
        (void)reads(port, mapped);
        CHECK_FALSE(memory.on_load);
        CHECK_FALSE(reads(port, mapped));
    }
}

TEST_CASE("generations that wrap do not revive entries", "[smmu][generation]") {
    guest::machine<set_associative<64, 4>, two_bit_generations> m;
    m.start();
    REQUIRE(m.iommu().attach_device("disk", m.all_of_ram, stream_id{0x10}));
    const std::uint64_t root = m.stage1_stream(0x10, 1);
    auto port = m.iommu().make_port("disk").value();
    const std::uint64_t target = m.take_pages();
    for (unsigned invalidations = 1; invalidations <= 12; ++invalidations) {
        m.map(root, raw(mapped), target);
        REQUIRE(reads(port, mapped));
        m.unmap(root, raw(mapped), invalidations < 7 ? 3 : 1); // the page, or a table
        for (unsigned i = 0; i < invalidations; ++i) {
            m.command(i % 3 == 0   ? spec::tlbi_nh_asid(vmid{0}, asid{1})
                      : i % 3 == 1 ? spec::tlbi_nh_all(vmid{0})
                                   : spec::tlbi_nsnh_all());
        }
        m.sync();
        CAPTURE(invalidations);
        CHECK_FALSE(reads(port, mapped));
    }
}

TEST_CASE("with pools exhausted, everything works uncached", "[smmu][pool]") {
    guest::machine<set_associative<64, 4>, few_of_all> m;
    m.start();
    std::vector<decltype(m)::device::port> ports;
    std::vector<std::uint64_t> roots;
    for (std::uint32_t i = 0; i < 6; ++i) {
        const std::string id = "device" + std::to_string(i);
        REQUIRE(m.iommu().attach_device(id, m.all_of_ram, stream_id{i}));
        ports.push_back(m.iommu().make_port(id).value());
        roots.push_back(m.stage1_stream(i, static_cast<std::uint16_t>(i)));
        m.map(roots.back(), raw(mapped), m.take_pages());
    }
    for (int round = 0; round < 4; ++round) {
        for (auto& port : ports)
            CHECK(reads(port, mapped));
        m.command(spec::cmd_cfgi_all());
        m.sync();
        REQUIRE(m.commands_done());
    }
    for (std::size_t i = 0; i < ports.size(); ++i) {
        m.unmap(roots[i], raw(mapped));
        m.command(spec::tlbi_nh_asid(vmid{0}, asid{static_cast<std::uint16_t>(i)}));
    }
    m.sync();
    for (auto& port : ports)
        CHECK_FALSE(reads(port, mapped));
}

TEST_CASE("contexts are reused only when their entries are gone", "[smmu][context]") {
    guest::machine<set_associative<64, 4>, few_of_all> m;
    m.start();
    REQUIRE(m.iommu().attach_device("disk", m.all_of_ram, stream_id{0x10}));
    auto port = m.iommu().make_port("disk").value();
    const std::uint64_t cd_page = m.take_pages();
    m.store(m.ste_address(0x10), m.plain_ste(spec::ste_config::s1_translate, cd_page));
    // The same page through one address space after another; each must be its own.
    std::vector<std::uint64_t> targets;
    for (std::uint16_t space = 0; space < 20; ++space) {
        const std::uint64_t root = m.take_pages();
        const std::uint64_t target = m.take_pages();
        m.map(root, raw(mapped), target);
        m.store64(target, space);
        m.store(cd_page, m.plain_cd(root, space));
        m.command(spec::cmd_cfgi_cd(stream_id{0x10}, substream_id{0}, true));
        m.sync();
        for (int round = 0; round < 2; ++round) {
            std::uint64_t seen = 99;
            REQUIRE(port.read(mapped, std::as_writable_bytes(std::span{&seen, 1})));
            CHECK(seen == space);
        }
    }
    CHECK(m.iommu().stats().hits > 0);
}

TEST_CASE("a page that crosses the window's edge is served in pieces, and removed whole",
          "[smmu][window]") {
    guest::machine<> m;
    m.start();
    // The window ends 12 KiB into the block.
    REQUIRE(
        m.iommu().attach_device("disk", {pa{guest::ram}, (8U << 20) + 0x3000}, stream_id{0x10}));
    const std::uint64_t root = m.stage1_stream(0x10, 1);
    constexpr std::uint64_t block = 0x4020'0000;
    m.map(root, block, guest::ram + (8U << 20), 2);
    auto port = m.iommu().make_port("disk").value();
    for (int round = 0; round < 2; ++round) {
        CHECK(reads(port, iova{block}));
        CHECK(reads(port, iova{block + 0x2ff8}));
        CHECK_FALSE(reads(port, iova{block + 0x3000}));
        CHECK_FALSE(reads(port, iova{block + 0x1f'f000}));
    }
    CHECK_FALSE(m.event());
    m.unmap(root, block, 2);
    // Any byte of the guest's block names all of it.
    m.command(spec::tlbi_nh_va(vmid{0}, asid{1}, iova{block + 0x1f'0000}, true));
    m.sync();
    CHECK_FALSE(reads(port, iova{block}));
    CHECK_FALSE(reads(port, iova{block + 0x2000}));
}

TEST_CASE("devices that do DMA after their detach take nothing from the pool", "[smmu][pool]") {
    guest::machine<set_associative<64, 4>, few_of_all> m;
    m.start();
    m.store(m.ste_address(0x10), m.plain_ste(spec::ste_config::bypass));
    for (int i = 0; i < 8; ++i) {
        REQUIRE(m.iommu().attach_device("disk", m.all_of_ram, stream_id{0x10}));
        auto port = m.iommu().make_port("disk").value();
        CHECK(reads(port, iova{guest::ram}));
        REQUIRE(m.iommu().detach_device("disk"));
        CHECK_FALSE(reads(port, iova{guest::ram}));
    }
    REQUIRE(m.iommu().attach_device("disk", m.all_of_ram, stream_id{0x10}));
    auto port = m.iommu().make_port("disk").value();
    const std::uint64_t before = m.iommu().stats().hits;
    for (int i = 0; i < 10; ++i)
        CHECK(reads(port, iova{guest::ram}));
    CHECK(m.iommu().stats().hits >= before + 9);
}

TEST_CASE("what a port keeps is good for one hit after the other, and no longer than it is true",
          "[smmu][view]") {
    constexpr std::uint32_t sid = 0x10;
    guest::machine<> m;
    m.start();
    const std::uint64_t root = m.stage1_stream(sid, 1);
    const std::uint64_t before = m.take_pages(), after = m.take_pages();
    m.map(root, raw(mapped), before);
    REQUIRE(m.iommu().attach_device("device", m.all_of_ram, stream_id{sid}));
    auto port = m.iommu().make_port("device").value();
    const auto where = [&]() -> std::uint64_t {
        auto guard = port.open();
        const outcome o = guard.translate(mapped, 8, access::read);
        return o.is_span() ? raw(o.address()) : 0;
    };
    // The entry, the replacement policy's mark, the port's copy, and hits by it.
    for (int i = 0; i < 6; ++i)
        REQUIRE(where() == before);
    const smmu_statistics warm = m.iommu().stats();
    CHECK(warm.misses == 1);
    CHECK(warm.hits == 5);
    m.unmap(root, raw(mapped));
    m.map(root, raw(mapped), after);
    REQUIRE(where() == before); // nobody has said a word

    struct row {
        const char* what;
        std::function<void()> change;
        std::uint64_t then;
    };
    const auto command = [&m](const spec::command& c) { return [&m, c] { m.command(c); }; };
    const std::vector<row> rows{
        row{"TLBI_NSNH_ALL", command(spec::tlbi_nsnh_all()), after},
        row{"TLBI_NH_ALL", command(spec::tlbi_nh_all(vmid{0})), after},
        row{"TLBI_NH_ASID", command(spec::tlbi_nh_asid(vmid{0}, asid{1})), after},
        row{"TLBI_NH_ASID of another ASID", command(spec::tlbi_nh_asid(vmid{0}, asid{2})), before},
        row{"TLBI_NH_VA", command(spec::tlbi_nh_va(vmid{0}, asid{1}, mapped, true)), after},
        row{"TLBI_NH_VA of another page",
            command(spec::tlbi_nh_va(vmid{0}, asid{1}, iova{raw(mapped) + 0x1000}, true)), before},
        row{"an STE that aborts, and CFGI_STE",
            [&] {
                m.store(m.ste_address(sid), m.plain_ste(spec::ste_config::abort));
                m.command(spec::cmd_cfgi_ste(stream_id{sid}, true));
            },
            0},
        row{"an STE that aborts, without CFGI_STE",
            [&] { m.store(m.ste_address(sid), m.plain_ste(spec::ste_config::abort)); }, before},
        row{"invalidate_tlb of the stream",
            [&] { REQUIRE(m.iommu().invalidate_tlb(stream_id{sid})); }, after},
        row{"invalidate_tlb of all", [&] { REQUIRE(m.iommu().invalidate_tlb()); }, after},
        row{"SMMUEN = 0 and GBPA.ABORT",
            [&] {
                m.write32(spec::reg::GBPA, 0x8010'0000);
                m.write32(spec::reg::CR0, 0xc);
            },
            0},
        row{"reset, with GBPA.ABORT",
            [&] {
                REQUIRE(m.iommu().reset());
                m.write32(spec::reg::GBPA, 0x8010'0000);
            },
            0},
        row{"memory taken away", [&] { REQUIRE(m.iommu().remove_memory(pa{guest::ram})); }, 0},
        row{"the device detached", [&] { REQUIRE(m.iommu().detach_device("device")); }, 0}};
    const row& r = rows[GENERATE(range(std::size_t{0}, std::size_t{14}))];
    REQUIRE(rows.size() == 14);
    CAPTURE(r.what);
    r.change();
    CHECK(where() == r.then);
    CHECK(where() == r.then);
}

TEST_CASE("a hit serves what is on its page, and accesses that are none are refused",
          "[smmu][view]") {
    guest::machine<> m;
    m.start();
    const std::uint64_t root = m.stage1_stream(0x10, 1);
    constexpr std::uint64_t top = 0x0000'ffff'ffff'f000;
    for (const std::uint64_t page : {std::uint64_t{0}, raw(mapped), top})
        m.map(root, page, m.take_pages());
    REQUIRE(m.iommu().attach_device("device", m.all_of_ram, stream_id{0x10}));
    auto port = m.iommu().make_port("device").value();
    const auto length_of = [&](std::uint64_t address, std::uint64_t length) -> std::uint64_t {
        auto guard = port.open();
        const outcome o = guard.translate(iova{address}, length, access::read);
        return o.is_span() ? o.length() : 0;
    };
    const std::uint64_t page = GENERATE_COPY(std::uint64_t{0}, raw(mapped), top);
    for (int round = 0; round < 4; ++round) { // slowly at first, then quickly
        CHECK(length_of(page, 1) == 1);
        CHECK(length_of(page, 0x1000) == 0x1000);
        CHECK(length_of(page + 0xff0, 0x10) == 0x10);
        CHECK(length_of(page + 0xff0, 0x11) == 0x10);
        CHECK(length_of(page + 0xfff, 0x10000) == 1);
        CHECK(length_of(page + 8, ~page - 8) == 0xff8);
        CHECK(length_of(page, ~std::uint64_t{0} - page) == 0x1000);
        CHECK(length_of(page + 8, 0) == 0);
        CHECK(length_of(page, 0) == 0);
        if (page != 0) CHECK(length_of(page + 8, ~std::uint64_t{0}) == 0);
    }
}

TEST_CASE("what a port keeps is of one configuration, whatever the epoch says", "[smmu][view]") {
    // A slot is emptied, then the epoch changes: a device thread may come in between.
    using tlb_type = set_associative<16, 4>;
    const auto tlb = std::make_unique<tlb_type>();
    alignas(0x1000) std::array<std::byte, 0x1000> page{};
    constexpr std::uint64_t was = std::uint64_t{1} << 32;
    constexpr std::uint64_t is = std::uint64_t{2} << 32;
    tlb_entry entry;
    entry.base = raw(mapped);
    entry.context = is;
    entry.host = page.data();
    entry.allowed = permissions{permissions::privileged_read};
    tlb->fill(tlb->begin_fill({}), entry);
    REQUIRE(tlb->lookup({raw(mapped), is, 0x1000}));

    const change_epoch epoch;
    stream_configuration privileged;
    privileged.attributes_forced = 0b010;
    const stream_configuration incoming;
    stream_view<stage1_features, tlb_type> view;
    const auto hits = [&] {
        view_hit hit;
        return view.look_up(*tlb, epoch, mapped, 8, access::read, {}, hit);
    };
    view.copy(epoch.now(), privileged, was, 12);
    CHECK_FALSE(hits());
    view.copy(epoch.now(), incoming, is, 12);
    CHECK_FALSE(hits());
    view.copy(epoch.now(), privileged, is, 12);
    CHECK(hits());
}
