/// Plays a recorded session into a device and judges its answers.
///
/// For each recorded translation the session's final tables decide what is
/// right. If they map the page: the recorded address, for the accesses that
/// the recorded permission allows, and a fault for the others. If they do not:
/// a fault, and the recorded command queue must hold the invalidation that
/// took the mapping out of use. Pages that were never mapped are controls.
#pragma once

#include "recorded_commands.hpp"
#include "seeding.hpp"

#include <vm_accel/smmu/vocabulary/access.hpp>

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <map>
#include <optional>
#include <ostream>
#include <set>
#include <string>
#include <vector>

namespace replay {

/// The device that is judged.
/// - write, read: its registers. poll(): goes on with work that a register
///   write left over; true = there is more.
/// - attach: lets a stream make accesses; false = cannot.
/// - access: one byte, through the TLB; the output address, nullopt = refused.
template <class D>
concept replay_device = requires(D& device, std::uint64_t n, unsigned size, stream_id sid,
                                 iova address, vm_accel::access kind) {
    { device.write(n, size, n) } -> std::same_as<void>;
    { device.read(n, size) } -> std::same_as<std::uint64_t>;
    { device.poll() } -> std::same_as<bool>;
    { device.attach(sid) } -> std::same_as<bool>;
    { device.access(sid, address, kind) } -> std::same_as<std::optional<pa>>;
};

struct verdict {
    unsigned translated = 0; ///< lines that are mapped and were translated right
    unsigned faulted = 0;    ///< lines that are not mapped and faulted, with their invalidation
    unsigned wrong = 0;      ///< lines and controls with another outcome
    unsigned seeded = 0;     ///< lines that were in the device's reach before the commands ran
    unsigned controls = 0;   ///< pages that were never mapped

    friend bool operator==(const verdict&, const verdict&) = default;
};

[[nodiscard]] inline std::string hex(std::uint64_t value) {
    return std::string{fixed_text<20>{}.append_number(value, 16).view()};
}

template <replay_device Device>
class session_replay {
public:
    /// `log` gets one line for whatever is wrong.
    session_replay(const recording& session, page_memory& memory, Device& device, std::ostream& log)
        : session_(session),
          memory_(memory),
          device_(device),
          log_(log),
          tables_(session, memory),
          commands_(session, tables_, memory) {
        for (const translation_line& t : session.translations) {
            if (!streams_.contains(raw(t.stream))) {
                streams_[raw(t.stream)] = tables_.stream(t.stream);
            }
        }
    }

    /// Errors: unsupported (a configuration that the final tables' reader does
    /// not know), exhausted (the device cannot attach a stream).
    [[nodiscard]] result<verdict> run(bool seed_tlb) {
        for (const auto& [sid, view] : streams_) {
            if (view.what == configured_stream::kind::unknown) {
                return fail(errc::unsupported,
                            fixed_text<160>{"stream "}.append_number(sid, 16).append(
                                " has stage 2, substreams or a table format not known here"),
                            "give a recording with stage-1 translation only");
            }
            if (!device_.attach(stream_id{sid})) {
                return fail(
                    errc::exhausted,
                    fixed_text<160>{"stream "}.append_number(sid, 16).append(" cannot be attached"),
                    "raise the number of StreamIDs in main.cpp");
            }
        }
        for (const register_write& w : session_.writes) {
            if (w.offset == spec::reg::CMDQ_PROD) {
                if (!seed_tlb) run_commands_to(w.value);
            } else {
                device_.write(w.offset, w.size, w.value);
                settle();
            }
        }
        if (seed_tlb) run_commands_with_stale_entries();
        for (const translation_line& t : session_.translations)
            judge(t);
        for (const auto& [sid, view] : streams_)
            judge_controls(stream_id{sid}, view);
        return verdict_;
    }

private:
    [[nodiscard]] const configured_stream& view_of(const translation_line& t) const {
        return streams_.at(raw(t.stream));
    }
    [[nodiscard]] tagged_space space_of(const translation_line& t) const {
        const configured_stream& view = view_of(t);
        if (view.what != configured_stream::kind::stage1) return {t.stream};
        return {t.stream, view.el2, get<spec::cd::ASID>(view.context)};
    }

    /// The command that took a removed mapping out of use, and the mapping's size.
    struct cover {
        std::size_t command = 0;
        std::uint64_t size = page_bytes;
    };
    [[nodiscard]] std::optional<cover> cover_of(const translation_line& t) const {
        for (const iova_range& was : tables_.possible_mappings(view_of(t), t)) {
            if (const auto command = commands_.last_cover(space_of(t), was)) {
                return cover{*command, was.size};
            }
        }
        return std::nullopt;
    }

    void settle() {
        while (device_.poll()) {}
    }

    /// Lets the device consume up to a queue index. A distance of more than the
    /// queue holds means that it wrapped in between: it is then filled first.
    void run_commands_to(std::uint64_t index) {
        const std::uint64_t size = tables_.command_queue_size();
        const std::uint64_t mask = 2 * size - 1;
        const std::uint64_t from = device_.read(spec::reg::CMDQ_CONS, 4) & mask;
        if (((index - from) & mask) > size) device_.write(spec::reg::CMDQ_PROD, 4, from ^ size);
        settle();
        device_.write(spec::reg::CMDQ_PROD, 4, index);
        settle();
        const std::uint64_t cons = device_.read(spec::reg::CMDQ_CONS, 4);
        const bool on = spec::CR0::CMDQEN::of(device_.read(spec::reg::CR0ACK, 4)) != 0;
        if (on && (cons & mask) != (index & mask) && !stopped_) {
            stopped_ = true;
            count_wrong("the command queue stopped at index " + hex(cons & mask) +
                        " with error code " + hex(spec::CMDQ_CONS::ERR::of(cons)));
        }
    }

