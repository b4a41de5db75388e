/// Which TLB for which devices? Replays traces through every TLB policy of the
/// library at several capacities, and shows the hit rates.
#include "generators.hpp"
#include "plot.hpp"

#include <fstream>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

namespace {

constexpr std::string_view usage =
    "policy_lab [--svg FILE] [--generate NAME]... [TRACE]...\n"
    "\n"
    "Replays DMA traces through the library's TLB policies and prints how often each hits.\n"
    "  TRACE            a file as examples/linux_kvm_arm64 writes it with --record; its form is\n"
    "                   described in trace.hpp\n"
    "  --generate NAME  a made-up one: streaming, strided, zipf, rings, neighbour, many-devices\n"
    "  --svg FILE       also draws hit rate against capacity\n"
    "Without traces: all made-up ones. Exit status: 0, 1 for a file that cannot be read or\n"
    "written, 2 for a wrong command line.\n";

constexpr std::uint64_t made_up_accesses = 100'000;

} // namespace

int main(int count, char** arguments) {
    using namespace policy_lab;
    std::vector<trace> traces;
    std::string picture;
    for (int i = 1; i < count; ++i) {
        const std::string_view word = arguments[i];
        if (word == "--help") {
            std::cout << usage;
            return 0;
        }
        const bool named = word == "--svg" || word == "--generate";
        if (named && i + 1 == count) {
            std::cerr << usage;
            return 2;
        }
        trace next;
        if (word == "--svg") {
            picture = arguments[++i];
            continue;
        }
        if (word == "--generate") {
            next = generator::make(arguments[++i], made_up_accesses);
            if (next.records.empty()) {
                std::cerr << "policy_lab: no trace is called " << arguments[i] << '\n';
                return 2;
            }
        } else if (word.substr(0, 2) == "--") {
            std::cerr << usage;
            return 2;
        } else {
            next.name = word.substr(word.rfind('/') + 1);
            std::ifstream file{arguments[i]};
            if (const auto error = read_trace(file, next)) {
                std::cerr << "policy_lab: " << word << ": " << *error << '\n';
                return 1;
            }
        }
        traces.push_back(std::move(next));
    }
    if (traces.empty()) {
        for (const std::string_view name : generator::names)
            traces.push_back(generator::make(name, made_up_accesses));
    }

    std::vector<experiment> all;
    for (const trace& t : traces) {
        prepared_trace ready = prepare(t);
        std::vector<row> rows = run_all(ready, all_policies);
        ready.steps.clear();
        all.push_back({std::move(ready), std::move(rows)});
        std::cout << to_table(all.back()) << '\n';
    }
    if (!picture.empty() && !(std::ofstream{picture} << plot::draw(all))) {
        std::cerr << "policy_lab: " << picture << ": cannot be written\n";
        return 1;
    }
    return 0;
}
