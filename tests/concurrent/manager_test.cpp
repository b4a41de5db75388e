/// The manager's promises to several threads at once.
#include <vm_accel/manager/acceleration_manager.hpp>

#include <catch2/catch.hpp>

#include <atomic>
#include <thread>
#include <vector>

using namespace vm_accel;

namespace {

/// Its set-up and changes last until the test lets them go, and write plain
/// members that report() reads: a report during one of them is a data race.
struct slow_nodes {
    using role = roles::memory;
    static constexpr std::string_view name = "slow_nodes";

    result<> init() noexcept {
        entered.store(true);
        while (!released.load())
            std::this_thread::yield();
        ++set_ups;
        initialized = true;
        return {};
    }
    bool is_initialized() const noexcept { return initialized; }
    result<> enable(unsigned nodes) noexcept {
        changing.store(true);
        while (held.load())
            std::this_thread::yield();
        if (nodes > 1000) return fail(errc::out_of_range, "1000 nodes", "ask for fewer");
        count = nodes;
        for (unsigned& node : spread)
            node = nodes;
        return {};
    }
    result<> disable() noexcept { return enable(0); }
    bool is_enabled() const noexcept { return count != 0; }
    void report(report_section& section) const {
        bool whole = true;
        for (const unsigned node : spread)
            whole = whole && node == count;
        section.fact("whole", whole);
        section.fact("nodes", count);
    }

    std::atomic<bool> entered{false};
    std::atomic<bool> released{false};
    std::atomic<bool> changing{false};
    std::atomic<bool> held{false};
    unsigned set_ups = 0;
    bool initialized = false;
    unsigned count = 0;
    unsigned spread[64]{};
};

struct quick_device {
    using role = roles::smmu;
    static constexpr std::string_view name = "quick_device";
    result<> init() noexcept {
        ++set_ups;
        initialized = true;
        return {};
    }
    bool is_initialized() const noexcept { return initialized; }
    void report(report_section& section) const { section.fact("set-ups", set_ups.load()); }

    std::atomic<unsigned> set_ups{0};
    bool initialized = false;
};

} // namespace

TEST_CASE("a report does not wait for a set-up in progress") {
    acceleration_manager<quick_device, slow_nodes> manager;
    result<> set_up{};
    std::thread setting_up{[&] { set_up = manager.setup_full_acceleration(); }};
    while (!manager.memory().entered.load())
        std::this_thread::yield();

    const diagnostic_report during = manager.diagnostic_report();
    CHECK(during.find("memory")->state == backend_state::working);
    CHECK(during.find("memory")->facts.empty());
    CHECK(during.find("smmu")->state == backend_state::not_asked);

    manager.memory().released.store(true);
    setting_up.join();
    CHECK(set_up);
    const diagnostic_report after = manager.diagnostic_report();
    CHECK(after.all_up());
    CHECK(after.find("memory")->find<bool>("whole") == true);
}

TEST_CASE("set-up asked for by several threads happens once, and all see it done") {
    acceleration_manager<quick_device, slow_nodes> manager;
    manager.memory().released.store(true);
    std::atomic<unsigned> up{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
        threads.emplace_back([&] {
            if (manager.setup_full_acceleration() && manager.is_smmu_initialized()) ++up;
        });
    }
    for (std::thread& thread : threads)
        thread.join();
    CHECK(up.load() == 4);
    CHECK(manager.memory().set_ups == 1);
    CHECK(manager.smmu().set_ups.load() == 1);
}

TEST_CASE("set-up and changes go one after the other, whichever backends they concern") {
    acceleration_manager<quick_device, slow_nodes> manager;
    manager.memory().released.store(true);
    manager.memory().held.store(true);
    result<> enabled{};
    result<> set_up{};
    std::thread first{[&] { enabled = manager.enable_numa(5); }};
    while (!manager.memory().changing.load())
        std::this_thread::yield();
    std::atomic<bool> started{false};
    std::thread second{[&] {
        started.store(true);
        set_up = manager.init_smmu();
    }};
    while (!started.load())
        std::this_thread::yield();
    for (int i = 0; i < 1000; ++i) // lets the second come as far as it may
        std::this_thread::yield();
    CHECK(manager.smmu().set_ups.load() == 0);
    manager.memory().held.store(false);
    first.join();
    second.join();
    CHECK(enabled);
    CHECK(set_up);
    CHECK(manager.smmu().set_ups.load() == 1);
}

TEST_CASE("a refused change that waited for another leaves what the other made") {
    acceleration_manager<slow_nodes> manager;
    manager.memory().released.store(true);
    manager.memory().held.store(true);
    result<> first_done{};
    result<> second_done{};
    std::thread first{[&] { first_done = manager.enable_numa(5); }};
    while (!manager.memory().changing.load())
        std::this_thread::yield();
    std::atomic<bool> started{false};
    std::thread second{[&] {
        started.store(true);
        second_done = manager.enable_numa(1001);
    }};
    while (!started.load())
        std::this_thread::yield();
    for (int i = 0; i < 1000; ++i) // lets the second come as far as it may
        std::this_thread::yield();
    manager.memory().held.store(false);
    first.join();
    second.join();
    CHECK(first_done);
    CHECK_FALSE(second_done);
    const diagnostic_report report = manager.diagnostic_report();
    CHECK(report.find("memory")->state == backend_state::up);
    CHECK(report.find("memory")->find<std::uint64_t>("nodes") == 5u);
    CHECK(report.find("memory")->failure.has_value());
}

TEST_CASE("reports and questions during changes see whole states only") {
    acceleration_manager<quick_device, slow_nodes> manager;
    manager.memory().released.store(true);
    std::atomic<bool> stop{false};
    std::atomic<unsigned> torn{0};
    std::atomic<unsigned> reports{0};
    std::vector<std::thread> readers;
    for (int i = 0; i < 2; ++i) {
        readers.emplace_back([&] {
            while (!stop.load()) {
                const diagnostic_report report = manager.diagnostic_report();
                if (report.find("memory")->find<bool>("whole") == false) ++torn;
                static_cast<void>(manager.is_numa_enabled());
                static_cast<void>(report.to_json());
                ++reports;
            }
        });
    }
    for (unsigned i = 1; i <= 300; ++i) {
        CHECK(manager.enable_numa(i));
        if (i % 3 == 0) CHECK(manager.disable_numa());
        std::this_thread::yield();
    }
    while (reports.load() < 20)
        std::this_thread::yield();
    stop.store(true);
    for (std::thread& reader : readers)
        reader.join();
    CHECK(torn.load() == 0);
}
