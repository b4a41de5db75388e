"""The targets of translation and of NUMA memory, judged by one run's figures.

Each target is {"operation", "target", "measured", "met", "missing"}: `missing` says that this run
did not measure it, and `met` is false then.
"""
import count_instructions

FEATURES = (("stage 1 only", "stage1_options"), ("all features", "full_options"))
FEW_PAGES = ((1, 0), (64, 0), (64, 1), (4096, 0), (4096, 1))
ENTRIES = (256, 4096, 65536)
FLAT = 1.5  # the time at 65,536 entries is at most so many times that at 256


def hit_row(features, pages, order, stages="first", size=12):
    tlb = "large_tlb" if pages > 4096 else "usual_tlb"
    return f"translate/hit<{features}, stages::{stages}, {tlb}>/{pages}/{order}/{size}"


def floor_row(pages, order, size=12):
    return f"translate/floor_array/{pages}/{order}/{size}"


def number(ns):
    """A time for people."""
    if ns >= 1e6:
        return f"{ns / 1e6:.3g} ms"
    if ns >= 10_000:
        return f"{ns / 1e3:.3g} µs"
    return f"{ns:.3g} ns" if ns < 100 else f"{ns:.0f} ns"


class Judge:
    def __init__(self, results):
        self.rows, self.instructions = results["rows"], results["instructions"]
        self.targets = []

    def ns(self, name):
        return self.rows[name]["ns"]

    def add(self, operation, target, measure):
        """`measure` gives (text, met), or raises KeyError where the run lacks a figure."""
        entry = {"operation": operation, "target": target, "measured": "not measured", "met": False,
                 "missing": True}
        try:
            entry["measured"], entry["met"] = measure()
            entry["missing"] = False
        except KeyError:
            pass
        self.targets.append(entry)

    # ---- one method per row of the table ----------------------------------------------------------
    def hits(self, features):
        ratios = {(pages, order): self.ns(hit_row(features, pages, order)) /
                  self.ns(floor_row(pages, order)) for pages, order in FEW_PAGES}
        worst = max(ratios, key=ratios.get)
        best = min(ratios, key=ratios.get)
        order = ("in order", "random")[worst[1]]
        return (f"{ratios[best]:.2f} to {ratios[worst]:.2f} × the floor (worst: {worst[0]} pages "
                f"{order}, {number(self.ns(hit_row(features, *worst)))})", ratios[worst] <= 2.5)

    def counted(self, name):
        value, floor = (count_instructions.alone(self.instructions, path)
                        for path in (name, "floor_look_up"))
        return f"{value:.0f} (the floor: {floor:.0f}; without the call)", value <= 45

    def many_pages(self, features):
        ns = self.ns(hit_row(features, 65536, 1))
        few, many = self.ns(floor_row(64, 1)), self.ns(floor_row(65536, 1))
        limit = 4 * few
        return (f"{number(ns)}; the floor {number(few)} with 64 pages and {number(many)} with as "
                f"many, so {number(limit)} are allowed", ns <= limit)

    def scaling(self, features):
        def two_to_one(name, pages):
            one = self.ns(f"threads/{name}/{pages}/threads:1")
            return one / self.ns(f"threads/{name}/{pages}/threads:2")
        shares = []
        for pages in (64, 4096):
            ours = two_to_one(f"hit<{features}>", pages)
            floors = two_to_one("floor_array", pages)
            shares.append((ours / floors, ours, floors, pages))
        share, ours, floors, pages = min(shares)
        return (f"{share:.2f} × (two threads do {ours:.2f} × the work of one, the floor {floors:.2f} "
                f"×; {pages} pages)", share >= 0.95)

    def warm_miss(self, features, stages, limit):
        times = [self.ns(f"misses/warm<{features}, stages::{stages}>/{order}") for order in (0, 1)]
        return f"{number(times[0])} in order, {number(times[1])} random", max(times) <= limit

    def cold_miss(self, features, stages, limit):
        ns = self.ns(f"misses/cold<{features}, stages::{stages}>")
        return (f"{number(ns)}; four loads that depend on each other take "
                f"{number(self.ns('misses/floor_four_loads'))}", ns <= limit)

    def flat(self, names, limit):
        times = [self.ns(name) for name in names]
        text = " / ".join(number(t).removesuffix(" ns") for t in times[:-1])
        return (f"{text} / {number(times[-1])} with {' / '.join(f'{n:,}' for n in ENTRIES)} entries",
                max(times) <= limit and times[-1] <= FLAT * times[0])

    def invalidation(self, what, which):
        return self.flat([f"invalidation/{what}/{which}/{n}" for n in ENTRIES], 50)

    def page_and_sync(self, policy):
        return self.flat([f"commands/tlbi_va_sync<{policy}>/{n}" for n in ENTRIES], 60)

    def with_readers(self, pages):
        barrier = self.ns("commands/membarrier_with_a_running_thread")
        ns = self.ns(f"commands/with_readers<membarrier_quiescence>/{pages}")
        fence = self.ns(f"commands/with_readers<fence_quiescence>/{pages}")
        limit = 60 * pages + barrier
        return (f"{number(ns)}; one membarrier {number(barrier)}, so {number(limit)} are allowed; "
                f"with the fence policy {number(fence)}", ns <= limit)

    def copy(self, direction, floor, features):
        share = self.ns(f"copies/{floor}") / self.ns(f"copies/{direction}<{features}>")
        return f"{share:.2f} × ({number(self.ns(f'copies/{direction}<{features}>'))})", share >= 0.9

    def small_objects(self, rival, limit):
        """The pool that threads share, beside the rival, at the batch where it does worst."""
        ratios = {batch: self.ns(f"object_pool/ours<vm_accel::spin_lock>/{batch}") /
                  self.ns(f"object_pool/{rival}/{batch}") for batch in (4, 256)}
        worst = max(ratios, key=ratios.get)
        each = self.ns(f"object_pool/ours<vm_accel::spin_lock>/{worst}") / worst
        ratio = f"{ratios[worst]:.2f} ×" if limit >= 1 else f"1/{1 / ratios[worst]:.0f}"
        return f"{ratio} (allocated and freed in {number(each)}, {worst} at a time)", \
            ratios[worst] <= limit

    def prefault(self, rival, limit):
        """By the quickest repetition: what the kernel does is the same each time, and what it is
        held up by (reclaim, compaction, other guests of the host) only adds to it."""
        def quickest(name, threads, huge):
            return self.rows[f"numa_prefault/{name}/{threads}/{huge}"]["least_ns"]
        ratios = {key: quickest("ours", *key) / quickest(rival, *key)
                  for key in ((1, 0), (2, 0), (1, 1), (2, 1))}
        worst = max(ratios, key=ratios.get)
        return (f"{min(ratios.values()):.2f} to {ratios[worst]:.2f} × (worst: {worst[0]} threads, "
                f"huge pages {('not advised', 'advised')[worst[1]]}, "
                f"{number(quickest('ours', *worst))})", ratios[worst] <= limit)

    def plans(self, strategy):
        times = {shape: self.ns(f"numa_plans/plan<{strategy}>/{shape}") for shape in range(6)}
        slowest = max(times, key=times.get)
        return (f"{number(min(times.values()))} to {number(times[slowest])} (slowest: question "
                f"{slowest})", times[slowest] <= 10e6)

    def migrations(self):
        ns = self.ns("numa_plans/migrate")
        return number(ns), ns <= 10e6


