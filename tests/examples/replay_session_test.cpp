/// examples/replay_session: that it judges right, against devices that are
/// wrong in known ways, on the shipped recording and on one made up here.
#include "../../examples/replay_session/input_file.hpp"
#include "../../examples/replay_session/smmu_device.hpp"

#include <vm_accel/smmu/caches/no_tlb.hpp>

#include <catch2/catch.hpp>

#include <map>
#include <sstream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

using namespace replay;

namespace {

// ---- recordings -------------------------------------------------------------------------------

struct input {
    std::string registers;
    page_set pages;
};

const input& shipped() {
    static const input in = [] {
        const std::string base = std::string{VM_ACCEL_TEST_DATA} + "/linux-session";
        const result<std::string> text = read_input(base + ".txt");
        REQUIRE(text);
        const result<std::string> bytes = read_input(base + ".pages.xz");
        REQUIRE(bytes);
        const result<page_set> pages = parse_pages(*bytes);
        REQUIRE(pages);
        return input{*text, *pages};
    }();
    return in;
}

/// Another driver's habits: a linear stream table, 39-bit halves that start at
/// level 1, blocks, both halves in use, commands without ranges, a small queue
/// that wrapped.
class made_up {
public:
    static constexpr std::uint64_t stream_table = 0x9000'0000, context = 0x9000'1000,
                                   queue = 0x9000'2000, events = 0x9000'3000, lower = 0x9000'4000,
                                   upper = 0x9000'5000, level2 = 0x9000'6000, level3 = 0x9000'7000,
                                   upper2 = 0x9000'8000, upper3 = 0x9000'9000;
    static constexpr vm_accel::asid space{0x1234};
    static constexpr stream_id sid{5};

