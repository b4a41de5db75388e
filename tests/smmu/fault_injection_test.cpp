// Faults on purpose: each makes exactly the architecture's event or error.
#include "guest_driver.hpp"

#include <vm_accel/smmu/vocabulary/fault_injection.hpp>

#include <catch2/catch.hpp>

#include <array>
#include <cstdint>
#include <memory>
#include <type_traits>

using namespace vm_accel;
namespace reg = vm_accel::spec::reg;

namespace {

constexpr std::uint32_t sid = 0x10;
constexpr std::uint64_t page = 0x1000;
constexpr std::uint64_t elsewhere = guest::ram + 0x800000;

struct failing_options : default_smmu_options {
    using fault_injection = planned_faults<4>;
};

struct bench : guest::machine<set_associative<16, 2>, failing_options> {
    bench() {
        start();
        (void)iommu().attach_device("disk", all_of_ram, stream_id{sid}).value();
        root = stage1_stream(sid, 1);
        map(root, 0x1000, elsewhere);
        map(root, 0x2000, elsewhere + page);
        cd_address = load64(ste_address(sid)) & spec::ste::S1ContextPtr::mask;
    }
    bool reads(std::uint64_t address) {
        auto port = iommu().make_port("disk").value();
        std::array<std::byte, 4> bytes{};
        return port.read(iova{address}, bytes);
    }
    void plan(const fault_plan& wanted) { REQUIRE(iommu().fault_injection().plan(wanted)); }
    std::uint64_t injected() { return iommu().fault_injection().injected(); }
    std::uint32_t errors() { return read32(reg::GERROR) ^ read32(reg::GERRORN); }
    void forget_configuration() {
        command(spec::cmd_cfgi_ste(stream_id{sid}, true));
        sync();
    }
    std::uint64_t root = 0;
    std::uint64_t cd_address = 0;
};

} // namespace

TEST_CASE("a failed structure or descriptor fetch is its event", "[smmu][injection]") {
    bench m;
    const std::uint64_t level1 = guest::level1_table;
    const std::uint64_t ste = m.ste_address(sid);
    const std::uint64_t last_table = m.descriptor_slot(m.root, 0x1000) & ~std::uint64_t{0xfff};
    struct row {
        const char* name;
        std::uint64_t where;
        std::uint64_t bytes;
        spec::event_id event;
        std::uint64_t fetch_address;
        bool addressed; ///< the record has FetchAddr
    };
    const row rows[] = {
        {"L1STD", level1, 8, spec::event_id::F_STE_FETCH, level1, true},
        {"STE", ste, 8, spec::event_id::F_STE_FETCH, ste, true},
        {"the STE's last word", ste + 56, 8, spec::event_id::F_STE_FETCH, ste, true},
        {"CD", m.cd_address, 64, spec::event_id::F_CD_FETCH, m.cd_address, true},
        {"first table", m.root, 4096, spec::event_id::F_WALK_EABT, m.root, true},
        {"last table", last_table, 4096, spec::event_id::F_WALK_EABT, last_table + 8, true},
    };
    for (const row& r : rows) {
        INFO(r.name);
        m.forget_configuration();
        m.command(spec::tlbi_nsnh_all());
        m.sync();
        m.plan({.where = {pa{r.where}, r.bytes}});
        const std::uint64_t before = m.injected();
        CHECK_FALSE(m.reads(0x1000));
        CHECK(m.injected() == before + 1);
        const auto record = m.event();
        REQUIRE(record);
        CHECK(guest::id_of(*record) == r.event);
        using R = spec::event_record;
        CHECK(get<R::FetchAddr>(*record) << R::FetchAddr::low ==
              (r.fetch_address >> R::FetchAddr::low << R::FetchAddr::low));
        // Once only: the next access is as good as ever.
        CHECK(m.reads(0x1000));
        CHECK_FALSE(m.event());
        CHECK(m.errors() == 0);
    }
}

