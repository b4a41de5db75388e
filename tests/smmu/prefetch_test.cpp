// A TLB that prefetches, in a whole SMMU: what it gains, and that a prefetch leaves
// no trace where it may not.
#include "guest_driver.hpp"

#include <vm_accel/smmu/caches/prefetching.hpp>

#include <catch2/catch.hpp>

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <utility>

using namespace vm_accel;

namespace {

constexpr std::uint32_t sid = 0x10;
constexpr std::uint64_t page = 0x1000;
constexpr std::uint64_t first_page = 0xffff'0000;

/// One of two, so that one SMMU serves all tests.
struct chosen_stride {
    prefetch_wish after(const tlb_key& missed, unsigned size_log2) noexcept {
        return strides ? stride.after(missed, size_log2) : next.after(missed, size_log2);
    }
    static inline bool strides = false;
    next_page<4> next{};
    constant_stride<4> stride{};
};
/// Lets a test act just before an entry goes in, or the walk for it begins.
struct stepped_tlb : prefetching<set_associative<64, 4>, chosen_stride> {
    using base = prefetching<set_associative<64, 4>, chosen_stride>;

    fill_ticket begin_fill(const tlb_key& key) noexcept {
        step();
        return base::begin_fill(key);
    }
    void fill(fill_ticket ticket, const tlb_entry& filled) noexcept {
        step();
        base::fill(ticket, filled);
    }
    static void step() {
        if (act && steps_left-- == 0) std::exchange(act, nullptr)();
    }
    static inline std::function<void()> act;
    static inline unsigned steps_left = 0;
};
static_assert(prefetching_tlb<stepped_tlb>);

struct with_flags : default_smmu_options {
    static constexpr smmu_features features = [] {
        smmu_features f = stage1_features;
        f.httu = 2;
        return f;
    }();
};

struct bench : guest::machine<stepped_tlb, with_flags> {
    explicit bench(bool strides = false) {
        chosen_stride::strides = strides;
        start();
        root = stage1_stream(sid, 1);
        REQUIRE(iommu().attach_device("disk", all_of_ram, stream_id{sid}));
        port.emplace(iommu().make_port("disk").value());
        target = take_pages(32);
    }
    void map_page(std::uint64_t n, guest::page_flags flags = {}) {
        map(root, first_page + n * page, target + n * page, 3, flags);
    }
    bool reads(std::uint64_t n) {
        std::array<std::byte, 8> bytes{};
        return port->read(iova{first_page + n * page}, bytes);
    }
    bool writes(std::uint64_t n) {
        return port->write(iova{first_page + n * page}, std::array<std::byte, 8>{});
    }
    std::uint64_t misses() { return iommu().stats().misses; }
    std::uint64_t descriptor(std::uint64_t n) {
        return load64(descriptor_slot(root, first_page + n * page));
    }
    /// CD.HA and CD.HD: flags are set by accesses.
    void let_set_flags() {
        const std::uint64_t at = load64(ste_address(sid)) & spec::ste::S1ContextPtr::mask;
        spec::cd c = plain_cd(root, 1);
        set<spec::cd::HA>(c, 1);
        set<spec::cd::HD>(c, 1);
        store(at, c);
        command(spec::cmd_cfgi_cd(stream_id{sid}, substream_id{0}, true));
        sync();
    }

    std::uint64_t root = 0, target = 0;
    std::optional<device::port> port;
};

} // namespace

TEST_CASE("a stream misses once in five pages", "[smmu][prefetch]") {
    bench m;
    for (std::uint64_t n = 0; n < 12; ++n)
        m.map_page(n);
    for (std::uint64_t n = 0; n < 12; ++n) {
        CHECK(m.reads(n));
        CHECK(m.misses() == n / 5 + 1);
    }
    // What is behind the last page is not mapped: no event, and an event when asked for.
    CHECK_FALSE(m.event());
    CHECK(m.iommu().stats().faults == 0);
    CHECK_FALSE(m.reads(12));
    const auto record = m.event();
    REQUIRE(record);
    CHECK(guest::id_of(*record) == spec::event_id::F_TRANSLATION);
    CHECK(get<spec::event_record::InputAddr>(*record) == first_page + 12 * page);
    CHECK_FALSE(m.event());
    // A page that is mapped now is found: that it was not there was not kept.
    m.map_page(12);
    CHECK(m.reads(12));
}

