// Streams of commands against a working device: none crashes or hangs it, and
// none makes it forget how to translate.
#include "machine.hpp"
#include "targets.hpp"

namespace fuzz {

void commands(std::span<const std::uint8_t> bytes) {
    started_machine& one = shared_machine();
    machine& m = one.m;
    input in{bytes};
    const std::uint64_t root = m.stage1_stream(started_machine::stream, 1);
    constexpr std::uint64_t pages = 8;
    for (std::uint64_t page = 0; page < pages; ++page)
        m.map(root, page << 12, arena + 0x20000 + (page << 12));

    for (int step = 0; step < 200 && !in.empty(); ++step) {
        spec::command c;
        const std::uint64_t opcode = in.take(1);
        // Mostly few bytes for a command: known identifiers, low addresses.
        if (in.flag()) {
            c.word[0] = le64{opcode | in.take(7) << 8};
            c.word[1] = le64{in.take(8)};
        } else {
            c.word[0] = le64{opcode | std::uint64_t{started_machine::stream} << 32 |
                             in.below(2) << 48 | in.take(1) << 12};
            c.word[1] = le64{in.below(pages + 2) << 12 | in.take(1) | in.below(4) << 10};
        }
        m.enqueue(c);
        if (in.flag()) m.ring();
        one.compare_with_memory(iova{in.below(pages + 2) << 12},
                                in.flag() ? access::read : access::write);
        // A driver would read why, and go on behind the command that failed.
        if (m.read32(spec::reg::GERROR) != m.read32(spec::reg::GERRORN)) {
            const std::uint32_t cr0 = m.read32(spec::reg::CR0);
            m.write32(spec::reg::CR0, cr0 & ~0x8U);
            m.write32(spec::reg::CMDQ_CONS, m.read32(spec::reg::CMDQ_PROD));
            m.write32(spec::reg::GERRORN, m.read32(spec::reg::GERROR));
            m.write32(spec::reg::CR0, cr0);
        }
    }
    for (int calls = 0; m.iommu().poll(); ++calls)
        check(calls < 1'000'000, "poll never ends");
    for (std::uint64_t page = 0; page < pages + 2; ++page)
        one.compare_with_memory(iova{page << 12 | 0x10}, access::write);
}

} // namespace fuzz
