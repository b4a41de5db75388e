/// The guest: brings the SMMU up as a driver does, maps pages, lets the DMA
/// device copy through them, and checks what came of it.
///
/// One source for both backends: everything it touches goes through `Port`,
///     T port.read<T>(pa)    void port.write<T>(pa, T)    void port.relax()
/// which is a load or store of the processor under KVM (payload_entry.cpp) and
/// a call of the software backend otherwise (main.cpp). No library is needed:
/// it runs on bare metal.
#pragma once

#include "machine.hpp"

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/field.hpp>
#include <vm_accel/spec/cd.hpp>
#include <vm_accel/spec/commands.hpp>
#include <vm_accel/spec/descriptors.hpp>
#include <vm_accel/spec/events.hpp>
#include <vm_accel/spec/registers.hpp>
#include <vm_accel/spec/ste.hpp>

#include <cstdint>

namespace payload {

using namespace vm_accel;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using machine::check;
using machine::stage;

inline constexpr u64 page_bytes = 4096;
inline constexpr u64 block_bytes = 0x20'0000;
/// Polls before a register that never answers is called broken.
inline constexpr u64 patience = 20'000'000;
/// Polls for an event once the device has reported its abort.
inline constexpr u64 event_patience = 100'000;

/// Writes what was found into the report page.
template <class Port>
class reporter {
public:
    explicit reporter(Port& port) : port_(port) {}

    void at(machine::format format, stage now) {
        stage_ = static_cast<u64>(now) | static_cast<u64>(format) << 32;
    }
    /// Records a check; true if it passed.
    bool expect(check what, u64 found, u64 expected) {
        const bool passed = found == expected;
        if (count_ < machine::reported::most_records) {
            const pa at{machine::report + machine::reported::first_record +
                        count_ * machine::reported::record_bytes};
            const u64 words[] = {stage_, static_cast<u64>(what), passed ? 1u : 0u, found, expected};
            for (u64 i = 0; i < 5; ++i)
                port_.template write<u64>(offset_by(at, 8 * i), words[i]);
        }
        ++count_;
        return passed;
    }
    void count_abort() { ++aborts_; }
    void finish() {
        write(machine::reported::records, count_);
        write(machine::reported::aborts, aborts_);
        write(machine::reported::magic, machine::reported::complete);
    }

private:
    void write(u64 offset, u64 value) {
        port_.template write<u64>(pa{machine::report + offset}, value);
    }
    Port& port_;
    u64 stage_ = 0;
    u64 count_ = 0;
    u64 aborts_ = 0;
};

/// Pages of the arena, in order, zeroed when handed out.
template <class Port>
class page_source {
public:
    explicit page_source(Port& port) : port_(port) {}

    [[nodiscard]] pa take(u64 bytes = page_bytes, u64 alignment = page_bytes) {
        next_ = (next_ + alignment - 1) & ~(alignment - 1);
        const pa taken{next_};
        for (u64 i = 0; i < bytes; i += 8)
            port_.template write<u64>(pa{next_ + i}, 0);
        next_ += bytes;
        return taken;
    }
    /// Leaves a hole, so that pages taken before and after do not touch.
    void skip() { next_ += page_bytes; }

private:
    Port& port_;
    u64 next_ = machine::arena;
};

/// What a page of the device's address space allows.
enum class rights : std::uint8_t { read_write, read_only, not_accessed };

/// Stage-1 tables, 4 KiB granule, 48-bit addresses, four levels.
template <class Port>
class page_table {
public:
    page_table(Port& port, page_source<Port>& pages)
        : port_(port), pages_(pages), root_(pages.take()) {}

    [[nodiscard]] pa root() const { return root_; }

