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
    void report(report_section& section) const { section.fact("set-ups", set_ups); }

    unsigned set_ups = 0;
    bool initialized = false;
};

} // namespace

TEST_CASE("a report does not wait for a set-up in progress") {
    acceleration_manager<quick_device, slow_nodes> manager;
    std::thread setting_up{[&] { CHECK(manager.setup_full_acceleration()); }};
    while (!manager.memory().entered.load())
        std::this_thread::yield();

    const diagnostic_report during = manager.diagnostic_report();
    CHECK(during.find("memory")->state == backend_state::working);
    CHECK(during.find("memory")->facts.empty());
    CHECK(during.find("smmu")->state == backend_state::not_asked);

    manager.memory().released.store(true);
    setting_up.join();
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
    CHECK(manager.smmu().set_ups == 1);
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
