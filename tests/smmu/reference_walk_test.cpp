// The device against a slow reference, on random tables, commands and accesses.
#include "guest_driver.hpp"
#include "reference_walk.hpp"

#include <catch2/catch.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <vector>

using namespace vm_accel;
namespace reg = vm_accel::spec::reg;

namespace {

using u64 = std::uint64_t;

struct tight : default_smmu_options {
    using quiescence = single_threaded;
    static constexpr std::size_t configurations = 4;
    static constexpr std::size_t contexts = 4;
    static constexpr unsigned generation_bits = 6;
};
using device = smmu<set_associative<32, 2>, bitmap_streams<16>, region_map, counting_sink, tight>;

/// Two regions; the second is not aligned to a block.
struct region {
    u64 base;
    u64 bytes;
};
constexpr region near_ram{0x4000'0000, 4U << 20};
constexpr region far_ram{0x8'0010'0000, 2U << 20};
constexpr u64 page = 4096;
constexpr u64 ring = near_ram.base; // its first page
constexpr unsigned ring_log2 = 8;
constexpr u64 streams = 8;

class bench {
public:
    explicit bench(u64 seed)
        : random_(seed),
          near_pages_(near_ram.bytes),
          far_pages_(far_ram.bytes),
          iommu_(std::make_unique<device>(memory_, sink_)) {
        REQUIRE(memory_.add(pa{near_ram.base}, near_pages_.data(), near_ram.bytes));
        REQUIRE(memory_.add(pa{far_ram.base}, far_pages_.data(), far_ram.bytes));
        REQUIRE(iommu_->init());
        model_.word = [this](u64 at) { return word(at); };
        model_.streams = streams;
    }

    void run(unsigned trees, unsigned accesses) {
        for (unsigned tree = 0; tree < trees; ++tree) {
            build();
            const std::string id = "device" + std::to_string(tree);
            REQUIRE(iommu_->attach_device(id, window_, stream_id{stream_}));
            auto port = iommu_->make_port(id).value();
            for (unsigned i = 0; i < accesses; ++i) {
                if (i % 8 == 7) change();
                if (i == accesses / 2) change_cd();
                const reference::access asked = any_access();
                compare(port, asked);
                if (chance(30)) compare(port, asked);
            }
            REQUIRE(iommu_->detach_device(id));
        }
        hits_ = iommu_->stats().hits;
    }

    std::map<std::string, unsigned> seen;
    unsigned cases = 0;
    unsigned served = 0;
    u64 hits() const { return hits_; }

private:
    // ---- dice -----------------------------------------------------------------------------
    u64 below(u64 n) { return random_() % n; }
    bool chance(unsigned percent) { return below(100) < percent; }
    u64 some_bits(u64 mask) { return random_() & mask; }
    void met(const char* what) { ++seen[what]; }

    // ---- memory, without the library ------------------------------------------------------
    std::byte* host(u64 at) {
        if (at >= near_ram.base && at - near_ram.base < near_ram.bytes) {
            return near_pages_.data() + (at - near_ram.base);
        }
        if (at >= far_ram.base && at - far_ram.base < far_ram.bytes) {
            return far_pages_.data() + (at - far_ram.base);
        }
        return nullptr;
    }
    std::optional<u64> word(u64 at) {
        const std::byte* const bytes = host(at);
        if (bytes == nullptr) return std::nullopt;
        u64 value = 0;
        for (unsigned i = 0; i < 8; ++i)
            value |= std::to_integer<u64>(bytes[i]) << (8 * i);
        return value;
    }
    void store(u64 at, u64 value) {
        for (unsigned i = 0; i < 8; ++i)
            host(at)[i] = std::byte(value >> (8 * i));
    }
    /// A page for a table, anywhere in RAM, zeroed.
    u64 take_page() {
        for (;;) {
            const bool far = chance(20);
            const region& where = far ? far_ram : near_ram;
            const u64 at = where.base + below(where.bytes / page) * page;
            if (at == ring || std::find(taken_.begin(), taken_.end(), at) != taken_.end()) continue;
            taken_.push_back(at);
            std::memset(host(at), 0, page);
            return at;
        }
    }

    // ---- the driver -----------------------------------------------------------------------
    void command(const spec::command& c) {
        for (unsigned i = 0; i < 2; ++i)
            store(ring + (prod_ & ((1U << ring_log2) - 1)) * 16 + 8 * i, c.word[i].value());
        prod_ = (prod_ + 1) & ((2U << ring_log2) - 1);
    }
    void sync() {
        command(spec::cmd_sync(spec::sync_signal::SIG_NONE));
        iommu_->mmio_write(reg::CMDQ_PROD, 4, prod_);
        REQUIRE(iommu_->mmio_read(reg::CMDQ_CONS, 4) == prod_);
    }

    void build() {
        taken_.clear();
        clean_ = true;
        asid_ = static_cast<std::uint16_t>(1 + below(3));
        stream_ = static_cast<std::uint32_t>(below(streams));
        model_.stream_table = take_page();
        cd_at_ = take_page() + below(page / 64) * 64;
        choose_cd();
        for (u64 s = 0; s < streams; ++s) {
            // The other streams hold rubbish.
            for (u64 i = 0; i < 8; ++i)
                store(model_.stream_table + s * 64 + i * 8, random_());
        }
        u64 ste0 = 1 | 5 << 1 | cd_at_;
        if (chance(3)) ste0 = 1 | 4 << 1;                         // bypass
        if (chance(1)) ste0 ^= 1;                                 // V
        if (chance(2)) ste0 = (ste0 & ~u64{0xe}) | below(8) << 1; // any Config
        if (chance(1)) ste0 = 1 | 5 << 1 | 0x1000;                // the CD is nowhere
        for (u64 i = 0; i < 8; ++i)
            store(model_.stream_table + stream_ * 64 + i * 8, i == 0 ? ste0 : 0);
        choose_window();

        iommu_->mmio_write(reg::CR0, 4, 0);
        iommu_->mmio_write(reg::STRTAB_BASE, 8, model_.stream_table);
        iommu_->mmio_write(reg::STRTAB_BASE_CFG, 4, 3);
        iommu_->mmio_write(reg::CMDQ_BASE, 8, ring | ring_log2);
        iommu_->mmio_write(reg::CR0, 4, 0x9);
        command(spec::cmd_cfgi_all());
        command(spec::tlbi_nsnh_all());
        sync();
    }

    void choose_window() {
        const u64 kinds = below(7); // above 3: everything
        u64 base = 0;
        u64 size = u64{1} << 44;
        if (kinds == 1) { // a part of each region
            base = near_ram.base + below(near_ram.bytes / page) * page;
            size = far_ram.base + page * (1 + below(far_ram.bytes / page)) - base;
        } else if (kinds == 2) { // a part of the first
            base = near_ram.base + below(near_ram.bytes / page) * page;
            size = page * (1 + below(1024));
        } else if (kinds == 3) { // more than the second
            base = far_ram.base - page * below(1024);
            size = page * (1 + below(2048));
        }
        window_ = {pa{base}, size};
    }

    void choose_cd() {
        for (unsigned half = 0; half < 2; ++half) {
            u64 tsz = 16 + below(24);
            if (chance(30)) tsz = 16 + below(3) * 9;
            tsz_[half] = tsz;
            const unsigned input = 64 - static_cast<unsigned>(tsz);
            start_[half] = input > 39 ? 0 : input > 30 ? 1 : 2;
            const u64 table_bytes = u64{8} << (input - (39 - 9 * start_[half]));
            // Small first tables lie anywhere in a page; bits below their size count as zero.
            root_[half] = take_page() + below(page / table_bytes) * table_bytes;
            ttb_[half] = root_[half] | (some_bits(table_bytes - 1) & ~u64{0xf});
            if (chance(2)) ttb_[half] = root_[half] = 0x1000; // nowhere
            if (chance(1)) ttb_[half] |= u64{1} << 47;        // beyond any output size here
            map_some(half);
        }
        write_cd();
    }
    void write_cd() {
        u64 ips = 2 + below(6);
        if (chance(10)) ips = below(2);
        u64 w0 = tsz_[0] | tsz_[1] << 16 | u64{2} << 22 | u64{1} << 31 | ips << 32 | u64{1} << 41 |
                 u64{1} << 45 | u64{1} << 46 | u64{asid_} << 48;
        const auto maybe = [&](unsigned percent, unsigned bit) {
            if (chance(percent)) w0 |= u64{1} << bit;
        };
        maybe(5, 14);                                      // EPD0
        maybe(5, 30);                                      // EPD1
        maybe(30, 35);                                     // AFFD
        maybe(30, 36);                                     // WXN
        maybe(50, 38);                                     // TBI0
        maybe(50, 39);                                     // TBI1
        maybe(30, 40);                                     // PAN
        w0 |= some_bits(0x3f00'3f00);                      // cacheability and shareability of walks
        if (chance(1)) w0 ^= u64{1} << 31;                 // V
        if (chance(1)) w0 ^= u64{1} << 41;                 // AA64
        if (chance(1)) w0 = (w0 & ~u64{0x3f}) | below(64); // any T0SZ
        if (chance(1)) w0 = (w0 & ~u64{0xc0}) | below(4) << 6;       // any TG0
        if (chance(1)) w0 = (w0 & ~u64{0xc0'0000}) | below(4) << 22; // any TG1
        store(cd_at_, w0);
        store(cd_at_ + 8, ttb_[0] | (chance(30) ? 2U : 0U));
        store(cd_at_ + 16, ttb_[1] | (chance(30) ? 2U : 0U));
        store(cd_at_ + 24, random_()); // MAIR
    }

    // ---- tables ---------------------------------------------------------------------------
    u64 sign(unsigned half) const { return half == 1 ? ~u64{0} << (64 - tsz_[half]) : 0; }
    u64 any_output(unsigned size) {
        u64 at = 0;
        switch (below(20)) {
        case 0: // a hole
            at = some_bits((u64{1} << 34) - 1);
            break;
        case 1: // large
            at = some_bits((u64{1} << 48) - 1);
            break;
        case 2: // an edge
            at = near_ram.base + near_ram.bytes - page * below(3);
            break;
        case 3:
            at = far_ram.base + page * below(3) - page;
            break;
        case 4:
        case 5:
        case 6:
        case 7:
            at = far_ram.base + below(far_ram.bytes);
            break;
        default:
            at = near_ram.base + below(near_ram.bytes);
        }
        return at >> size << size;
    }
    u64 any_leaf(unsigned level) {
        const unsigned size = 39 - 9 * level;
        u64 d = any_output(size) | (level == 3 ? 3U : 1U);
        d |= some_bits(0x3fc); // AttrIndx, NS, AP, SH
        if (chance(95)) d |= u64{1} << 10;
        if (chance(60)) d |= u64{1} << 6;
        d |= some_bits(u64{1} << 11 | u64{0xfff} << 52);
        if (chance(60)) d &= ~(u64{3} << 53);
        return d;
    }
    u64 any_table() {
        u64 d = (chance(2) ? u64{0x1000} : take_page()) | 3;
        d |= some_bits(0xffc);
        for (unsigned bit = 59; bit < 64; ++bit) {
            if (chance(7)) d |= u64{1} << bit;
        }
        return d;
    }
    /// The address of the descriptor for `input` at `level`, as far as tables go.
    std::optional<u64> slot(unsigned half, u64 input, unsigned level, bool make) {
        u64 table = root_[half];
        for (unsigned l = start_[half];; ++l) {
            const unsigned low = 39 - 9 * l;
            u64 index = input >> low & 0x1ff;
            if (l == start_[half]) index = input >> low;
            const u64 at = table + index * 8;
            if (l == level) return word(at) ? std::optional{at} : std::nullopt;
            const auto d = word(at);
            if (!d) return std::nullopt;
            if (*d == 0 && make) store(at, any_table());
            if (*word(at) % 4 != 3) return std::nullopt;
            table = *word(at) & 0x0000'ffff'ffff'f000;
        }
    }
    void map_some(unsigned half) {
        const unsigned input_bits = 64 - static_cast<unsigned>(tsz_[half]);
        auto& hot = hot_[half];
        hot.clear();
        for (unsigned i = 0; i < 6; ++i) {
            u64 input = some_bits((u64{1} << input_bits) - 1);
            if (i == 0) input = 0;
            if (i == 1) input = (u64{1} << input_bits) - 1;
            if (i > 3) input = hot[i - 1] ^ (some_bits(0x7) << 12 | some_bits(0x3) << 21);
            hot.push_back(input & ((u64{1} << input_bits) - 1));
            leaf_[half][i] = 3;
            if (chance(8)) continue; // not mapped
            const unsigned level = std::max(chance(60) ? 3U : chance(50) ? 2U : 1U, start_[half]);
            const auto at = slot(half, hot.back(), level, true);
            leaf_[half][i] = level;
            if (at && *word(*at) == 0) store(*at, any_leaf(level));
        }
    }

    // ---- changes, and the commands that make them count -----------------------------------
    void forget_all() {
        if (chance(40)) {
            met("TLBI_NSNH_ALL");
            command(spec::tlbi_nsnh_all());
        } else if (chance(50)) {
            met("TLBI_NH_ALL");
            command(spec::tlbi_nh_all(vmid{0}));
        } else {
            met("TLBI_NH_VAA, everything");
            const spec::tlbi_range most{.num = 31, .scale = 31, .tg = 1};
            // Tables may have changed.
            command(spec::tlbi_nh_vaa(vmid{0}, iova{0}, false, most));
            command(spec::tlbi_nh_vaa(vmid{0}, iova{~u64{0} << 48}, false, most));
        }
    }
    /// For a leaf that changed: the address, in one of many ways.
    void forget(u64 first, unsigned size, u64 old) {
        const u64 inside = first + below(u64{1} << (size - 12)) * page;
        const bool global = (old >> 11 & 1) == 0;
        switch (below(6)) {
        case 0:
            if (!global) {
                met("TLBI_NH_ASID");
                command(spec::tlbi_nh_asid(vmid{0}, asid{asid_}));
                return;
            }
            [[fallthrough]];
        case 1:
            met(global ? "TLBI_NH_VA, global" : "TLBI_NH_VA");
            // A global entry is found by any ASID.
            command(spec::tlbi_nh_va(vmid{0}, global ? asid{99} : asid{asid_}, iova{inside},
                                     chance(50)));
            return;
        case 2:
            met("TLBI_NH_VAA");
            command(spec::tlbi_nh_vaa(vmid{0}, iova{inside}, chance(50)));
            return;
        default: {
            // A range that just reaches the page, from below or from above.
            met("range");
            const u64 scale = below(6);
            const u64 num = 1 + below(31);
            const u64 bytes = (num + 1) << (12 + scale);
            u64 start = inside;
            if (chance(60) && inside >= bytes - page) start = inside - (bytes - page);
            const spec::tlbi_range range{.num = num, .scale = scale, .tg = 1};
            command(chance(50) ? spec::tlbi_nh_va(vmid{0}, asid{asid_}, iova{start}, true, range)
                               : spec::tlbi_nh_vaa(vmid{0}, iova{start}, true, range));
        }
        }
    }
    void change() {
        const unsigned half = chance(50) ? 1 : 0;
        const u64 which = below(hot_[half].size());
        const u64 input = hot_[half][which];
        unsigned level = leaf_[half][which];
        if (chance(15)) level = start_[half] + static_cast<unsigned>(below(4U - start_[half]));
        const auto at = slot(half, input, level, false);
        if (!at) return;
        const u64 old = *word(*at);
        const unsigned size = 39 - 9 * level;
        const bool was_table = old % 4 == 3 && level < 3;
        const bool was_leaf = !was_table && old % 2 == 1;
        if (chance(40)) {
            met("bit flip");
            store(*at, old ^ u64{1} << below(64));
            if (level < 3) clean_ = false; // it may lead anywhere now
        } else if (was_table) {
            met("table attributes changed");
            store(*at, old ^ some_bits(u64{0x1f} << 59));
        } else if (level > 0) {
            met("leaf replaced");
            store(*at, chance(8) ? 0 : any_leaf(level));
        }
        if (!clean_ || was_table) {
            forget_all();
        } else if (was_leaf) {
            forget(sign(half) | input >> size << size, size, old);
        } else {
            met("nothing to invalidate"); // what faults is never cached
        }
        sync();
    }
    void change_cd() {
        write_cd();
        command(chance(50) ? spec::cmd_cfgi_cd(stream_id{stream_}, substream_id{0}, true)
                           : spec::cmd_cfgi_ste(stream_id{stream_}, true));
        command(spec::tlbi_nsnh_all());
        sync();
    }

    // ---- accesses -------------------------------------------------------------------------
    reference::access any_access() {
        const unsigned half = chance(50) ? 1 : 0;
        const u64 top = (u64{1} << (64 - tsz_[half])) - 1;
        const u64 which = below(hot_[half].size());
        u64 input = hot_[half][which];
        u64 address = 0;
        switch (below(24)) {
        case 0: // an edge of the half, or just past it
            met("edge");
            address = (chance(50) ? top : 0) + below(17) - 8;
            if (half == 1) address = ~address;
            break;
        case 1:
            address = some_bits(top) | sign(half);
            break;
        case 2:
            met("non-canonical");
            address = (input | sign(half)) ^ u64 { 1 } << (48 + below(8));
            break;
        default: {
            const unsigned size = 39 - 9 * leaf_[half][which];
            input ^= some_bits((u64{1} << (chance(90) ? size : 30)) - 1);
            address = (input & top) | sign(half);
        }
        }
        if (chance(15)) {
            met("top byte");
            address = (address << 8 >> 8) | random_() << 56;
        }
        reference::access a;
        a.stream = stream_;
        a.address = address;
        a.write = chance(40);
        a.privileged = chance(50);
        a.instruction = chance(15);
        return a;
    }

    void compare(device::port& port, const reference::access& asked) {
        ++cases;
        const reference::answer expected = reference::translate(model_, asked);
        const u64 length =
            std::min<u64>(1 + below(8), ~asked.address + 1 == 0 ? 8 : ~asked.address + 1);
        auto guard = port.open();
        const outcome o =
            guard.translate(iova{asked.address}, length, asked.write ? access::write : access::read,
                            {asked.privileged, asked.instruction});
        CAPTURE(cases, asked.address, asked.write, asked.privileged, asked.instruction,
                expected.event, expected.address, expected.leaf_level);
        if (asked.privileged) met("privileged");
        if (asked.instruction && !asked.write) met("instruction");
        if (expected.event != 0) {
            char name[32];
            std::snprintf(name, sizeof name, "event 0x%02x", expected.event);
            met(name);
            REQUIRE(o.is_fault());
            REQUIRE(o.why() == silent_abort::none);
            REQUIRE(static_cast<unsigned>(o.event()) == expected.event);
            return;
        }
        if (expected.silent) {
            met("STE abort");
            REQUIRE(o.is_fault());
            REQUIRE(o.why() == silent_abort::ste_abort);
            return;
        }
        static constexpr std::array<const char*, 4> levels{"bypass", "level 1", "level 2",
                                                           "level 3"};
        met(levels[expected.leaf_level]);
        if (expected.leaf_level != 0) met(expected.upper ? "upper half" : "lower half");
        if (expected.hierarchical) met("table limits");
        if (expected.address < raw(window_.base) ||
            expected.address - raw(window_.base) >= window_.size) {
            met("outside the window");
            REQUIRE(o.is_fault());
            REQUIRE(o.why() == silent_abort::outside_window);
            return;
        }
        ++served;
        REQUIRE_FALSE(o.is_fault());
        REQUIRE(raw(o.address()) == expected.address);
        REQUIRE(o.length() >= 1);
        REQUIRE(o.length() <= length);
        if (expected.address % page + length <= page) REQUIRE(o.length() == length);
        std::byte* const bytes = host(expected.address);
        if (bytes == nullptr) {
            met("not memory");
            REQUIRE(o.is_mmio());
        } else {
            met(expected.address < far_ram.base ? "first region" : "second region");
            REQUIRE(o.is_span());
            REQUIRE(o.host() == bytes);
        }
    }

    std::mt19937_64 random_;
    guest::host_pages near_pages_, far_pages_;
    region_map memory_;
    counting_sink sink_;
    std::unique_ptr<device> iommu_;
    reference::machine model_;
    std::vector<u64> taken_;
    pa_range window_{};
    std::uint32_t stream_ = 0;
    std::uint32_t prod_ = 0;
    std::uint16_t asid_ = 1;
    u64 cd_at_ = 0;
    std::array<u64, 2> tsz_{}, ttb_{}, root_{};
    std::array<unsigned, 2> start_{};
    std::array<std::vector<u64>, 2> hot_;           ///< input addresses that are mapped,
    std::array<std::array<unsigned, 6>, 2> leaf_{}; ///< and at which level
    bool clean_ = true;                             ///< no descriptor leads where it should not
    u64 hits_ = 0;
};

/// Another seed than the fixed ones, to look further.
std::vector<u64> seeds() {
    if (const char* wanted = std::getenv("VM_ACCEL_WALK_SEED")) {
        return {std::strtoull(wanted, nullptr, 0)};
    }
    return {1, 2, 3};
}

} // namespace

TEST_CASE("the device translates as the reference does", "[smmu][reference]") {
    std::map<std::string, unsigned> seen;
    for (const u64 seed : seeds()) {
        CAPTURE(seed);
        bench b{seed};
        b.run(250, 80);
        std::printf("reference walk: seed %llu, %u cases, %u served, %u refused, %llu TLB hits\n",
                    static_cast<unsigned long long>(seed), b.cases, b.served, b.cases - b.served,
                    static_cast<unsigned long long>(b.hits()));
        CHECK(b.cases >= 20'000);
        CHECK(b.served > b.cases / 8);
        CHECK(b.served < b.cases * 4 / 5);
        CHECK(b.hits() > b.cases / 50);
        for (const auto& [what, times] : b.seen)
            seen[what] += times;
    }
    if (seeds().size() == 1) return; // one seed need not meet everything
    for (const char* what : {"lower half",
                             "upper half",
                             "level 1",
                             "level 2",
                             "level 3",
                             "bypass",
                             "STE abort",
                             "table limits",
                             "outside the window",
                             "not memory",
                             "first region",
                             "second region",
                             "privileged",
                             "instruction",
                             "edge",
                             "non-canonical",
                             "top byte",
                             "event 0x04",
                             "event 0x09",
                             "event 0x0a",
                             "event 0x0b",
                             "event 0x10",
                             "event 0x11",
                             "event 0x12",
                             "event 0x13",
                             "bit flip",
                             "table attributes changed",
                             "leaf replaced",
                             "nothing to invalidate",
                             "range",
                             "TLBI_NSNH_ALL",
                             "TLBI_NH_ALL",
                             "TLBI_NH_ASID",
                             "TLBI_NH_VA",
                             "TLBI_NH_VA, global",
                             "TLBI_NH_VAA",
                             "TLBI_NH_VAA, everything"}) {
        CAPTURE(what);
        CHECK(seen[what] > 0);
    }
}