    void map(iova at, pa page, rights allowed) {
        set_leaf(at, 3, leaf(raw(page), allowed) | spec::descriptor_kind::page);
    }
    void map_block(iova at, pa base, rights allowed) {
        set_leaf(at, 2, leaf(raw(base), allowed) | spec::descriptor_kind::block);
    }
    void unmap(iova at) { set_leaf(at, 3, 0); }

private:
    [[nodiscard]] static u64 leaf(u64 address, rights allowed) {
        // Unprivileged access, as devices do it; inner shareable, MAIR byte 1.
        u64 bits = address | spec::access_permission::unprivileged::mask |
                   spec::stage1_leaf::SH::in_place(3) | spec::stage1_leaf::nG::mask |
                   spec::stage1_leaf::AttrIndx::in_place(1);
        if (allowed == rights::read_only) bits |= spec::access_permission::read_only::mask;
        if (allowed != rights::not_accessed) bits |= spec::stage1_leaf::AF::mask;
        return bits;
    }
    void set_leaf(iova at, int level, u64 descriptor) {
        constexpr auto granule = spec::granule::size_4k;
        pa table = root_;
        for (int l = 0;; ++l) {
            const u64 index = raw(at) >> spec::covered_bits(granule, l) & 511;
            const pa entry = offset_by(table, 8 * index);
            if (l == level) {
                port_.template write<u64>(entry, descriptor);
                return;
            }
            const u64 found = port_.template read<u64>(entry);
            if ((found & spec::descriptor_kind::Valid::mask) != 0) {
                table = pa{found & spec::table_address_mask(granule)};
            } else {
                table = pages_.take();
                port_.template write<u64>(entry, raw(table) | spec::descriptor_kind::table);
            }
        }
    }

    Port& port_;
    page_source<Port>& pages_;
    pa root_;
};

/// The SMMU, as its driver sees it.
template <class Port>
class smmu_driver {
public:
    static constexpr asid address_space{1};
    static constexpr unsigned stream_table_log2 = 10;
    static constexpr unsigned split = 8;

    smmu_driver(Port& port, page_source<Port>& pages, reporter<Port>& report, stream_id stream,
                machine::format format, bool invalidate)
        : port_(port),
          pages_(pages),
          report_(report),
          stream_(stream),
          format_(format),
          invalidate_(invalidate) {}

    [[nodiscard]] static bool has_two_levels(Port& port) {
        return spec::IDR0::ST_LEVEL::of(
                   port.template read<u32>(pa{machine::smmu + spec::reg::IDR0})) == 1;
    }

    /// Reset to translating, in the order of a careful driver. False: given up.
    [[nodiscard]] bool bring_up(pa translation_table) {
        const u32 idr0 = read(spec::reg::IDR0);
        const u32 idr1 = read(spec::reg::IDR1);
        const u32 idr5 = read(spec::reg::IDR5);
        const bool usable = spec::IDR0::S1P::of(idr0) == 1 &&
                            (spec::IDR0::TTF::of(idr0) & 2) != 0 &&
                            spec::IDR5::GRAN4K::of(idr5) == 1;
        if (!report_.expect(check::features, usable ? 1 : 0, 1)) return false;
        const bool fits = raw(stream_) >> spec::IDR1::SIDSIZE::of(idr1) == 0 &&
                          raw(stream_) >> stream_table_log2 == 0;
        if (!report_.expect(check::stream_fits, fits ? 1 : 0, 1)) return false;

        if (!enable(check::disabled, 0)) return false;
        write(spec::reg::CR1, 0xd75); // write-back, inner shareable, all of them
        write(spec::reg::CR2, spec::CR2::PTM::mask | spec::CR2::RECINVSID::mask);
        write_stream_table();
        write_context(translation_table, spec::IDR5::OAS::of(idr5));

        command_queue_ = pages_.take();
        write64(spec::reg::CMDQ_BASE, raw(command_queue_) | queue_log2<16>);
        write(spec::reg::CMDQ_PROD, 0);
        write(spec::reg::CMDQ_CONS, 0);
        if (!enable(check::command_queue_enabled, spec::CR0::CMDQEN::mask)) return false;
        command(spec::cmd_cfgi_all());
        command(spec::tlbi_nsnh_all());
        if (!synchronise()) return false;

        event_queue_ = pages_.take();
        write64(spec::reg::EVENTQ_BASE, raw(event_queue_) | queue_log2<32>);
        write(spec::reg::EVENTQ_PROD, 0);
        write(spec::reg::EVENTQ_CONS, 0);
        if (!enable(check::event_queue_enabled,
                    spec::CR0::CMDQEN::mask | spec::CR0::EVENTQEN::mask)) {
            return false;
        }
        const u32 lines = spec::IRQ_CTRL::EVENTQ_IRQEN::mask | spec::IRQ_CTRL::GERROR_IRQEN::mask;
        write(spec::reg::IRQ_CTRL, lines);
        if (!report_.expect(check::interrupts_enabled, settle(spec::reg::IRQ_CTRLACK, lines),
                            lines)) {
            return false;
        }
        return enable(check::smmu_enabled, spec::CR0::CMDQEN::mask | spec::CR0::EVENTQEN::mask |
                                               spec::CR0::SMMUEN::mask) &&
               attach();
    }

