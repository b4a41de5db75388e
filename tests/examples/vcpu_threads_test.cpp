// How a run ends, played by processors without a hypervisor; and what is reported of it.
#include "../../examples/linux_kvm_arm64/run_report.hpp"
#include "../../examples/linux_kvm_arm64/vcpu_threads.hpp"

#include <catch2/catch.hpp>

#include <algorithm>
#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <vector>

using namespace linux_vmm;
using vm_accel::exit_reason;

namespace {

/// Waits to be asked out, unless it has an end of its own.
struct scripted_vcpu {
    struct state {
        std::atomic<bool> asked_out{false};
        std::atomic<unsigned> entered{0};
    };
    unsigned number = 0;
    std::optional<vm_accel::result<vm_accel::vcpu_exit>> script{};
    unsigned interruptions = 0; ///< that come by themselves before the script's end
    std::unique_ptr<state> shared = std::make_unique<state>();

    template <class Bus>
    [[nodiscard]] vm_accel::result<vm_accel::vcpu_exit> run(Bus&) noexcept {
        if (shared->entered++ < interruptions) {
            return vm_accel::vcpu_exit{exit_reason::interrupted, 0, 0};
        }
        if (script) return *script;
        while (!shared->asked_out.load())
            std::this_thread::yield();
        return vm_accel::vcpu_exit{exit_reason::interrupted, 0, 0};
    }
    void request_exit() noexcept { shared->asked_out = true; }
    [[nodiscard]] unsigned index() const noexcept { return number; }
};
static_assert(vm_accel::virtual_cpu<scripted_vcpu>);

guest_end run_three(vm_accel::result<vm_accel::vcpu_exit> second, std::set<unsigned>* pinned) {
    std::vector<scripted_vcpu> vcpus;
    for (unsigned i = 0; i < 3; ++i)
        vcpus.push_back({i});
    vcpus[1].script = std::move(second);
    vcpus[1].interruptions = 5;
    vcpu_threads threads{vcpus};
    vm_accel::empty_bus bus;
    std::mutex mutex;
    return threads.run(
        bus,
        [&](unsigned vcpu) {
            const std::lock_guard lock{mutex};
            pinned->insert(vcpu);
        },
        0);
}

} // namespace

TEST_CASE("vcpu_threads: one vCPU that ends the guest brings the others out") {
    std::set<unsigned> pinned;
    const guest_end off = run_three(vm_accel::vcpu_exit{exit_reason::shutdown, 1, 0}, &pinned);
    CHECK(off.powered_off());
    CHECK(off.text() == "powered off");
    CHECK(pinned == std::set<unsigned>{0, 1, 2});

    const guest_end reset = run_three(vm_accel::vcpu_exit{exit_reason::reset, 2, 7}, &pinned);
    CHECK_FALSE(reset.powered_off());
    CHECK(reset.text() == "reset, code 2, address 7");

    const guest_end broken =
        run_three(vm_accel::fail(vm_accel::errc::system_failure, "KVM_RUN: no", "cure"), &pinned);
    CHECK_FALSE(broken.powered_off());
    CHECK(broken.text() == "KVM_RUN: no");
}

TEST_CASE("vcpu_threads: a guest that does not end is stopped") {
    std::vector<scripted_vcpu> vcpus;
    vcpus.push_back({0});
    vcpus.push_back({1});
    vcpu_threads threads{vcpus};
    vm_accel::empty_bus bus;
    const guest_end end = threads.run(bus, [](unsigned) {}, 1);
    CHECK(end.timed_out);
    CHECK_FALSE(end.powered_off());
}

