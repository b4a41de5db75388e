/// Runs cases on both machines and says where they differ.
#pragma once

#include "golden_model.hpp"
#include "known_errors.hpp"
#include "our_model.hpp"
#include "world_changes.hpp"

#include <array>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace differential {

struct session_options {
    std::vector<std::string> command; ///< starts QEMU
    std::string folder;
    std::uint64_t seed = 1;
    common_features features;
};

struct session_counts {
    std::uint64_t cases = 0;
    std::uint64_t different = 0;
    std::uint64_t accesses = 0;
    std::uint64_t faulting = 0; ///< accesses with an event or without data
    std::uint64_t events = 0;
    std::uint64_t commands = 0;
};

class session {
public:
    explicit session(session_options options) : options_(std::move(options)) { start(); }

    session_counts counts;
    coverage seen;
    golden_errors errors;

    /// Runs a case; the text is empty if both machines agree.
    std::string run(std::uint64_t number) {
        std::string difference;
        try {
            difference = compare(number);
        } catch (const std::exception& what) {
            difference = std::string{"the golden model stopped: "} + what.what() + "\n" + story_;
            start();
        }
        ++counts.cases;
        if (!difference.empty()) {
            ++counts.different;
            make_same();
        }
        return difference;
    }
    /// Whether the data of both machines is the same everywhere.
    [[nodiscard]] bool same_data() const { return memory_->same(data, data_bytes); }

private:
    using R = spec::event_record;

    void start() {
        golden_.reset();
        golden_ = std::make_unique<golden_model>(options_.command, options_.folder);
        ours_ = std::make_unique<our_model>();
        memory_ = std::make_unique<both_memories>(golden_->ram(), ours_->ram_bytes_at_start());
        compare_features();
        std::memset(golden_->ram(), 0, ram_bytes); // QEMU's device tree
        random_source random{options_.seed, 0x5eed};
        for (std::uint64_t at = 0; at < data_bytes; at += 8) {
            const std::uint64_t value = random.bits();
            std::memcpy(memory_->golden(data + at), &value, 8);
            std::memcpy(memory_->ours(data + at), &value, 8);
        }
        for (unsigned device = 0; device < device_count; ++device) {
            for (std::uint32_t at = 0; at < device_memory; at += 8) {
                const std::uint64_t value = random.bits();
                std::memcpy(bytes_[device].data() + at, &value, 8);
            }
            std::memcpy(golden_->ram() + (pattern - ram), bytes_[device].data(), device_memory);
            golden_->start_transfer({device, false, pattern, device_memory, 0});
            (void)golden_->complete();
        }
        restart_registers();
    }

    /// Nothing else means anything if the two do not offer the same.
    void compare_features() {
        for (std::uint32_t offset = spec::reg::IDR0; offset <= spec::reg::IDR5; offset += 4) {
            const std::size_t at = golden_->read_register(offset);
            const auto golden = static_cast<std::uint32_t>(golden_->finish()[at]);
            const std::uint32_t ours = ours_->read_register(offset);
            if (golden == ours) continue;
            char line[80];
            std::snprintf(line, sizeof line, "IDR%u: the golden model has %08x, we have %08x",
                          offset / 4, golden, ours);
            throw std::runtime_error{line};
        }
    }
    /// After a difference: what the golden model has is what both have.
    void make_same() {
        restart_registers();
        for (unsigned device = 0; device < device_count; ++device) {
            golden_->start_transfer({device, true, dump, device_memory, 0});
            (void)golden_->complete();
            std::memcpy(bytes_[device].data(), memory_->golden(dump), device_memory);
        }
        std::memcpy(memory_->ours(data), memory_->golden(data), data_bytes);
    }

    // --- registers of both ---------------------------------------------------

