/// Random translation tables, walked by an emulated processor's AT instructions and by the library.
///
///   walk_oracle_host --seed S --cases N --guest ELF --ram PREFIX [--only CASE] [--jobs N]
///                    [--stop-after N] -- QEMU...
#include "comparison.hpp"
#include "known_deviations.hpp"
#include "machine.hpp"
#include "report.hpp"
#include "statistics.hpp"

#include <atomic>
#include <charconv>
#include <chrono>
#include <cinttypes>
#include <mutex>
#include <string_view>
#include <thread>

namespace oracle {
namespace {

constexpr unsigned batch_cases = 40'000;

struct options {
    u64 seed = 1;
    u64 cases = 100'000;
    u64 only = ~u64{0};
    u64 stop_after = 20;
    unsigned jobs = 2;
    std::string guest, ram;
    std::vector<std::string> emulator;
};

struct totals {
    u64 cases = 0, compared = 0, different = 0, dropped = 0, claims = 0, translated = 0;
    deviation_counts deviations{};
    statistics seen;

    void add(const totals& o) {
        cases += o.cases;
        compared += o.compared;
        different += o.different;
        dropped += o.dropped;
        claims += o.claims;
        translated += o.translated;
        for (std::size_t i = 0; i < deviations.size(); ++i)
            deviations[i] += o.deviations[i];
        seen.add(o.seen);
    }
};

/// One worker: makes, runs and compares batches.
class worker {
public:
    worker(const options& o, unsigned number)
        : options_(o),
          machine_(o.emulator, o.ram + std::to_string(number), o.guest),
          batch_(machine_.at(ORACLE_RAM)),
          known_(batch_) {}

    totals run(u64 number, u64 first_case, unsigned cases) {
        sum_ = {};
        first_case_ = first_case;
        known_.forget();
        batch_.make(options_.seed, number, cases);
        batch_.walk_with_library();
        store();
        machine_.run();
        const auto* header = reinterpret_cast<oracle_batch*>(machine_.at(ORACLE_BATCH));
        if (header->walks_done != batch_.walks.size()) {
            std::fprintf(stderr, "walk_oracle: the machine did %" PRIu64 " of %zu walks\n",
                         header->walks_done, batch_.walks.size());
            std::exit(2);
        }
        compare();
        sum_.deviations = known_.counts;
        batch_.tables.clear();
        return sum_;
    }

private:
    static bool left_out(const answer& ours) noexcept {
        return ours.kind == answer_kind::elsewhere || refused(ours);
    }
    static bool refused(const answer& ours) noexcept {
        return ours.kind == answer_kind::refused_ste || ours.kind == answer_kind::refused_cd;
    }

    void store() {
        const u64 trees_at = (ORACLE_BATCH + sizeof(oracle_batch) + 4095) & ~u64{4095};
        const u64 walks_at = trees_at + batch_.trees.size() * sizeof(oracle_tree);
        auto* out = reinterpret_cast<oracle_tree*>(machine_.at(trees_at));
        for (const tree_record& t : batch_.trees) {
            oracle_tree registers = registers_of(t.config);
            registers.walks = t.walks;
            // What the machine does with an illegal configuration is nobody's business either.
            registers.skip = t.walks != 0 && left_out(batch_.records[t.first_walk].ours) ? 1 : 0;
            *out++ = registers;
        }
        std::memcpy(machine_.at(walks_at), batch_.walks.data(),
                    batch_.walks.size() * sizeof(oracle_walk));
        if (walks_at + batch_.walks.size() * sizeof(oracle_walk) > ORACLE_TABLES) std::abort();
        auto* header = reinterpret_cast<oracle_batch*>(machine_.at(ORACLE_BATCH));
        *header = {batch_.trees.size(), trees_at, walks_at, 0};
        walks_at_ = walks_at;
    }

