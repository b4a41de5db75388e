/// What came of every page that was to move.
#include "paged_machine.hpp"

#include <vm_accel/numa/page_mover.hpp>

#include <catch2/catch.hpp>

#include <sstream>
#include <string>
#include <vector>

using namespace vm_accel_test;
using os::page_fate;

namespace {

constexpr std::uint64_t page = paged_machine::page;

struct on_pages {
    paged_memory memory{};
    paged_placement placement{memory.machine};
    paged_machine& machine = *memory.machine;
    std::byte* start;

    explicit on_pages(const std::vector<int>& nodes) {
        start = memory.map({nodes.size() * page, 0, false})->address;
        machine.nodes = nodes;
    }
    move_outcome move(unsigned from, unsigned to, std::uint64_t pages, std::uint64_t step = 4) {
        page_mover<paged_memory, paged_placement> mover{memory, placement, step * page};
        return mover.move({start, machine.nodes.size() * page, page}, from, to, pages * page);
    }
};

} // namespace

TEST_CASE("pages move from one node to another, in steps, and each is accounted for") {
    struct row {
        const char* name;
        std::vector<int> before;
        std::uint64_t most;
        std::map<std::size_t, page_fate> stuck;
        std::vector<int> after;
        move_counts counts;
        grant_state given;
    };
    const row r = GENERATE(values<row>({
        {"all", {0, 0, 0, 0, 0, 0}, 100, {}, {1, 1, 1, 1, 1, 1}, {6}, grant_state::enforced},
        {"some are elsewhere",
         {0, 1, 2, -1, 0, -2},
         100,
         {},
         {1, 1, 2, -1, 1, -2},
         {2, 1, 1, 2},
         grant_state::enforced},
        {"so many only", {0, 0, 0, 0, 0, 0}, 5, {}, {1, 1, 1, 1, 1, 0}, {5}, grant_state::enforced},
        {"none", {0, 0}, 0, {}, {0, 0}, {}, grant_state::enforced},
        {"pinned",
         {0, 0, 0},
         100,
         {{1, page_fate::busy}},
         {1, 0, 1},
         {2, 0, 0, 0, 1},
         grant_state::preferred},
        {"mapped by others",
         {0, 0},
         100,
         {{0, page_fate::shared}},
         {0, 1},
         {1, 0, 0, 0, 0, 1},
         grant_state::preferred},
        {"gone in the meantime",
         {0, 0},
         100,
         {{1, page_fate::absent}},
         {1, 0},
         {1, 0, 1},
         grant_state::enforced},
        {"full after five: the sixth is not tried again, nor those after it",
         {0, 0, 0, 0, 0, 0, 0, 0, 0},
         100,
         {{5, page_fate::no_room}},
         {1, 1, 1, 1, 1, 0, 1, 1, 0},
         {7, 0, 0, 0, 0, 0, 1},
         grant_state::preferred},
        {"what stays behind counts towards the limit",
         {0, 0, 0, 0, 0, 0},
         3,
         {{0, page_fate::busy}, {1, page_fate::busy}, {2, page_fate::refused}},
         {0, 0, 0, 0, 0, 0},
         {0, 0, 0, 0, 2, 0, 0, 1},
         grant_state::preferred},
    }));
    CAPTURE(r.name);
    on_pages on{r.before};
    on.machine.stuck = r.stuck;
    const move_outcome outcome = on.move(0, 1, r.most);
    CHECK(on.machine.nodes == r.after);
    CHECK((outcome.pages == r.counts));
    CHECK(outcome.given.state == r.given);
    CHECK(outcome.given.cause.empty() == (r.given == grant_state::enforced));
    for (const paged_machine::call& call : on.machine.moves)
        CHECK(call.pages <= 4);
}

TEST_CASE("a huge page takes its neighbours along") {
    on_pages on{std::vector<int>(32, 0)};
    on.machine.huge = 8;
    const move_outcome outcome = on.move(0, 1, 12, 16);
    CHECK((outcome.pages == move_counts{16}));
    CHECK(on.machine.pages_on(1) == 16);
}

TEST_CASE("what the kernel says is not believed but looked at") {
    on_pages on{{0, 0, 0}};
    on.machine.lies = true;
    const move_outcome outcome = on.move(0, 1, 100);
    CHECK((outcome.pages == move_counts{0, 0, 0, 0, 0, 0, 0, 3}));
    CHECK(outcome.given.state == grant_state::preferred);
    CHECK_THAT(std::string{outcome.given.cause.view()},
               Catch::Contains("3 pages did not go to node 1"));
}

TEST_CASE("a refused call ends the move with its cause") {
    const auto [code, state] = GENERATE(table<errc, grant_state>({
        {errc::permission_denied, grant_state::refused},
        {errc::unsupported, grant_state::unsupported},
        {errc::invalid_argument, grant_state::refused},
    }));
    on_pages on{std::vector<int>(20, 0)};
    const error why{code, 1, "moving pages: no", "allow it"};
    SECTION("moving") { on.machine.refuse_move = why; }
    SECTION("asking where pages lie") { on.machine.refuse_query = why; }
    const move_outcome outcome = on.move(0, 1, 100);
    CHECK(outcome.given.state == state);
    CHECK(outcome.given.cause == "moving pages: no");
    CHECK(outcome.given.cure == "allow it");
    CHECK(outcome.pages.moved == 0);
    CHECK(outcome.pages.failed() == 0); // they were not tried
    CHECK(on.machine.moves.size() <= 1);
}

TEST_CASE("move counts in words") {
    std::ostringstream out;
    out << move_counts{12, 0, 0, 0, 3, 0, 0, 1};
    CHECK(out.str() == "12 moved, 3 busy, 1 refused");
}