TEST_CASE("a strided stream is prefetched from its third page", "[smmu][prefetch]") {
    bench m{true};
    for (std::uint64_t n = 0; n < 31; ++n)
        m.map_page(n);
    const auto missed = [&](std::uint64_t n) {
        const std::uint64_t before = m.misses();
        CHECK(m.reads(n));
        return m.misses() != before;
    };
    CHECK(missed(2));
    CHECK(missed(5));
    CHECK(missed(8));
    for (const std::uint64_t n : {11U, 14U, 17U, 20U})
        CHECK_FALSE(missed(n));
    CHECK(missed(23));
    CHECK_FALSE(missed(26));
    CHECK_FALSE(missed(29));
    CHECK(missed(9)); // what lies between is not
    CHECK_FALSE(m.event());
}

TEST_CASE("a prefetch sets no flag, and keeps nothing that owes one", "[smmu][prefetch]") {
    bench m;
    const bool sets_flags = GENERATE(false, true);
    if (sets_flags) m.let_set_flags();
    m.map_page(0);
    m.map_page(1, {.access_flag = false});
    m.map_page(2);
    m.map_page(3, {.read_only = true});
    const std::uint64_t clean = m.descriptor(3) | spec::stage1_leaf::DBM::in_place(1);
    m.store64(m.descriptor_slot(m.root, first_page + 3 * page), clean);
    const std::uint64_t not_accessed = m.descriptor(1);

    CHECK(m.writes(0));
    CHECK(m.misses() == 1);
    CHECK(m.descriptor(1) == not_accessed);
    CHECK(m.descriptor(3) == clean);
    CHECK_FALSE(m.event());
    CHECK(m.writes(2)); // behind the one whose flag is clear
    CHECK(m.misses() == 1);
    // Each flag is set by the access that asks for it.
    CHECK(m.reads(3));
    CHECK(m.misses() == 1);
    CHECK(m.descriptor(3) == clean);
    CHECK(m.writes(3) == sets_flags);
    CHECK((m.descriptor(3) != clean) == sets_flags);
    CHECK(m.reads(1) == sets_flags);
    CHECK((m.descriptor(1) != not_accessed) == sets_flags);
    CHECK(m.event().has_value() == !sets_flags);
}

TEST_CASE("a prefetch that an invalidation overtakes leaves nothing", "[smmu][prefetch]") {
    // An access to page 0 and four prefetches: a ticket and a fill each.
    for (unsigned at = 0; at < 10; ++at) {
        CAPTURE(at);
        bench m;
        for (std::uint64_t n = 0; n < 5; ++n)
            m.map_page(n);
        const std::uint64_t gone = GENERATE(1U, 4U);
        stepped_tlb::steps_left = at;
        stepped_tlb::act = [&] {
            m.unmap(m.root, first_page + gone * page);
            m.command(spec::tlbi_nh_va(vmid{0}, asid{1}, iova{first_page + gone * page}, true));
        };
        CHECK(m.reads(0));
        CHECK_FALSE(m.event());
        CHECK(stepped_tlb::act == nullptr);
        CHECK_FALSE(m.reads(gone));
    }
}

TEST_CASE("an access that is refused prefetches nothing", "[smmu][prefetch]") {
    bench m;
    m.map_page(0, {.read_only = true});
    m.map_page(1);
    CHECK_FALSE(m.writes(0));
    CHECK(m.misses() == 1);
    CHECK(m.reads(1));
    CHECK(m.misses() == 2);
    CHECK(m.event());
    CHECK_FALSE(m.event());
}
