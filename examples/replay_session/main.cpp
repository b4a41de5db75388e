/// replay_session REGISTERS PAGES [--seed-tlb]
///
/// Plays a recorded session of an SMMUv3 and a guest's driver into this
/// library's SMMU, performs each recorded translation, and prints
///     translated N, faulted N, wrong N
/// `translated`: the session's final tables map the page, and the SMMU gave
/// the recorded address, for exactly the accesses that were recorded as
/// allowed. `faulted`: they do not map it any more, the SMMU refused it, and
/// the recorded command queue holds the invalidation that covers it. `wrong`:
/// all else; standard error says what. A few pages that were never mapped are
/// tried as well and count as wrong if they are translated.
///
/// --seed-tlb: first makes the SMMU cache every recorded translation, also the
/// removed ones, then lets it run the recorded commands, then checks: an
/// invalidation that misses its entry shows.
///
/// REGISTERS and PAGES: the format is in recording.hpp. PAGES may be
/// compressed with xz; "-" is standard input.
/// Exit status: 0 nothing wrong, 1 something wrong, 2 no answer (bad input, or
/// a session that uses what this program cannot judge).
#include "input_file.hpp"
#include "recording.hpp"
#include "replay.hpp"
#include "smmu_device.hpp"

#include <iostream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace {

using namespace replay;

int give_up(const error& why) {
    std::cerr << "replay_session: " << why << '\n';
    return 2;
}

int replay_files(const std::string& registers, const std::string& pages_file, bool seed_tlb) {
    const result<std::string> text = read_input(registers);
    if (!text) return give_up(text.error());
    const result<recording> session = parse_registers(*text);
    if (!session) return give_up(session.error());
    const result<std::string> bytes = read_input(pages_file);
    if (!bytes) return give_up(bytes.error());
    const result<page_set> pages = parse_pages(*bytes);
    if (!pages) return give_up(pages.error());

    const std::size_t spare =
        seed_tlb ? session->translations.size() * seeded_tables::spare_pages_per_mapping : 0;
    page_memory memory{*pages, spare};
    const auto device = std::make_unique<smmu_device<>>(memory);
    if (const result<> ready = device->init(); !ready) return give_up(ready.error());
    session_replay replay{*session, memory, *device, std::cerr};
    const result<verdict> found = replay.run(seed_tlb);
    if (!found) return give_up(found.error());

    if (seed_tlb && found->seeded < session->translations.size()) {
        std::cerr << "note: " << session->translations.size() - found->seeded
                  << " translations could not be brought back into the TLB\n";
    }
    std::cout << "translated " << found->translated << ", faulted " << found->faulted << ", wrong "
              << found->wrong << '\n';
    return found->wrong == 0 ? 0 : 1;
}

} // namespace

int main(int argc, char** argv) {
    std::vector<std::string> files;
    bool seed_tlb = false;
    for (int i = 1; i < argc; ++i) {
        const std::string_view word{argv[i]};
        if (word == "--seed-tlb") {
            seed_tlb = true;
        } else if (word.starts_with("--")) {
            files.clear();
            break;
        } else {
            files.emplace_back(word);
        }
    }
    if (files.size() != 2) {
        std::cerr << "usage: replay_session REGISTERS PAGES [--seed-tlb]\n";
        return 2;
    }
    return replay_files(files[0], files[1], seed_tlb);
}
