// Registers, memory and DMA in any order: the model goes on, and works again
// after a reset.
#include "machine.hpp"
#include "targets.hpp"

namespace fuzz {

void device(std::span<const std::uint8_t> bytes) {
    started_machine& one = shared_machine();
    machine& m = one.m;
    input in{bytes};
    if (in.flag()) {
        const std::uint64_t root = m.stage1_stream(started_machine::stream, 1);
        for (std::uint64_t page = 0; page < 4; ++page)
            m.map(root, page << 12, arena + 0x10000 + (page << 12));
    }
    const auto number = [&] { return in.number(guest::ram, guest::ram_bytes); };
    for (int step = 0; step < 256 && !in.empty(); ++step) {
        switch (in.below(10)) {
        case 0:
        case 1: {
            const std::uint64_t offset = in.flag() ? in.below(0x60) * 4 : number();
            m.iommu().mmio_write(offset, in.flag() ? 4 : 8, number());
            break;
        }
        case 2:
            (void)m.iommu().mmio_read(in.flag() ? in.below(0x400) * 4 : number(),
                                      in.flag() ? 4 : 8);
            break;
        case 3:
            m.store64(arena + in.below(arena_bytes / 8) * 8, number());
            break;
        case 4: {
            spec::command c;
            c.word[0] = le64{in.below(0x80) | in.take(7) << 8};
            c.word[1] = le64{number()};
            m.enqueue(c);
            m.ring();
            break;
        }
        case 5:
            m.write32(spec::reg::GERRORN, m.read32(spec::reg::GERROR));
            m.write32(spec::reg::EVENTQ_CONS, m.read32(spec::reg::EVENTQ_PROD));
            break;
        case 6:
            (void)m.iommu().poll();
            break;
        case 7: {
            const result<> done = m.iommu().invalidate_tlb(
                in.flag() ? std::optional{stream_id{started_machine::stream}} : std::nullopt);
            check(done.has_value(), "invalidate_tlb failed");
            break;
        }
        default:
            (void)one.ask({.address = iova{in.flag() ? in.below(0x8000) : number()},
                           .length = 1 + in.below(0x3000),
                           .kind = in.flag() ? access::read : access::write,
                           .privileged = in.flag(),
                           .instruction = in.flag()});
            break;
        }
    }
    // Work is bounded: whatever was queued ends.
    for (int calls = 0; m.iommu().poll(); ++calls)
        check(calls < 1'000'000, "poll never ends");
    one.start_over();
    const std::uint64_t root = m.stage1_stream(started_machine::stream, 1);
    m.map(root, 0x1000, arena + 0x20000);
    check(m.commands_done(), "commands wait after a reset");
    one.compare_with_memory(iova{0x1234}, access::read);
}

} // namespace fuzz
