/// Backends that do nothing but record what the manager does to them.
#pragma once

#include <vm_accel/manager/acceleration_manager.hpp>

#include <string>
#include <vector>

namespace recording {

using namespace vm_accel;

/// What happened, in order; shared by all backends of a test.
inline std::vector<std::string>& journal() {
    static std::vector<std::string> entries;
    return entries;
}

struct ram {
    using role = roles::guest_memory;
    static constexpr std::string_view name = "recorded_ram";
};

struct placement {
    using role = roles::vcpus;
    static constexpr std::string_view name = "recorded_placement";

    result<> init() noexcept {
        journal().push_back("vcpus.init");
        if (refuses) return fail(errc::unavailable, "no processors", "buy one", 19);
        initialized = true;
        return {};
    }
    bool is_initialized() const noexcept { return initialized; }
    const std::string& topology() const noexcept { return shape; }
    result<unsigned> plan(unsigned vcpus) noexcept {
        journal().push_back("vcpus.plan " + std::to_string(vcpus));
        if (vcpus > 8) return fail(errc::out_of_range, "8 processors", "ask for at most 8");
        planned = vcpus;
        return vcpus;
    }
    template <class Section>
    void report(Section& section) const {
        section.fact("planned", planned);
    }

    bool refuses = false;
    bool initialized = false;
    unsigned planned = 0;
    std::string shape = "one package";
};

struct nodes {
    using role = roles::memory;
    static constexpr std::string_view name = "recorded_nodes";

    void connect(const placement&) noexcept { journal().push_back("memory.connect vcpus"); }
    result<> enable(unsigned count) noexcept {
        journal().push_back("memory.enable " + std::to_string(count));
        if (count > 2) return fail(errc::out_of_range, "2 nodes", "ask for at most 2");
        enabled = true;
        return {};
    }
    result<> disable() noexcept {
        journal().push_back("memory.disable");
        enabled = false;
        return {};
    }
    bool is_enabled() const noexcept { return enabled; }
    static bool is_available() noexcept { return false; }

    bool enabled = false;
};

struct device {
    using role = roles::smmu;
    static constexpr std::string_view name = "recorded_device";

    device() = default;
    explicit device(std::string l) : label(std::move(l)) {}
    device(const device&) = delete;
    device& operator=(const device&) = delete;

    void connect(ram& memory) noexcept {
        journal().push_back("smmu.connect guest_memory");
        connected = &memory;
    }
    result<> init() noexcept {
        journal().push_back("smmu.init");
        if (connected == nullptr) return fail(errc::not_initialized, "no memory", "connect one");
        if (refuses) return fail(errc::busy, "device is busy", "wait", 16);
        initialized = true;
        return {};
    }
    bool is_initialized() const noexcept { return initialized; }
    template <class Section>
    void report(Section& section) const {
        section.given("a recorded device");
        section.fact("hit rate", 0.5);
        section.fact("label", label);
    }

    ram* connected = nullptr;
    bool refuses = false;
    bool initialized = false;
    std::string label = "plain";
};

struct machine {
    using role = roles::hypervisor;
    static constexpr std::string_view name = "recorded_machine";
    struct capabilities {
        bool available = false;
        error why_not{errc::unavailable, 2, "/dev/none: no such file", "load the module"};
    };

    static capabilities detect() noexcept { return {}; }
    void connect(device&) noexcept { journal().push_back("hypervisor.connect smmu"); }
    result<> init() noexcept {
        journal().push_back("hypervisor.init");
        initialized = true;
        return {};
    }
    bool is_initialized() const noexcept { return initialized; }

    bool initialized = false;
};

} // namespace recording
