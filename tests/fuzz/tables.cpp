// STE, CD and table images of any content, with accesses and invalidations
// between changes. While nothing is owed, caches and memory say the same.
#include "machine.hpp"
#include "targets.hpp"

namespace fuzz {

namespace {

/// What software may not rely on is left out: a contiguous hint on a run that is
/// none, and tables that lie inside what they describe and are changed by the walk.
constexpr std::uint64_t contiguous_hint = std::uint64_t{1} << 52;

std::uint64_t descriptor(input& in) {
    const std::uint64_t flags = in.take(2);
    const std::uint64_t high = in.flag() ? in.take(2) << 48 : 0;
    const std::uint64_t address = in.below(8) == 0 ? in.number(guest::ram, guest::ram_bytes)
                                                   : arena + in.below(arena_bytes / 4096) * 4096;
    return ((address & 0x000f'ffff'ffff'f000) | (flags & 0xfff) | high | (in.flag() ? 3U : 1U)) &
           ~contiguous_hint;
}

/// Puts a stage 2 under the stream: 39 bits of 4 KiB pages, flags that the device
/// keeps; alone, or below its stage 1. RAM is mapped one to one by large blocks,
/// but for its first 2 MiB: pages, two of them exchanged and one read-only.
void add_stage2(machine& m, std::uint64_t ste, bool nested) {
    using E = spec::ste;
    using L = spec::stage2_leaf;
    constexpr std::uint64_t clean =
        0x1 | L::MemAttr::in_place(0xf) | L::S2AP::in_place(1) | L::SH::in_place(3) | L::DBM::mask;
    constexpr std::uint64_t page = clean | L::AF::mask | 0x2;
    const std::uint64_t table = m.take_pages();
    const std::uint64_t middle = m.take_pages();
    const std::uint64_t pages = m.take_pages();
    m.store64(table + 8, middle | 3);
    m.store64(middle, pages | 3);
    for (std::uint64_t i = 1; i < 512; ++i)
        m.store64(middle + i * 8, (guest::ram + (i << 21)) | clean);
    for (std::uint64_t i = 0; i < 512; ++i)
        m.store64(pages + i * 8, (guest::ram + (i << 12)) | page);
    m.store64(pages + 3 * 8, (guest::ram + 0x4000) | page);
    m.store64(pages + 4 * 8, (guest::ram + 0x3000) | page);
    m.store64(pages + 5 * 8, ((guest::ram + 0x5000) | page) & ~L::DBM::mask);
    const auto config = nested ? spec::ste_config::s1_s2_translate : spec::ste_config::s2_translate;
    const std::uint64_t word0 = m.load64(ste) & ~E::Config::mask;
    m.store64(ste, word0 | E::Config::in_place(static_cast<std::uint64_t>(config)));
    m.store64(ste + 16, E::S2VMID::in_place(3) | E::S2T0SZ::in_place(25) | E::S2SL0::in_place(1) |
                            E::S2PS::in_place(5) | E::S2AA64::mask | E::S2HA::mask | E::S2HD::mask |
                            E::S2R::mask);
    m.store64(ste + 24, table);
}

} // namespace

void tables(std::span<const std::uint8_t> bytes) {
    started_machine& one = shared_machine();
    machine& m = one.m;
    input in{bytes};
    const std::uint64_t root = m.stage1_stream(started_machine::stream, 1);
    const std::uint64_t ste = m.ste_address(started_machine::stream);
    const std::uint64_t cd = m.load64(ste) & spec::ste::S1ContextPtr::mask;
    // Trees to start from, so that bytes are not spent on making them.
    for (std::uint64_t page = 0; page < 4; ++page)
        m.map(root, page << 12, arena + 0x20000 + (page << 12));
    m.map(root, 0x20'0000, guest::ram, 2);
    const std::uint64_t stages = in.below(3);
    if (stages != 0) add_stage2(m, ste, stages == 1);

    const auto settle = [&] {
        m.command(spec::cmd_cfgi_all());
        m.command(spec::tlbi_nsnh_all());
        if (options::features.hyp) m.command(spec::make_command(spec::opcode::CMD_TLBI_EL2_ALL));
        m.sync();
        while (m.iommu().poll()) {}
    };
    settle();
    for (int step = 0; step < 128 && !in.empty(); ++step) {
        bool owed = true;
        switch (in.below(6)) {
        case 0: // one word of the STE, with bits flipped or replaced
            m.store64(ste + in.below(8) * 8, in.flag() ? in.take(8) : m.load64(ste) ^ in.take(8));
            break;
        case 1: {
            const std::uint64_t at = cd + in.below(4) * 8;
            m.store64(at, in.flag() ? in.take(8) : m.load64(at) ^ std::uint64_t{1} << in.below(64));
            break;
        }
        case 2: { // a descriptor anywhere
            const std::uint64_t at = arena + in.below(arena_bytes / 8) * 8;
            m.store64(at, descriptor(in));
            break;
        }
        case 3: { // a descriptor on the path of a low address
            const int level = static_cast<int>(in.below(4));
            std::uint64_t table = root;
            for (int l = 0; l < level; ++l)
                table = arena + (m.load64(table) & (arena_bytes - 1) & ~std::uint64_t{0xfff});
            m.store64(table + in.below(4) * 8, descriptor(in));
            break;
        }
        case 4: { // one bit of a structure in use
            const std::uint64_t at = arena + in.below(0x8000 / 8) * 8;
            const std::uint64_t changed = m.load64(at) ^ std::uint64_t{1} << in.below(64);
            m.store64(at, changed & ~contiguous_hint);
            break;
        }
        default:
            owed = false;
            break;
        }
        if (owed) settle();
        const std::uint64_t somewhere = stages == 2 && in.flag() ? guest::ram : 0;
        const iova address{in.flag() ? somewhere + in.below(0x40'0000) : in.take(8)};
        one.compare_with_memory(address, in.flag() ? access::read : access::write);
        // The same few addresses again and again: what is cached meets what has changed.
        for (const std::uint64_t low : {0x0U, 0x1000U, 0x20'3000U, 0x20'5000U})
            one.compare_with_memory(iova{(stages == 2 ? guest::ram : 0) + low},
                                    (step & 1) != 0 ? access::write : access::read);
        m.write32(spec::reg::EVENTQ_CONS, m.read32(spec::reg::EVENTQ_PROD));
    }
}

} // namespace fuzz
