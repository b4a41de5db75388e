/// Threads stay where a plan wants them while the process's CPUs change: on a machine that
/// the test changes.
#include "machines.hpp"
#include "own_thread.hpp"

#include <vm_accel/affinity/affinity.hpp>
#include <vm_accel/affinity/fixed_platform.hpp>
#include <vm_accel/topology/regular.hpp>

#include <catch2/catch.hpp>

#include <deque>
#include <sstream>
#include <string>
#include <vector>

using namespace vm_accel;
using namespace affinity_machines;
using affinity_threads::on_a_thread;
using affinity_threads::staying_thread;

namespace {

using fixed_affinity = affinity<fixed_platform>;

/// vCPU threads and one other thread, all placed.
struct running_vm {
    fixed_affinity host;
    std::deque<staying_thread> threads{};

    running_vm(const cpu_topology& machine, const vcpu_request& request)
        : host(fixed_platform{machine}) {
        REQUIRE(host.init());
        REQUIRE(host.configure(request));
        for (unsigned v = 0; v < request.vcpus; ++v) {
            result<> done;
            threads.emplace_back([&] { done = host.place_current_thread(v); });
            REQUIRE(done);
        }
        result<> done;
        threads.emplace_back([&] { done = host.place_vmm_thread("disk-io"); });
        REQUIRE(done);
    }

    [[nodiscard]] std::vector<unsigned> places() {
        std::vector<unsigned> cpus;
        for (const vcpu_pin& pin : host.pins()) {
            CHECK(pin.as_requested());
            CHECK(pin.actual == os::cpu_set::of(pin.requested_cpu));
            const auto now = host.platform().pinned(pin.thread);
            REQUIRE(now);
            CHECK(*now == pin.actual);
            cpus.push_back(pin.requested_cpu);
        }
        return cpus;
    }
};

/// A platform on which CPUs come and go, and that has more than its process may use.
struct changing_platform : claims_nothing {
    static constexpr std::string_view name = "changing";
    static constexpr bool can_pin_threads = true;
    static constexpr bool can_follow_cpuset = true;
    static constexpr bool pins_are_real = false;
    os::cpu_set now{};
    unsigned loads = 0;
    result<cpu_topology> load() noexcept { return make_topology({1, 1, 8, 1, 0}); }
    result<cpu_topology> reload() noexcept { return ++loads, load(); }
    os::thread_id current_thread() noexcept { return os::thread_id{1}; }
    result<> pin(os::thread_id, const os::cpu_set&) noexcept { return {}; }
    result<os::cpu_set> pinned(os::thread_id) noexcept { return os::cpu_set::of(0); }
    result<os::cpu_set> allowed_cpus() noexcept { return now; }
};
static_assert(affinity_platform<changing_platform>);

/// A platform whose threads have all ended.
struct all_have_ended : fixed_platform {
    result<os::cpu_set> pinned(os::thread_id) noexcept {
        return fail(errc::not_found, "it has ended", "none");
    }
};

std::string text(const cpuset_changes& changes) {
    std::ostringstream out;
    out << changes;
    return out.str();
}

} // namespace