    /// Points the stream at its context, in steps that are valid at each moment:
    /// everything but word 0, then word 0 with V.
    [[nodiscard]] bool attach() {
        spec::ste entry;
        set<spec::ste::V>(entry, 1);
        set<spec::ste::Config>(entry, static_cast<u64>(spec::ste_config::s1_translate));
        set<spec::ste::S1ContextPtr>(entry, raw(context_) >> spec::ste::S1ContextPtr::low);
        set<spec::ste::S1CIR>(entry, 1);
        set<spec::ste::S1COR>(entry, 1);
        set<spec::ste::S1CSH>(entry, 3);
        for (u64 i = 1; i < 8; ++i)
            port_.template write<u64>(offset_by(entry_, 8 * i), entry.word[i]);
        return set_stream_word(0) && set_stream_word(entry.word[0]);
    }
    /// Word 0 of the STE, followed by what makes the SMMU see it.
    [[nodiscard]] bool set_stream_word(u64 word) {
        port_.template write<u64>(entry_, word);
        command(spec::cmd_cfgi_ste(stream_, true));
        return synchronise();
    }
    /// An address whose descriptor has been changed.
    [[nodiscard]] bool forget(iova at) {
        if (invalidate_) command(spec::tlbi_nh_va(vmid{0}, address_space, at, true));
        return synchronise();
    }

    struct event {
        bool arrived = false;
        spec::event_record record{};
    };
    /// Takes the oldest event; waits for it if `expected`.
    [[nodiscard]] event next_event(bool expected) {
        event taken;
        const u32 mask = (2u << queue_log2<32>)-1;
        for (u64 i = 0; i < (expected ? event_patience : 1); ++i) {
            if ((read(spec::reg::EVENTQ_PROD) & mask) != (event_cons_ & mask)) {
                taken.arrived = true;
                break;
            }
            port_.relax();
        }
        if (!taken.arrived) return taken;
        const u64 index = event_cons_ & ((1u << queue_log2<32>)-1);
        for (u64 i = 0; i < 4; ++i) {
            taken.record.word[i] =
                port_.template read<u64>(offset_by(event_queue_, 32 * index + 8 * i));
        }
        event_cons_ = (event_cons_ + 1) & mask;
        write(spec::reg::EVENTQ_CONS, event_cons_);
        return taken;
    }

    [[nodiscard]] u32 active_errors() { return read(spec::reg::GERROR) ^ read(spec::reg::GERRORN); }
    /// Everything off, so that the next round starts from nothing.
    void shut_down() {
        (void)enable(check::disabled, 0);
        write(spec::reg::IRQ_CTRL, 0);
    }

private:
    /// log2 of the entries of `Bytes` bytes that fill one page.
    template <u64 Bytes>
    static constexpr u32 queue_log2 = Bytes == 16 ? 8 : 7;