def judge(results):
    j = Judge(results)
    for words, features in FEATURES:
        j.add(f"full translate, hit, 1 to 4,096 pages, guard included; {words}",
              "≤ 2.5 × the floor", lambda f=features: j.hits(f))
    for words, name in (("stage 1 only", "hit_stage1"), ("all features", "hit_full")):
        j.add(f"the same, instructions; {words}", "≤ 45", lambda n=name: j.counted(n))
    for words, features in FEATURES:
        j.add(f"65,536 pages random, hit; {words}", "≤ 8 ns where the floor is 2",
              lambda f=features: j.many_pages(f))
    for words, features in FEATURES:
        j.add(f"two threads on two cores, own streams; {words}", "≥ 0.95 × the floor's scaling",
              lambda f=features: j.scaling(f))
    for words, features in FEATURES:
        j.add(f"miss, stage 1, 4 levels, warm walk cache; {words}", "≤ 20 ns",
              lambda f=features: j.warm_miss(f, "first", 20))
    for words, features in FEATURES:
        j.add(f"miss, stage 1, walk cache empty, tables in L2; {words}", "≤ 60 ns",
              lambda f=features: j.cold_miss(f, "first", 60))
    j.add("miss, nested, warm", "≤ 30 ns", lambda: j.warm_miss("full_options", "both", 30))
    j.add("miss, nested, cold", "≤ 150 ns", lambda: j.cold_miss("full_options", "both", 150))
    for what, words in (("asid", "ASID"), ("vmid", "VMID"), ("stream", "stream"), ("all", "all")):
        j.add(f"invalidate by {words}, everything cached matches", "≤ 50 ns, flat",
              lambda w=what: j.invalidation(w, "all_match"))
    for what, words in (("asid", "ASID"), ("stream", "stream")):
        j.add(f"invalidate by {words}, nothing matches", "≤ 50 ns, flat",
              lambda w=what: j.invalidation(w, "nothing_matches"))
    j.add("TLBI_VA (one page) + CMD_SYNC through the queue, no reader", "≤ 60 ns, flat",
          lambda: j.page_and_sync("membarrier_quiescence"))
    j.add("the same, single-threaded policy", "≤ 60 ns, flat",
          lambda: j.page_and_sync("single_threaded"))
    j.add("the same with a running reader", "≤ 60 ns + one membarrier", lambda: j.with_readers(1))
    j.add("16 TLBI_VA + one CMD_SYNC with a running reader", "≤ 16 × 60 ns + one membarrier",
          lambda: j.with_readers(16))
    for words, features in FEATURES:
        j.add(f"64 KiB dma_read over 16 pages; {words}", "≥ 0.9 × memcpy",
              lambda f=features: j.copy("dma_read", "memcpy_from", f))
    for words, features in FEATURES:
        j.add(f"64 KiB dma_write over 16 pages; {words}", "(≥ 0.9 × memcpy)",
              lambda f=features: j.copy("dma_write", "memcpy_back", f))
    j.add("an object of 64 bytes from the shared pool", "≤ 2 × malloc",
          lambda: j.small_objects("rival_malloc", 2))
    j.add("the same beside numa_alloc_onnode", "≤ 1/100 of its time",
          lambda: j.small_objects("rival_numa_alloc_onnode", 0.01))
    j.add("512 MiB of guest RAM given its pages, bound and read back",
          "≤ threads that touch each page", lambda: j.prefault("rival_touch_per_thread", 1))
    j.add("the same beside threads that populate their share", "≤ 1.05 × their time",
          lambda: j.prefault("rival_populate_per_thread", 1.05))
    for strategy in ("local_first", "load_balanced", "bandwidth_optimized", "adaptive"):
        j.add(f"plan of 4,096 regions on 1,024 nodes, {strategy}", "≤ 10 ms",
              lambda s=strategy: j.plans(s))
    j.add("what to migrate of 4,096 regions on 1,024 nodes", "≤ 10 ms", j.migrations)
    return j.targets
