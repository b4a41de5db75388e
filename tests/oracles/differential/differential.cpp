/// The differential oracle: random configurations on the golden model and on ours.
/// See tests/oracles/README.md; scripts/differential builds and starts it.
///
///   differential --seed S --cases N --folder DIR [--case K] [--stop-after D] -- QEMU...
#include "session.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace {

using namespace differential;

struct arguments {
    std::uint64_t seed = 1;
    std::uint64_t cases = 1000;
    std::uint64_t only = ~std::uint64_t{0};
    std::uint64_t stop_after = 5;
    std::string folder = ".";
    std::vector<std::string> command;
};

[[noreturn]] void usage(const char* wrong) {
    std::fprintf(stderr, "differential: what is %s?\n", wrong);
    std::exit(2);
}

arguments parse(int count, char** words) {
    arguments a;
    for (int i = 1; i < count; ++i) {
        const std::string word = words[i];
        if (word == "--") {
            a.command.assign(words + i + 1, words + count);
            break;
        }
        if (i + 1 == count) usage(words[i]);
        const char* const value = words[++i];
        if (word == "--seed") {
            a.seed = std::strtoull(value, nullptr, 0);
        } else if (word == "--cases") {
            a.cases = std::strtoull(value, nullptr, 0);
        } else if (word == "--case") {
            a.only = std::strtoull(value, nullptr, 0);
        } else if (word == "--stop-after") {
            a.stop_after = std::strtoull(value, nullptr, 0);
        } else if (word == "--folder") {
            a.folder = value;
        } else {
            usage(words[i - 1]);
        }
    }
    if (a.command.empty()) usage("QEMU's command, after --");
    return a;
}

/// Both sessions' results, and what is printed while they run.
class report {
public:
    explicit report(const arguments& a) : arguments_(a) {}

    /// False = enough differences: stop.
    bool told(std::uint64_t number, const std::string& difference) {
        const std::lock_guard held{mutex_};
        ++done_;
        if (!difference.empty()) {
            ++different_;
            std::printf("DIFFERENT: seed %llu case %llu: %s  alone: scripts/differential --seed "
                        "%llu --case %llu\n",
                        static_cast<unsigned long long>(arguments_.seed),
                        static_cast<unsigned long long>(number), difference.c_str(),
                        static_cast<unsigned long long>(arguments_.seed),
                        static_cast<unsigned long long>(number));
        }
        const auto now = std::chrono::steady_clock::now();
        if (now - last_ > std::chrono::seconds{10}) {
            last_ = now;
            std::printf("%llu cases, %.0f s\n", static_cast<unsigned long long>(done_),
                        std::chrono::duration<double>(now - started_).count());
        }
        std::fflush(stdout);
        return different_ < arguments_.stop_after;
    }
    void add(const session& s) {
        const std::lock_guard held{mutex_};
        counts_.cases += s.counts.cases;
        counts_.different += s.counts.different;
        counts_.accesses += s.counts.accesses;
        counts_.faulting += s.counts.faulting;
        counts_.events += s.counts.events;
        counts_.commands += s.counts.commands;
        seen_.add(s.seen);
        errors_.add(s.errors);
    }
    int finish() const {
        std::printf("coverage:\n");
        seen_.print();
        std::printf("deviations applied:\n");
        errors_.print();
        const double all = static_cast<double>(std::max<std::uint64_t>(counts_.accesses, 1));
        const double faulting = static_cast<double>(counts_.faulting) / all;
        const double seconds =
            std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
        std::printf("accesses %llu: valid %.1f %%, faulting %.1f %%; events %llu, commands %llu; "
                    "%.1f s, %.0f cases/s\n",
                    static_cast<unsigned long long>(counts_.accesses), 100 * (1 - faulting),
                    100 * faulting, static_cast<unsigned long long>(counts_.events),
                    static_cast<unsigned long long>(counts_.commands), seconds,
                    static_cast<double>(counts_.cases) / seconds);
        std::printf("cases %llu, different %llu\n", static_cast<unsigned long long>(counts_.cases),
                    static_cast<unsigned long long>(counts_.different));
        return counts_.different == 0 ? 0 : 1;
    }

private:
    const arguments& arguments_;
    std::mutex mutex_;
    std::uint64_t done_ = 0;
    std::uint64_t different_ = 0;
    std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
    std::chrono::steady_clock::time_point last_ = started_;
    session_counts counts_;
    coverage seen_;
    golden_errors errors_;
};

common_features features() {
    common_features f;
    f.stage2 = our_options::features.stage2;
    f.granule_16k = our_options::features.granule_16k;
    f.granule_64k = our_options::features.granule_64k;
    f.output_bits = our_options::features.output_bits;
    return f;
}

/// The even cases (linear stream tables) or the odd ones (two levels): the golden model cannot go
/// back to a linear table.
void run_half(const arguments& a, unsigned half, report& out) {
    const std::string folder = a.folder + "/" + std::to_string(half);
    ::mkdir(folder.c_str(), 0700);
    session s{{a.command, folder, a.seed, features()}};
    const bool alone = a.only != ~std::uint64_t{0};
    std::uint64_t since = 0;
    for (std::uint64_t number = alone ? a.only : half; alone || number < a.cases; number += 2) {
        std::string difference = s.run(number);
        if (difference.empty() && (++since == 256 || alone)) {
            since = 0;
            if (!s.same_data()) difference = "data differs where neither should have written\n";
        }
        if (!out.told(number, difference) || alone) break;
    }
    out.add(s);
}

} // namespace

int main(int count, char** words) {
    std::setvbuf(stdout, nullptr, _IOFBF, 1U << 16);
    const arguments a = parse(count, words);
    report out{a};
    const auto half = [&](unsigned which) {
        try {
            run_half(a, which, out);
        } catch (const std::exception& what) {
            std::fprintf(stderr, "differential: %s\n", what.what());
            std::_Exit(2);
        }
    };
    if (a.only != ~std::uint64_t{0}) {
        half(static_cast<unsigned>(a.only % 2));
    } else {
        std::thread other{half, 1U};
        half(0);
        other.join();
    }
    return out.finish();
}