TEST_CASE("a failed descriptor fetch is its event in a miss like those before too",
          "[smmu][injection]") {
    bench m;
    auto port = m.iommu().make_port("disk").value();
    std::array<std::byte, 4> bytes{};
    const std::uint64_t last_table = m.descriptor_slot(m.root, 0x1000) & ~std::uint64_t{0xfff};
    for (unsigned round = 0; round < 3; ++round) {
        REQUIRE(port.read(iova{0x1000}, bytes));
        m.command(spec::tlbi_nsnh_all());
        m.sync();
    }
    m.plan({.where = {pa{last_table}, 4096}});
    CHECK_FALSE(port.read(iova{0x2000}, bytes));
    CHECK(m.injected() == 1);
    const auto record = m.event();
    REQUIRE(record);
    CHECK(guest::id_of(*record) == spec::event_id::F_WALK_EABT);
    CHECK(port.read(iova{0x2000}, bytes));
}

TEST_CASE("the plan says which access fails, and how often", "[smmu][injection]") {
    bench m;
    const std::uint64_t ste = m.ste_address(sid);
    // The second and third fetch of this STE.
    m.plan({.where = {pa{ste}, 8}, .after = 1, .times = 2});
    const bool expected[] = {true, false, false, true};
    for (const bool works : expected) {
        m.forget_configuration();
        CHECK(m.reads(0x1000) == works);
    }
    CHECK(m.injected() == 2);
}

