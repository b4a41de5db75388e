// The device with everything it implements, against the reference: random STEs
// and CDs of both stages, over memory whose every word is a random descriptor.
#include "random_tables.hpp"
#include "reference_tables.hpp"

#include <vm_accel/smmu/caches/set_associative.hpp>
#include <vm_accel/smmu/host/bitmap_streams.hpp>
#include <vm_accel/smmu/smmu.hpp>
#include <vm_accel/spec/cd.hpp>
#include <vm_accel/spec/commands.hpp>
#include <vm_accel/spec/events.hpp>
#include <vm_accel/spec/registers.hpp>
#include <vm_accel/spec/ste.hpp>

#include <catch2/catch.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

using namespace tables;
namespace reg = vm_accel::spec::reg;

namespace {

// Where the driver's own structures are: nothing else is written there.
constexpr u64 own = 0xc0'0000'0000;
constexpr u64 stream_table = own;
constexpr u64 command_ring = own + 0x1'0000;
constexpr u64 event_ring = own + 0x2'0000;
constexpr u64 own_end = own + 0x3'0000;

/// All 52-bit addresses are RAM, at host addresses that nobody looks behind.
class endless_memory {
public:
    random_memory words{taste{}};
    std::map<u64, u64> own_words; ///< the driver's own structures, zero until written

    static bool is_own(u64 at) { return at >= own && at < own_end; }
    [[nodiscard]] std::optional<u64> word(u64 at) const noexcept {
        if (!is_own(at)) return words.load(at);
        const auto found = own_words.find(at);
        return found == own_words.end() ? 0 : found->second;
    }
    void set_word(u64 at, u64 value) { (is_own(at) ? own_words : words.written)[at] = value; }

    [[nodiscard]] bool read(pa at, std::span<std::byte> out) const noexcept {
        for (std::size_t i = 0; i < out.size(); ++i) {
            const u64 byte = raw(at) + i;
            const auto found = word(byte & ~u64{7});
            if (!found) return false;
            out[i] = std::byte(*found >> (8 * (byte & 7)));
        }
        return true;
    }
    [[nodiscard]] bool write(pa at, std::span<const std::byte> in) noexcept {
        for (std::size_t i = 0; i < in.size(); ++i) {
            const u64 byte = raw(at) + i;
            const unsigned low = 8 * (byte & 7);
            const auto found = word(byte & ~u64{7});
            if (!found) return false;
            set_word(byte & ~u64{7}, (*found & ~(u64{0xff} << low)) | std::to_integer<u64>(in[i])
                                                                          << low);
        }
        return true;
    }
    [[nodiscard]] std::optional<u64> load64(pa at) const noexcept { return word(raw(at)); }
    [[nodiscard]] std::optional<u64> compare_exchange64(pa at, u64 expected, u64 desired) noexcept {
        return words.compare_exchange(raw(at), expected, desired);
    }
    [[nodiscard]] std::optional<host_run> find(pa) const noexcept {
        return host_run{host(0), pa{0}, u64{1} << 52};
    }
    void note_write(pa, u64) noexcept {}

    static std::byte* host(u64 at) {
        return reinterpret_cast<std::byte*>((u64{1} << 54) + at); // NOLINT: only compared
    }
};
static_assert(guest_memory<endless_memory>);

template <smmu_features Features>
struct whole : default_smmu_options {
    static constexpr smmu_features features = Features;
    using quiescence = single_threaded;
};

constexpr unsigned ring_log2 = 6;
constexpr std::uint32_t sid = 3;
constexpr u64 vm = 5, space = 7;

template <smmu_features F>
class bench {
    using device =
        smmu<set_associative<64, 4>, bitmap_streams<16>, endless_memory, counting_sink, whole<F>>;

public:
    explicit bench(u64 seed) : one_(seed), iommu_(std::make_unique<device>(memory_, sink_)) {
        REQUIRE(iommu_->init());
    }

