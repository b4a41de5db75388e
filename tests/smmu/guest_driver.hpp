/// A small guest driver for tests: builds the SMMU's structures in guest memory
/// and drives its registers, the way an operating system does.
#pragma once

#include <vm_accel/guest/region_map.hpp>
#include <vm_accel/smmu/caches/no_tlb.hpp>
#include <vm_accel/smmu/caches/set_associative.hpp>
#include <vm_accel/smmu/host/bitmap_streams.hpp>
#include <vm_accel/smmu/smmu.hpp>
#include <vm_accel/spec/cd.hpp>
#include <vm_accel/spec/commands.hpp>
#include <vm_accel/spec/descriptors.hpp>
#include <vm_accel/spec/events.hpp>
#include <vm_accel/spec/registers.hpp>
#include <vm_accel/spec/ste.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace guest {

using namespace vm_accel;

/// Page-aligned host memory that frees itself.
class host_pages {
public:
    explicit host_pages(std::size_t bytes)
        : data_(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{4096}))),
          bytes_(bytes) {
        std::memset(data_, 0, bytes);
    }
    host_pages(const host_pages&) = delete;
    host_pages& operator=(const host_pages&) = delete;
    ~host_pages() { ::operator delete(data_, std::align_val_t{4096}); }

    std::byte* data() const { return data_; }
    std::size_t size() const { return bytes_; }

private:
    std::byte* data_;
    std::size_t bytes_;
};

/// Where things are in the guest's physical memory. RAM starts at `ram`; the
/// driver hands out pages for tables from the top of the first MiB upwards.
inline constexpr std::uint64_t ram = 0x4000'0000;
inline constexpr std::uint64_t ram_bytes = 16U << 20;
inline constexpr std::uint64_t command_ring = ram + 0x10000;
inline constexpr std::uint64_t event_ring = ram + 0x20000;
inline constexpr std::uint64_t level1_table = ram + 0x30000;
inline constexpr std::uint64_t first_free = ram + 0x100000;
inline constexpr unsigned command_log2 = 8;
inline constexpr unsigned event_log2 = 3;

/// Flags of a mapping.
struct page_flags {
    bool user = true;
    bool read_only = false;
    bool access_flag = true;
    bool not_global = true;
    bool user_execute_never = true;
    bool privileged_execute_never = true;

    std::uint64_t bits() const {
        using L = spec::stage1_leaf;
        return spec::access_permission::unprivileged::in_place(user ? 1 : 0) |
               spec::access_permission::read_only::in_place(read_only ? 1 : 0) |
               L::AF::in_place(access_flag ? 1 : 0) | L::nG::in_place(not_global ? 1 : 0) |
               L::UXN::in_place(user_execute_never ? 1 : 0) |
               L::PXN::in_place(privileged_execute_never ? 1 : 0) | L::SH::in_place(3);
    }
};

/// The machine: RAM, an SMMU, and a driver that has not started yet.
template <class Tlb = set_associative<64, 4>, class Options = default_smmu_options>
class machine {
public:
    using device = smmu<Tlb, bitmap_streams<65536>, region_map, counting_sink, Options>;
    static constexpr pa_range all_of_ram{pa{ram}, ram_bytes};

    machine() : smmu_(std::make_unique<device>(memory, sink)) {
        require(memory.add(pa{ram}, pages_.data(), ram_bytes));
        require(smmu_->init());
    }

    device& iommu() { return *smmu_; }
    std::byte* host(std::uint64_t address) { return pages_.data() + (address - ram); }
    void store64(std::uint64_t address, std::uint64_t value) {
        (void)memory.write(pa{address}, std::as_bytes(std::span{&value, 1}));
    }
    std::uint64_t load64(std::uint64_t address) { return memory.load64(pa{address}).value(); }
    template <class Structure>
    void store(std::uint64_t address, const Structure& s) {
        for (std::size_t i = 0; i < s.word.size(); ++i)
            store64(address + 8 * i, s.word[i].value());
    }
    std::uint64_t take_pages(std::size_t n = 1) {
        const std::uint64_t address = next_;
        next_ += n * 4096;
        return address;
    }

    std::uint32_t read32(std::uint32_t offset) {
        return static_cast<std::uint32_t>(smmu_->mmio_read(offset, 4));
    }
    void write32(std::uint32_t offset, std::uint32_t value) { smmu_->mmio_write(offset, 4, value); }
    void write64(std::uint32_t offset, std::uint64_t value) { smmu_->mmio_write(offset, 8, value); }

