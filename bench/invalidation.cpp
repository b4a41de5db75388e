/// Claim: forgetting an address space, a virtual machine, a stream or everything costs the same
/// whether 256 or 65,536 entries are cached, and so does forgetting one page.
///
/// Each is one command, put into the queue and rung for, without CMD_SYNC; `stream` is the host's
/// own call.
///   nothing_matches  the TLB stays full: another ASID, VMID, stream or page is named
///   all_match        everything cached goes; it is put back, untimed, before the next
///   one_matches      CMD_TLBI_NH_VA of a cached page
///   decoded          CMD_CFGI_STE, CMD_CFGI_CD or CMD_CFGI_ALL while the stream's configuration is
///                    decoded; entries stay, and an access afterwards hits them
///   rival_...        what a hash table and an LRU list behind a mutex need for the same; no queue
/// Argument: entries cached. After all_match and one_matches an access must miss.
#include "measure.hpp"

using namespace vm_accel;
using namespace bench;

namespace {

constexpr std::uint64_t batch = 64;
constexpr std::uint16_t other_space = 0x77;

using device_type = mapped_device<large_tlb, stage1_options>;

device_type& device() {
    static device_type one;
    return one;
}
auto& port() {
    static auto one = [] {
        auto made = device().attach();
        device().map(65536);
        return made;
    }();
    return one;
}
bool touch(std::uint64_t page) {
    auto guard = port().open();
    return guard.translate(iova{first_page + (page << page_log2)}, bytes_asked, access::read)
        .is_span();
}
/// What was decoded and forgotten is given back when a CMD_SYNC has waited for an invalidation.
void synchronise() { device().send({spec::cmd_sync(spec::sync_signal::SIG_NONE)}); }

/// The first `entries` pages are cached, and nothing else.
void fill(benchmark::State& state, std::uint64_t entries) {
    (void)port();
    device().empty();
    for (std::uint64_t i = 0; i < entries; ++i) {
        if (!touch(i)) state.SkipWithError("a page was refused");
    }
}
/// Whether `expected` of the pages are not cached any more, but for a few that share a set with
/// what else is cached. They are afterwards.
void expect_misses(benchmark::State& state, std::uint64_t entries, std::uint64_t expected) {
    constexpr std::uint64_t few = 32;
    const std::uint64_t before = device().iommu().stats().misses;
    for (std::uint64_t i = 0; i < entries; ++i)
        touch(i);
    const std::uint64_t missed = device().iommu().stats().misses - before;
    if (missed > expected + few || missed + few < expected)
        state.SkipWithError("an invalidation removed more or less than it names");
    synchronise();
}
std::uint64_t entries_of(const benchmark::State& state) {
    return static_cast<std::uint64_t>(state.range(0));
}

/// One command, timed. Not inlined: a rehearsal runs the same code.
[[gnu::noinline]] void execute(stopwatch& watch, device_type& on, const spec::command& c) {
    watch.start();
    on.put(c);
    on.ring();
    watch.end();
}

/// Putting entries back takes the code of commands and the ring out of the processor's caches; the
/// guest's next command, of the many that it sends, does not find that. The entries stay as they
/// are: another SMMU executes the command itself, this one a command that names what is not cached.
void warm_up(stopwatch& watch, const spec::command& c) {
    static device_type another;
    for (unsigned i = 0; i < 1U << guest::command_log2; ++i) {
        execute(watch, another, c);
        execute(watch, device(), spec::tlbi_nh_asid(vmid{0}, asid{other_space}));
    }
}

template <class Command>
void nothing_matches(benchmark::State& state, Command command) {
    const std::uint64_t entries = entries_of(state);
    fill(state, entries);
    // Looked at once: after a hundred thousand of them generations begin anew, with a sweep.
    device().send({command(0)});
    expect_misses(state, entries, 0);
    std::uint64_t n = 0;
    for (auto _ : state)
        device().send({command(n++)});
    if (!device().is_done()) state.SkipWithError("not every command was executed");
}
template <class Command>
void all_match(benchmark::State& state, Command command) {
    const std::uint64_t entries = entries_of(state);
    fill(state, entries);
    stopwatch watch{state};
    for (auto _ : state) {
        warm_up(watch, command(0));
        execute(watch, device(), command(0));
        watch.keep();
        expect_misses(state, entries, entries);
    }
    if (!device().is_done()) state.SkipWithError("not every command was executed");
}

constexpr auto asid_of_another = [](std::uint64_t) {
    return spec::tlbi_nh_asid(vmid{0}, asid{other_space});
};
constexpr auto asid_of_all = [](std::uint64_t) {
    return spec::tlbi_nh_asid(vmid{0}, asid{first_space});
};
constexpr auto vmid_of_all = [](std::uint64_t) { return spec::tlbi_nh_all(vmid{0}); };
constexpr auto everything = [](std::uint64_t) { return spec::tlbi_nsnh_all(); };
constexpr auto page_of_another = [](std::uint64_t n) {
    return spec::tlbi_nh_va(vmid{0}, asid{other_space}, iova{first_page + (n % 256 << page_log2)},
                            true);
};
/// 512 pages in one command.
constexpr auto range_of_another = [](std::uint64_t) {
    return spec::tlbi_nh_va(vmid{0}, asid{other_space}, iova{first_page}, true,
                            {.num = 15, .scale = 5, .tg = 1, .ttl = 3});
};

void one_matches(benchmark::State& state) {
    const std::uint64_t entries = entries_of(state);
    fill(state, entries);
    stopwatch watch{state};
    std::uint64_t next = 0;
    for (auto _ : state) {
        const std::uint64_t first = next;
        warm_up(watch, asid_of_another(0));
        watch.start();
        for (std::uint64_t i = 0; i < batch; ++i, ++next) {
            device().send(
                {spec::tlbi_nh_va(vmid{0}, asid{first_space},
                                  iova{first_page + (next % entries << page_log2)}, true)});
        }
        watch.stop(batch);
        const std::uint64_t before = device().iommu().stats().misses;
        for (std::uint64_t i = first; i < next; ++i)
            touch(i % entries);
        if (device().iommu().stats().misses - before != batch)
            state.SkipWithError("a page was still cached");
    }
}
constexpr auto ste_of_first = [](std::uint64_t) {
    return spec::cmd_cfgi_ste(stream_id{first_stream}, true);
};
constexpr auto ste_of_nobody = [](std::uint64_t) {
    return spec::cmd_cfgi_ste(stream_id{first_stream + 0x1000}, true);
};
constexpr auto cd_of_first = [](std::uint64_t) {
    return spec::cmd_cfgi_cd(stream_id{first_stream}, substream_id{0}, true);
};
constexpr auto all_configurations = [](std::uint64_t) { return spec::cmd_cfgi_all(); };

template <class Command>
void decoded(benchmark::State& state, Command command) {
    fill(state, entries_of(state));
    stopwatch watch{state};
    std::uint64_t missed = 0;
    for (auto _ : state) {
        const std::uint64_t before = device().iommu().stats().misses;
        touch(0);
        missed += device().iommu().stats().misses - before;
        warm_up(watch, command(0));
        execute(watch, device(), command(0));
        watch.keep();
        synchronise();
    }
    // Now and then warming up makes generations begin anew, with a sweep.
    if (missed > 1 + static_cast<std::uint64_t>(state.iterations()) / 100)
        state.SkipWithError("entries went with the configuration");
    if (!device().is_done()) state.SkipWithError("not every command was executed");
}
/// The host's own call, timed.
[[gnu::noinline]] bool forget(stopwatch& watch, stream_id stream) {
    watch.start();
    const bool done = device().iommu().invalidate_tlb(stream).has_value();
    watch.end();
    return done;
}
/// The same for a stream that has cached one block, and its configuration: without that,
/// all would go.
bool forget_another(benchmark::State& state, stopwatch& watch) {
    static auto other = device().attach();
    device().map(1, block_log2);
    {
        auto guard = other.open();
        if (!guard.translate(iova{first_block}, bytes_asked, access::read).is_span())
            state.SkipWithError("a block was refused");
    }
    return forget(watch, other.stream());
}
/// As after many invalidations: nothing waits for a CMD_SYNC.
void settle() {
    device().send({spec::tlbi_nh_asid(vmid{0}, asid{other_space})});
    synchronise();
}
void stream_of_another(benchmark::State& state) {
    const std::uint64_t entries = entries_of(state);
    fill(state, entries);
    stopwatch watch{state};
    (void)forget_another(state, watch);
    expect_misses(state, entries, 0);
    for (auto _ : state) {
        const bool done = forget_another(state, watch);
        watch.keep();
        if (!done) state.SkipWithError("refused");
        settle();
    }
}
void stream_of_all(benchmark::State& state) {
    const std::uint64_t entries = entries_of(state);
    fill(state, entries);
    stopwatch watch{state};
    for (auto _ : state) {
        for (int i = 0; i < 16; ++i) {
            (void)forget_another(state, watch);
            settle();
        }
        const bool done = forget(watch, port().stream());
        watch.keep();
        if (!done) state.SkipWithError("refused");
        expect_misses(state, entries, entries);
    }
}

template <class Table, class Fill, class Invalidate>
void rival(benchmark::State& state, Table& table, bool all_go, Fill fill_in, Invalidate forget) {
    const auto entries = static_cast<std::uint64_t>(state.range(0));
    const auto refill = [&] {
        for (std::uint64_t i = 0; i < entries; ++i)
            fill_in(table, first_page + (i << page_log2));
    };
    refill();
    stopwatch watch{state};
    for (auto _ : state) {
        watch.start();
        forget(table);
        watch.stop();
        if (all_go) refill();
    }
}
void rival_hash(benchmark::State& state) {
    hash_by_level table{static_cast<std::size_t>(state.range(0))};
    const bool all_go = state.range(1) != 0;
    rival(
        state, table, all_go,
        [](hash_by_level& t, std::uint64_t a) {
            t.fill(a, page_log2, first_space, {nullptr, a, 1});
        },
        [&](hash_by_level& t) { t.invalidate_space(all_go ? first_space : other_space); });
}
void rival_lru(benchmark::State& state) {
    lru_list list{static_cast<std::size_t>(state.range(0)), page_log2};
    const bool all_go = state.range(1) != 0;
    rival(
        state, list, all_go,
        [](lru_list& t, std::uint64_t a) { t.fill(a, first_space, {nullptr, a, 1}); },
        [&](lru_list& t) { t.invalidate_space(all_go ? first_space : other_space); });
}

void plain(benchmark::internal::Benchmark* b) { b->Arg(256)->Arg(4096)->Arg(65536); }
/// What takes long to put back is measured fewer times.
template <class Register>
void few(Register benchmark_of) {
    benchmark_of(256, 400);
    benchmark_of(4096, 100);
    benchmark_of(65536, 10);
}
template <class Command>
void all_of(const char* name, Command command) {
    few([&](std::int64_t entries, std::int64_t times) {
        benchmark::RegisterBenchmark(name,
                                     [=](benchmark::State& state) { all_match(state, command); })
            ->Arg(entries)
            ->Iterations(times)
            ->UseManualTime();
    });
}
template <class Command>
void none_of(const char* name, Command command) {
    benchmark::RegisterBenchmark(name, [=](benchmark::State& state) {
        nothing_matches(state, command);
    })->Apply(plain);
}
template <class Command>
void configurations(const char* name, Command command) {
    benchmark::RegisterBenchmark(name, [=](benchmark::State& state) { decoded(state, command); })
        ->Arg(4096)
        ->Iterations(200)
        ->UseManualTime();
}
void rivals(const char* name, void (*run)(benchmark::State&)) {
    for (const int all_go : {0, 1}) {
        few([&](std::int64_t entries, std::int64_t times) {
            benchmark::RegisterBenchmark(name, run)
                ->Args({entries, all_go})
                ->Iterations(times)
                ->UseManualTime();
        });
    }
}

} // namespace