TEST_CASE("a cpuset that changes: the plan is the one that would be made now, threads follow") {
    struct row {
        std::vector<unsigned> allowed;
        std::vector<unsigned> vcpus;
        std::vector<unsigned> other;
        std::size_t moved;
        const char* said;
    };
    // 8 CPUs: 4 cores of 2 threads; 3 vCPUs on 0, 1 and 2.
    const row r = GENERATE(values<row>({
        {{0, 1, 2, 3, 4, 5, 6, 7}, {0, 1, 2}, {3, 4, 5, 6, 7}, 0, ""},
        {{0, 1, 2, 3}, {0, 1, 2}, {3}, 0, "allowed were CPUs 0-7, are CPUs 0-3"},
        {{0, 2, 3, 4, 5, 6, 7},
         {0, 2, 3},
         {4, 5, 6, 7},
         3,
         "vCPU 1: from CPUs 0,2-7 to 2 (CPU 1 is gone; compact: "},
        {{0, 2, 3, 4, 5, 6, 7}, {0, 2, 3}, {4, 5, 6, 7}, 3, "2 to 3 (planned anew; compact: "},
        {{4, 5, 6, 7}, {4, 5, 6}, {7}, 4, "disk-io: from CPUs 4-7 to 7 (CPU 3 is gone; "},
        {{1}, {1, 1, 1}, {1}, 0, "are CPUs 1"},
    }));
    running_vm vm{make_topology({1, 1, 4, 2, 0}), {3}};
    const auto fixed_point = vm.host.follow();
    REQUIRE(fixed_point);
    CHECK(fixed_point->none());

    REQUIRE(vm.host.platform().allow(set_of(r.allowed)));
    const auto before = vm.host.pins();
    const auto foreseen = vm.host.check();
    REQUIRE(foreseen);
    CHECK(vm.host.pins().size() == before.size());
    CHECK(vm.host.pins()[1].requested_cpu == before[1].requested_cpu); // only looked

    const auto changes = vm.host.follow();
    REQUIRE(changes);
    CHECK(changes->moves.size() == r.moved);
    CHECK(foreseen->moves.size() == r.moved);
    CHECK(changes->in_place());
    CHECK(foreseen->in_place() == foreseen->moves.empty());
    CHECK(changes->planned_anew == (set_of(r.allowed).count() != 8));
    CHECK(vm.places() == r.vcpus);
    REQUIRE(vm.host.vmm_threads().size() == 1);
    CHECK(vm.host.vmm_threads()[0].actual == set_of(r.other));
    CHECK_THAT(text(*changes), Catch::Contains(r.said));
    CHECK(cpus_of(vm.host.current_plan()) == r.vcpus);
    CHECK(vm.host.follow()->none()); // it comes to rest

    // Back again: as in the beginning.
    REQUIRE(vm.host.platform().allow(vm.host.topology().cpu_set()));
    REQUIRE(vm.host.follow());
    CHECK(vm.places() == std::vector<unsigned>{0, 1, 2});
}

TEST_CASE("a thread that somebody else moved is put back, whether or not the cpuset changed") {
    running_vm vm{make_topology({1, 1, 4, 2, 0}), {2}};
    const os::thread_id moved = vm.host.pins()[1].thread;
    REQUIRE(vm.host.platform().pin(moved, set_of({5, 6})));
    const auto changes = vm.host.follow();
    REQUIRE(changes);
    CHECK_FALSE(changes->planned_anew);
    REQUIRE(changes->moves.size() == 1);
    CHECK(changes->moves[0].who == "vCPU 1");
    CHECK(changes->moves[0].before == set_of({5, 6}));
    CHECK(changes->moves[0].after == set_of({1}));
    CHECK_THAT(std::string{changes->moves[0].reason.view()}, Catch::Contains("moved it"));
    CHECK(vm.places() == std::vector<unsigned>{0, 1});
}

TEST_CASE("CPUs that are added later are used once they are there") {
    // The process starts with half the machine.
    fixed_platform half{make_topology({1, 1, 4, 2, 0})};
    REQUIRE(half.allow(set_of({0, 1, 2, 3})));
    fixed_affinity host{std::move(half)};
    REQUIRE(host.init());
    CHECK(host.topology().cpus.size() == 4);
    const auto plan = host.configure(6);
    REQUIRE(plan);
    CHECK(plan->overcommitted());
    result<> done;
    const staying_thread fifth{[&] { done = host.place_current_thread(4); }};
    REQUIRE(done);
    REQUIRE(host.platform().allow(set_of({0, 1, 2, 3, 4, 5, 6, 7})));
    const auto changes = host.follow();
    REQUIRE(changes);
    CHECK(changes->planned_anew);
    CHECK(host.topology().cpus.size() == 4); // what was given out stays as it was
    CHECK_FALSE(host.current_plan().overcommitted());
    CHECK(host.pins()[0].actual == set_of({4}));
    CHECK(host.plan(8)->cpus_available == 8);
}