    void run(unsigned count) {
        for (unsigned i = 0; i < count; ++i) {
            const std::string id = "device" + std::to_string(i);
            choose();
            if (!start()) continue;
            REQUIRE(iommu_->attach_device(id, {pa{0}, u64{1} << 52}, stream_id{sid}));
            {
                auto port = iommu_->make_port(id).value();
                last_ = {.event = reference::why::translation};
                for (unsigned j = 0; j < 16; ++j) {
                    if (j == 12) change_all();
                    if (j % 3 == 2 && last_.event == reference::why::served) change_leaf();
                    access_once(port);
                }
            }
            REQUIRE(iommu_->detach_device(id));
        }
        hits = iommu_->stats().hits;
    }

    std::map<std::string, unsigned> seen;
    unsigned cases = 0, served = 0;
    u64 hits = 0;

private:
    // ---- the driver -----------------------------------------------------------------------
    void choose() {
        do {
            one_.choose<F>();
        } while (!is_legal());
    }
    /// What a driver may write: a base inside the output size, start levels that exist.
    bool is_legal() const {
        for (const reference::stage* s : {&one_.lower, &one_.upper, &one_.second}) {
            if (!s->on) continue;
            const bool wide = s->granule == 16 || s->ds;
            if (s->table >> (wide ? s->output : std::min(s->output, 48U)) != 0) return false;
            if (s->input > F.output_bits) return false;
        }
        const reference::stage& s = one_.second;
        if (s.on && s.granule == 14 && s.start == 0 && !s.ds) return false;
        if (s.on && s.granule == 14 && s.start == -1) return false;
        if (s.on && s.granule == 12 && s.start == 3 && !F.stt) return false;
        return !(s.on && s.granule == 16 && s.start < 1);
    }
    static u64 ips(unsigned bits) {
        const unsigned sizes[] = {32, 36, 40, 42, 44, 48, 52};
        u64 i = 0;
        while (sizes[i] != bits)
            ++i;
        return i;
    }
    static u64 tg0(unsigned granule) { return granule == 12 ? 0 : granule == 14 ? 2 : 1; }
    static u64 tg1(unsigned granule) { return granule == 12 ? 2 : granule == 14 ? 1 : 3; }
    spec::ste stream_entry(u64 context) const {
        using E = spec::ste;
        const reference::stage& s = one_.second;
        E e;
        set<E::V>(e, 1);
        set<E::Config>(e, 4U | (one_.lower.on ? 1U : 0U) | (s.on ? 2U : 0U));
        set<E::S1ContextPtr>(e, context >> E::S1ContextPtr::low);
        set<E::SHCFG>(e, 1);
        if (one_.lower.el2) set<E::STRW>(e, 2);
        if (!s.on) return e;
        set<E::S2VMID>(e, vm);
        set<E::S2T0SZ>(e, 64 - s.input);
        const int first = s.granule == 12 ? 2 : 3;
        if (s.granule == 12 && s.start == -1) {
            set<E::S2SL0_2>(e, 1);
        } else if (s.granule == 12 && s.start == 3) {
            set<E::S2SL0>(e, 3);
        } else {
            set<E::S2SL0>(e, static_cast<u64>(first - s.start));
        }
        set<E::S2SH0>(e, s.sh);
        set<E::S2TG>(e, tg0(s.granule));
        set<E::S2PS>(e, ips(s.output));
        set<E::S2AA64>(e, 1);
        set<E::S2ENDI>(e, s.big_endian ? 1 : 0);
        set<E::S2AFFD>(e, s.affd ? 1 : 0);
        set<E::S2PTW>(e, s.ptw ? 1 : 0);
        set<E::S2HA>(e, s.ha ? 1 : 0);
        set<E::S2HD>(e, s.hd ? 1 : 0);
        set<E::S2R>(e, 1);
        set<E::S2DS>(e, s.ds ? 1 : 0);
        set<E::S2TTB>(e, s.table >> E::S2TTB::low);
        return e;
    }
    spec::cd context() const {
        using C = spec::cd;
        const reference::stage& l = one_.lower;
        const reference::stage& u = one_.upper;
        C c;
        set<C::T0SZ>(c, 64 - l.input);
        set<C::TG0>(c, tg0(l.granule));
        set<C::SH0>(c, l.sh);
        set<C::EPD0>(c, l.epd ? 1 : 0);
        set<C::ENDI>(c, l.big_endian ? 1 : 0);
        set<C::T1SZ>(c, 64 - u.input);
        set<C::TG1>(c, tg1(u.granule));
        set<C::SH1>(c, u.sh);
        set<C::EPD1>(c, u.epd ? 1 : 0);
        set<C::V>(c, 1);
        set<C::IPS>(c, ips(l.output));
        set<C::AFFD>(c, l.affd ? 1 : 0);
        set<C::WXN>(c, l.wxn ? 1 : 0);
        set<C::PAN>(c, l.pan ? 1 : 0);
        set<C::EPAN>(c, l.epan ? 1 : 0);
        set<C::AA64>(c, 1);
        set<C::HA>(c, l.ha ? 1 : 0);
        set<C::HD>(c, l.hd ? 1 : 0);
        set<C::R>(c, 1);
        set<C::A>(c, 1);
        set<C::ASID>(c, space);
        set<C::HAD0>(c, l.had ? 1 : 0);
        set<C::E0PD0>(c, l.e0pd ? 1 : 0);
        set<C::TTB0>(c, l.table >> C::TTB0::low);
        set<C::HAD1>(c, u.had ? 1 : 0);
        set<C::E0PD1>(c, u.e0pd ? 1 : 0);
        set<C::TTB1>(c, u.table >> C::TTB1::low);
        set<C::DS>(c, l.ds ? 1 : 0);
        set<C::MAIR>(c, l.mair);
        return c;
    }
    template <class Structure>
    void store(u64 at, const Structure& s) {
        for (std::size_t i = 0; i < s.word.size(); ++i)
            memory_.set_word(at + 8 * i, s.word[i].value());
    }
    void command(const spec::command& c) {
        store(command_ring + (prod_ & ((1U << ring_log2) - 1)) * 16, c);
        prod_ = (prod_ + 1) & ((2U << ring_log2) - 1);
    }
    void sync() {
        command(spec::cmd_sync(spec::sync_signal::SIG_NONE));
        iommu_->mmio_write(reg::CMDQ_PROD, 4, prod_);
        REQUIRE(iommu_->mmio_read(reg::CMDQ_CONS, 4) == prod_);
    }
    /// False = stage 2 does not let the CD be read: no case.
    bool start() {
        memory_.words.written.clear();
        memory_.words.become(one_.looks);
        // At NS-EL2 there is one half, and no unprivileged access.
        if (one_.lower.el2) one_.upper.epd = true, one_.lower.epd = false;
        memory_.own_words.clear();
        const u64 context_ipa = one_.second.on ? 0x5040 & one_.looks.fits : own + 0x1000;
        u64 at = context_ipa;
        if (one_.lower.on && one_.second.on) {
            const reference::result r = with_reference(memory_.words, [&](reference::walker w) {
                return w.read_through_stage2(context_ipa);
            });
            if (r.event != reference::why::served) return false;
            at = r.address;
        }
        if (one_.lower.on) store(at, context());
        store(stream_table + sid * 64, stream_entry(context_ipa));
        iommu_->mmio_write(reg::CR0, 4, 0);
        iommu_->mmio_write(reg::STRTAB_BASE, 8, stream_table);
        iommu_->mmio_write(reg::STRTAB_BASE_CFG, 4, 4);
        iommu_->mmio_write(reg::CMDQ_BASE, 8, command_ring | ring_log2);
        iommu_->mmio_write(reg::EVENTQ_BASE, 8, event_ring | ring_log2);
        iommu_->mmio_write(reg::CR0, 4, 0xd);
        command(spec::cmd_cfgi_all());
        command(spec::tlbi_nsnh_all());
        if constexpr (F.hyp) command(spec::tlbi_el2_all());
        sync();
        return true;
    }
    vmid own_vm() const {
        // Without stage 2 the STE's VMID is 0.
        return vmid{one_.second.on ? static_cast<std::uint16_t>(vm) : std::uint16_t{0}};
    }
    /// Other descriptors everywhere, and a command that says so.
    void change_all() {
        one_.looks.seed += 1;
        memory_.words.become(one_.looks);
        if (one_.lower.el2) {
            command(spec::tlbi_el2_all());
        } else if (one_.second.on || one_.chance(50)) {
            // What is known of stage 2 alone stays when a command speaks of stage 1.
            command(one_.chance(50) ? spec::tlbi_nsnh_all() : spec::tlbi_s12_vmall(own_vm()));
        } else {
            command(spec::tlbi_nh_all(own_vm()));
        }
        sync();
    }
    /// Another bit in the leaf of the last access, and a command for its page.
    void change_leaf() {
        const bool second = one_.second.on && (!one_.lower.on || one_.chance(40));
        const u64 at = second ? last_.leaf2 : last_.leaf1;
        const reference::stage& s = second                ? one_.second
                                    : address_ >> 63 != 0 ? one_.upper
                                                          : one_.lower;
        const u64 bit = u64{1} << one_.one_of({0U, 2U, 6U, 7U, 10U, 21U, 25U, 30U, 34U, 54U});
        memory_.words.written[at] =
            memory_.words.load(at).value() ^ (s.big_endian ? swapped(bit) : bit);
        const bool leaf = one_.chance(50);
        if (second) {
            ++seen["a page of stage 2 changed"];
            // What both stages gave together goes by VMID alone.
            const u64 page = last_.ipa ^ one_.below(u64{1} << (one_.lower.on ? 12 : last_.size));
            command(spec::tlbi_s2_ipa(own_vm(), ipa{page}, leaf));
            if (one_.lower.on) command(spec::tlbi_nh_all(own_vm()));
            sync();
            return;
        }
        ++seen[last_.size < last_.first_page ? "a page in pieces changed" : "a page changed"];
        const iova inside{address_ ^ one_.below(u64{1} << last_.first_page)};
        if (one_.lower.el2) {
            command(spec::tlbi_el2_va(asid{0}, inside, leaf));
        } else if (one_.chance(50)) {
            command(spec::tlbi_nh_va(own_vm(), asid{space}, inside, leaf));
        } else {
            command(spec::tlbi_nh_vaa(own_vm(), inside, leaf));
        }
        sync();
    }