    void write(std::uint32_t offset, std::uint32_t value) {
        golden_->write_register(offset, value);
        ours_->write_register(offset, value);
    }
    void write_wide(std::uint32_t offset, std::uint64_t value) {
        golden_->write_register64(offset, value);
        ours_->write_register64(offset, value);
    }
    void restart_registers() {
        namespace reg = spec::reg;
        write(reg::CR0, 0);
        const std::size_t at = golden_->read_register(reg::GERROR);
        const std::uint32_t gerror = static_cast<std::uint32_t>(golden_->finish()[at]);
        golden_->write_register(reg::GERRORN, gerror);
        ours_->write_register(reg::GERRORN, ours_->read_register(reg::GERROR));
        produced_ = 0;
        event_ = 0;
        start_queues([this](std::uint32_t offset, std::uint64_t value, bool wide) {
            wide ? write_wide(offset, value) : write(offset, static_cast<std::uint32_t>(value));
        });
        (void)golden_->finish();
    }
    /// Both queues on, where the driver has come to.
    template <class Write>
    void start_queues(Write to) const {
        namespace reg = spec::reg;
        to(reg::CR1, 0xd75, false);
        to(reg::CMDQ_BASE, command_ring | command_log2, true);
        to(reg::CMDQ_PROD, produced_, false);
        to(reg::CMDQ_CONS, produced_, false);
        to(reg::EVENTQ_BASE, event_ring | event_log2, true);
        to(reg::EVENTQ_PROD, event_, false);
        to(reg::EVENTQ_CONS, event_, false);
        to(reg::CR0, 0xc, false);
    }
    void enable(bool on) { write(spec::reg::CR0, on ? 0xd : 0xc); }

    void enqueue(const spec::command& c) {
        const std::uint64_t at = command_ring + (produced_ & ((1U << command_log2) - 1)) * sizeof c;
        for (std::size_t i = 0; i < c.word.size(); ++i) {
            const std::uint64_t value = c.word[i].value();
            std::memcpy(memory_->golden(at + 8 * i), &value, 8);
            std::memcpy(memory_->ours(at + 8 * i), &value, 8);
        }
        produced_ = (produced_ + 1) & ((2U << command_log2) - 1);
        ++counts.commands;
    }
    void ring() {
        write(spec::reg::CMDQ_PROD, produced_);
        ours_->poll();
    }

    // --- one case ----------------------------------------------------------------

