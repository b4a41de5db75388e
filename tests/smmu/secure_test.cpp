// The secure programming interface: its commands, registers, streams and spaces,
// and that what one security state does is nothing to the other.
#include "guest_driver.hpp"

#include <vm_accel/guest/two_spaces.hpp>
#include <vm_accel/smmu/secure_interface.hpp>

#include <catch2/catch.hpp>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

using namespace vm_accel;
namespace reg = vm_accel::spec::reg;
using enum spec::event_id;

namespace {

/// Everything that may stand beside a secure interface.
constexpr smmu_features beside_secure = [] {
    smmu_features f = full_features;
    f.output_bits = 48;
    f.vax52 = f.ds = f.stalls = false;
    f.performance_counters = 0;
    return f;
}();
struct non_secure_options : default_smmu_options {
    static constexpr smmu_features features = beside_secure;
};

using both_memories = two_spaces<region_map, region_map>;
using non_secure_device =
    smmu<set_associative<64, 4>, bitmap_streams<64>, region_map, counting_sink, non_secure_options>;
using secure_device = smmu<set_associative<64, 4>, bitmap_streams<64>, both_memories, counting_sink,
                           secure_options<non_secure_device>>;
using pair = two_state_smmu<non_secure_device, secure_device>;

constexpr smmu_features S = secure_device::features;
static_assert(S.is_consistent() && S.state == security_state::secure);
static_assert(guest_memory<both_memories>);
// What is not built cannot be asked for, and nobody pays for what he does not use.
static_assert(![] {
    smmu_features f = stage1_features;
    f.state = security_state::realm;
    return f.is_consistent();
}());
static_assert(![] {
    smmu_features f = full_features;
    f.state = security_state::secure;
    return f.is_consistent();
}());
static_assert(std::is_empty_v<no_other_state>);
static_assert(sizeof(stage1_half) == 16 && sizeof(outcome) == 32);

/// One state's driver: its registers begin at `first`, its memory is its own.
class driver {
public:
    driver(pair& device, security_state state, region_map& memory)
        : device_(device), state_(state), memory_(memory) {}