TEST_CASE("what a user took from the process stays taken when the cpuset grows") {
    cpu_topology bound = make_topology({1, 1, 2, 1, 0}); // CPUs 0 and 1 of a cpuset of 0 to 3
    cpuset_watch watch;
    watch.begin(bound, set_of({0, 1, 2, 3}));
    changing_platform platform;
    std::vector<vcpu_pin> pins;
    std::vector<vmm_thread_pin> others;
    vcpu_plan plan = watch.plan(bound, {1}).value();
    const auto look = [&](const std::vector<unsigned>& allowed) {
        platform.now = set_of(allowed);
        const auto changes = watch.look(platform, bound, {1}, plan, pins, others, true);
        REQUIRE(changes);
        return changes->allowed;
    };
    CHECK(look({0, 1, 2, 3, 4}) == set_of({0, 1}));
    CHECK(look({1, 2, 3}) == set_of({1}));
    CHECK(platform.loads == 0);
    CHECK(look({5, 6}) == set_of({5, 6})); // nothing is left of the binding
    CHECK(platform.loads == 1);
    CHECK(cpus_of(plan) == std::vector<unsigned>{5});
    CHECK(look({0, 6}) == set_of({0}));
}

TEST_CASE("threads that have ended are told once and forgotten") {
    fixed_affinity host;
    REQUIRE(host.init());
    REQUIRE(host.configure(2));
    all_have_ended platform;
    vcpu_pin gone, never;
    gone.thread = os::thread_id{7};
    never.vcpu = 1; // never could be pinned
    std::vector<vcpu_pin> pins{gone, never};
    vmm_thread_pin other;
    other.thread = os::thread_id{8};
    other.name.append("disk-io");
    std::vector<vmm_thread_pin> others{other};
    cpuset_watch watch;
    watch.begin(host.topology(), host.topology().cpu_set());
    vcpu_plan plan = host.current_plan();
    const auto seen = watch.look(platform, host.topology(), {2}, plan, pins, others, false);
    REQUIRE(seen);
    CHECK(seen->moves.size() == 2);
    CHECK(pins.size() == 2); // only looked
    const auto changes = watch.look(platform, host.topology(), {2}, plan, pins, others, true);
    REQUIRE(changes);
    REQUIRE(changes->moves.size() == 2);
    CHECK(changes->moves[0].has_ended());
    CHECK(changes->moves[0].who == "vCPU 0");
    CHECK(changes->moves[1].who == "disk-io");
    CHECK_THAT(text(*changes), Catch::Contains("disk-io: its thread has ended"));
    CHECK(changes->in_place());
    CHECK(pins.size() == 1);
    CHECK(others.empty());
    CHECK(watch.look(platform, host.topology(), {2}, plan, pins, others, true)->none());
}

TEST_CASE("a thread that becomes another is one thread still") {
    fixed_affinity host;
    REQUIRE(host.init());
    result<> done;
    REQUIRE(host.configure(3));
    on_a_thread([&] {
        for (const unsigned v : {2u, 0u})
            if (done) done = host.place_current_thread(v);
    });
    REQUIRE(done);
    REQUIRE(host.pins().size() == 1);
    CHECK(host.pins()[0].vcpu == 0);
    on_a_thread([&] {
        done = host.place_current_thread(1);
        if (done) done = host.place_vmm_thread("io");
    });
    REQUIRE(done);
    CHECK(host.pins().size() == 1);
    CHECK(host.vmm_threads().size() == 1);
    REQUIRE(host.configure(1)); // the vCPUs of the plan before are forgotten
    CHECK(host.pins().empty());
    CHECK(host.vmm_threads().size() == 1);
    REQUIRE(host.follow()); // the new plan leaves more to it
    CHECK(host.vmm_threads()[0].actual == host.vmm_threads()[0].requested);
    CHECK(host.vmm_threads()[0].requested.count() == 7);
    CHECK(host.follow()->none());
}