    void compare() {
        const auto* answers = reinterpret_cast<const oracle_walk*>(machine_.at(walks_at_));
        for (const tree_record& t : batch_.trees) {
            for (std::uint32_t i = t.first_walk; i < t.first_walk + t.walks; ++i)
                compare_one(t, i, answers[i]);
        }
        for (const u64 at : batch_.tables.differences()) {
            ++sum_.different;
            report_word(at);
        }
    }
    void compare_one(const tree_record& t, std::uint32_t i, const oracle_walk& got) {
        ++sum_.cases;
        walk_record& r = batch_.records[i];
        if (r.ours.kind == answer_kind::elsewhere) {
            ++sum_.dropped;
            return;
        }
        const answer machine = answer_of(got);
        const broken_rule rule = illegal(t.config);
        count_case(sum_.seen, batch_, t, i, r.ours, rule);
        if (only(i)) print_case(t, i, got, machine, "asked for");
        if (rule != nullptr || refused(r.ours)) {
            if (rule == nullptr) {
                different(t, i, got, machine, "the library refuses a legal configuration");
            } else if (!refused(r.ours)) {
                different(t, i, got, machine, rule);
            }
            return;
        }
        ++sum_.compared;
        if (machine.kind == answer_kind::translated) ++sum_.translated;
        const std::optional<bool> agrees = known_.without_high_bits(t, i, machine);
        if (!(agrees ? *agrees
                     : same(machine, r.ours) || known_.explained(t, i, machine, r.ours, false) ||
                           known_.found_updated(t, i, machine))) {
            different(t, i, got, machine, "answers differ");
        } else if (!claims_hold(t, i, machine)) {
            different(t, i, got, machine, "an earlier walk of this tree claimed another address");
        }
    }
    /// What the library's earlier walks of the tree said about their neighbourhood, which is what a
    /// TLB entry holds, against what the machine says of this address.
    bool claims_hold(const tree_record& t, std::uint32_t i, const answer& machine) {
        if (machine.kind != answer_kind::translated) return true;
        for (std::uint32_t n = t.first_walk; n < i; ++n) {
            const claimed_range& c = batch_.records[n].claimed;
            const u64 offset = batch_.records[i].claimed.asked - c.input_base;
            if (c.size_log2 == 0 || batch_.records[i].claimed.size_log2 == 0 ||
                offset >> c.size_log2 != 0) {
                continue;
            }
            ++sum_.claims;
            if (((c.output_base + offset) & ~u64{0xfff}) != machine.address) return false;
        }
        return true;
    }

    [[nodiscard]] bool only(std::uint32_t i) const noexcept {
        return first_case_ + i == options_.only;
    }
    void different(const tree_record& t, std::uint32_t i, const oracle_walk& got,
                   const answer& machine, const char* why) {
        ++sum_.different;
        if (reported_ < options_.stop_after) print_case(t, i, got, machine, why);
        ++reported_;
    }
    /// A descriptor that the two sides left different: which tree's it is.
    void report_word(u64 at) {
        if (reported_++ >= options_.stop_after) return;
        std::printf("DESCRIPTOR seed %" PRIu64 " at 0x%" PRIx64 ": machine 0x%016" PRIx64
                    ", library 0x%016" PRIx64 "\n",
                    options_.seed, at, batch_.tables.machine(at), batch_.tables.ours(at));
        const auto* answers = reinterpret_cast<const oracle_walk*>(machine_.at(walks_at_));
        for (const tree_record& t : batch_.trees) {
            for (std::uint32_t i = t.first_walk; i < t.first_walk + t.walks; ++i) {
                if (batch_.records[i].ours.kind == answer_kind::elsewhere) continue;
                if (!batch_.tables.belongs_to(at, batch_.tree_number(t))) continue;
                print_case(t, i, answers[i], answer_of(answers[i]), "descriptors differ");
            }
        }
    }

    void print_case(const tree_record& t, std::uint32_t i, const oracle_walk& got,
                    const answer& machine, const char* why) {
        oracle::print_case(batch_, options_.seed, first_case_ + i, t, i, got, machine, why);
    }

