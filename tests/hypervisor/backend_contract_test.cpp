/// What every hypervisor backend must do, run on each of them. KVM is skipped,
/// with a line that says so, where /dev/kvm cannot be used; hvf runs on a model of Apple's
/// framework.
#include "guests.hpp"

#include <catch2/catch.hpp>

#include <atomic>
#include <thread>
#include <tuple>

using namespace vm_accel;
using namespace guests;

namespace {

using models = std::tuple<software_model, kvm_model, hvf_arm64_model, hvf_x86_64_model, whpx_model>;

constexpr std::uint64_t mib = 0x10'0000;

/// Reports what it sees of lines 7 and 8.
struct line_program {
    std::array<bool, 4> seen{};
    template <class Port>
    exit_reason operator()(Port& p) noexcept {
        seen = {p.line_level(7), p.take_edge(7), p.take_edge(7), p.take_edge(8)};
        return exit_reason::shutdown;
    }
};

} // namespace

TEMPLATE_LIST_TEST_CASE("a guest reaches RAM directly and everything else through the bus",
                        "[hypervisor]", models) {
    auto backend = TestType::open();
    if (!backend) return;
    auto vm = backend->create_vm();
    REQUIRE(vm);
    ram memory{0x1'0000};
    REQUIRE(vm->add_memory(pa{0}, memory.data(), memory.size()));
    auto vcpu = vm->create_vcpu(0);
    REQUIRE(vcpu);
    CHECK(vcpu->index() == 0);
    TestType::start(*vcpu, memory, task::echo);

    recording_bus bus;
    const auto ended = vcpu->run(bus);
    REQUIRE(ended);
    CHECK(name_of(ended->reason) == name_of(TestType::end));
    const std::vector<access_record> expected{
        {false, 0xd000'0000, 4, 0x5566'7700},
        {true, 0xd000'0008, 4, 0x5566'7701},
        {false, 0xd000'0010, 8, 0x1122'3344'5566'7710},
        {true, 0xd000'0018, 8, 0x1122'3344'5566'7710},
        {true, 0xd000'0020, 4, 0x5a},
    };
    CHECK(bus.mmio == expected);
    CHECK(memory.at<std::uint32_t>(raw(word)) == 0x5a);
}

TEMPLATE_LIST_TEST_CASE("memory slots: what is refused, and that it changes nothing",
                        "[hypervisor]", models) {
    auto backend = TestType::open();
    if (!backend) return;
    auto vm = backend->create_vm();
    REQUIRE(vm);
    ram memory{0x4'0000};
    REQUIRE(vm->add_memory(pa{mib}, memory.data(), 0x1'0000));

    struct row {
        const char* what;
        std::uint64_t base;
        std::uint64_t offset; ///< of the host pointer; ~0: null
        std::uint64_t bytes;
        errc code;
    };
    const row rows[] = {
        {"no bytes", 2 * mib, 0, 0, errc::invalid_argument},
        {"no host memory", 2 * mib, ~0ull, 0x1000, errc::invalid_argument},
        {"base misaligned", 2 * mib + 0x800, 0, 0x1000, errc::invalid_argument},
        {"host misaligned", 2 * mib, 8, 0x1000, errc::invalid_argument},
        {"size misaligned", 2 * mib, 0, 0x1001, errc::invalid_argument},
        {"wraps", ~0xfffull, 0, 0x2000, errc::invalid_argument},
        {"same place", mib, 0x2'0000, 0x1'0000, errc::already_exists},
        {"over the start", mib - 0x1000, 0x2'0000, 0x2000, errc::already_exists},
        {"over the end", mib + 0xf000, 0x2'0000, 0x2000, errc::already_exists},
        {"inside", mib + 0x4000, 0x2'0000, 0x1000, errc::already_exists},
        {"around", mib - 0x1000, 0x2'0000, 0x1'2000, errc::already_exists},
    };
    for (const row& r : rows) {
        CAPTURE(r.what);
        std::byte* const host = r.offset == ~0ull ? nullptr : memory.data() + r.offset;
        const result<> refused = vm->add_memory(pa{r.base}, host, r.bytes);
        REQUIRE_FALSE(refused);
        CHECK(name_of(refused.error().code) == name_of(r.code));
        CHECK_FALSE(refused.error().cause.empty());
        CHECK_FALSE(refused.error().cure.empty());
    }
    // Neighbours are free, and only a base names a region.
    CHECK(vm->add_memory(pa{mib - 0x1000}, memory.data() + 0x2'0000, 0x1000));
    CHECK(vm->add_memory(pa{mib + 0x1'0000}, memory.data() + 0x3'0000, 0x1000));
    const result<> inside = vm->remove_memory(pa{mib + 0x1000});
    REQUIRE_FALSE(inside);
    CHECK(inside.error() == errc::not_found);
    CHECK(vm->remove_memory(pa{mib}));
    CHECK_FALSE(vm->remove_memory(pa{mib}));
    CHECK(vm->add_memory(pa{mib + 0x4000}, memory.data(), 0x1000));
}

TEMPLATE_LIST_TEST_CASE("memory that was removed is MMIO, and RAM again once added", "[hypervisor]",
                        models) {
    auto backend = TestType::open();
    if (!backend) return;
    auto vm = backend->create_vm();
    REQUIRE(vm);
    ram memory{0x1'0000};
    ram more{0x1000};
    more.put<std::uint32_t>(0, 0xcafe'f00d);
    REQUIRE(vm->add_memory(pa{0}, memory.data(), memory.size()));
    auto vcpu = vm->create_vcpu(0);
    REQUIRE(vcpu);

    for (int round = 0; round < 3; ++round) {
        recording_bus with;
        REQUIRE(vm->add_memory(pa{0x1'0000}, more.data(), more.size()));
        TestType::start(*vcpu, memory, task::ram_copy);
        auto ended = vcpu->run(with);
        REQUIRE(ended);
        CHECK(with.mmio == std::vector<access_record>{{true, 0xd000'0008, 4, 0xcafe'f00d}});

        recording_bus without;
        REQUIRE(vm->remove_memory(pa{0x1'0000}));
        TestType::start(*vcpu, memory, task::ram_copy);
        if constexpr (std::is_same_v<TestType, kvm_model> &&
                      os::kvm_platform::architecture == os::kvm_architecture::arm64) {
            break; // a machine that has powered off is not started again
        }
        ended = vcpu->run(without);
        REQUIRE(ended);
        CHECK(without.mmio == std::vector<access_record>{{false, 0x1'0000, 4, 0x5566'7700},
                                                         {true, 0xd000'0008, 4, 0x5566'7700}});
    }
}

TEMPLATE_LIST_TEST_CASE("vCPUs: each index once", "[hypervisor]", models) {
    auto backend = TestType::open();
    if (!backend) return;
    auto vm = backend->create_vm();
    REQUIRE(vm);
    const auto first = vm->create_vcpu(0);
    const auto second = vm->create_vcpu(1);
    CHECK(first);
    CHECK(second);
    const auto again = vm->create_vcpu(1);
    REQUIRE_FALSE(again);
    CHECK(name_of(again.error().code) == name_of(errc::already_exists));
    const auto beyond = vm->create_vcpu(1'000'000);
    REQUIRE_FALSE(beyond);
    CHECK(name_of(beyond.error().code) == name_of(errc::out_of_range));
}

TEMPLATE_LIST_TEST_CASE("an exit requested before run() is not lost", "[hypervisor]", models) {
    auto backend = TestType::open();
    if (!backend) return;
    auto vm = backend->create_vm();
    REQUIRE(vm);
    ram memory{0x1'0000};
    REQUIRE(vm->add_memory(pa{0}, memory.data(), memory.size()));
    auto vcpu = vm->create_vcpu(0);
    REQUIRE(vcpu);
    TestType::start(*vcpu, memory, task::echo);

    recording_bus bus;
    vcpu->request_exit();
    vcpu->request_exit(); // two before it returns are one
    auto moved = std::move(*vcpu);
    auto ended = moved.run(bus);
    REQUIRE(ended);
    CHECK(name_of(ended->reason) == "interrupted");
    CHECK(bus.mmio.empty());
    ended = moved.run(bus);
    REQUIRE(ended);
    CHECK(name_of(ended->reason) == name_of(TestType::end));
    CHECK(bus.mmio.size() == 5);
}

TEMPLATE_LIST_TEST_CASE("another thread brings a vCPU back, wherever it is", "[hypervisor]",
                        models) {
    const task what = GENERATE(task::spin, task::hammer);
    auto backend = TestType::open();
    if (!backend) return;
    auto vm = backend->create_vm();
    REQUIRE(vm);
    ram memory{0x1'0000};
    REQUIRE(vm->add_memory(pa{0}, memory.data(), memory.size()));
    auto vcpu = vm->create_vcpu(0);
    REQUIRE(vcpu);
    TestType::start(*vcpu, memory, what);

    // Each request is made while the last one has been answered, at a moment
    // that drifts through run()'s entry, the guest and the bus.
    constexpr unsigned rounds = 300;
    std::atomic<unsigned> answered{0};
    unsigned wrong = 0; // read after join
    std::thread runner{[&] {
        recording_bus bus;
        for (unsigned i = 0; i < rounds; ++i) {
            const auto ended = vcpu->run(bus);
            if (!ended || ended->reason != exit_reason::interrupted) ++wrong;
            answered.store(i + 1);
        }
    }};
    for (unsigned i = 0; i < rounds; ++i) {
        while (answered.load() != i)
            std::this_thread::yield();
        for (std::atomic<unsigned> wait{0}; wait.load() < 97 * i; ++wait) {}
        vcpu->request_exit();
    }
    runner.join();
    CHECK(wrong == 0);
}

TEMPLATE_LIST_TEST_CASE("a vCPU that is running refuses a second runner", "[hypervisor]", models) {
    auto backend = TestType::open();
    if (!backend) return;
    auto vm = backend->create_vm();
    REQUIRE(vm);
    ram memory{0x1'0000};
    REQUIRE(vm->add_memory(pa{0}, memory.data(), memory.size()));
    auto vcpu = vm->create_vcpu(0);
    REQUIRE(vcpu);
    TestType::start(*vcpu, memory, task::echo);

    unsigned refused = 0;
    recording_bus bus;
    bus.on_write = [&](const access_record&) {
        empty_bus other;
        const auto nested = vcpu->run(other);
        if (!nested && nested.error() == errc::busy) ++refused;
    };
    const auto ended = vcpu->run(bus);
    REQUIRE(ended);
    CHECK(name_of(ended->reason) == name_of(TestType::end));
    CHECK(refused == 3);
}

TEMPLATE_LIST_TEST_CASE("interrupt lines that do not exist are refused", "[hypervisor]", models) {
    auto backend = TestType::open();
    if (!backend) return;
    auto vm = backend->create_vm();
    REQUIRE(vm);
    const result<> refused = vm->set_line(5000, true);
    REQUIRE_FALSE(refused);
    CHECK(name_of(refused.error().code) == name_of(errc::out_of_range));
    CHECK_FALSE(refused.error().cure.empty());
    CHECK_FALSE(vm->pulse_line(5000));
}

TEST_CASE("a backend is taken into use once", "[hypervisor]") {
    SECTION("software") {
        software<program> backend;
        CHECK(backend.detect().available);
        CHECK_FALSE(backend.is_initialized());
        const auto early = backend.create_vm();
        REQUIRE_FALSE(early);
        CHECK(early.error() == errc::not_initialized);
        REQUIRE(backend.init());
        CHECK(backend.is_initialized());
        CHECK(backend.init().error() == errc::already_initialized);
    }
    SECTION("kvm") {
        kvm backend;
        CHECK_FALSE(backend.is_initialized());
        const auto early = backend.create_vm();
        REQUIRE_FALSE(early);
        CHECK(early.error() == errc::not_initialized);
        const hypervisor_capabilities here = kvm::detect();
        const result<> done = backend.init();
        CHECK(done.has_value() == here.available);
        CHECK(backend.is_initialized() == here.available);
        if (!done) {
            CHECK(here.why_not == done.error().code);
            std::cout << "SKIP: no usable /dev/kvm: " << done.error() << '\n';
            return;
        }
        CHECK(backend.init().error() == errc::already_initialized);
        CHECK(here.api_version == 12);
        CHECK(here.maximum_vcpus >= 1);
        CHECK(here.memory_slots >= 32);
    }
}

TEST_CASE("software: lines carry levels and edges to the program", "[hypervisor]") {
    empty_bus bus;
    software<line_program> lines;
    REQUIRE(lines.init());
    auto vm = lines.create_vm();
    REQUIRE(vm);
    auto vcpu = vm->create_vcpu(0);
    REQUIRE(vcpu);
    const auto seen = [&] {
        REQUIRE(vcpu->run(bus));
        return vcpu->program().seen;
    };
    CHECK(seen() == std::array{false, false, false, false});
    REQUIRE(vm->pulse_line(7));
    CHECK(seen() == std::array{false, true, false, false});
    REQUIRE(vm->set_line(7, true));
    REQUIRE(vm->set_line(7, true)); // no second edge
    CHECK(seen() == std::array{true, true, false, false});
    CHECK(seen() == std::array{true, false, false, false});
    REQUIRE(vm->set_line(7, false));
    CHECK(seen() == std::array{false, false, false, false});
}