    [[nodiscard]] u32 read(u32 offset) {
        return port_.template read<u32>(pa{machine::smmu + offset});
    }
    void write(u32 offset, u64 value) {
        port_.template write<u32>(pa{machine::smmu + offset}, static_cast<u32>(value));
    }
    void write64(u32 offset, u64 value) {
        port_.template write<u64>(pa{machine::smmu + offset}, value);
    }
    /// Waits until a register has a value; gives what it had in the end.
    [[nodiscard]] u32 settle(u32 offset, u32 wanted, u32 mask = ~0u) {
        u32 found = 0;
        for (u64 i = 0; i < patience; ++i) {
            found = read(offset) & mask;
            if (found == wanted) break;
            port_.relax();
        }
        return found;
    }
    [[nodiscard]] bool enable(check what, u64 bits) {
        const auto wanted = static_cast<u32>(bits);
        write(spec::reg::CR0, wanted);
        return report_.expect(what, settle(spec::reg::CR0ACK, wanted), wanted);
    }

    void command(const spec::command& c) {
        const u64 index = command_prod_ & ((1u << queue_log2<16>)-1);
        port_.template write<u64>(offset_by(command_queue_, 16 * index), c.word[0]);
        port_.template write<u64>(offset_by(command_queue_, 16 * index + 8), c.word[1]);
        command_prod_ = (command_prod_ + 1) & ((2u << queue_log2<16>)-1);
    }
    /// CMD_SYNC, then waits until it has been consumed. Fewer commands than the
    /// queue holds are ever outstanding.
    [[nodiscard]] bool synchronise() {
        command(spec::cmd_sync(spec::sync_signal::SIG_NONE));
        write(spec::reg::CMDQ_PROD, command_prod_);
        return report_.expect(check::commands_consumed, settle(spec::reg::CMDQ_CONS, command_prod_),
                              command_prod_);
    }

    void write_stream_table() {
        constexpr u64 entry_bytes = sizeof(spec::ste);
        if (format_ == machine::format::linear) {
            constexpr u64 bytes = entry_bytes << stream_table_log2;
            const pa table = pages_.take(bytes, bytes);
            entry_ = offset_by(table, raw(stream_) * entry_bytes);
            write64(spec::reg::STRTAB_BASE, raw(table));
            write(spec::reg::STRTAB_BASE_CFG,
                  spec::STRTAB_BASE_CFG::LOG2SIZE::in_place(stream_table_log2));
            return;
        }
        // Two levels: only the descriptor that leads to our stream is valid.
        constexpr u64 leaf_bytes = entry_bytes << split;
        const pa top = pages_.take();
        const pa leaves = pages_.take(leaf_bytes, leaf_bytes);
        const u64 index = raw(stream_) >> split;
        port_.template write<u64>(offset_by(top, 8 * index),
                                  raw(leaves) |
                                      spec::l1_stream_table_descriptor::Span::in_place(split + 1));
        entry_ = offset_by(leaves, (raw(stream_) & ((1u << split) - 1)) * entry_bytes);
        write64(spec::reg::STRTAB_BASE, raw(top));
        write(spec::reg::STRTAB_BASE_CFG,
              spec::STRTAB_BASE_CFG::FMT::in_place(spec::STRTAB_BASE_CFG::FMT_2lvl) |
                  spec::STRTAB_BASE_CFG::SPLIT::in_place(split) |
                  spec::STRTAB_BASE_CFG::LOG2SIZE::in_place(stream_table_log2));
    }

    void write_context(pa translation_table, u64 output_size) {
        spec::cd context;
        set<spec::cd::T0SZ>(context, 16);
        set<spec::cd::TG0>(context, static_cast<u64>(spec::tg0_granule::size_4k));
        set<spec::cd::IR0>(context, 1);
        set<spec::cd::OR0>(context, 1);
        set<spec::cd::SH0>(context, 3);
        set<spec::cd::EPD1>(context, 1);
        set<spec::cd::V>(context, 1);
        set<spec::cd::IPS>(context, output_size > 5 ? 5 : output_size);
        set<spec::cd::AA64>(context, 1);
        set<spec::cd::R>(context, 1);
        set<spec::cd::A>(context, 1);
        set<spec::cd::ASET>(context, 1);
        set<spec::cd::ASID>(context, raw(address_space));
        set<spec::cd::TTB0>(context, raw(translation_table) >> spec::cd::TTB0::low);
        set<spec::cd::MAIR>(context, 0xff44); // byte 0 non-cacheable, byte 1 write-back
        context_ = pages_.take();
        for (u64 i = 0; i < 8; ++i)
            port_.template write<u64>(offset_by(context_, 8 * i), context.word[i]);
    }