    std::string compare(std::uint64_t number) {
        story_.clear();
        random_source random{options_.seed, number};
        // With nothing left of earlier cases, a case alone does what it did among others.
        ours_->renew();
        start_queues([this](std::uint32_t offset, std::uint64_t value, bool wide) {
            wide ? ours_->write_register64(offset, value)
                 : ours_->write_register(offset, static_cast<std::uint32_t>(value));
        });
        memory_->forget();
        pool_.reset();
        world_builder builder{random, *memory_, pool_, seen, options_.features};
        const bool two_level = number % 2 == 1;
        world w = builder.build(two_level);
        describe(w);
        world_changes changes{random, *memory_, seen, builder, options_.features};

        namespace reg = spec::reg;
        write_wide(reg::STRTAB_BASE, w.table.base);
        write(reg::STRTAB_BASE_CFG,
              w.table.log2size | (two_level ? w.table.split << 6 | 1U << 16 : 0));
        write(reg::CR2, w.record_bad_stream_id ? 0x6 : 0x4);
        enqueue(spec::cmd_cfgi_all());
        enqueue(spec::tlbi_nsnh_all());
        enqueue(spec::cmd_sync(spec::sync_signal::SIG_NONE));
        ring();

        touched_.clear();
        reads_.fill(0);
        for (std::uint32_t& from : writes_from_) {
            from = static_cast<std::uint32_t>(random.below((read_buffer - 64) / 4) * 4);
        }
        if (random.percent(10)) {
            const bool abort = random.percent(50);
            write(reg::GBPA, 0x8000'1000U | (abort ? 1U << 20 : 0));
            seen.count("SMMUEN = 0", abort ? "GBPA aborts" : "GBPA lets through");
            std::string difference = round(random, w, true);
            write(reg::GBPA, 0x8000'1000U);
            if (!difference.empty()) return difference;
        }
        enable(true);
        const unsigned rounds = random.between(1, 3);
        for (unsigned i = 0; i < rounds; ++i) {
            if (i != 0) {
                const auto commands = changes.change(w);
                for (const spec::command& c : commands) {
                    enqueue(c);
                    tell("  command %016llx %016llx\n", c.word[0].value(), c.word[1].value());
                }
                if (!commands.empty()) enqueue(spec::cmd_sync(spec::sync_signal::SIG_NONE));
                if (random.percent(4)) {
                    std::string difference = bad_command(random);
                    if (!difference.empty()) return difference;
                } else {
                    ring();
                }
            }
            std::string difference = round(random, w, false);
            if (!difference.empty()) return difference;
        }
        enable(false);
        return compare_data();
    }

    /// One access by each of some devices.
    std::string round(random_source& random, world& w, bool off) {
        std::vector<transfer> transfers;
        for (unsigned device = 0; device < device_count; ++device) {
            if (!w.usable[device] || random.percent(15)) continue;
            transfers.push_back(plan(random, w, device, off));
        }
        if (transfers.empty()) return {};
        for (const transfer& t : transfers)
            golden_->start_transfer(t);
        const std::uint32_t golden_event = golden_->complete();

        constexpr std::uint32_t positions = (2U << event_log2) - 1;
        std::vector<spec::event_record> expected;
        std::vector<spec::event_record> found;
        for (std::uint32_t at = event_; ((at ^ golden_event) & positions) != 0; ++at) {
            spec::event_record record;
            std::memcpy(
                record.word.data(),
                memory_->golden(event_ring + (at & ((1U << event_log2) - 1)) * sizeof record),
                sizeof record);
            errors.clean(record);
            expected.push_back(record);
        }
        event_ = golden_event & positions;
        golden_->write_register(spec::reg::EVENTQ_CONS, event_);

        for (const transfer& t : transfers) {
            const bool privileged = random.percent(30);
            const std::size_t before = found.size();
            const std::size_t touched = touched_.size();
            std::uint32_t refused = 0;
            for (std::uint32_t done = 0; done < t.length;) {
                const std::uint32_t took = errors.access(*ours_, *memory_, w, t, done, privileged,
                                                         bytes_[t.device].data() + t.buffer + done,
                                                         found, touched_, refused);
                done += took;
            }
            ++counts.accesses;
            if (refused != 0) ++counts.faulting;
            seen.count("access", t.write ? "write" : "read");
            tell("  device %llu %s %016llx +%llx: ", t.device, t.write ? "writes" : "reads",
                 t.address, t.length);
            tell(refused != 0 ? "refused" : "done");
            if (touched_.size() != touched) tell(" at %llx", touched_[touched]);
            for (std::size_t i = before; i < found.size(); ++i) {
                const auto id = static_cast<spec::event_id>(get<R::Type>(found[i]));
                if (i != before) continue;
                seen.count("event", spec::name_of(id));
                story_ += " ";
                story_ += spec::name_of(id);
            }
            story_ += "\n";
        }
        counts.events += found.size();
        ours_->take_all_events();

        for (std::size_t i = 0; i < std::min(expected.size(), found.size()); ++i) {
            errors.follow(expected[i], found[i]);
        }
        std::size_t same = 0;
        while (same < expected.size() && same < found.size() &&
               is_same(expected[same], found[same])) {
            ++same;
        }
        if (same == expected.size() && same == found.size()) return {};
        std::string text = "events differ\n" + story_;
        for (std::size_t i = same == 0 ? 0 : same - 1;
             i < std::max(expected.size(), found.size()) && i < same + 3; ++i) {
            text += i < expected.size() ? "  golden " + words_of(expected[i]) : "  golden none\n";
            text += i < found.size() ? "  ours   " + words_of(found[i]) : "  ours   none\n";
        }
        return text;
    }
    static bool is_same(const spec::event_record& a, const spec::event_record& b) {
        for (std::size_t i = 0; i < a.word.size(); ++i) {
            if (a.word[i].value() != b.word[i].value()) return false;
        }
        return true;
    }

    transfer plan(random_source& random, world& w, unsigned device, bool off) {
        const stream& s = w.streams[device];
        transfer t;
        t.device = device;
        t.write = random.percent(50);
        t.length = random.pick<std::uint32_t>({4, 4, 4, 4, 8, 16, 64});
        const std::vector<point>* points = nullptr;
        unsigned tag_mask = 0;
        if (!off && s.kind == stream_kind::stage2) points = &w.machines[s.machine].points;
        if (!off && s.kind != stream_kind::stage2 && s.kind != stream_kind::bypass) {
            const address_space& space = w.spaces[s.space];
            points = &space.points;
            if (space.tags_used) tag_mask = 0xff;
            if (space.hierarchical) t.write = true;
        }
        const bool plain = off || points == nullptr || points->empty();
        std::uint64_t address = 0;
        if (plain) {
            address = data + random.below(data_bytes - 4096);
            if (random.percent(10) && !off) address = far_hole << random.below(3);
        } else {
            const point& p = (*points)[static_cast<std::size_t>(random.below(points->size()))];
            address = p.address + random.below(4096);
            const unsigned dice = static_cast<unsigned>(random.below(100));
            const bool well = s.kind != stream_kind::stage2 && w.spaces[s.space].hierarchical;
            if (well) {
                address = p.address + random.below(4096 - 64);
            } else if (dice < 5) {
                address = p.address + 4096 - 8;
            } else if (dice < 10) {
                // Inside a block only where data is.
                unsigned bit = random.between(12, 63);
                if (bit > 20 && p.leaf_bytes >> bit > 1) bit = random.between(12, 20);
                address ^= std::uint64_t{1} << bit;
                t.write = false;
            } else if (dice < 13) {
                address = random.bits();
                t.write = false;
            } else if (dice < 16) {
                address = p.address ^ p.leaf_bytes;
                t.write = false;
            }
            if (tag_mask != 0 && !well && random.percent(40)) {
                address = (address & ~(std::uint64_t{0xff} << 56)) | random.bits() << 56;
            }
        }
        t.address = address & ~std::uint64_t{3};
        if (points != nullptr && s.kind == stream_kind::stage2) {
            // Once the golden model has cached a read-only page of stage 2 alone, it refuses writes
            // to it without a record: such pages are only written.
            const table_tree& tree = w.machines[s.machine].tree;
            for (const std::uint64_t end : {t.address, t.address + t.length - 1}) {
                const auto leaf = find_leaf(*memory_, tree, end);
                if (leaf && (*leaf & 1) != 0 && (*leaf >> 6 & 3) == 1) t.write = true;
            }
        }
        if (~t.address < t.length) t.address -= 64;
        if (t.write) {
            t.buffer = writes_from_[device];
        } else {
            t.buffer = read_buffer + 64 * reads_[device]++;
        }
        return t;
    }

    /// A command that must stop the queue; then the error is acknowledged.
    std::string bad_command(random_source& random) {
        namespace reg = spec::reg;
        spec::command c;
        const unsigned kind = random.between(0, 1);
        if (kind == 0) {
            set<spec::command::Opcode>(
                c, random.pick<std::uint64_t>({0x00, 0x08, 0x0f, 0x14, 0x31, 0x47, 0x4f, 0xff}));
        } else {
            c = spec::cmd_cfgi_ste(vm_accel::stream_id{8}, true);
            set<spec::command::SSec>(c, 1);
        }
        const std::uint64_t at = command_ring + (produced_ & ((1U << command_log2) - 1)) * sizeof c;
        enqueue(c);
        enqueue(spec::cmd_sync(spec::sync_signal::SIG_NONE));
        ring();
        const auto look = [&](std::string& text) {
            std::array<std::uint32_t, 3> golden{};
            std::array<std::uint32_t, 3> ours{};
            const std::array<std::uint32_t, 3> offsets{reg::CMDQ_CONS, reg::GERROR, reg::GERRORN};
            for (const std::uint32_t offset : offsets)
                (void)golden_->read_register(offset);
            const auto& answers = golden_->finish();
            for (std::size_t i = 0; i < 3; ++i) {
                golden[i] = static_cast<std::uint32_t>(answers[answers.size() - 3 + i]);
                ours[i] = ours_->read_register(offsets[i]);
            }
            // GERROR and GERRORN toggle: what is active is what counts.
            if (golden[0] != ours[0] || (golden[1] ^ golden[2]) != (ours[1] ^ ours[2])) {
                char line[160];
                std::snprintf(line, sizeof line,
                              "command error differs: CMDQ_CONS golden %08x ours %08x, active "
                              "errors golden %x ours %x\n",
                              golden[0], ours[0], golden[1] ^ golden[2], ours[1] ^ ours[2]);
                text = line + story_;
            }
            return std::array<std::uint32_t, 2>{golden[1], ours[1]};
        };
        std::string text;
        const auto gerror = look(text);
        if (!text.empty()) return text;
        const spec::command sync = spec::cmd_sync(spec::sync_signal::SIG_NONE);
        for (std::size_t i = 0; i < 2; ++i) {
            const std::uint64_t value = sync.word[i].value();
            std::memcpy(memory_->golden(at + 8 * i), &value, 8);
            std::memcpy(memory_->ours(at + 8 * i), &value, 8);
        }
        golden_->write_register(reg::GERRORN, gerror[0]);
        ours_->write_register(reg::GERRORN, gerror[1]);
        ours_->poll();
        seen.count("command error", kind == 0 ? "opcode" : "SSec");
        look(text);
        return text;
    }

    /// What the devices have read, and the memory that ours wrote or read.
    std::string compare_data() {
        for (unsigned device = 0; device < device_count; ++device) {
            if (reads_[device] == 0) continue;
            golden_->start_transfer(
                {device, true, dump + device * 512, 64 * reads_[device], read_buffer});
        }
        (void)golden_->complete();
        for (unsigned device = 0; device < device_count; ++device) {
            const std::byte* const golden = memory_->golden(dump + device * 512);
            const std::byte* const ours = bytes_[device].data() + read_buffer;
            for (std::size_t at = 0; at < 64 * reads_[device]; ++at) {
                if (golden[at] == ours[at]) continue;
                char line[160];
                std::snprintf(line, sizeof line,
                              "device %u, its read %zu, byte %zu: golden %02x ours %02x\n", device,
                              at / 64 + 1, at % 64, std::to_integer<unsigned>(golden[at]),
                              std::to_integer<unsigned>(ours[at]));
                return line + story_;
            }
        }
        for (const std::uint64_t address : touched_) {
            const std::uint64_t page = address & ~std::uint64_t{0xfff};
            if (page >= data && page < data + data_bytes && !memory_->same(page, 4096)) {
                char line[80];
                std::snprintf(line, sizeof line, "memory differs at %llx\n",
                              static_cast<unsigned long long>(page));
                return line + story_;
            }
        }
        return {};
    }

    // --- words -------------------------------------------------------------------

    template <class... Values>
    void tell(const char* format, Values... values) {
        char line[256];
        if constexpr (sizeof...(values) == 0) {
            story_ += format;
        } else {
            std::snprintf(line, sizeof line, format, printable(values)...);
            story_ += line;
        }
    }
    static const char* printable(const char* text) { return text; }
    template <class T>
    static unsigned long long printable(T value) {
        return static_cast<unsigned long long>(value);
    }
    static std::string words_of(const spec::event_record& record) {
        char line[160];
        std::snprintf(
            line, sizeof line, "%016llx %016llx %016llx %016llx %s\n",
            static_cast<unsigned long long>(record.word[0].value()),
            static_cast<unsigned long long>(record.word[1].value()),
            static_cast<unsigned long long>(record.word[2].value()),
            static_cast<unsigned long long>(record.word[3].value()),
            std::string{spec::name_of(static_cast<spec::event_id>(get<R::Type>(record)))}.c_str());
        return line;
    }
    void describe(const world& w) {
        tell("  stream table log2size %llu split %llu base %llx\n", w.table.log2size,
             w.table.two_level ? w.table.split : 0, w.table.base);
        for (std::size_t i = 0; i < w.machines.size(); ++i) {
            const machine_space& m = w.machines[i];
            tell("  machine %llu: VMID %llx", i, m.vmid);
            if (m.stage2) {
                tell(", stage 2 of %llu bits, granule 2^%llu, level %llu, root %llx, PS %llu",
                     m.tree.input_bits, m.tree.granule, m.tree.start_level, m.tree.root, m.ps);
                tell(", tables at IPA %llx", m.table_window);
            }
            story_ += "\n";
        }
        for (std::size_t i = 0; i < w.spaces.size(); ++i) {
            const address_space& a = w.spaces[i];
            tell("  space %llu: machine %llu, ASID %llx%s%s, CD at %llx", i, a.machine, a.asid,
                 a.nested ? ", nested" : "", a.hierarchical ? ", table attributes" : "", a.place);
            for (std::size_t half = 0; half < 2; ++half) {
                if (!a.enabled[half]) continue;
                tell("; half %llu of %llu bits, granule 2^%llu, root %llx", half,
                     a.tree[half].input_bits, a.tree[half].granule, a.tree[half].root);
            }
            story_ += "\n    CD";
            for (std::size_t word = 0; word < 4; ++word) {
                tell(" %016llx", a.descriptor.word[word].value());
            }
            story_ += "\n";
        }
        for (unsigned device = 0; device < device_count; ++device) {
            const stream& s = w.streams[device];
            tell("  device %llu: stream %llx, %s, space %llu, machine %llu, STE", device,
                 stream_of(device), stream_kind_names[static_cast<std::size_t>(s.kind)], s.space,
                 s.machine);
            for (std::size_t word = 0; word < 4; ++word) {
                tell(" %016llx", s.entry.word[word].value());
            }
            story_ += "\n";
        }
    }

    session_options options_;
    std::unique_ptr<golden_model> golden_;
    std::unique_ptr<our_model> ours_;
    std::unique_ptr<both_memories> memory_;
    table_memory pool_;
    std::array<std::array<std::byte, device_memory>, device_count> bytes_{};
    std::array<std::uint32_t, device_count> reads_{};
    std::array<std::uint32_t, device_count> writes_from_{};
    std::vector<std::uint64_t> touched_;
    std::uint32_t produced_ = 0;
    std::uint32_t event_ = 0;
    std::string story_;
};

} // namespace differential