TEST_CASE("run_report: says which injection was not refused, in both forms") {
    run_report report;
    report.ended = "powered \"off\"\n";
    report.vcpus.push_back({"vcpu0", "3", "3", "reason", 1, {"fifo 5; b", "b", "no fifo"}});
    report.vcpus[0].accesses = {.75, vm_accel::access_source::placement_estimate};
    report.vcpus.push_back({"vcpu1", "4", "", "not pinned", 0});
    report.threads.push_back({"disk-io", "0-2", "0-2", "left for I/O", {}});
    report.memories.push_back({0x4000'0000, 2 << 20, 0, 1, 512, 511, "local", "bind to node 1",
                               "enforced", "query of pages"});
    report.smmu = {{"commands", 5}};
    report.injections = {{"unmapped", 0x10, 1, 1, 2, 2}, {"aborting-ste", 0x11, 1, 1, 2, 1}};
    CHECK(line_of(report.injections[0]) ==
          "INJECT unmapped stream 0x10 read refused write refused");
    CHECK(line_of(report.injections[1]) ==
          "INJECT aborting-ste stream 0x11 read refused write completed");
    CHECK(line_of(injection{"never tried", 1, 0, 0, 0, 0}) ==
          "INJECT never tried stream 0x1 read completed write completed");
    CHECK_FALSE(report.all_refused());

    CHECK(to_json(report).find("pci_disk") == std::string::npos);
    report.pci_disk = block_statistics{.reads = 7, .errors = 1};
    report.messages = {{"sent", 9}, {"refused", 2}};
    const std::string json = to_json(report);
    for (const char* part :
         {R"("ended":"powered \"off\"\n")",
          R"({"thread":"vcpu0","cpus":"3","planned_cpus":"3","guest_node":1,"reason":"reason",)"
          R"("requested":"fifo 5; b","given":"b","refused":"no fifo",)"
          R"("local_access_rate":0.75,"local_access_source":"placement estimate"})",
          R"("requested":"bind to node 1","given":"enforced","located_by":"query of pages",)"
          R"("local_access_rate":null,"local_access_source":"unknown"})",
          R"("thread":"vcpu1","cpus":"")",
          R"("threads":[{"thread":"disk-io","cpus":"0-2","planned_cpus":"0-2","reason":"left)",
          R"("pages":512,"pages_on_node":511)", R"("commands":5)",
          R"("pci_disk":{"reads":7,"writes":0,"flushes":0,"errors":1,)",
          R"("messages":{"sent":9,"refused":2})", R"("writes_refused":1,"refused":false)"}) {
        INFO(part);
        CHECK(json.find(part) != std::string::npos);
    }
    CHECK(std::count(json.begin(), json.end(), '{') == std::count(json.begin(), json.end(), '}'));

    const std::string table = to_table(report);
    CHECK(table.find("vcpu0: CPU 3, planned 3, guest node 1: reason\n"
                     "    local accesses 75.0 % (placement estimate)\n"
                     "    asked for fifo 5; b; given b; refused: no fifo\n") != std::string::npos);
    CHECK(table.find("vcpu1: CPU any (not pinned), planned 4") != std::string::npos);
    CHECK(table.find("disk-io: CPU 0-2, planned 0-2: left for I/O\n") != std::string::npos);
    CHECK(table.find("PCI disk: 7 reads") != std::string::npos);
    CHECK(table.find("messages: sent 9 refused 2") != std::string::npos);
    CHECK(table.find("511 of 512 pages on node 1") != std::string::npos);
    report.injections.pop_back();
    CHECK(report.all_refused());
}

TEST_CASE("placement: what the plan says of a thread, and what became of it") {
    using namespace vm_accel;
    vcpu_plan plan;
    plan.assignments.resize(3);
    for (unsigned v = 0; v < 3; ++v) {
        plan.assignments[v].vcpu = v;
        plan.assignments[v].cpu = 4 + v;
        plan.assignments[v].reason.append("because");
    }
    std::vector<vcpu_pin> pins(2);
    pins[0].vcpu = 2;
    pins[0].failure = error{errc::permission_denied, 1, "refused", "ask"};
    pins[1].vcpu = 0;
    pins[1].actual = os::cpu_set::of(4);
    scheduling_outcome& got = pins[1].scheduling;
    got.requested = {os::thread_priority::fifo(9), {}, core_sharing::this_vm};
    got.priority.given = os::given_priority{os::thread_priority::fifo(9), true, "SCHED_FIFO 9"};
    got.sharing.failure = error{errc::unsupported, 22, "no cookies", "none"};
    const auto said = describe_vcpus(plan, pins, {7, 8, 9});
    REQUIRE(said.size() == 3);
    CHECK(said[0].cpus == "4");
    CHECK(said[0].reason == "because");
    CHECK(said[0].node == 7);
    CHECK(said[0].wishes.requested == "fifo 9; cores shared within this VM");
    CHECK(said[0].wishes.given == "SCHED_FIFO 9");
    CHECK(said[0].wishes.refused == "no cookies");
    CHECK(said[1].cpus.empty()); // never placed
    CHECK(said[1].planned == "5");
    CHECK(said[1].wishes.requested.empty());
    CHECK(said[2].reason == "refused");
    CHECK(said[2].cpus.empty());

    vmm_thread_pin io;
    io.name.append("disk-io");
    io.requested = os::cpu_set::of(1) | os::cpu_set::of(2);
    io.actual = io.requested;
    io.reason.append("left");
    const auto threads = describe_threads({io});
    REQUIRE(threads.size() == 1);
    CHECK(threads[0].thread == "disk-io");
    CHECK(threads[0].cpus == "1-2");
    CHECK_FALSE(threads[0].node);
}