    /// Brings the SMMU up as Linux does: a two-level stream table, both queues.
    void start() {
        namespace reg = spec::reg;
        write32(reg::CR0, 0);
        write32(reg::CR1, 0xd75);
        write32(reg::CR2, 0x6);
        write64(reg::STRTAB_BASE, level1_table | spec::STRTAB_BASE::RA::mask);
        write32(reg::STRTAB_BASE_CFG, 0x1'0210);
        write64(reg::CMDQ_BASE, command_ring | command_log2);
        write32(reg::CMDQ_PROD, 0);
        write32(reg::CMDQ_CONS, 0);
        write32(reg::CR0, 0x8);
        write64(reg::EVENTQ_BASE, event_ring | event_log2);
        write32(reg::EVENTQ_PROD, 0);
        write32(reg::EVENTQ_CONS, 0);
        write32(reg::IRQ_CTRL, 0x5);
        write32(reg::CR0, 0xc);
        command(spec::cmd_cfgi_all());
        command(spec::tlbi_nsnh_all());
        sync();
        write32(reg::CR0, 0xd);
    }

    /// The STE's address; allocates its level-2 table.
    std::uint64_t ste_address(std::uint32_t sid) {
        const std::uint64_t slot = level1_table + (sid >> 8) * 8;
        std::uint64_t level2 = load64(slot) & spec::l1_stream_table_descriptor::L2Ptr::mask;
        if (level2 == 0) {
            next_ = (next_ + 0x3fff) & ~std::uint64_t{0x3fff};
            level2 = take_pages(4);
            store64(slot, level2 | 9);
        }
        return level2 + (sid & 0xff) * sizeof(spec::ste);
    }
    static spec::ste plain_ste(spec::ste_config config, std::uint64_t cd_address = 0) {
        spec::ste entry;
        set<spec::ste::V>(entry, 1);
        set<spec::ste::Config>(entry, static_cast<std::uint64_t>(config));
        set<spec::ste::S1ContextPtr>(entry, cd_address >> spec::ste::S1ContextPtr::low);
        return entry;
    }
    /// A legal CD: 48-bit halves, 4 KiB pages, the upper half off.
    static spec::cd plain_cd(std::uint64_t table, std::uint16_t space) {
        using C = spec::cd;
        spec::cd c;
        set<C::T0SZ>(c, 16);
        set<C::T1SZ>(c, 16);
        set<C::TG1>(c, 2);
        set<C::EPD1>(c, 1);
        set<C::V>(c, 1);
        set<C::IPS>(c, 4);
        set<C::AA64>(c, 1);
        set<C::R>(c, 1);
        set<C::A>(c, 1);
        set<C::ASET>(c, 1);
        set<C::ASID>(c, space);
        set<C::TTB0>(c, table >> C::TTB0::low);
        return c;
    }
    /// A stream with an empty stage-1 address space; gives its root table.
    std::uint64_t stage1_stream(std::uint32_t sid, std::uint16_t space) {
        const std::uint64_t root = take_pages();
        const std::uint64_t cd_page = take_pages();
        store(cd_page, plain_cd(root, space));
        store(ste_address(sid), plain_ste(spec::ste_config::s1_translate, cd_page));
        command(spec::cmd_cfgi_ste(stream_id{sid}, true));
        sync();
        return root;
    }
    /// Where the descriptor for `address` at `level` is; makes tables on the way.
    std::uint64_t descriptor_slot(std::uint64_t root, std::uint64_t address, int level = 3) {
        std::uint64_t table = root;
        for (int l = 0; l < level; ++l) {
            const std::uint64_t slot = table + (address >> (39 - 9 * l) & 0x1ff) * 8;
            if ((load64(slot) & 1) == 0) store64(slot, take_pages() | 3);
            table = load64(slot) & 0x0000'ffff'ffff'f000;
        }
        return table + (address >> (39 - 9 * level) & 0x1ff) * 8;
    }
    void map(std::uint64_t root, std::uint64_t address, std::uint64_t output, int level = 3,
             page_flags flags = {}) {
        store64(descriptor_slot(root, address, level),
                output | flags.bits() | (level == 3 ? 3 : 1));
    }
    void unmap(std::uint64_t root, std::uint64_t address, int level = 3) {
        store64(descriptor_slot(root, address, level), 0);
    }

    /// Puts a command into the ring without telling the SMMU.
    void enqueue(const spec::command& c) {
        store(command_ring + (prod_ & ((1U << command_log2) - 1)) * sizeof c, c);
        prod_ = (prod_ + 1) & ((2U << command_log2) - 1);
    }
    void ring() { write32(spec::reg::CMDQ_PROD, prod_); }
    void command(const spec::command& c) {
        enqueue(c);
        ring();
    }
    void sync() { command(spec::cmd_sync(spec::sync_signal::SIG_NONE)); }
    std::uint32_t cons() { return read32(spec::reg::CMDQ_CONS); }
    /// Whether everything up to PROD has been consumed.
    bool commands_done() { return (cons() & 0xf'ffff) == prod_; }

    /// The same memory and the same driver as another machine has at this moment.
    void continue_from(machine& other) {
        std::memcpy(pages_.data(), other.pages_.data(), ram_bytes);
        prod_ = other.prod_;
        next_ = other.next_;
    }

    /// For tests that start over: the ring from entry 0, pages from the first.
    void restart_ring() { prod_ = 0; }
    void forget_pages() { next_ = first_free; }
    void clear_tables() {
        std::memset(host(level1_table), 0, 0x1000);
        std::memset(host(first_free), 0, 0x40000);
    }

    /// Takes the oldest event record, or none.
    std::optional<spec::event_record> event() {
        const std::uint32_t prod = read32(spec::reg::EVENTQ_PROD);
        const std::uint32_t at = read32(spec::reg::EVENTQ_CONS);
        constexpr std::uint32_t positions = (2U << event_log2) - 1;
        if (((prod ^ at) & positions) == 0) return std::nullopt;
        spec::event_record record;
        const std::uint64_t address =
            event_ring + (at & ((1U << event_log2) - 1)) * sizeof(spec::event_record);
        for (std::size_t i = 0; i < record.word.size(); ++i) {
            record.word[i] = le64{load64(address + 8 * i)};
        }
        write32(spec::reg::EVENTQ_CONS, (at & 0x8000'0000) | ((at + 1) & positions));
        return record;
    }

    region_map memory;
    counting_sink sink;

private:
    static void require(const result<>& done) {
        if (!done) throw std::runtime_error{std::string{done.error().cause.view()}};
    }

    host_pages pages_{ram_bytes};
    std::unique_ptr<device> smmu_;
    std::uint32_t prod_ = 0;
    std::uint64_t next_ = first_free;
};

inline spec::event_id id_of(const spec::event_record& record) {
    return static_cast<spec::event_id>(get<spec::event_record::Type>(record));
}

} // namespace guest
