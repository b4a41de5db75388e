/// What was asked for a thread besides its place, and what was given: on platforms that refuse,
/// give something else, or have no such call.
#include "machines.hpp"
#include "own_thread.hpp"

#include <vm_accel/affinity/affinity.hpp>
#include <vm_accel/affinity/fixed_platform.hpp>
#include <vm_accel/topology/regular.hpp>

#include <catch2/catch.hpp>

#include <deque>
#include <set>
#include <string>
#include <vector>

using namespace vm_accel;
using namespace affinity_machines;
using affinity_threads::on_a_thread;
using affinity_threads::staying_thread;
using os::thread_priority;

namespace {

/// Refuses real time, gives half a clamp, and has no core groups on this machine.
struct strict_platform : fixed_platform {
    strict_platform() : fixed_platform(make_topology({1, 1, 4, 1, 0})) {}
    result<os::given_priority> set_priority(const thread_priority& wanted) noexcept {
        if (wanted.is_real_time())
            return fail(errc::permission_denied, "real time: refused", "raise RLIMIT_RTPRIO");
        os::given_priority given{thread_priority::normal(0), wanted.nice == 0, {}};
        given.text.append("ordinary");
        return given;
    }
    result<os::utilization_clamp> clamp_utilization(const os::utilization_clamp& wanted) noexcept {
        return os::utilization_clamp{wanted.least / 2, wanted.most};
    }
};
static_assert(affinity_platform<strict_platform>);

/// Pins, and nothing else.
struct bare_platform : claims_nothing {
    static constexpr std::string_view name = "bare";
    static constexpr bool can_pin_threads = true;
    static constexpr bool pins_are_real = false;
    result<cpu_topology> load() noexcept { return make_topology({}); }
    os::thread_id current_thread() noexcept { return os::thread_id{1}; }
    result<> pin(os::thread_id, const os::cpu_set& cpus) noexcept {
        at = cpus;
        return {};
    }
    result<os::cpu_set> pinned(os::thread_id) noexcept { return at; }
    os::cpu_set at{};
};

scheduling_request everything(core_sharing sharing = core_sharing::this_vm) {
    return {thread_priority::fifo(10), os::utilization_clamp{512, 1024}, sharing};
}

template <class Platform>
std::string said_of(const affinity<Platform>& host, std::size_t vcpu) {
    return std::string{describe(host.pins()[vcpu]).view()};
}

} // namespace

TEST_CASE("what a platform has is given and told, vCPU by vCPU") {
    affinity<fixed_platform> host;
    REQUIRE(host.init());
    REQUIRE(host.configure({2}, everything()));
    std::deque<staying_thread> threads;
    for (unsigned v = 0; v < 2; ++v) {
        result<> done;
        threads.emplace_back([&] { done = host.place_current_thread(v); });
        CHECK(done);
    }
    const auto pins = host.pins();
    REQUIRE(pins.size() == 2);
    for (const vcpu_pin& pin : pins) {
        CHECK(pin.as_requested());
        CHECK(pin.scheduling.as_requested());
        CHECK(pin.scheduling.requested == everything());
        REQUIRE(pin.scheduling.priority.given);
        CHECK(pin.scheduling.priority.given->nearest == thread_priority::fifo(10));
        REQUIRE(pin.scheduling.utilization.given);
        CHECK(*pin.scheduling.utilization.given == os::utilization_clamp{512, 1024});
        REQUIRE(pin.scheduling.sharing.given);
    }
    CHECK(said_of(host, 1) ==
          "CPU 1, fifo 10, utilization 512 to 1024, cores shared within this VM");
}

TEST_CASE("core groups: one for a VM, one for each vCPU, none unless asked for") {
    struct row {
        core_sharing sharing;
        std::size_t groups;
    };
    const row r = GENERATE(values<row>(
        {{core_sharing::anyone, 0}, {core_sharing::this_vm, 1}, {core_sharing::nobody, 4}}));
    affinity<fixed_platform> host;
    REQUIRE(host.init());
    REQUIRE(host.configure({3}, {{}, {}, r.sharing}));
    std::deque<staying_thread> threads;
    result<> done;
    for (unsigned v = 3; v-- != 0;) {
        threads.emplace_back([&] { done = host.place_current_thread(v); });
        CHECK(done);
    }
    threads.emplace_back([&] { done = host.place_vmm_thread("disk-io", {{}, {}, r.sharing}); });
    CHECK(done);
    std::set<os::core_group> groups;
    for (const vcpu_pin& pin : host.pins())
        if (pin.scheduling.sharing.given) groups.insert(*pin.scheduling.sharing.given);
    REQUIRE(host.vmm_threads().size() == 1);
    if (host.vmm_threads()[0].scheduling.sharing.given)
        groups.insert(*host.vmm_threads()[0].scheduling.sharing.given);
    CHECK(groups.size() == r.groups);
}