TEST_CASE("a failed command fetch stops the queue", "[smmu][injection]") {
    bench m;
    m.plan({.what = memory_operation::read, .after = 1});
    m.enqueue(spec::tlbi_nsnh_all());
    m.enqueue(spec::cmd_sync(spec::sync_signal::SIG_NONE));
    const std::uint32_t before = m.cons() & 0xf'ffff;
    const std::uint64_t pulses = m.sink.pulses(wired_interrupt::gerror);
    m.ring();
    CHECK((m.cons() & 0xf'ffff) == before + 1);
    CHECK(spec::CMDQ_CONS::ERR::of(m.cons()) == spec::CERROR_ABT);
    CHECK(m.errors() == spec::GERROR::CMDQ_ERR::mask);
    CHECK(m.sink.pulses(wired_interrupt::gerror) == pulses + 1);
    m.write32(reg::GERRORN, m.read32(reg::GERROR));
    CHECK(m.commands_done());
}

TEST_CASE("a failed event write is EVENTQ_ABT_ERR", "[smmu][injection]") {
    bench m;
    m.plan({.what = memory_operation::write, .where = {pa{guest::event_ring}, 4096}});
    CHECK_FALSE(m.reads(0x9000));
    CHECK_FALSE(m.event());
    CHECK(m.errors() == spec::GERROR::EVENTQ_ABT_ERR::mask);
    CHECK(m.sink.pulses(wired_interrupt::gerror) == 1);
    m.write32(reg::GERRORN, m.read32(reg::GERROR));
    CHECK_FALSE(m.reads(0x9000));
    CHECK(m.event());
    CHECK(m.errors() == 0);
}

TEST_CASE("an overflow of the event queue on demand", "[smmu][injection]") {
    bench m;
    m.iommu().fault_injection().overflow(output_queue::events, 2);
    CHECK_FALSE(m.reads(0x9000));
    CHECK_FALSE(m.reads(0xa000));
    CHECK_FALSE(m.event());
    // Toggled once for both, as nobody has acknowledged the first.
    CHECK((m.read32(reg::EVENTQ_PROD) & 0x8000'0000) != 0);
    CHECK(m.sink.pulses(wired_interrupt::eventq) == 1);
    CHECK(m.iommu().stats().events_dropped == 2);
    CHECK_FALSE(m.reads(0xb000));
    const auto record = m.event();
    REQUIRE(record);
    CHECK(get<spec::event_record::InputAddr>(*record) == 0xb000);
}

TEST_CASE("an interrupt gets lost, the record does not", "[smmu][injection]") {
    bench m;
    m.iommu().fault_injection().drop(wired_interrupt::eventq);
    CHECK_FALSE(m.reads(0x9000));
    CHECK(m.sink.pulses(wired_interrupt::eventq) == 0);
    CHECK(m.event());
    CHECK_FALSE(m.reads(0x9000));
    CHECK(m.sink.pulses(wired_interrupt::eventq) == 1);
}

TEST_CASE("plans are refused, used up and forgotten", "[smmu][injection]") {
    planned_faults<2> faults;
    CHECK(faults.plan({.where = {pa{0}, 0}}).error() == errc::invalid_argument);
    CHECK(faults.plan({.where = {pa{~std::uint64_t{0}}, 2}}).error() == errc::invalid_argument);
    CHECK(faults.plan({.times = 0}).error() == errc::invalid_argument);
    REQUIRE(faults.plan({.where = {pa{0x1000}, 8}}));
    REQUIRE(faults.plan({.where = {pa{0x2000}, 8}, .times = 2}));
    CHECK(faults.plan({}).error() == errc::exhausted);
    CHECK_FALSE(faults.fails(memory_operation::load, pa{0xfff}));
    CHECK_FALSE(faults.fails(memory_operation::load, pa{0x1008}));
    CHECK_FALSE(faults.fails(memory_operation::write, pa{0x1000}));
    CHECK(faults.fails(memory_operation::load, pa{0x1000}));
    CHECK_FALSE(faults.fails(memory_operation::load, pa{0x1000}));
    REQUIRE(faults.plan({.what = memory_operation::update})); // room again
    faults.overflow(output_queue::page_requests);
    faults.drop(wired_interrupt::gerror);
    faults.clear();
    CHECK_FALSE(faults.fails(memory_operation::load, pa{0x2000}));
    CHECK_FALSE(faults.fails(memory_operation::update, pa{0x2000}));
    CHECK_FALSE(faults.overflows(output_queue::page_requests));
    CHECK_FALSE(faults.drops(wired_interrupt::gerror));
    CHECK(faults.injected() == 1);
    REQUIRE(faults.plan({.where = {pa{0x1000}, 8}, .after = 3}));
    for (const bool expected : {false, false, false, true, false})
        CHECK(faults.fails(memory_operation::load, pa{0x1000}) == expected);
}

TEST_CASE("a device's own data never fails", "[smmu][injection]") {
    bench m;
    for (const auto what : {memory_operation::read, memory_operation::write})
        m.plan({.what = what, .where = {pa{elsewhere}, 2 * page}, .times = 100});
    auto port = m.iommu().make_port("disk").value();
    std::array<std::byte, 4> bytes{};
    CHECK(port.write(iova{0x1ffe}, bytes));
    CHECK(port.read(iova{0x1ffe}, bytes));
    CHECK(m.injected() == 0);
}

TEST_CASE("without injection the SMMU uses the guest's memory itself", "[smmu][injection]") {
    STATIC_REQUIRE(std::is_same_v<smmu_memory<region_map, no_fault_injection>, region_map>);
    STATIC_REQUIRE(guest_memory<failing_memory<region_map, planned_faults<>>>);
}

namespace {

struct failing_everything : failing_options {
    static constexpr smmu_features features = full_features;
};
constexpr std::uint64_t request_ring = guest::ram + 0x28000;

/// A PCIe device whose faults may stall and whose tables have flags to be set.
struct whole : guest::machine<set_associative<16, 2>, failing_everything> {
    whole() {
        start();
        (void)iommu()
            .attach_device("gpu", all_of_ram, stream_id{sid}, attach_options{.ats = true})
            .value();
        root = stage1_stream(sid, 1);
        cd_address = load64(ste_address(sid)) & spec::ste::S1ContextPtr::mask;
        spec::cd context = plain_cd(root, 1);
        set<spec::cd::HA>(context, 1);
        set<spec::cd::HD>(context, 1);
        store(cd_address, context);
        write64(reg::PRIQ_BASE, request_ring | 3);
        write32(reg::CR0, 0xf);
        write32(reg::IRQ_CTRL, 0x7);
        command(spec::cmd_cfgi_all());
        sync();
    }
    std::uint32_t errors() { return read32(reg::GERROR) ^ read32(reg::GERRORN); }
    std::uint64_t root = 0;
    std::uint64_t cd_address = 0;
};

} // namespace

TEST_CASE("a flag that cannot be set is an external abort of the walk", "[smmu][injection]") {
    whole m;
    m.map(m.root, 0x1000, elsewhere, 3, {.access_flag = false});
    const std::uint64_t slot = m.descriptor_slot(m.root, 0x1000);
    REQUIRE(m.iommu().fault_injection().plan(
        {.what = memory_operation::update, .where = {pa{slot}, 8}}));
    auto port = m.iommu().make_port("gpu").value();
    std::array<std::byte, 4> bytes{};
    CHECK_FALSE(port.read(iova{0x1000}, bytes));
    const auto record = m.event();
    REQUIRE(record);
    CHECK(guest::id_of(*record) == spec::event_id::F_WALK_EABT);
    using R = spec::event_record;
    CHECK(get<R::FetchAddr>(*record) << R::FetchAddr::low == slot);
    CHECK((m.load64(slot) & spec::stage1_leaf::AF::mask) == 0);
    CHECK(port.read(iova{0x1000}, bytes));
    CHECK((m.load64(slot) & spec::stage1_leaf::AF::mask) != 0);
}

TEST_CASE("page requests that overflow, or cannot be written", "[smmu][injection]") {
    whole m;
    auto& faults = m.iommu().fault_injection();
    auto port = m.iommu().make_port("gpu").value();
    faults.overflow(output_queue::page_requests);
    port.request_page({.address = iova{0x1000}, .group = 3});
    CHECK(m.read32(reg::PRIQ_PROD) == 0x8000'0000);
    auto answer = port.next_page_response();
    REQUIRE(answer);
    CHECK(answer->group == 3);
    CHECK(answer->code == page_response_code::success); // "try again"
    m.write32(reg::PRIQ_CONS, 0x8000'0000);
    CHECK(m.errors() == 0);

    REQUIRE(faults.plan({.what = memory_operation::write, .where = {pa{request_ring}, 128}}));
    port.request_page({.address = iova{0x1000}, .group = 4});
    answer = port.next_page_response();
    REQUIRE(answer);
    CHECK(answer->code == page_response_code::failure);
    CHECK(m.errors() == spec::GERROR::PRIQ_ABT_ERR::mask);
    m.write32(reg::GERRORN, m.read32(reg::GERROR));

    faults.drop(wired_interrupt::priq);
    const std::uint64_t told = m.sink.pulses(wired_interrupt::priq);
    port.request_page({.address = iova{0x1000}, .group = 5});
    CHECK(m.sink.pulses(wired_interrupt::priq) == told);
    CHECK((m.read32(reg::PRIQ_PROD) & 0xf) == 1);
    port.request_page({.address = iova{0x1000}, .group = 6});
    CHECK(m.sink.pulses(wired_interrupt::priq) == told + 1);
}

TEST_CASE("a stalled access whose record overflows starts again", "[smmu][injection]") {
    whole m;
    spec::cd context = m.plain_cd(m.root, 1);
    set<spec::cd::S>(context, 1);
    m.store(m.cd_address, context);
    m.command(spec::cmd_cfgi_ste(stream_id{sid}, true));
    m.sync();
    m.iommu().fault_injection().overflow(output_queue::events);
    auto port = m.iommu().make_port("gpu").value();
    std::optional<stall_ticket> ticket;
    {
        auto guard = port.open();
        const outcome o = guard.translate(iova{0x9000}, 4, access::read);
        REQUIRE(o.is_stalled());
        ticket = o.ticket();
    }
    CHECK_FALSE(m.event());
    // It was never told of: the access is made again, and then there is an event.
    CHECK(port.decision(*ticket) == stall_decision::retry);
    {
        auto guard = port.open();
        REQUIRE(guard.translate(iova{0x9000}, 4, access::read).is_stalled());
    }
    CHECK(m.event());
}