    // ---- accesses -------------------------------------------------------------------------
    template <class Do>
    reference::result with_reference(random_memory& memory, Do&& act) {
        reference::words words{[&](u64 at) { return memory.load(at); },
                               [&](u64 at, u64 value) { memory.written[at] = value; }};
        const reference::hardware h{.oas = F.output_bits, .xnx = F.xnx, .httu = F.httu};
        return act(reference::walker{h, one_.lower, one_.upper, one_.second, words});
    }
    std::optional<spec::event_record> event() {
        const auto head = static_cast<std::uint32_t>(iommu_->mmio_read(reg::EVENTQ_PROD, 4));
        const auto tail = static_cast<std::uint32_t>(iommu_->mmio_read(reg::EVENTQ_CONS, 4));
        if (head == tail) return std::nullopt;
        spec::event_record record;
        for (unsigned i = 0; i < 4; ++i) {
            record.word[i] =
                *memory_.word(event_ring + (tail & ((1U << ring_log2) - 1)) * 32 + 8 * i);
        }
        iommu_->mmio_write(reg::EVENTQ_CONS, 4, (tail + 1) & ((2U << ring_log2) - 1));
        return record;
    }
    void access_once(typename device::port& port) {
        ++cases;
        reference::asked_access asked;
        if (one_.chance(60)) {
            address_ ^= one_.below(u64{1} << one_.one_of({12U, 16U, 21U}));
        } else {
            address_ = one_.any_address();
        }
        asked.address = address_;
        asked.write = one_.chance(40);
        asked.privileged = one_.chance(60);
        asked.instruction = one_.chance(25);
        random_memory theirs = memory_.words;
        const reference::result want =
            with_reference(theirs, [&](reference::walker w) { return w.walk(asked); });
        CAPTURE(cases, asked.address, asked.write, asked.privileged, asked.instruction,
                one_.lower.on, one_.second.on, one_.lower.granule, one_.second.granule,
                one_.lower.el2, static_cast<int>(want.event), want.stage2, want.address);
        outcome got;
        {
            auto guard = port.open();
            got = guard.translate(iova{asked.address}, 1,
                                  asked.write ? vm_accel::access::write : vm_accel::access::read,
                                  {asked.privileged, asked.instruction});
        }
        REQUIRE((memory_.words.written == theirs.written));
        const auto record = event();
        last_ = want;
        if (!one_.lower.on && !one_.second.on) last_.event = reference::why::translation;
        const char* const stages = !one_.lower.on   ? (one_.second.on ? "stage 2" : "none")
                                   : one_.second.on ? "both stages"
                                   : one_.lower.el2 ? "stage 1 at EL2"
                                                    : "stage 1";
        if (want.event == reference::why::served) {
            ++served;
            ++seen[std::string{"served, "} + stages];
            if (want.address >> 48 != 0) ++seen["output above 48 bits"];
            REQUIRE_FALSE(got.is_fault());
            REQUIRE_FALSE(record);
            REQUIRE(raw(got.address()) == want.address);
            REQUIRE(got.host() == endless_memory::host(want.address));
            REQUIRE(unsigned{got.attributes().type} == want.type);
            REQUIRE(unsigned{got.attributes().shareability} == want.sh);
            return;
        }
        ++seen[std::string{"refused, "} + stages];
        using spec::event_id;
        static const std::map<reference::why, event_id> events{
            {reference::why::translation, event_id::F_TRANSLATION},
            {reference::why::address_size, event_id::F_ADDR_SIZE},
            {reference::why::access_flag, event_id::F_ACCESS},
            {reference::why::permission, event_id::F_PERMISSION},
            {reference::why::external_abort, event_id::F_WALK_EABT}};
        REQUIRE(got.is_fault());
        REQUIRE(got.event() == events.at(want.event));
        REQUIRE(record);
        using R = spec::event_record;
        CHECK(get<R::Type>(*record) == static_cast<u64>(got.event()));
        CHECK(get<R::InputAddr>(*record) == asked.address);
        CHECK(get<R::S2>(*record) == (want.stage2 ? 1 : 0));
        CHECK(get<R::RnW>(*record) == (asked.write ? 0 : 1));
        if (want.event == reference::why::external_abort) {
            CHECK(get_address<R::FetchAddr>(*record) == want.fetched);
            return;
        }
        CHECK(get<R::CLASS>(*record) == (want.on_table ? 1 : 2));
        if (want.stage2) CHECK(get_address<R::IPA>(*record) == (want.ipa & ~u64{0xfff}));
        if (want.on_table && want.event == reference::why::permission) {
            CHECK(get<R::TTRnW>(*record) == (want.table_write ? 0 : 1));
        }
    }