TEST_CASE("a thread that leaves is forgotten, a plan of the caller's own is kept while it can be") {
    fixed_affinity host{fixed_platform{make_topology({1, 1, 4, 1, 0})}};
    REQUIRE(host.init());
    REQUIRE(host.configure(1));
    const auto own = host.plan(4);
    REQUIRE(own);
    result<> done;
    on_a_thread([&] {
        done = host.place_current_thread(0);
        host.forget_current_thread();
    });
    REQUIRE(done);
    CHECK(host.pins().empty());

    const staying_thread other{[&] { done = host.pin_current_thread(*own, 3); }};
    REQUIRE(done);
    CHECK(host.follow()->none());
    REQUIRE(host.platform().allow(set_of({0, 1, 3})));
    CHECK(host.follow()->moves.empty());
    REQUIRE(host.platform().allow(set_of({0, 1})));
    const auto changes = host.follow();
    REQUIRE(changes);
    REQUIRE(changes->moves.size() == 1);
    CHECK_FALSE(changes->in_place());
    REQUIRE(changes->moves[0].failure);
    CHECK(*changes->moves[0].failure == errc::unavailable);
}

TEST_CASE("what cannot be followed is an error, and nothing changes") {
    running_vm vm{make_topology({1, 1, 4, 2, 0}), {2}};
    fixed_affinity fresh;
    CHECK(fresh.follow().error() == errc::not_initialized);
    REQUIRE(fresh.init());
    CHECK(fresh.check().error() == errc::not_initialized); // no plan

    // A request that the CPUs that are left cannot meet.
    vcpu_request two{1, vcpu_policy::compact, 1};
    running_vm small{make_topology({1, 1, 2, 1, 0}), two};
    REQUIRE(small.host.platform().allow(set_of({1})));
    const auto changes = small.host.follow();
    REQUIRE_FALSE(changes);
    CHECK(changes.error() == errc::out_of_range);
    CHECK(cpus_of(small.host.current_plan()) == std::vector<unsigned>{0});
    CHECK(small.host.pins()[0].requested_cpu == 0);
    CHECK(vm.host.platform().allow({}).error() == errc::invalid_argument);
}

TEST_CASE("threads that run no vCPU go where the plan left room") {
    struct row {
        vcpu_request request;
        std::vector<unsigned> excluded;
        std::vector<unsigned> cpus;
        const char* reason;
    };
    const row r = GENERATE(values<row>({
        {{2, vcpu_policy::compact, 2}, {}, {6, 7}, "left for I/O"},
        {{2, vcpu_policy::compact}, {}, {2, 3, 4, 5, 6, 7}, "no vCPU has"},
        {{2, vcpu_policy::compact}, {7}, {2, 3, 4, 5, 6}, "no vCPU has"},
        {{8, vcpu_policy::compact}, {}, {0, 1, 2, 3, 4, 5, 6, 7}, "shared with vCPUs"},
        {{7, vcpu_policy::compact}, {7}, {0, 1, 2, 3, 4, 5, 6}, "shared with vCPUs"},
    }));
    const cpu_topology t = make_topology({1, 1, 4, 2, 0});
    vcpu_request request = r.request;
    request.excluded = set_of(r.excluded);
    const vmm_thread_cpus where = cpus_for_vmm_threads(t, request, plan_vcpus(t, request).value());
    CHECK(where.cpus == set_of(r.cpus));
    CHECK_THAT(std::string{where.reason.view()}, Catch::Contains(r.reason));

    fixed_affinity host{fixed_platform{t}};
    REQUIRE(host.init());
    CHECK(host.place_vmm_thread("early").error() == errc::not_initialized);
    REQUIRE(host.configure(request));
    result<> done, again;
    on_a_thread([&] {
        done = host.place_vmm_thread("emulator");
        again = host.place_vmm_thread("emulator");
    });
    REQUIRE(done);
    REQUIRE(again);
    REQUIRE(host.vmm_threads().size() == 1); // of one name there is one
    CHECK(host.vmm_threads()[0].name == "emulator");
    CHECK(host.vmm_threads()[0].actual == where.cpus);
    CHECK(host.vmm_threads()[0].reason == where.reason);
}