    Port& port_;
    page_source<Port>& pages_;
    reporter<Port>& report_;
    stream_id stream_;
    machine::format format_;
    bool invalidate_;
    pa entry_{};
    pa context_{};
    pa command_queue_{};
    pa event_queue_{};
    u32 command_prod_ = 0;
    u32 event_cons_ = 0;
};

/// One run through everything, with one format of the stream table.
template <class Port>
class round {
public:
    round(Port& port, page_source<Port>& pages, reporter<Port>& report, stream_id stream,
          machine::format format, bool invalidate)
        : port_(port),
          pages_(pages),
          report_(report),
          stream_(stream),
          format_(format),
          tables_(port, pages),
          smmu_(port, pages, report, stream, format, invalidate) {}

    void run() {
        enter(stage::bring_up);
        if (!smmu_.bring_up(tables_.root())) return;
        prepare();
        copy_through_scattered_pages();
        abort_what_is_not_allowed();
        unmap_and_remap();
        copy_through_a_block();
        change_the_stream();
        enter(stage::shut_down);
        report_.expect(check::no_global_error, smmu_.active_errors(), 0);
        smmu_.shut_down();
    }

private:
    static constexpr iova source{0x0000'1234'5000};
    static constexpr iova target{0x7fff'ffff'd000}; ///< ends two pages below the top
    static constexpr iova nowhere{0x0000'4000'0000};
    static constexpr iova guarded{0x0000'2000'1000};
    static constexpr iova untouched{0x0000'2000'3000};
    static constexpr iova moving{0x0000'3000'0000};
    static constexpr iova big{0x0000'8000'0000};
    static constexpr iova upper{0xffff'8000'0000'0000};
    static constexpr u64 unwritten = 0x5555'5555'5555'5555;
    static constexpr u64 little_bit = 64; ///< bytes of the transfers that abort

    void enter(stage now) { report_.at(format_, now); }
    [[nodiscard]] static u64 pattern(u64 seed, u64 index) {
        return (seed << 48) ^ (index * 0x9e37'79b9'7f4a'7c15);
    }
    void fill(pa page, u64 seed) {
        for (u64 i = 0; i < page_bytes / 8; ++i)
            port_.template write<u64>(offset_by(page, 8 * i), pattern(seed, i));
    }
    void clear(pa page) {
        for (u64 i = 0; i < page_bytes / 8; ++i)
            port_.template write<u64>(offset_by(page, 8 * i), unwritten);
    }
    /// How many of the words [from, from + bytes) of a page are as told.
    template <class Expected>
    [[nodiscard]] u64 count(pa page, u64 from, u64 bytes, Expected expected) {
        u64 right = 0;
        for (u64 i = from; i < from + bytes; i += 8)
            right += port_.template read<u64>(offset_by(page, i)) == expected(i / 8) ? 1 : 0;
        return right;
    }

    [[nodiscard]] u64 transfer(iova from, iova to, u64 bytes) {
        const auto reg = [](u64 offset) { return pa{machine::dma_device + offset}; };
        port_.template write<u64>(reg(machine::dma::source), raw(from));
        port_.template write<u64>(reg(machine::dma::destination), raw(to));
        port_.template write<u64>(reg(machine::dma::length), bytes);
        port_.template write<u64>(reg(machine::dma::start), 1);
        u64 status = machine::dma::busy;
        for (u64 i = 0; i < patience && status == machine::dma::busy; ++i) {
            status = port_.template read<u64>(reg(machine::dma::status));
            port_.relax();
        }
        return status;
    }
    void expect_copy(iova from, iova to, u64 bytes) {
        report_.expect(check::transfer, transfer(from, to, bytes), machine::dma::done);
    }
    void expect_untouched(pa page) {
        report_.expect(check::words_untouched,
                       count(page, 0, page_bytes, [](u64) { return unwritten; }), page_bytes / 8);
    }
    /// A transfer that must abort and leave exactly one event that names it.
    void expect_abort(iova from, iova to, bool on_read, spec::event_id why) {
        report_.count_abort();
        report_.expect(check::transfer, transfer(from, to, little_bit),
                       on_read ? machine::dma::read_aborted : machine::dma::write_aborted);
        const auto event = smmu_.next_event(true);
        if (report_.expect(check::event_arrived, event.arrived ? 1 : 0, 1)) {
            using record = spec::event_record;
            report_.expect(check::event_type, get<record::Type>(event.record),
                           static_cast<u64>(why));
            report_.expect(check::event_stream, get<record::StreamID>(event.record), raw(stream_));
            if (why != spec::event_id::C_BAD_STE) {
                report_.expect(check::event_address, get<record::InputAddr>(event.record),
                               raw(on_read ? from : to));
                report_.expect(check::event_is_read, get<record::RnW>(event.record),
                               on_read ? 1 : 0);
            }
        }
        expect_no_event();
    }
    void expect_no_event() {
        report_.expect(check::no_event, smmu_.next_event(false).arrived ? 1 : 0, 0);
    }

    /// Buffers in pages that do not touch, and so out of order that a copy which
    /// ignores the second page's own translation goes wrong.
    void prepare() {
        for (pa* page : {&source_page_[1], &target_page_[1], &source_page_[0], &target_page_[0],
                         &guarded_page_, &moving_page_, &second_page_}) {
            *page = pages_.take();
            pages_.skip();
            clear(*page);
        }
        fill(source_page_[0], 1);
        fill(source_page_[1], 2);
        for (u64 i = 0; i < 2; ++i) {
            tables_.map(offset_by(source, i * page_bytes), source_page_[i], rights::read_write);
            tables_.map(offset_by(target, i * page_bytes), target_page_[i], rights::read_write);
        }
        tables_.map(guarded, guarded_page_, rights::read_only);
        tables_.map(untouched, guarded_page_, rights::not_accessed);
        tables_.map(moving, moving_page_, rights::read_write);
    }

    void copy_through_scattered_pages() {
        enter(stage::copy);
        // From the middle of a page to the middle of the next, to other offsets.
        constexpr u64 from = 0x340;
        constexpr u64 to = 0x7c0;
        expect_copy(offset_by(source, from), offset_by(target, to), page_bytes);
        const auto word = [](u64 target_word) {
            const u64 at = target_word * 8 - to + from;
            return at < page_bytes ? pattern(1, at / 8) : pattern(2, (at - page_bytes) / 8);
        };
        report_.expect(check::words_copied, count(target_page_[0], to, page_bytes - to, word),
                       (page_bytes - to) / 8);
        report_.expect(
            check::words_copied,
            count(target_page_[1], 0, to, [&](u64 i) { return word(i + page_bytes / 8); }), to / 8);
        const auto blank = [](u64) { return unwritten; };
        report_.expect(check::words_untouched, count(target_page_[0], 0, to, blank), to / 8);
        report_.expect(check::words_untouched, count(target_page_[1], to, page_bytes - to, blank),
                       (page_bytes - to) / 8);
        expect_no_event();
    }

    void abort_what_is_not_allowed() {
        enter(stage::unmapped_read);
        clear(target_page_[0]);
        expect_abort(offset_by(nowhere, 0x18), target, true, spec::event_id::F_TRANSLATION);
        expect_untouched(target_page_[0]);

        enter(stage::unmapped_write);
        expect_abort(source, offset_by(nowhere, 0x28), false, spec::event_id::F_TRANSLATION);

        enter(stage::read_only_write);
        expect_abort(source, offset_by(guarded, 0x80), false, spec::event_id::F_PERMISSION);
        expect_untouched(guarded_page_);

        enter(stage::read_only_read);
        fill(guarded_page_, 3);
        expect_copy(guarded, target, page_bytes);
        report_.expect(check::words_copied,
                       count(target_page_[0], 0, page_bytes, [](u64 i) { return pattern(3, i); }),
                       page_bytes / 8);
        expect_no_event();

        enter(stage::access_flag);
        clear(target_page_[0]);
        expect_abort(untouched, target, true, spec::event_id::F_ACCESS);
        expect_untouched(target_page_[0]);

        enter(stage::upper_half);
        expect_abort(upper, target, true, spec::event_id::F_TRANSLATION);
        expect_untouched(target_page_[0]);
    }

    void unmap_and_remap() {
        enter(stage::unmap);
        expect_copy(source, moving, page_bytes);
        report_.expect(check::words_copied,
                       count(moving_page_, 0, page_bytes, [](u64 i) { return pattern(1, i); }),
                       page_bytes / 8);
        tables_.unmap(moving);
        if (!smmu_.forget(moving)) return;
        clear(moving_page_);
        expect_abort(source, offset_by(moving, 0x40), false, spec::event_id::F_TRANSLATION);
        expect_untouched(moving_page_);
        expect_abort(moving, target, true, spec::event_id::F_TRANSLATION);
        expect_untouched(target_page_[0]);

        enter(stage::remap);
        tables_.map(moving, second_page_, rights::read_write);
        if (!smmu_.forget(moving)) return;
        expect_copy(offset_by(source, page_bytes), moving, page_bytes);
        report_.expect(check::words_copied,
                       count(second_page_, 0, page_bytes, [](u64 i) { return pattern(2, i); }),
                       page_bytes / 8);
        expect_untouched(moving_page_);
        expect_no_event();
    }

    void copy_through_a_block() {
        enter(stage::block);
        const pa block = pages_.take(page_bytes, block_bytes);
        tables_.map_block(big, block, rights::read_write);
        const u64 deep = block_bytes - page_bytes;
        clear(offset_by(block, deep));
        expect_copy(source, offset_by(big, deep), page_bytes);
        report_.expect(
            check::words_copied,
            count(offset_by(block, deep), 0, page_bytes, [](u64 i) { return pattern(1, i); }),
            page_bytes / 8);
        expect_no_event();
    }

    void change_the_stream() {
        enter(stage::stream_aborts);
        clear(target_page_[0]);
        if (!smmu_.set_stream_word(spec::ste::V::mask)) return; // Config = abort
        report_.count_abort();
        report_.expect(check::transfer, transfer(source, target, little_bit),
                       machine::dma::read_aborted);
        expect_no_event();
        expect_untouched(target_page_[0]);

        enter(stage::stream_broken);
        if (!smmu_.set_stream_word(0)) return;
        expect_abort(source, target, true, spec::event_id::C_BAD_STE);
        expect_untouched(target_page_[0]);

        enter(stage::stream_back);
        if (!smmu_.attach()) return;
        expect_copy(source, target, page_bytes);
        report_.expect(check::words_copied,
                       count(target_page_[0], 0, page_bytes, [](u64 i) { return pattern(1, i); }),
                       page_bytes / 8);
        expect_no_event();
    }

    Port& port_;
    page_source<Port>& pages_;
    reporter<Port>& report_;
    stream_id stream_;
    machine::format format_;
    page_table<Port> tables_;
    smmu_driver<Port> smmu_;
    pa source_page_[2]{};
    pa target_page_[2]{};
    pa guarded_page_{};
    pa moving_page_{};
    pa second_page_{};
};

/// All of it: with a two-level stream table where the SMMU has them, and with a
/// linear one.
template <class Port>
void run(Port& port) {
    reporter<Port> report{port};
    page_source<Port> pages{port};
    const auto order = [&](u64 offset) {
        return port.template read<u64>(pa{machine::orders + offset});
    };
    const stream_id stream{static_cast<u32>(order(machine::order::stream))};
    const bool invalidate = order(machine::order::invalidate) != 0;
    if (smmu_driver<Port>::has_two_levels(port)) {
        round<Port>{port, pages, report, stream, machine::format::two_level, invalidate}.run();
    }
    round<Port>{port, pages, report, stream, machine::format::linear, invalidate}.run();
    report.finish();
}

} // namespace payload