int main(int argc, char** argv) {
    none_of("asid/nothing_matches", asid_of_another);
    all_of("asid/all_match", asid_of_all);
    all_of("vmid/all_match", vmid_of_all);
    all_of("all/all_match", everything);
    benchmark::RegisterBenchmark("stream/nothing_matches", stream_of_another)
        ->Apply(plain)
        ->Iterations(10'000)
        ->UseManualTime();
    few([](std::int64_t entries, std::int64_t times) {
        benchmark::RegisterBenchmark("stream/all_match", stream_of_all)
            ->Arg(entries)
            ->Iterations(times)
            ->UseManualTime();
    });
    none_of("page/nothing_matches", page_of_another);
    few([](std::int64_t entries, std::int64_t times) {
        benchmark::RegisterBenchmark("page/one_matches", one_matches)
            ->Arg(entries)
            ->Iterations(times)
            ->UseManualTime();
    });
    none_of("512_pages/nothing_matches", range_of_another);
    benchmark::RegisterBenchmark("cfgi_ste/nothing_matches", [](benchmark::State& state) {
        nothing_matches(state, ste_of_nobody);
    })->Arg(4096);
    configurations("cfgi_ste/decoded", ste_of_first);
    configurations("cfgi_cd/decoded", cd_of_first);
    configurations("cfgi_all/decoded", all_configurations);
    rivals("rival_hash", rival_hash);
    rivals("rival_lru", rival_lru);
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
    benchmark::RunSpecifiedBenchmarks();
    return 0;
}
