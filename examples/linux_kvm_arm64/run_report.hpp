/// What happened, for people and for programs.
#pragma once

#include "block_requests.hpp"
#include "injector.hpp"
#include "placement.hpp"

#include <vm_accel/guest/interrupt_sink.hpp>
#include <vm_accel/manager/diagnostic_report.hpp>
#include <vm_accel/numa/access_tracking.hpp>

#include <cstdint>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace linux_vmm {

/// Everything the report says, as plain data.
struct run_report {
    struct memory {
        std::uint64_t base = 0, bytes = 0;
        unsigned guest_node = 0;
        unsigned node = 0;       ///< host node planned
        std::uint64_t pages = 0; ///< that exist, as the kernel counts them
        std::uint64_t pages_on_node = 0;
        std::string reason;
        std::string requested; ///< of the kernel: "bind to node 1"
        std::string given;     ///< what it holds now, with the cause if it is less
        std::string located_by;
        vm_accel::local_access_rate accesses{}; ///< by the vCPUs of its guest node
    };
    /// Numbers of the SMMU, in the order in which they are shown.
    using numbers = std::vector<std::pair<std::string_view, std::uint64_t>>;

    std::string ended;
    std::vector<placed_thread> vcpus;
    std::vector<placed_thread> threads; ///< that run no vCPU
    std::vector<memory> memories;
    numbers smmu;
    double hit_rate = 0;
    numbers lines; ///< edges given to the guest, by line
    block_statistics disk;
    std::optional<block_statistics> pci_disk;
    numbers messages;          ///< of the disk on the PCI bus, and of the SMMU itself
    numbers ats;               ///< what the disk on the PCI bus did with it
    std::string_view features; ///< of the SMMU
    std::vector<injection> injections;
    vm_accel::diagnostic_report acceleration;

    [[nodiscard]] bool all_refused() const noexcept {
        for (const injection& i : injections)
            if (!i.refused()) return false;
        return true;
    }
};

[[nodiscard]] inline std::string_view verdict(unsigned attempts, unsigned refused) noexcept {
    return attempts != 0 && attempts == refused ? "refused" : "completed";
}

/// "INJECT unmapped stream 0x10 read refused write refused"
[[nodiscard]] inline std::string line_of(const injection& i) {
    std::ostringstream out;
    out << "INJECT " << i.name << " stream 0x" << std::hex << i.stream << std::dec << " read "
        << verdict(i.reads, i.reads_refused) << " write " << verdict(i.writes, i.writes_refused);
    return out.str();
}

inline void append_thread(std::ostream& out, const placed_thread& t) {
    out << t.thread << ": CPU " << (t.cpus.empty() ? "any (not pinned)" : t.cpus) << ", planned "
        << t.planned;
    if (t.node) out << ", guest node " << *t.node;
    out << ": " << t.reason << '\n';
    if (t.node) out << "    local accesses " << t.accesses << '\n';
    if (t.wishes.requested.empty()) return;
    out << "    asked for " << t.wishes.requested << "; given "
        << (t.wishes.given.empty() ? "nothing" : t.wishes.given);
    if (!t.wishes.refused.empty()) out << "; refused: " << t.wishes.refused;
    out << '\n';
}

[[nodiscard]] inline std::string to_table(const run_report& report) {
    std::ostringstream out;
    out << "guest: " << report.ended << '\n';
    for (const auto* threads : {&report.vcpus, &report.threads})
        for (const placed_thread& t : *threads)
            append_thread(out, t);
    for (const auto& m : report.memories) {
        out << "RAM 0x" << std::hex << m.base << std::dec << ": " << (m.bytes >> 20)
            << " MiB of guest node " << m.guest_node << ": " << m.pages_on_node << " of " << m.pages
            << " pages on node " << m.node << ": " << m.reason << '\n'
            << "    asked for " << m.requested << "; given " << m.given << "; located by "
            << m.located_by << "; local accesses " << m.accesses << '\n';
    }
    out << "SMMU, " << report.features << " features:";
    for (const auto& [name, value] : report.smmu)
        out << ' ' << name << ' ' << value << ',';
    out << " hit rate " << report.hit_rate << '\n' << "SMMU interrupts:";
    for (const auto& [name, value] : report.lines)
        out << ' ' << name << ' ' << value;
    const auto disk = [&out](std::string_view name, const block_statistics& d) {
        out << '\n'
            << name << ": " << d.reads << " reads (" << d.bytes_read << " bytes), " << d.writes
            << " writes (" << d.bytes_written << " bytes), " << d.flushes << " flushes, "
            << d.errors << " errors";
    };
    disk("disk", report.disk);
    if (report.pci_disk) {
        disk("PCI disk", *report.pci_disk);
        out << "\nmessages:";
        for (const auto& [name, value] : report.messages)
            out << ' ' << name << ' ' << value;
        out << "\nATS of the PCI disk:";
        for (const auto& [name, value] : report.ats)
            out << ' ' << name << ' ' << value;
    }
    out << '\n';
    for (const injection& i : report.injections)
        out << line_of(i) << ": " << (i.refused() ? "" : "NOT ") << "refused\n";
    out << report.acceleration.to_table();
    return out.str();
}