TEST_CASE("a member that has ended is passed over; without a living one a group is started") {
    struct departing : fixed_platform {
        result<os::core_group> join_core_group(os::thread_id member) noexcept {
            asked.push_back(member);
            if (member != alive) return fail(errc::not_found, "it has ended", "start a group");
            return os::core_group{77};
        }
        os::thread_id alive{};
        std::vector<os::thread_id> asked{};
    } platform;
    std::vector<os::thread_id> members{os::thread_id{3}, os::thread_id{4}};
    const bool one_lives = GENERATE(true, false);
    if (one_lives) platform.alive = members[1];
    std::size_t at = 0;
    const auto next = [&]() noexcept {
        return at < members.size() ? members[at++] : os::thread_id{};
    };
    const auto got =
        thread_placing::schedule_current_thread(platform, {{}, {}, core_sharing::this_vm}, next);
    REQUIRE(got.sharing.given);
    CHECK(platform.asked == members);
    CHECK((*got.sharing.given == os::core_group{77}) == one_lives);
}

TEST_CASE("a wish that is refused, or granted in part, hinders no other") {
    struct row {
        scheduling_request wish;
        errc first;
        const char* said;
    };
    const row r = GENERATE(values<row>({
        {everything(), errc::permission_denied,
         "CPU 0, not fifo 10: real time: refused, utilization 256 to 1024, utilization clamp: the "
         "system gave 256 to 1024, fixed platform: no core has a second thread, none is shared"},
        {{thread_priority::normal(-5), {}, core_sharing::anyone},
         errc::mismatch,
         "CPU 0, ordinary, not normal, nice -5: thread priority normal, nice -5 was asked for, the "
         "system gave ordinary"},
        {{{}, {}, core_sharing::nobody}, errc::unavailable, "no core has a second thread"},
    }));
    affinity<strict_platform> host;
    REQUIRE(host.init());
    REQUIRE(host.configure({1}, r.wish));
    result<> done;
    on_a_thread([&] { done = host.place_current_thread(0); });
    REQUIRE_FALSE(done);
    CHECK(done.error() == r.first);
    CHECK_FALSE(done.error().cure.empty());
    const auto pins = host.pins();
    CHECK(pins[0].as_requested()); // it is in its place all the same
    CHECK_FALSE(pins[0].scheduling.as_requested());
    CHECK_THAT(said_of(host, 0), Catch::Contains(r.said));
}

TEST_CASE("a platform without calls for it says so, and pins") {
    affinity<bare_platform> host;
    REQUIRE(host.init());
    REQUIRE(host.configure({1}, everything(core_sharing::nobody)));
    const auto done = host.place_current_thread(0);
    REQUIRE_FALSE(done);
    CHECK(done.error() == errc::unsupported);
    const scheduling_outcome got = host.pins()[0].scheduling;
    for (const auto* failure :
         {&got.priority.failure, &got.utilization.failure, &got.sharing.failure}) {
        REQUIRE(*failure);
        CHECK(**failure == errc::unsupported);
        CHECK_THAT(std::string{(*failure)->cause.view()}, Catch::StartsWith("bare: "));
    }
    CHECK(host.pins()[0].as_requested());
    CHECK(host.follow().error() == errc::unsupported);
    CHECK(host.check().error() == errc::unsupported);
    // Nothing asked for, nothing refused.
    REQUIRE(host.configure(1));
    CHECK(host.place_current_thread(0));
    CHECK(host.place_vmm_thread("io"));
}

TEST_CASE("requests print in the words that people use") {
    struct row {
        thread_priority priority;
        const char* text;
    };
    const row r = GENERATE(values<row>({
        {thread_priority::normal(), "normal"},
        {thread_priority::normal(-20), "normal, nice -20"},
        {thread_priority::normal(19), "normal, nice 19"},
        {thread_priority::high(), "high"},
        {thread_priority::fifo(1), "fifo 1"},
        {thread_priority::round_robin(99), "round robin 99"},
    }));
    fixed_text<64> text;
    CHECK(os::append_priority(text, r.priority) == r.text);
}
