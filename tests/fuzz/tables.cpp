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

} // namespace

void tables(std::span<const std::uint8_t> bytes) {
    started_machine& one = shared_machine();
    machine& m = one.m;
    input in{bytes};
    const std::uint64_t root = m.stage1_stream(started_machine::stream, 1);
    const std::uint64_t ste = m.ste_address(started_machine::stream);
    const std::uint64_t cd = m.load64(ste) & spec::ste::S1ContextPtr::mask;
    // A tree to start from, so that bytes are not spent on making one.
    for (std::uint64_t page = 0; page < 4; ++page)
        m.map(root, page << 12, arena + 0x20000 + (page << 12));
    m.map(root, 0x20'0000, guest::ram, 2);

    const auto settle = [&] {
        m.command(spec::cmd_cfgi_all());
        m.command(spec::tlbi_nsnh_all());
        if (options::features.hyp) m.command(spec::make_command(spec::opcode::CMD_TLBI_EL2_ALL));
        m.sync();
        while (m.iommu().poll()) {}
    };
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
        const iova address{in.flag() ? in.below(0x40'0000) : in.take(8)};
        one.compare_with_memory(address, in.flag() ? access::read : access::write);
        m.write32(spec::reg::EVENTQ_CONS, m.read32(spec::reg::EVENTQ_PROD));
    }
}

} // namespace fuzz
