// Misses that are answered by what earlier ones have found: whatever the guest changes
// in between, they give what a walk without any cache gives.
#include "guest_driver.hpp"

#include <catch2/catch.hpp>

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <random>

using namespace vm_accel;

namespace {

using u64 = std::uint64_t;
using S = spec::ste;

constexpr u64 page = 0x1000;
constexpr std::uint32_t sid = 0x10;
constexpr vmid vm{7};
constexpr u64 first_address = 0x1'0000'0000;
constexpr u64 pages = 16;        ///< in two tables of level 3, far from each other
constexpr u64 outside = 1 << 30; ///< physical, and no memory

struct cached : default_smmu_options {
    static constexpr smmu_features features = full_features;
    static constexpr unsigned generation_bits = 2; ///< they come round
};
struct uncached : cached {
    using walk_cache = no_walk_cache;
};
/// Nothing of stage 2 can be kept: the stream's own context is the only one.
struct one_context : cached {
    static constexpr std::size_t contexts = 1;
};
/// One entry per set: nearly every access misses.
template <class Options>
using repeating =
    smmu<set_associative<4, 1>, bitmap_streams<64>, region_map, counting_sink, Options>;
using machine = guest::machine<no_tlb, uncached>;

constexpr u64 address_of(u64 n) { return first_address + (n % 2 << 30) + n / 2 * page; }

/// The same memory behind two SMMUs, one of which has nothing to learn.
template <class Options = cached>
struct bench {
    explicit bench(bool both) : nested(both) {
        namespace reg = spec::reg;
        plain.start();
        root = plain.take_pages();
        cd = plain.take_pages();
        plain.store(cd, machine::plain_cd(root, 1));
        stage2_root = plain.take_pages();
        for (u64 at = 0; at < guest::ram_bytes; at += page)
            plain.store64(plain.descriptor_slot(stage2_root, guest::ram + at),
                          stage2_page(guest::ram + at));
        // One page elsewhere, so that an IPA can lead out of memory.
        plain.store64(plain.descriptor_slot(stage2_root, outside), outside | usual_stage2 | 3);
        data = plain.take_pages(pages);
        for (u64 n = 0; n < pages; ++n)
            plain.map(root, address_of(n), data + n * page);
        S ste = machine::plain_ste(
            nested ? spec::ste_config::s1_s2_translate : spec::ste_config::s1_translate, cd);
        set<S::S2VMID>(ste, raw(vm));
        set<S::S2T0SZ>(ste, 16);
        set<S::S2SL0>(ste, 2);
        set<S::S2PS>(ste, 5);
        set<S::S2AA64>(ste, 1);
        set<S::S2TTB>(ste, stage2_root >> 4);
        plain.store(plain.ste_address(sid), ste);
        ring = plain.take_pages();
        REQUIRE(memory.add(pa{guest::ram}, plain.host(guest::ram), guest::ram_bytes));
        REQUIRE(iommu.init());
        iommu.mmio_write(reg::STRTAB_BASE, 8, guest::level1_table);
        iommu.mmio_write(reg::STRTAB_BASE_CFG, 4, 0x1'0210);
        iommu.mmio_write(reg::CMDQ_BASE, 8, ring | 8);
        iommu.mmio_write(reg::CR0, 4, 0x9);
        REQUIRE(iommu.attach_device("disk", window, stream_id{sid}));
        REQUIRE(plain.iommu().attach_device("disk", window, stream_id{sid}));
        port.emplace(iommu.make_port("disk").value());
        other.emplace(plain.iommu().make_port("disk").value());
    }
    void command(const spec::command& c) {
        plain.store(ring + prod % 256 * sizeof c, c);
        prod = (prod + 1) % 512;
        iommu.mmio_write(spec::reg::CMDQ_PROD, 4, prod);
    }
    u64 slot(u64 n, int level = 3) { return plain.descriptor_slot(root, address_of(n), level); }
    void change(u64 n, u64 bits, int level = 3) {
        plain.store64(slot(n, level), plain.load64(slot(n, level)) ^ bits);
        command(spec::tlbi_nh_vaa(vm, iova{address_of(n)}, false));
    }
    void change_stage2(u64 ipa, u64 bits) {
        const u64 at = plain.descriptor_slot(stage2_root, ipa);
        plain.store64(at, plain.load64(at) ^ bits);
        command(spec::tlbi_s2_ipa(vm, vm_accel::ipa{ipa}, true));
        command(spec::tlbi_nsnh_all());
    }

    outcome ask(auto& of, u64 n, unsigned number) {
        const transaction kind = kind_of(number);
        access_attributes with;
        with.privileged = kind.privileged;
        with.instruction = kind.instruction;
        auto guard = of->open();
        return guard.translate(iova{address_of(n) + 8 * n}, 2 * page, kind.kind, with);
    }
    /// Asks both for a page; whether they agree.
    bool agrees(u64 n, unsigned number) {
        const outcome ours = ask(port, n, number);
        const outcome theirs = ask(other, n, number);
        if (ours.is_fault() || theirs.is_fault())
            return ours.is_fault() == theirs.is_fault() && ours.event() == theirs.event() &&
                   ours.why() == theirs.why();
        return ours.is_span() == theirs.is_span() && ours.host() == theirs.host() &&
               ours.address() == theirs.address() && ours.length() == theirs.length() &&
               ours.attributes() == theirs.attributes();
    }

    /// Read, write and execute, write-back memory, inner shareable, accessed.
    static constexpr u64 usual_stage2 = 0x7fc;
    /// Every other page is of another type, and every fourth is not written.
    static constexpr u64 stage2_page(u64 at) {
        return at | 3 | (usual_stage2 ^ (at >> 12 & 1) << 3 ^ u64{(at >> 12 & 3) == 2} << 7);
    }
    static constexpr pa_range window{pa{guest::ram}, guest::ram_bytes};

    bool nested;
    machine plain;
    u64 root = 0, cd = 0, stage2_root = 0, data = 0, ring = 0;
    std::uint32_t prod = 0;
    region_map memory;
    counting_sink sink;
    repeating<Options> iommu{memory, sink};
    std::optional<typename repeating<Options>::port> port;
    std::optional<machine::device::port> other;
};

} // namespace

TEST_CASE("a miss like those before gives what a walk gives", "[smmu][repeated_miss]") {
    const bool nested = GENERATE(false, true);
    CAPTURE(nested);
    const auto b = std::make_unique<bench<>>(nested);
    std::mt19937_64 random{nested ? 2U : 1U};
    const auto one_of = [&](auto... choices) {
        const std::array<u64, sizeof...(choices)> all{u64{choices}...};
        return all[random() % all.size()];
    };
    using L = spec::stage1_leaf;
    unsigned agreed = 0;
    for (unsigned step = 0; step < 6000; ++step) {
        const u64 n = random() % pages;
        switch (random() % 12) {
        case 0: // a leaf: permissions, type, AF, the contiguous bit, validity, where it leads
            b->change(n, one_of(0x40U, 0x80U, L::UXN::mask, L::PXN::mask, 0x4U, 0x100U, 0x400U,
                                0x1U, 0x800U, L::Contiguous::mask, page, outside));
            break;
        case 1: // what the tables above impose
            b->change(n, one_of(u64{1} << 61, u64{1} << 62, u64{1} << 60, u64{1} << 59),
                      static_cast<int>(random() % 3));
            b->command(spec::tlbi_nsnh_all()); // many pages have that table
            break;
        case 2:
            b->command(random() % 2 != 0 ? spec::tlbi_nsnh_all() : spec::tlbi_nh_asid(vm, asid{1}));
            break;
        case 3: // pages of stage 2: of the data, or of a table
            if (nested && random() % 4 == 0) {
                const u64 ipa = random() % 2 != 0 ? b->data + n * page : b->slot(n);
                b->change_stage2(ipa & ~(page - 1), one_of(0x40U, 0x80U, 0x8U, 0x200U, 0x1U));
            }
            break;
        case 4: // the configuration: WXN, MAIR
            if (random() % 8 == 0) {
                b->plain.store64(b->cd, b->plain.load64(b->cd) ^ one_of(u64{1} << 36, 0U));
                b->plain.store64(b->cd + 24, random());
                b->command(spec::cmd_cfgi_cd(stream_id{sid}, substream_id{0}, true));
                b->plain.command(spec::cmd_cfgi_cd(stream_id{sid}, substream_id{0}, true));
                b->command(spec::tlbi_nsnh_all());
            }
            break;
        default:
            break;
        }
        const u64 asked = random() % pages;
        const auto number = static_cast<unsigned>(random() % 8 & random());
        CAPTURE(step, asked, number);
        REQUIRE(b->agrees(asked, number));
        ++agreed;
        // What has been spoilt is put right from time to time.
        if (random() % 16 == 0) {
            const u64 back = random() % pages;
            b->plain.map(b->root, address_of(back), b->data + back * page);
            for (int level = 0; level < 3; ++level) {
                const u64 at = b->slot(back, level);
                b->plain.store64(at, b->plain.load64(at) & 0x0000'ffff'ffff'ffff);
            }
            for (u64 at = 0; nested && at < guest::ram_bytes; at += page)
                b->plain.store64(b->plain.descriptor_slot(b->stage2_root, guest::ram + at),
                                 bench<>::stage2_page(guest::ram + at));
            b->command(spec::tlbi_nsnh_all());
        }
    }
    CHECK(agreed == 6000);
    CHECK(b->iommu.stats().misses > 1000);
}

TEST_CASE("memory that has gone is not reached from what was learned", "[smmu][repeated_miss]") {
    bench<> b{false};
    for (unsigned round = 0; round < 2; ++round) {
        for (u64 n = 0; n < pages; ++n)
            REQUIRE(b.agrees(n, 0));
    }
    REQUIRE(b.iommu.remove_memory(pa{guest::ram}));
    // Only the tables come back, and the pages of data elsewhere.
    static std::array<std::byte, guest::ram_bytes + page> copy;
    auto* const start = reinterpret_cast<std::byte*>(
        (reinterpret_cast<std::uintptr_t>(copy.data()) + page - 1) & ~(page - 1));
    std::memcpy(start, b.plain.host(guest::ram), guest::ram_bytes);
    REQUIRE(b.memory.add(pa{guest::ram}, start, guest::ram_bytes));
    for (u64 n = 0; n < pages; ++n) {
        const outcome o = b.ask(b.port, n, 0);
        REQUIRE(o.is_span());
        CHECK(o.host() == start + (raw(o.address()) - guest::ram));
    }
}

TEST_CASE("nothing is learned of a stage 2 of which nothing may be kept", "[smmu][repeated_miss]") {
    bench<one_context> b{true};
    for (unsigned round = 0; round < 3; ++round) {
        for (u64 n = 0; n < pages; ++n)
            REQUIRE(b.agrees(n, 0));
        b.command(spec::tlbi_nsnh_all());
    }
}