[[nodiscard]] inline std::string to_json(const run_report& report) {
    using vm_accel::report_text::append_json;
    using vm_accel::report_text::of_number;
    std::string out = "{\"ended\":";
    append_json(out, report.ended);
    const auto number = [&](std::string_view name, std::uint64_t value) {
        append_json(out += ',', name);
        out += ':' + std::to_string(value);
    };
    const auto text = [&](std::string_view name, std::string_view value) {
        append_json(out += ',', name);
        append_json(out += ':', value);
    };
    const auto accesses = [&](const vm_accel::local_access_rate& local) {
        const bool known = local.source != vm_accel::access_source::none;
        out += ",\"local_access_rate\":" + (known ? of_number(local.rate) : std::string{"null"});
        text("local_access_source", name_of(local.source));
    };
    const auto list = [&](std::string_view name, const auto& items, auto&& write) {
        append_json(out += ',', name);
        out += ":[";
        for (std::size_t i = 0; i < items.size(); ++i) {
            out += i == 0 ? "{" : ",{";
            write(items[i]);
            out += '}';
        }
        out += ']';
    };
    const auto thread = [&](const placed_thread& t) {
        append_json(out += "\"thread\":", t.thread);
        text("cpus", t.cpus);
        text("planned_cpus", t.planned);
        if (t.node) number("guest_node", *t.node);
        text("reason", t.reason);
        text("requested", t.wishes.requested);
        text("given", t.wishes.given);
        text("refused", t.wishes.refused);
        if (t.node) accesses(t.accesses);
    };
    list("vcpus", report.vcpus, thread);
    list("threads", report.threads, thread);
    list("memory", report.memories, [&](const run_report::memory& m) {
        out += "\"base\":" + std::to_string(m.base);
        number("bytes", m.bytes);
        number("guest_node", m.guest_node);
        number("node", m.node);
        number("pages", m.pages);
        number("pages_on_node", m.pages_on_node);
        text("reason", m.reason);
        text("requested", m.requested);
        text("given", m.given);
        text("located_by", m.located_by);
        accesses(m.accesses);
    });
    text("features", report.features);
    out += ",\"smmu\":{\"hit_rate\":" + of_number(report.hit_rate);
    for (const auto& [name, value] : report.smmu)
        number(name, value);
    out += '}';
    list("smmu_lines", report.lines, [&](const auto& line) {
        append_json(out += "\"name\":", line.first);
        number("edges", line.second);
    });
    const auto object = [&](std::string_view name, const run_report::numbers& values) {
        append_json(out += ',', name);
        out += ":{";
        std::string_view between;
        for (const auto& [field, value] : values) {
            append_json(out += between, field);
            out += ':' + std::to_string(value);
            between = ",";
        }
        out += '}';
    };
    const auto disk = [&](std::string_view name, const block_statistics& d) {
        object(name, {{"reads", d.reads},
                      {"writes", d.writes},
                      {"flushes", d.flushes},
                      {"errors", d.errors},
                      {"bytes_read", d.bytes_read},
                      {"bytes_written", d.bytes_written}});
    };
    disk("disk", report.disk);
    if (report.pci_disk) {
        disk("pci_disk", *report.pci_disk);
        object("messages", report.messages);
        object("ats", report.ats);
    }
    list("injections", report.injections, [&](const injection& i) {
        append_json(out += "\"name\":", i.name);
        number("stream", i.stream);
        number("reads", i.reads);
        number("reads_refused", i.reads_refused);
        number("writes", i.writes);
        number("writes_refused", i.writes_refused);
        out += i.refused() ? ",\"refused\":true" : ",\"refused\":false";
    });
    out += ",\"acceleration\":" + report.acceleration.to_json() + "}\n";
    return out;
}

} // namespace linux_vmm
