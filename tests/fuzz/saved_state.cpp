// Saved states of any content: what restore() takes, the device can live with.
#include "machine.hpp"
#include "targets.hpp"

#include <vector>

namespace fuzz {

void saved_state(std::span<const std::uint8_t> bytes) {
    namespace form = vm_accel::saved_state;
    started_machine& one = shared_machine();
    machine& m = one.m;
    input in{bytes};
    const std::uint64_t root = m.stage1_stream(started_machine::stream, 1);
    m.map(root, 0x1000, arena + 0x20000);
    (void)one.ask({.address = iova{in.flag() ? 0x1000U : 0x9000U}});

    std::vector<std::byte> state(m.iommu().saved_state_size());
    check(m.iommu().save(state).has_value(), "save failed");
    const std::vector<std::byte> good = state;
    // Words of it replaced, with a checksum that fits, so that every word is looked at.
    const bool sealed = in.below(4) != 0;
    const std::uint64_t changes = in.below(8);
    for (std::uint64_t i = 0; i < changes && !in.empty(); ++i) {
        const auto word = static_cast<std::size_t>(in.below(state.size() / 8));
        const std::uint64_t old = form::word_at(state, word);
        form::put_word(state, word,
                       in.flag() ? old ^ std::uint64_t{1} << in.below(64)
                                 : in.number(guest::ram, guest::ram_bytes));
    }
    if (in.below(8) == 0) state.resize(static_cast<std::size_t>(in.below(state.size() + 64)));
    if (sealed && state.size() >= form::header_words * 8) {
        form::put_word(state, 4, form::checksum(state));
    }
    const bool taken = m.iommu().restore(state).has_value();
    check(taken || state != good, "a good state is refused");

    for (int step = 0; step < 16 && !in.empty(); ++step) {
        if (in.flag()) {
            m.iommu().mmio_write(in.below(0x60) * 4, 4, in.take(4));
        } else {
            (void)one.ask({.address = iova{in.below(0x4000)},
                           .kind = in.flag() ? vm_accel::access::read : vm_accel::access::write});
        }
    }
    for (int calls = 0; m.iommu().poll(); ++calls)
        check(calls < 1'000'000, "poll never ends after a restore");
    // A state that was refused has changed nothing; the good one is always taken.
    check(m.iommu().restore(good).has_value(), "the good state is refused");
    one.compare_with_memory(iova{0x1234}, vm_accel::access::read);
}

} // namespace fuzz