    /// Fills the TLB, runs the recorded commands, and fills it again behind each
    /// command that dropped whole address spaces: so each stale entry is there
    /// when the command comes that has to find it.
    void run_commands_with_stale_entries() {
        struct candidate {
            const translation_line* line;
            bool mapped;
            std::optional<cover> covered;
        };
        std::vector<candidate> candidates;
        for (const translation_line& t : session_.translations) {
            candidates.push_back(
                {&t, tables_.find(view_of(t), t.address).has_value(), cover_of(t)});
        }
        // Blocks first: pages inside one are then mapped by it.
        std::sort(candidates.begin(), candidates.end(), [](const candidate& a, const candidate& b) {
            return (a.covered ? a.covered->size : 0) > (b.covered ? b.covered->size : 0);
        });
        std::set<const translation_line*> seeded;
        const auto fill = [&](std::size_t next_command) {
            seeded_tables added{memory_};
            std::vector<const translation_line*> present;
            for (const candidate& c : candidates) {
                const bool ahead = c.covered && c.covered->command >= next_command;
                if (c.mapped || (ahead && added.map(view_of(*c.line), *c.line, c.covered->size))) {
                    present.push_back(c.line);
                }
            }
            for (const translation_line* t : present) {
                const std::optional<pa> got =
                    device_.access(t->stream, t->address, vm_accel::access::read);
                if (got == t->output) seeded.insert(t);
                if (t->writable) {
                    (void)device_.access(t->stream, t->address, vm_accel::access::write);
                }
            }
        };
        run_commands_to(commands_.index_after(0));
        fill(0);
        for (std::size_t i = 0; i < commands_.count(); ++i) {
            const bool drops =
                std::any_of(session_.translations.begin(), session_.translations.end(),
                            [&](const translation_line& t) {
                                return recorded_commands::drops_whole(commands_[i], space_of(t));
                            });
            if (!drops) continue;
            run_commands_to(commands_.index_after(i + 1));
            fill(i + 1);
        }
        run_commands_to(commands_.index_after(commands_.count()));
        verdict_.seeded = static_cast<unsigned>(seeded.size());
    }

    void judge(const translation_line& t) {
        const std::optional<mapping> mapped = tables_.find(view_of(t), t.address);
        const std::optional<pa> read = device_.access(t.stream, t.address, vm_accel::access::read);
        const std::optional<pa> write =
            device_.access(t.stream, t.address, vm_accel::access::write);
        const std::string what = "line " + std::to_string(t.line) + ", stream " +
                                 hex(raw(t.stream)) + ", IOVA " + hex(raw(t.address)) + ": ";
        if (mapped) {
            if (*mapped != mapping{raw(t.output), t.readable, t.writable}) {
                count_wrong(what + "the final tables map it, but not as recorded");
            } else if (read != allowed(t.output, t.readable) ||
                       write != allowed(t.output, t.writable)) {
                count_wrong(what + "read gave " + shown(read) + ", write gave " + shown(write) +
                            "; recorded was " + hex(raw(t.output)) +
                            (t.readable ? " readable" : "") + (t.writable ? " writable" : ""));
            } else {
                ++verdict_.translated;
            }
        } else if (read || write) {
            count_wrong(what + "is no longer mapped, but read gave " + shown(read) +
                        " and write gave " + shown(write));
        } else if (!cover_of(t)) {
            count_wrong(what + "is no longer mapped, and no recorded command invalidates it");
        } else {
            ++verdict_.faulted;
        }
    }

    /// Pages beside the recorded ones, and far from them: what the final tables
    /// do not map and no line translates must fault.
    void judge_controls(stream_id sid, const configured_stream& view) {
        std::set<std::uint64_t> pages{0x1000,
                                      std::uint64_t{1} << 32,
                                      std::uint64_t{1} << 38,
                                      (std::uint64_t{1} << 47) - page_bytes,
                                      std::uint64_t{1} << 48,
                                      ~std::uint64_t{0} << 47,
                                      ~std::uint64_t{0} << 12};
        std::set<std::uint64_t> recorded;
        for (const translation_line& t : session_.translations) {
            if (t.stream != sid) continue;
            recorded.insert(page_of(raw(t.address)));
            pages.insert(page_of(raw(t.address)) + page_bytes);
            pages.insert(page_of(raw(t.address)) - page_bytes);
        }
        for (const std::uint64_t page : pages) {
            if (recorded.contains(page) || tables_.find(view, iova{page})) continue;
            ++verdict_.controls;
            const std::optional<pa> read = device_.access(sid, iova{page}, vm_accel::access::read);
            const std::optional<pa> write =
                device_.access(sid, iova{page}, vm_accel::access::write);
            if (read || write) {
                count_wrong("stream " + hex(raw(sid)) + ", IOVA " + hex(page) +
                            " was never mapped, but read gave " + shown(read) + " and write gave " +
                            shown(write));
            }
        }
    }

    [[nodiscard]] static std::optional<pa> allowed(pa output, bool permitted) {
        return permitted ? std::optional{output} : std::nullopt;
    }
    [[nodiscard]] static std::string shown(const std::optional<pa>& got) {
        return got ? hex(raw(*got)) : "a fault";
    }
    void count_wrong(const std::string& why) {
        ++verdict_.wrong;
        log_ << "wrong: " << why << '\n';
    }

    const recording& session_;
    page_memory& memory_;
    Device& device_;
    std::ostream& log_;
    final_tables tables_;
    recorded_commands commands_;
    std::map<std::uint32_t, configured_stream> streams_;
    verdict verdict_;
    bool stopped_ = false;
};

} // namespace replay