    made_up() {
        put(stream_table + 64 * 5, 0x9000'100b);
        put(stream_table + 64 * 5 + 8, 0xd6);
        put(context, 0x1234'e204'8099'3519); // T0SZ = T1SZ = 25, TG1 = 4 KiB, no EPD
        put(context + 8, lower);
        put(context + 16, upper);
        put(lower, level2 | 3);
        put(upper + 8 * 511, upper2 | 3);
        put(upper2 + 8 * 511, upper3 | 3);
        put(level2 + 8 * 1, 0x4060'0f41); // 0x20'0000: block, read and write
        put(level2 + 8 * 2, 0x4080'0fc1); // 0x40'0000: block, read only
        put(level2 + 8 * 8, level3 | 3);
        put(level3, 0x4100'0f43);                     // 0x100'0000: page
        put(level3 + 8, 0x4100'5fc3);                 // 0x100'1000: page, read only
        put(upper3 + 8 * 511, 0x0060'0000'0809'0f43); // the last page: a doorbell
        page(queue);
        page(events);
        registers = "# made up\n"
                    "w 20 0 4\nw 80 4000000090000000 8\nw 88 4 4\n"
                    "w 90 4000000090002004 8\nw 98 0 4\nw 9c 0 4\nw 20 8 4\n"
                    "w a0 4000000090003004 8\nw 20 c 4\nw 20 d 4\n";
        say(0x20'0000, 0x4060'0000, 3);
        say(0x2f'fff8, 0x406f'fff8, 3);
        say(0x40'1234, 0x4080'1234, 1);
        say(0x100'0010, 0x4100'0010, 3);
        say(0x100'1000, 0x4100'5000, 1);
        say(~std::uint64_t{0} << 12, 0x809'0000, 3);
        // Removed: two pages, a page of the upper half, and a block seen twice.
        say(0x100'2000, 0x4100'6000, 3);
        say(0x100'3000, 0x4100'2000, 1);
        say(~std::uint64_t{0} << 13, 0x4100'9000, 3);
        say(0x60'3000, 0x40a0'3000, 3);
        say(0x7f'f000, 0x40bf'f000, 3);
        commands(true);
    }

    /// The last 16 of 40 commands: the removals, then work of no interest.
    void commands(bool with_removals) {
        std::vector<spec::command> last;
        if (with_removals) {
            for (const std::uint64_t a : {std::uint64_t{0x100'2000}, std::uint64_t{0x100'3000},
                                          ~std::uint64_t{0} << 13, std::uint64_t{0x60'0000}}) {
                last.push_back(spec::tlbi_nh_va(vmid{0}, space, iova{a}, true));
            }
        }
        while (last.size() < 16)
            last.push_back(spec::cmd_sync(spec::sync_signal::SIG_NONE));
        for (std::size_t i = 0; i < 16; ++i) {
            const std::uint64_t at = queue + ((24 + i) % 16) * 16;
            put(at, last[i].word[0]);
            put(at + 8, last[i].word[1]);
        }
    }
    /// How the recorder saw PROD move: all of 40 commands, or the end alone.
    [[nodiscard]] input in(bool each_step) const {
        return {registers + (each_step ? "w 98 a 4\nw 98 18 4\nw 98 8 4\n" : "w 98 8 4\n"), pages};
    }
    void put(std::uint64_t address, std::uint64_t value) {
        auto& bytes = page(page_of(address));
        for (std::size_t i = 0; i < 8; ++i) {
            bytes[address % page_bytes + i] = static_cast<std::byte>(value >> (8 * i));
        }
    }
    void say(std::uint64_t address, std::uint64_t output, unsigned permission) {
        registers +=
            "t 5 " + hex(address) + " " + hex(output) + " " + std::to_string(permission) + "\n";
    }

    std::string registers;
    page_set pages;

private:
    std::array<std::byte, page_bytes>& page(std::uint64_t address) { return pages[address]; }
};

// ---- devices ----------------------------------------------------------------------------------

enum class habit {
    correct,
    faults_everything,
    never_invalidates,
    first_page_of_range, ///< forgets NUM and SCALE
    other_asid,          ///< removes only entries of other address spaces
    ignores_permission,
    off_by_a_page,
    maps_neighbours, ///< a hit covers the next page too
    stops_at_command,
};

/// A slow device that caches pages and has one bad habit.
class pretended_device {
public:
    pretended_device(const recording& session, page_memory& memory, habit h)
        : tables_(session, memory), memory_(memory), habit_(h) {}

    void write(std::uint64_t offset, unsigned, std::uint64_t value) {
        registers_[offset] = value;
        if (offset == spec::reg::CMDQ_PROD) run(value);
    }
    std::uint64_t read(std::uint64_t offset, unsigned) {
        if (offset == spec::reg::CR0ACK) offset = spec::reg::CR0;
        return registers_[offset];
    }
    bool poll() { return false; }
    bool attach(stream_id) { return true; }

    std::optional<pa> access(stream_id sid, iova address, vm_accel::access kind) {
        if (habit_ == habit::faults_everything) return std::nullopt;
        const std::uint64_t page = page_of(raw(address));
        const std::uint64_t offset = raw(address) - page;
        const auto wanted = [&](const entry& e) -> std::optional<pa> {
            const bool ok = habit_ == habit::ignores_permission ||
                            (kind == vm_accel::access::read ? e.readable : e.writable);
            if (!ok) return std::nullopt;
            return pa{e.output + offset + (habit_ == habit::off_by_a_page ? page_bytes : 0)};
        };
        if (const auto hit = cached_.find({raw(sid), page}); hit != cached_.end()) {
            return wanted(hit->second);
        }
        const configured_stream view = tables_.stream(sid);
        iova walked{page};
        std::optional<mapping> found = tables_.find(view, walked);
        if (!found && habit_ == habit::maps_neighbours) {
            found = tables_.find(view, iova{page - page_bytes});
        }
        if (!found) return std::nullopt;
        const entry e{found->output, found->readable, found->writable,
                      get<spec::cd::ASID>(view.context)};
        return wanted(cached_[{raw(sid), page}] = e);
    }

private:
    struct entry {
        std::uint64_t output;
        bool readable, writable;
        std::uint64_t asid;
    };

    void run(std::uint64_t prod) {
        const std::uint64_t base = registers_[spec::reg::CMDQ_BASE];
        const std::uint64_t size = std::uint64_t{1} << spec::CMDQ_BASE::LOG2SIZE::of(base);
        std::uint64_t& cons = registers_[spec::reg::CMDQ_CONS];
        while (cons != (prod & (2 * size - 1))) {
            const std::uint64_t at =
                (base & spec::CMDQ_BASE::ADDR::mask) + (cons & (size - 1)) * 16;
            if (habit_ == habit::stops_at_command && (cons & (size - 1)) == 7) return;
            spec::command c;
            c.word[0] = memory_.load64(pa{at}).value();
            c.word[1] = memory_.load64(pa{at + 8}).value();
            if (habit_ != habit::never_invalidates) execute(c);
            cons = (cons + 1) & (2 * size - 1);
        }
    }
    void execute(spec::command c) {
        if (habit_ == habit::first_page_of_range) {
            set<spec::CMD_TLBI::NUM>(c, 0);
            set<spec::CMD_TLBI::SCALE>(c, 0);
        }
        std::erase_if(cached_, [&](const auto& pair) {
            const auto& [key, e] = pair;
            tagged_space space{stream_id{key.first}, false, e.asid, 0};
            if (habit_ == habit::other_asid) *space.asid ^= 1;
            return recorded_commands::drops_whole(c, space) ||
                   recorded_commands::names_part(c, space, {iova{key.second}, page_bytes});
        });
    }

    final_tables tables_;
    page_memory& memory_;
    habit habit_;
    std::map<std::uint64_t, std::uint64_t> registers_;
    std::map<std::pair<std::uint32_t, std::uint64_t>, entry> cached_;
};

struct run_result {
    verdict found;
    std::string log;
};

template <class MakeDevice>
run_result play(const input& in, bool seed, MakeDevice make) {
    const result<recording> session = parse_registers(in.registers);
    REQUIRE(session);
    page_memory memory{in.pages,
                       session->translations.size() * seeded_tables::spare_pages_per_mapping};
    const auto device = make(*session, memory);
    std::ostringstream log;
    session_replay replay{*session, memory, *device, log};
    const result<verdict> found = replay.run(seed);
    REQUIRE(found);
    return {*found, log.str()};
}

run_result play_pretended(const input& in, bool seed, habit h) {
    return play(in, seed, [h](const recording& session, page_memory& memory) {
        return std::make_unique<pretended_device>(session, memory, h);
    });
}

template <class Tlb>
run_result play_smmu(const input& in, bool seed) {
    return play(in, seed, [](const recording&, page_memory& memory) {
        auto device = std::make_unique<smmu_device<Tlb>>(memory);
        REQUIRE(device->init());
        return device;
    });
}

using tlb_policies = std::tuple<no_tlb, set_associative<512, 8>, set_associative<64, 4>>;

} // namespace

TEMPLATE_LIST_TEST_CASE("the SMMU answers the shipped recording without a mistake", "",
                        tlb_policies) {
    const bool seed = GENERATE(false, true);
    const run_result r = play_smmu<TestType>(shipped(), seed);
    INFO(r.log);
    CHECK(r.found.translated == 18);
    CHECK(r.found.faulted == 40);
    CHECK(r.found.wrong == 0);
    CHECK(r.found.seeded == (seed ? 58 : 0));
    CHECK(r.found.controls > 10);
}

TEMPLATE_LIST_TEST_CASE("the SMMU answers a made-up recording without a mistake", "",
                        tlb_policies) {
    const bool seed = GENERATE(false, true);
    const bool each_step = GENERATE(false, true);
    const run_result r = play_smmu<TestType>(made_up{}.in(each_step), seed);
    INFO(r.log);
    CHECK(r.found.translated == 6);
    CHECK(r.found.faulted == 5);
    CHECK(r.found.wrong == 0);
    CHECK(r.found.seeded == (seed ? 11 : 0));
    CHECK(r.found.controls > 5);
}

TEST_CASE("devices with a bad habit are caught, and by what they do wrong") {
    struct row {
        habit h;
        bool seed;
        verdict expected;
    };
    const auto r = GENERATE(values<row>({
        {habit::correct, false, {.translated = 18, .faulted = 40, .wrong = 0}},
        {habit::correct, true, {.translated = 18, .faulted = 40, .wrong = 0}},
        {habit::faults_everything, false, {.translated = 0, .faulted = 40, .wrong = 18}},
        {habit::faults_everything, true, {.translated = 0, .faulted = 40, .wrong = 18}},
        // Without seeding nothing stale can show: that is what seeding is for.
        {habit::never_invalidates, false, {.translated = 18, .faulted = 40, .wrong = 0}},
        {habit::never_invalidates, true, {.translated = 18, .faulted = 0, .wrong = 40}},
        {habit::other_asid, true, {.translated = 18, .faulted = 0, .wrong = 40}},
        {habit::off_by_a_page, false, {.translated = 0, .faulted = 40, .wrong = 18}},
    }));
    const run_result got = play_pretended(shipped(), r.seed, r.h);
    INFO(static_cast<int>(r.h) << (r.seed ? " seeded\n" : "\n") << got.log);
    CHECK(got.found.translated == r.expected.translated);
    CHECK(got.found.faulted == r.expected.faulted);
    CHECK(got.found.wrong == r.expected.wrong);
}

TEST_CASE("a device that invalidates only the first page of a range is caught") {
    const run_result seeded = play_pretended(shipped(), true, habit::first_page_of_range);
    CHECK(seeded.found.translated == 18);
    CHECK(seeded.found.wrong > 0);
    CHECK(seeded.found.faulted + seeded.found.wrong == 40);
    CHECK(play_pretended(shipped(), false, habit::first_page_of_range).found.wrong == 0);
}

TEST_CASE("a device that lets writes through a read-only page is caught") {
    CHECK(play_pretended(made_up{}.in(true), false, habit::ignores_permission).found.wrong == 2);
}

TEST_CASE("controls catch a device whose entries cover too much") {
    const run_result r = play_pretended(shipped(), false, habit::maps_neighbours);
    CHECK(r.found.wrong > 0);
    CHECK(r.log.find("was never mapped") != std::string::npos);
    CHECK(play_pretended(shipped(), false, habit::correct).found.controls > 10);
}

TEST_CASE("a queue that stops is a mistake of its own") {
    const run_result r = play_pretended(shipped(), false, habit::stops_at_command);
    CHECK(r.found.wrong == 1);
    CHECK(r.log.find("stopped at index 0x7") != std::string::npos);
}

TEST_CASE("a page that is gone needs the invalidation that covers it") {
    made_up session;
    session.commands(false);
    const run_result r = play_smmu<no_tlb>(session.in(true), false);
    CHECK(r.found.translated == 6);
    CHECK(r.found.faulted == 0);
    CHECK(r.found.wrong == 5);
    CHECK(r.log.find("no recorded command") != std::string::npos);
}

TEST_CASE("a recording whose lines do not fit its tables is wrong, whatever the device says") {
    struct row {
        const char* line;
        const char* instead;
    };
    const auto r = GENERATE(values<row>({
        {"t 5 0x200000 0x40600000 3", "t 5 0x200000 0x40601000 3"},   // another page
        {"t 5 0x200000 0x40600000 3", "t 5 0x200000 0x40600000 1"},   // less permission
        {"t 5 0x401234 0x40801234 1", "t 5 0x401234 0x40801234 3"},   // more permission
        {"t 5 0x1000010 0x41000010 3", "t 5 0x1000010 0x41000018 3"}, // another byte
        {"t 5 0x1002000 0x41006000 3", "t 5 0x1102000 0x41006000 3"}, // no invalidation
    }));
    input in = made_up{}.in(true);
    const std::size_t at = in.registers.find(r.line);
    REQUIRE(at != std::string::npos);
    in.registers.replace(at, std::string{r.line}.size(), r.instead);
    for (const bool seed : {false, true}) {
        CHECK(play_smmu<no_tlb>(in, seed).found.wrong == 1);
    }
}

TEST_CASE("a page that was mapped twice counts as it was last") {
    made_up session;
    session.say(0x100'0020, 0x4100'0020, 3); // the same page again: one more line
    input in = session.in(true);
    in.registers.insert(0, "t 5 0x1000000 0x77777000 3\n");
    const run_result r = play_smmu<no_tlb>(in, false);
    INFO(r.log);
    CHECK(r.found.translated == 7);
    CHECK(r.found.wrong == 0);
}

TEST_CASE("seeding leaves the recorded pages as they were") {
    const result<recording> session = parse_registers(shipped().registers);
    REQUIRE(session);
    page_memory memory{shipped().pages, 64};
    const final_tables tables{*session, memory};
    {
        seeded_tables added{memory};
        for (const translation_line& t : session->translations) {
            const configured_stream view = tables.stream(t.stream);
            if (tables.find(view, t.address)) continue;
            REQUIRE(added.map(view, t, page_bytes));
            REQUIRE(tables.find(view, t.address) == mapping{raw(t.output), t.readable, t.writable});
        }
    }
    for (const auto& [address, bytes] : shipped().pages) {
        std::array<std::byte, page_bytes> now{};
        REQUIRE(memory.read(pa{address}, now));
        if (now != bytes) FAIL("the page at " << hex(address) << " was left changed");
    }
    for (std::uint64_t i = 0; i < 64 * page_bytes; i += 8) {
        if (memory.load64(pa{raw(memory.spare()) + i}) != 0) FAIL("a spare page was left in use");
    }
}

TEST_CASE("under a stream that aborts in the end all must fault, whatever its ASID was") {
    made_up session;
    session.put(made_up::stream_table + 64 * 5, 0x1); // Config = abort
    const run_result gone = play_smmu<no_tlb>(session.in(true), false);
    // Three by their page; a block cannot be told without its tables.
    CHECK(gone.found.faulted == 3);
    CHECK(gone.found.wrong == 8);
    // The command that made the SMMU read the new STE covers all of them.
    const spec::command reread = spec::cmd_cfgi_ste(made_up::sid, true);
    session.put(made_up::queue + 16 * 7, reread.word[0]);
    session.put(made_up::queue + 16 * 7 + 8, reread.word[1]);
    for (const bool seed : {false, true}) {
        const run_result covered = play_smmu<set_associative<64, 4>>(session.in(true), seed);
        INFO(covered.log);
        CHECK(covered.found.faulted == 11);
        CHECK(covered.found.wrong == 0);
    }
}

TEST_CASE("what cannot be judged is refused with a reason") {
    made_up session;
    session.put(made_up::stream_table + 64 * 5, 0x9000'100d); // Config = stage 2
    const input in = session.in(true);
    const result<recording> parsed = parse_registers(in.registers);
    REQUIRE(parsed);
    page_memory memory{in.pages, 0};
    pretended_device device{*parsed, memory, habit::correct};
    std::ostringstream log;
    const result<verdict> found = session_replay{*parsed, memory, device, log}.run(false);
    REQUIRE_FALSE(found);
    CHECK(found.error() == errc::unsupported);
}

TEST_CASE("registers that cannot be read name the line") {
    struct row {
        const char* text;
        const char* says;
    };
    const auto r = GENERATE(values<row>({
        {"w 20 0\n", "line 1"},
        {"w 20 0 4\nx 1 2 3\n", "line 2"},
        {"# no\n\nw 20 zz 4\n", "line 3"},
        {"w 20 0 2\n", "4 or 8"},
        {"t 5 1000 2000 4\n", "PERM"},
        {"t 100000000 1000 2000 3\n", "StreamID"},
        {"t 5 1000 2000\n", "fields"},
        {"t 5 11111111111111111 2000 3\n", "number"},
        {"w 20 0 4\n", "no translation"},
        {"", "no translation"},
    }));
    const result<recording> parsed = parse_registers(r.text);
    REQUIRE_FALSE(parsed);
    CHECK(parsed.error() == errc::invalid_argument);
    CHECK(parsed.error().cause.view().find(r.says) != std::string_view::npos);
}

TEST_CASE("pages that are cut or misplaced are refused") {
    CHECK_FALSE(parse_pages(""));
    CHECK_FALSE(parse_pages(std::string(4103, '\0')));
    CHECK_FALSE(parse_pages(std::string(4105, '\0')));
    std::string one(4104, '\0');
    CHECK(parse_pages(one)->size() == 1);
    one[0] = 8;
    CHECK_FALSE(parse_pages(one));
}

TEST_CASE("pages that touch are one region, and the spare ones keep their distance") {
    page_set pages;
    for (const std::uint64_t a : {0x20'0000u, 0x20'1000u, 0x60'0000u})
        pages[a] = {};
    page_memory memory{pages, 3};
    CHECK(memory.find(pa{0x20'1fff})->bytes == 0x2000);
    CHECK(memory.find(pa{0x60'0000})->bytes == 0x1000);
    CHECK_FALSE(memory.find(pa{0x20'2000}));
    CHECK_FALSE(memory.find(pa{0x1f'ffff}));
    CHECK(memory.find(memory.spare())->bytes == 3 * page_bytes);
    CHECK(raw(memory.spare()) % 0x20'0000 == 0);
    CHECK(memory.store64(pa{0x20'0ff8}, 7));
    CHECK(memory.load64(pa{0x20'0ff8}) == 7);
    CHECK_FALSE(memory.load64(pa{0x20'0ffc}));
    CHECK_FALSE(memory.load64(pa{0x60'1000}));
}