    random_case one_;
    endless_memory memory_;
    counting_sink sink_;
    std::unique_ptr<device> iommu_;
    std::uint32_t prod_ = 0;
    u64 address_ = 0;
    reference::result last_; ///< of the access to address_
};

std::vector<u64> seeds() {
    if (const char* wanted = std::getenv("VM_ACCEL_WALK_SEED")) {
        return {std::strtoull(wanted, nullptr, 0)};
    }
    return {1, 2};
}

template <smmu_features F>
void compare(u64 seed, unsigned count, std::map<std::string, unsigned>& seen) {
    bench<F> b{seed};
    b.run(count);
    std::printf("whole device: seed %llu, %u cases, %u served, %llu TLB hits\n",
                static_cast<unsigned long long>(seed), b.cases, b.served,
                static_cast<unsigned long long>(b.hits));
    CHECK(b.served > b.cases / 5);
    CHECK(b.hits > b.cases / 50);
    for (const auto& [what, times] : b.seen)
        seen[what] += times;
}

constexpr smmu_features middling{.stage2 = true,
                                 .granule_16k = true,
                                 .granule_64k = true,
                                 .output_bits = 48,
                                 .httu = 1,
                                 .type_overrides = true};

} // namespace

TEST_CASE("the whole device gives what the reference gives", "[smmu][reference]") {
    std::map<std::string, unsigned> seen;
    for (const u64 seed : seeds()) {
        CAPTURE(seed);
        compare<full_features>(seed, 800, seen);
        compare<middling>(seed, 200, seen);
    }
    if (seeds().size() == 1) return; // one seed need not meet everything
    for (const char* what :
         {"served, none", "served, stage 1", "served, stage 1 at EL2", "served, stage 2",
          "served, both stages", "refused, stage 1", "refused, stage 2", "refused, both stages",
          "output above 48 bits", "a page changed", "a page in pieces changed",
          "a page of stage 2 changed"}) {
        CAPTURE(what);
        CHECK(seen[what] >= 20);
    }
}