    const options& options_;
    machine machine_;
    batch batch_;
    known_deviations known_;
    totals sum_;
    u64 first_case_ = 0;
    u64 walks_at_ = 0;
    u64 reported_ = 0;
};

bool number(std::string_view text, u64& out) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
    return error == std::errc{} && end == text.data() + text.size();
}

int usage() {
    std::fprintf(stderr, "usage: walk_oracle_host --seed S --cases N --guest ELF --ram PREFIX "
                         "[--only CASE] [--jobs N] [--stop-after N] -- QEMU...\n");
    return 2;
}

int run(int argc, char** argv) {
    options o;
    u64 jobs = o.jobs;
    for (int i = 1; i < argc; ++i) {
        const std::string_view word = argv[i];
        if (word == "--") {
            o.emulator.assign(argv + i + 1, argv + argc);
            break;
        }
        if (++i == argc) return usage();
        const std::string_view value = argv[i];
        bool good = true;
        if (word == "--seed")
            good = number(value, o.seed);
        else if (word == "--cases")
            good = number(value, o.cases);
        else if (word == "--only")
            good = number(value, o.only);
        else if (word == "--jobs")
            good = number(value, jobs);
        else if (word == "--stop-after")
            good = number(value, o.stop_after);
        else if (word == "--guest")
            o.guest = value;
        else if (word == "--ram")
            o.ram = value;
        else
            good = false;
        if (!good) return usage();
    }
    if (o.guest.empty() || o.ram.empty() || o.emulator.empty() || jobs < 1 || jobs > 16)
        return usage();
    if (o.only != ~u64{0} && o.only >= o.cases) return usage();
    o.jobs = static_cast<unsigned>(jobs);

    const u64 batches = (o.cases + batch_cases - 1) / batch_cases;
    std::atomic<u64> next{o.only == ~u64{0} ? 0 : o.only / batch_cases};
    const u64 end = o.only == ~u64{0} ? batches : next + 1;
    totals all;
    std::mutex adding;
    const auto started = std::chrono::steady_clock::now();
    std::vector<std::thread> threads;
    for (unsigned n = 0; n < o.jobs; ++n) {
        threads.emplace_back([&, n] {
            worker w(o, n);
            for (u64 batch; (batch = next++) < end;) {
                const u64 first = batch * batch_cases;
                const auto count =
                    static_cast<unsigned>(std::min<u64>(batch_cases, o.cases - first));
                const totals part = w.run(batch, first, count);
                const std::scoped_lock lock(adding);
                all.add(part);
                const double seconds =
                    std::chrono::duration<double>(std::chrono::steady_clock::now() - started)
                        .count();
                std::printf("-- %" PRIu64 " of %" PRIu64 " cases, %.1f s, %" PRIu64 " different\n",
                            all.cases, o.cases, seconds, all.different);
                std::fflush(stdout);
            }
        });
    }
    for (std::thread& t : threads)
        t.join();
    std::printf("coverage:\n");
    all.seen.print(dimensions);
    std::printf("known deviations of the emulator applied:\n");
    for (std::size_t i = 0; i < all.deviations.size(); ++i)
        std::printf("  %-52s %" PRIu64 "\n", deviation_names[i], all.deviations[i]);
    std::printf("compared %" PRIu64 ", not compared: %" PRIu64 " illegal configurations (refused), "
                "%" PRIu64 " that would read what is no table\n",
                all.compared, all.cases - all.compared - all.dropped, all.dropped);
    const auto share = [&](u64 part) {
        return all.cases == 0 ? 0.0
                              : 100.0 * static_cast<double>(part) / static_cast<double>(all.cases);
    };
    std::printf("translated %.1f %%, faulted %.1f %%, illegal %.1f %%, left out %.1f %%; %" PRIu64
                " times an earlier walk had spoken for the address too\n",
                share(all.translated), share(all.compared - all.translated),
                share(all.cases - all.compared - all.dropped), share(all.dropped), all.claims);
    std::printf("cases %" PRIu64 ", different %" PRIu64 "\n", all.cases, all.different);
    return all.different == 0 ? 0 : 1;
}

} // namespace
} // namespace oracle

int main(int argc, char** argv) { return oracle::run(argc, argv); }