    std::uint64_t read(std::uint32_t offset, unsigned size = 4) {
        return device_.mmio_read(first() + offset, size, state_);
    }
    void write(std::uint32_t offset, std::uint64_t value, unsigned size = 4) {
        device_.mmio_write(first() + offset, size, value, state_);
    }
    void store64(std::uint64_t address, std::uint64_t value) {
        REQUIRE(memory_.write(pa{address}, std::as_bytes(std::span{&value, 1})));
    }
    std::uint64_t load64(std::uint64_t address) { return memory_.load64(pa{address}).value(); }
    template <class Structure>
    void store(std::uint64_t address, const Structure& s) {
        for (std::size_t i = 0; i < s.word.size(); ++i)
            store64(address + 8 * i, s.word[i].value());
    }
    /// A linear stream table for 64 streams, both queues, everything on.
    void start(std::uint32_t cr0 = 0) {
        write(reg::CR2, 0x2);
        write(reg::STRTAB_BASE, streams, 8);
        write(reg::STRTAB_BASE_CFG, 6);
        write(reg::CMDQ_BASE, ring | 6, 8);
        write(reg::EVENTQ_BASE, events | 4, 8);
        write(reg::IRQ_CTRL, 0x5);
        write(reg::CR0, 0xd | cr0);
    }
    /// A stage-1 stream whose tables begin at `table`, with ASID 1.
    void stage1(std::uint32_t sid, std::uint64_t table, unsigned strw = 0) {
        const spec::cd context = guest::machine<>::plain_cd(table, 1);
        store(contexts + std::uint64_t{64} * sid, context);
        spec::ste entry = guest::machine<>::plain_ste(spec::ste_config::s1_translate,
                                                      contexts + std::uint64_t{64} * sid);
        set<spec::ste::STRW>(entry, strw);
        store(streams + std::uint64_t{64} * sid, entry);
    }
    /// A page through four tables that begin at `table`; `more` goes into the leaf,
    /// `above` into the level-2 descriptor.
    void map(std::uint64_t table, std::uint64_t address, std::uint64_t output,
             std::uint64_t more = 0, std::uint64_t above = 0) {
        for (unsigned l = 0; l < 3; ++l) {
            const std::uint64_t slot =
                table + std::uint64_t{0x1000} * l + (address >> (39 - 9 * l) & 0x1ff) * 8;
            store64(slot, (table + std::uint64_t{0x1000} * (l + 1)) | 3 | (l == 2 ? above : 0));
        }
        store64(leaf_of(table, address), output | guest::page_flags{}.bits() | 3 | more);
    }
    static std::uint64_t leaf_of(std::uint64_t table, std::uint64_t address) {
        return table + 0x3000 + (address >> 12 & 0x1ff) * 8;
    }
    void command(spec::command c, bool ssec) {
        if (ssec) set<spec::command::SSec>(c, 1);
        store(ring + std::uint64_t{16} * (prod_ & 63), c);
        prod_ = (prod_ + 1) & 127;
        write(reg::CMDQ_PROD, prod_);
    }
    void sync() { command(spec::cmd_sync(spec::sync_signal::SIG_NONE), false); }
    bool done() { return (read(reg::CMDQ_CONS) & 0xf'ffff) == prod_; }
    bool stopped() { return ((read(reg::GERROR) ^ read(reg::GERRORN)) & 1) != 0; }
    /// After an error: the queue goes on behind the command.
    void skip() {
        CHECK(spec::CMDQ_CONS::ERR::of(read(reg::CMDQ_CONS)) == spec::CERROR_ILL);
        write(reg::CR0, read(reg::CR0) & ~std::uint64_t{8});
        write(reg::CMDQ_CONS, prod_);
        write(reg::CR0, read(reg::CR0) | 8);
        write(reg::GERRORN, read(reg::GERROR));
    }
    std::optional<spec::event_record> event() {
        const std::uint64_t prod = read(reg::EVENTQ_PROD & 0xffff);
        const std::uint64_t at = read(reg::EVENTQ_CONS & 0xffff);
        if (((prod ^ at) & 31) == 0) return std::nullopt;
        spec::event_record record;
        for (std::size_t i = 0; i < record.word.size(); ++i)
            record.word[i] = le64{load64(events + (at & 15) * 32 + 8 * i)};
        write(reg::EVENTQ_CONS & 0xffff, (at + 1) & 31);
        return record;
    }

    static constexpr std::uint64_t streams = guest::ram + 0x1000;
    static constexpr std::uint64_t ring = guest::ram + 0x2000;
    static constexpr std::uint64_t events = guest::ram + 0x3000;
    static constexpr std::uint64_t contexts = guest::ram + 0x4000;
    static constexpr std::uint64_t root = guest::ram + 0x10000;
    static constexpr std::uint64_t data = guest::ram + 0x30000;

private:
    std::uint32_t first() const {
        return state_ == security_state::secure ? static_cast<std::uint32_t>(pair::secure_registers)
                                                : 0U;
    }

    pair& device_;
    security_state state_;
    region_map& memory_;
    std::uint32_t prod_ = 0;
};

/// Two memories of the same addresses, the SMMU, and both drivers.
struct machine {
    machine() {
        REQUIRE(non_secure_memory.add(pa{guest::ram}, non_secure_pages.data(), bytes));
        REQUIRE(secure_memory.add(pa{guest::ram}, secure_pages.data(), bytes));
        REQUIRE(non_secure->init());
        REQUIRE(secure->init());
        device.emplace(*non_secure, *secure);
        REQUIRE(device->is_connected());
        n.emplace(*device, security_state::non_secure, non_secure_memory);
        s.emplace(*device, security_state::secure, secure_memory);
        const pa_range window{pa{guest::ram}, bytes / 2};
        REQUIRE(non_secure->attach_device("disk", window, stream_id{5}));
        REQUIRE(secure->attach_device("engine", window, stream_id{5}));
    }
    auto disk() { return non_secure->make_port("disk").value(); }
    auto engine() { return secure->make_port("engine").value(); }

    static constexpr std::uint64_t bytes = 1U << 20;
    guest::host_pages non_secure_pages{bytes};
    guest::host_pages secure_pages{bytes};
    region_map non_secure_memory;
    region_map secure_memory;
    both_memories memory{secure_memory, non_secure_memory};
    counting_sink non_secure_lines;
    counting_sink secure_lines;
    std::unique_ptr<non_secure_device> non_secure =
        std::make_unique<non_secure_device>(non_secure_memory, non_secure_lines);
    std::unique_ptr<secure_device> secure = std::make_unique<secure_device>(memory, secure_lines);
    std::optional<pair> device;
    std::optional<driver> n;
    std::optional<driver> s;
};

spec::command opcode(unsigned value) {
    spec::command c;
    set<spec::command::Opcode>(c, value);
    return c;
}
/// Where an access goes, with the space's bit; 0 = nowhere.
template <class Port>
std::uint64_t where(Port& port, std::uint64_t address, access_attributes attributes = {}) {
    auto guard = port.open();
    const outcome o = guard.translate(iova{address}, 4, access::read, attributes);
    return o.is_span() ? raw(o.address()) : 0;
}

} // namespace

TEST_CASE("what a secure queue's command is for", "[smmu][secure]") {
    using kind = command_action::kind;
    struct row {
        unsigned opcode;
        kind own;     ///< with SSec = 1
        kind foreign; ///< with SSec = 0
    };
    static constexpr row rows[] = {
        {0x01, kind::prefetch, kind::other_state},
        {0x02, kind::prefetch, kind::other_state},
        {0x03, kind::streams, kind::other_state},
        {0x04, kind::streams, kind::other_state},
        {0x05, kind::context, kind::other_state},
        {0x06, kind::streams, kind::other_state},
        {0x07, kind::illegal, kind::other_state},   // no secure VMS
        {0x10, kind::invalidate, kind::invalidate}, // NH: the queue's own EL1
        {0x11, kind::invalidate, kind::invalidate},
        {0x12, kind::invalidate, kind::invalidate},
        {0x13, kind::invalidate, kind::invalidate},
        {0x18, kind::invalidate, kind::invalidate}, // EL3
        {0x1a, kind::invalidate, kind::invalidate},
        {0x20, kind::other_state, kind::other_state}, // of the non-secure state only
        {0x21, kind::other_state, kind::other_state},
        {0x22, kind::other_state, kind::other_state},
        {0x23, kind::other_state, kind::other_state},
        {0x28, kind::other_state, kind::other_state},
        {0x2a, kind::other_state, kind::other_state},
        {0x30, kind::other_state, kind::other_state},
        {0x40, kind::illegal, kind::illegal}, // S_IDR3.SAMS
        {0x41, kind::illegal, kind::illegal},
        {0x44, kind::illegal, kind::other_state}, // no stalls: illegal there too
        {0x45, kind::illegal, kind::other_state},
        {0x46, kind::sync, kind::sync},
        {0x50, kind::illegal, kind::illegal}, // secure EL2 and stage 2
        {0x55, kind::illegal, kind::illegal},
        {0x58, kind::illegal, kind::illegal},
        {0x5a, kind::illegal, kind::illegal},
        {0x60, kind::illegal, kind::illegal},
    };
    for (const row& r : rows) {
        CAPTURE(r.opcode);
        spec::command c = opcode(r.opcode);
        CHECK(decode_command<S>(c).what == r.foreign);
        set<spec::command::SSec>(c, 1);
        CHECK(decode_command<S>(c).what == r.own);
    }
    // A non-secure queue has neither EL3 nor secure streams.
    for (const unsigned value : {0x01U, 0x02U, 0x03U, 0x04U, 0x05U, 0x06U, 0x07U}) {
        spec::command c = opcode(value);
        CHECK(decode_command<beside_secure>(c).what != kind::illegal);
        set<spec::command::SSec>(c, 1);
        CHECK(decode_command<beside_secure>(c).what == kind::illegal);
    }
    CHECK(decode_command<beside_secure>(opcode(0x18)).what == kind::illegal);
    CHECK(decode_command<beside_secure>(opcode(0x1a)).what == kind::illegal);
    CHECK(decode_command<S>(opcode(0x18)).scope.tag.world == stream_world::ns_el2);
    CHECK(decode_command<S>(opcode(0x1a)).scope.what == invalidation_scope::kind::any_space);
}

TEST_CASE("a secure STE's StreamWorld and legality", "[smmu][secure]") {
    struct row {
        unsigned config, strw;
        std::optional<stream_world> world; ///< none: C_BAD_STE
    };
    const auto r =
        GENERATE(row{0b100, 3, stream_world::bypass}, // not looked at
                 row{0b101, 0, stream_world::ns_el1}, row{0b101, 1, stream_world::ns_el2},
                 row{0b101, 2, {}}, row{0b101, 3, {}}, row{0b110, 0, {}}, row{0b111, 0, {}});
    CAPTURE(r.config, r.strw);
    spec::ste entry = guest::machine<>::plain_ste(static_cast<spec::ste_config>(r.config), 0x1000);
    set<spec::ste::STRW>(entry, r.strw);
    set<spec::ste::S2AA64>(entry, 1);
    const auto plan = plan_stream<S>(entry);
    REQUIRE(plan.has_value() == r.world.has_value());
    if (plan) CHECK(plan->world == *r.world);
    // The other state's STRW of the same number is another world.
    if (r.config == 0b101 && r.strw == 1) CHECK_FALSE(plan_stream<beside_secure>(entry));
}

TEST_CASE("the secure interface's registers", "[smmu][secure]") {
    machine m;
    constexpr std::uint64_t S_IDR0 = 0x8000;
    const auto secure_read = [&](std::uint64_t offset, unsigned size = 4) {
        return m.device->mmio_read(offset, size, security_state::secure);
    };
    SECTION("what they say of themselves") {
        CHECK(secure_read(S_IDR0) == 0x0100'2000);     // no stalls, messages
        CHECK(secure_read(S_IDR0 + 4) == 0x8000'0020); // SECURE_IMPL, 32-bit StreamIDs, no SEL2
        CHECK(secure_read(S_IDR0 + 8) == 0);
        CHECK(secure_read(S_IDR0 + 0xc) == 0x40); // SAMS
        CHECK(secure_read(S_IDR0 + 0x14) == 0);
        CHECK(secure_read(S_IDR0 + 0x1c) == 0);
        // Secure software finds the rest where everybody does.
        CHECK(secure_read(reg::IDR5) == id_registers<beside_secure>::IDR5);
        CHECK((secure_read(reg::IDR0) >> 24 & 3) == (secure_read(S_IDR0) >> 24 & 3));
    }
    SECTION("bits that only they have") {
        m.s->write(reg::CR2, 0xf);
        CHECK(m.s->read(reg::CR2) == 0x2);
        m.s->write(reg::GBPA, 0x8000'0000 | 3U << 14 | 1U << 12);
        CHECK(m.s->read(reg::GBPA) == (3U << 14 | 1U << 12));
        m.s->write(reg::CR0, 0x3ff);
        CHECK(m.s->read(reg::CR0) == 0x2d); // SIF, queues, SMMUEN
        CHECK(m.s->read(reg::CR0ACK) == 0x2d);
        m.n->write(reg::CR0, 0x3f);
        CHECK(m.n->read(reg::CR0) == 0x1f);
        m.n->write(reg::GBPA, 0x8000'0000 | 3U << 14 | 1U << 12);
        CHECK(m.n->read(reg::GBPA) == 1U << 12);
    }
    SECTION("nobody else sees or changes them") {
        m.s->start();
        for (const spec::register_row& row : spec::registers) {
            if (row.offset >= spec::mmio_page_size) continue;
            CAPTURE(row.name);
            const std::uint64_t at = pair::secure_registers + row.offset;
            const std::uint64_t before = secure_read(at, row.width);
            CHECK(m.device->mmio_read(at, row.width, security_state::non_secure) == 0);
            m.device->mmio_write(at, row.width, ~std::uint64_t{0}, security_state::non_secure);
            CHECK(secure_read(at, row.width) == before);
        }
    }
    SECTION("each state's are its own; secure software may use both") {
        m.n->start();
        CHECK(m.s->read(reg::CR0) == 0);
        CHECK(m.s->read(reg::STRTAB_BASE, 8) == 0);
        CHECK(secure_read(reg::CR0) == 0xd);
        m.device->mmio_write(reg::CR0, 4, 0, security_state::secure);
        CHECK(m.n->read(reg::CR0) == 0);
    }
}

TEST_CASE("NS and NSTable: which space a page of a secure stream is in", "[smmu][secure]") {
    // Tables in secure memory unless NSCFG0 or NSTable say otherwise. Where a table
    // is not secure, everything below is not.
    struct row {
        const char* what;
        bool NSCFG0, NSTable, NS;
        bool non_secure; ///< the output
        bool leaf_there; ///< the last table is in non-secure memory
    };
    const auto r = GENERATE(row{"all secure", false, false, false, false, false},
                            row{"NS", false, false, true, true, false},
                            row{"NSTable", false, true, false, true, true},
                            row{"NSTable and NS", false, true, true, true, true},
                            row{"NSCFG0", true, false, false, true, true});
    CAPTURE(r.what);
    machine m;
    m.s->start();
    m.s->stage1(5, driver::root);
    if (r.NSCFG0) {
        spec::cd context = guest::machine<>::plain_cd(driver::root, 1);
        set<spec::cd::NSCFG0>(context, 1);
        m.s->store(driver::contexts + 5 * 64, context);
    }
    const std::uint64_t ns = spec::stage1_leaf::NS::in_place(r.NS ? 1 : 0);
    const std::uint64_t ns_table = spec::stage1_table::NSTable::in_place(r.NSTable ? 1 : 0);
    // In both memories; the leaf only where it should be looked for.
    for (driver* const d : {&*m.s, &*m.n}) {
        d->map(driver::root, 0x1000, driver::data, ns, ns_table);
        const bool here = (d == &*m.n) == r.leaf_there;
        if (!here) d->store64(driver::leaf_of(driver::root, 0x1000), 0);
    }
    m.n->store64(driver::data, 0x4e);
    m.s->store64(driver::data, 0x53);
    auto port = m.engine();
    for (int round = 0; round < 2; ++round) { // walked, then from the TLB
        const std::uint64_t at = where(port, 0x1000);
        REQUIRE(at != 0);
        CHECK(within_space(pa{at}) == pa{driver::data});
        CHECK((space_of(pa{at}) == security_state::non_secure) == r.non_secure);
        std::array<std::byte, 1> byte{};
        REQUIRE(port.read(iova{0x1000}, byte));
        CHECK(byte[0] == std::byte{r.non_secure ? std::uint8_t{0x4e} : std::uint8_t{0x53}});
    }
    CHECK(m.secure->stats().hits > 0);
}

TEST_CASE("SIF: no instructions from non-secure memory", "[smmu][secure]") {
    const bool sif = GENERATE(false, true);
    const bool ns = GENERATE(false, true);
    machine m;
    m.s->start(sif ? 0x20 : 0);
    m.s->stage1(5, driver::root);
    guest::page_flags executable{.user = false, .privileged_execute_never = false};
    m.s->map(driver::root, 0x1000, driver::data);
    m.s->store64(driver::leaf_of(driver::root, 0x1000),
                 driver::data | executable.bits() | 3 |
                     spec::stage1_leaf::NS::in_place(ns ? 1 : 0));
    auto port = m.engine();
    const access_attributes fetch{.privileged = true, .instruction = true};
    CHECK(where(port, 0x1000, {.privileged = true}) != 0);
    const bool allowed = !(sif && ns);
    CHECK((where(port, 0x1000, fetch) != 0) == allowed);
    const auto record = m.s->event();
    REQUIRE(record.has_value() == !allowed);
    if (record) {
        CHECK(guest::id_of(*record) == F_PERMISSION);
        CHECK(get<spec::event_record::S2>(*record) == 0);
    }
    // Changing it changes what is configured.
    m.s->write(reg::CR0, 0xd | (sif ? 0 : 0x20));
    CHECK((where(port, 0x1000, fetch) != 0) == (sif || !ns));
}

TEST_CASE("NSCFG: where untranslated accesses of a secure stream go", "[smmu][secure]") {
    const unsigned nscfg = GENERATE(0U, 1U, 2U, 3U);
    machine m;
    SECTION("STE") {
        spec::ste entry = guest::machine<>::plain_ste(spec::ste_config::bypass);
        set<spec::ste::NSCFG>(entry, nscfg);
        m.s->store(driver::streams + 5 * 64, entry);
        m.n->store(driver::streams + 5 * 64, entry); // means nothing there
        m.s->start();
        m.n->start();
    }
    SECTION("S_GBPA") {
        m.s->write(reg::GBPA, 0x8000'0000 | std::uint64_t{nscfg} << 14 | 1U << 12);
    }
    auto port = m.engine();
    auto other = m.disk();
    const std::uint64_t bit = nscfg == 3 ? non_secure_space_bit : 0;
    CHECK(where(port, driver::data) == (driver::data | bit));
    CHECK(where(other, driver::data) == driver::data);
    // The VMM's window counts in both spaces.
    CHECK(where(port, guest::ram + machine::bytes / 2 - 0x1000) != 0);
    CHECK(where(port, guest::ram + machine::bytes / 2) == 0);
}

TEST_CASE("the states never meet: same StreamID, ASID and addresses", "[smmu][secure]") {
    machine m;
    for (driver* const d : {&*m.n, &*m.s}) {
        d->start();
        d->stage1(5, driver::root);
    }
    m.n->map(driver::root, 0x1000, driver::data);
    m.s->map(driver::root, 0x1000, driver::data + 0x1000);
    auto disk = m.disk();
    auto engine = m.engine();
    const auto at = [&](auto& port) { return where(port, 0x1000); };
    for (int round = 0; round < 3; ++round) {
        CHECK(at(disk) == driver::data);
        CHECK(at(engine) == driver::data + 0x1000);
    }
    // Both tables change; each state sees its own change once it has said so itself.
    m.n->map(driver::root, 0x1000, driver::data + 0x2000);
    m.s->map(driver::root, 0x1000, driver::data + 0x3000);
    const auto nh_all = opcode(0x10);
    SECTION("a non-secure invalidation leaves the secure state alone") {
        m.n->command(nh_all, false);
        m.n->command(spec::cmd_cfgi_all(), false);
        m.n->command(spec::tlbi_nsnh_all(), false);
        m.n->sync();
        REQUIRE(m.n->done());
        CHECK(at(disk) == driver::data + 0x2000);
        CHECK(at(engine) == driver::data + 0x1000);
    }
    SECTION("the secure queue's own invalidation leaves the non-secure state alone") {
        m.s->command(nh_all, false);
        m.s->command(spec::cmd_cfgi_all(), true);
        m.s->sync();
        REQUIRE(m.s->done());
        CHECK(at(disk) == driver::data);
        CHECK(at(engine) == driver::data + 0x3000);
    }
    SECTION("the secure queue reaches the non-secure state where it names it") {
        m.s->command(spec::tlbi_nsnh_all(), false);
        m.s->sync();
        REQUIRE(m.s->done());
        CHECK(at(disk) == driver::data + 0x2000);
        CHECK(at(engine) == driver::data + 0x1000);
        // A stream of its own number, but not its own.
        m.n->store(driver::streams + 5 * 64, guest::machine<>::plain_ste(spec::ste_config::abort));
        m.s->command(spec::cmd_cfgi_ste(stream_id{5}, true), true);
        m.s->sync();
        CHECK(at(disk) == driver::data + 0x2000);
        m.s->command(spec::cmd_cfgi_ste(stream_id{5}, true), false);
        m.s->sync();
        CHECK(at(disk) == 0);
    }
    SECTION("EL3 and EL1 are two worlds") {
        m.s->command(opcode(0x18), false);
        m.s->sync();
        CHECK(at(engine) == driver::data + 0x1000);
    }
    SECTION("S_INIT: everything of both, by secure software only") {
        m.device->mmio_write(0x803c, 4, 1, security_state::non_secure);
        CHECK(at(disk) == driver::data);
        CHECK(at(engine) == driver::data + 0x1000);
        m.device->mmio_write(0x803c, 4, 0, security_state::secure);
        CHECK(at(engine) == driver::data + 0x1000);
        m.device->mmio_write(0x803c, 4, 1, security_state::secure);
        CHECK(m.device->mmio_read(0x803c, 4, security_state::secure) == 0);
        CHECK(at(disk) == driver::data + 0x2000);
        CHECK(at(engine) == driver::data + 0x3000);
    }
    SECTION("switching one off leaves the other on") {
        m.n->write(reg::CR0, 0xc);
        CHECK(at(disk) == 0); // bypass: outside the window
        CHECK(at(engine) == driver::data + 0x1000);
    }
}

TEST_CASE("EL3 streams have no ASIDs", "[smmu][secure]") {
    machine m;
    m.s->start();
    m.s->stage1(5, driver::root, 1);
    m.s->map(driver::root, 0x1000, driver::data);
    auto engine = m.engine();
    CHECK(where(engine, 0x1000) == driver::data);
    m.s->map(driver::root, 0x1000, driver::data + 0x1000);
    m.s->command(opcode(0x10), false); // EL1
    m.s->sync();
    CHECK(where(engine, 0x1000) == driver::data);
    spec::command by_address = opcode(0x1a);
    set<spec::CMD_TLBI::Address>(by_address, 1);
    m.s->command(by_address, false);
    m.s->sync();
    CHECK(where(engine, 0x1000) == driver::data + 0x1000);
}

TEST_CASE("errors and events stay in their state", "[smmu][secure]") {
    machine m;
    m.n->start();
    m.s->start();
    SECTION("SSec in the non-secure queue") {
        m.n->command(spec::cmd_cfgi_ste(stream_id{5}, true), true);
        CHECK(m.n->stopped());
        CHECK_FALSE(m.s->stopped());
        CHECK(m.non_secure_lines.pulses(wired_interrupt::gerror) == 1);
        CHECK(m.secure_lines.pulses(wired_interrupt::gerror) == 0);
        m.s->sync();
        CHECK(m.s->done());
    }
    SECTION("a secure command that the non-secure state does not know") {
        m.s->command(opcode(0x44), false); // CMD_RESUME: there are no stalls
        CHECK(m.s->stopped());
        CHECK_FALSE(m.n->stopped());
        CHECK(m.secure_lines.pulses(wired_interrupt::gerror) == 1);
        m.s->skip();
        m.s->sync();
        CHECK(m.s->done());
    }
    SECTION("an event tells the state whose stream it was") {
        m.s->stage1(5, driver::root);
        auto engine = m.engine();
        CHECK(where(engine, 0x7000) == 0);
        const auto record = m.s->event();
        REQUIRE(record);
        CHECK(guest::id_of(*record) == F_TRANSLATION);
        CHECK_FALSE(m.n->event());
        CHECK(m.secure_lines.pulses(wired_interrupt::eventq) == 1);
        CHECK(m.non_secure_lines.pulses(wired_interrupt::eventq) == 0);
        auto disk = m.disk();
        CHECK(where(disk, 0x7000) == 0); // no STE
        REQUIRE(m.n->event());
        CHECK_FALSE(m.s->event());
    }
    SECTION("a table that is not there is named without the bit of its space") {
        m.s->stage1(5, driver::root);
        m.s->map(driver::root, 0x1000, driver::data);
        m.s->store64(driver::root + 0x2000, 0x1000'0000 | 3 | spec::stage1_table::NSTable::mask);
        auto engine = m.engine();
        CHECK(where(engine, 0x1000) == 0);
        const auto record = m.s->event();
        REQUIRE(record);
        CHECK(guest::id_of(*record) == F_WALK_EABT);
        CHECK(get_address<spec::event_record::FetchAddr>(*record) == 0x1000'0008);
    }
}

TEST_CASE("a secure CMD_SYNC waits for what it has done to the other state", "[smmu][secure]") {
    machine m;
    m.n->start();
    m.s->start();
    m.n->stage1(5, driver::root);
    m.n->map(driver::root, 0x1000, driver::data);
    auto disk = m.disk();
    {
        const auto held = disk.open();
        m.s->sync();
        CHECK(m.s->done()); // nothing was asked of the other state
        m.s->command(spec::tlbi_nsnh_all(), false);
        m.s->sync();
        CHECK_FALSE(m.s->done());
        CHECK(m.device->poll()); // to be looked at again
        CHECK_FALSE(m.s->done());
        m.n->sync(); // the non-secure queue is not held up
        CHECK(m.n->done());
    }
    CHECK(m.s->done());
    {
        const auto held = disk.open(); // a guard of later
        m.s->sync();
        CHECK(m.s->done());
    }
    CHECK_FALSE(m.device->poll());
}

TEST_CASE("a saved state is one state's, and keeps what only that state has", "[smmu][secure]") {
    machine m;
    m.n->start();
    m.s->start(0x20);
    m.s->write(reg::GBPA, 0x8000'0000 | 3U << 14 | 1U << 12);
    std::vector<std::byte> secure_state(m.secure->saved_state_size());
    REQUIRE(m.secure->save(secure_state));
    std::vector<std::byte> non_secure_state(m.non_secure->saved_state_size());
    REQUIRE(m.non_secure->save(non_secure_state));
    CHECK_FALSE(m.secure->restore(non_secure_state));
    CHECK_FALSE(m.non_secure->restore(secure_state));
    machine other;
    REQUIRE(other.secure->restore(secure_state));
    CHECK(other.s->read(reg::CR0) == 0x2d);
    CHECK(other.s->read(reg::GBPA) == (3U << 14 | 1U << 12));
    CHECK(other.n->read(reg::CR0) == 0); // has been left alone
}
