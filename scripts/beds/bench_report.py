"""Tables of a run: for the console, and for docs/performance.md between its markers."""
import re

from . import bench_targets as names
from .bench_targets import number

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def verdict(target):
    if target["missing"]:
        return "not measured"
    return "met" if target["met"] else "not met"


# ---- tables as lists of rows ----------------------------------------------------------------------
def against(rows, name, floor):
    """A time and how many times the floor it is."""
    if name not in rows:
        return "-"
    ns = rows[name]["ns"]
    return f"{number(ns)} ({ns / rows[floor]['ns']:.1f} ×)" if floor in rows else number(ns)


def hit_table(rows):
    table = [["pages", "order", "size", "floor", "stage 1 only", "all features", "nested",
              "hash table", "LRU list", "intervals"]]
    for size in (12, 21):
        for pages in (1, 64, 4096, 65536):
            for order in (0, 1):
                floor = names.floor_row(pages, order, size)
                if floor not in rows:
                    continue
                ours = [names.hit_row(features, pages, order, stages, size) for features, stages in
                        (("stage1_options", "first"), ("full_options", "first"),
                         ("full_options", "both"))]
                rivals = [f"translate/{rival}/{pages}/{order}/{size}"
                          for rival in ("rival_hash", "rival_lru", "rival_intervals")]
                table.append([f"{pages:,}", ("ascending", "random")[order],
                              {12: "4 KiB", 21: "2 MiB"}[size], number(rows[floor]["ns"]),
                              *(against(rows, name, floor) for name in ours + rivals)])
    return table


def thread_table(rows):
    table = [["contender", "pages each", "threads", "ns per translation", "work of one thread"]]
    for name in sorted(rows):
        match = re.fullmatch(r"threads/(.+)/(\d+)/threads:(\d+)", name)
        if match:
            one = f"threads/{match[1]}/{match[2]}/threads:1"
            gained = f"{rows[one]['ns'] / rows[name]['ns']:.2f} ×" if one in rows else "-"
            table.append([match[1], match[2], match[3], number(rows[name]["ns"]), gained])
    return table


def program_table(rows, program, columns=()):
    """Every row of one program as it is."""
    table = [["benchmark", "time", *columns]]
    for name, row in rows.items():
        if name.startswith(program + "/"):
            extra = [f"{row[c]:.4g}" if c in row else "" for c in columns]
            table.append([name[len(program) + 1:], number(row["ns"]), *extra])
    return table


def memory_table(rows):
    table = [["what", "bytes per entry", "bytes per attached stream", "bytes of an SMMU after init()"]]
    for name, row in rows.items():
        if name.startswith("memory/"):
            table.append([name[len("memory/"):],
                          *(f"{row[c]:,.0f}" if c in row else ""
                            for c in ("bytes_per_entry", "bytes_per_stream", "bytes_of_all"))])
    return table


def instruction_table(counts):
    return [["path", "instructions"], *([name, f"{value:,.0f}"] for name, value in
                                        sorted(counts.items()))]


def target_table(targets):
    return [["operation", "target", "measured", ""],
            *([t["operation"], t["target"], t["measured"], verdict(t)] for t in targets)]


# ---- the same as text -------------------------------------------------------------------------------
def aligned(table):
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
                     for row in table)


def sections(results):
    rows = results["rows"]
    yield "Hits (in brackets: times the floor)", hit_table(rows)
    yield "Threads", thread_table(rows)
    for title, program, columns in (
            ("Parts of a hit", "", ()), ("Misses", "misses", ()),
            ("Invalidations, not synchronised", "invalidation", ()),
            ("Commands through the queue", "commands", ("items_per_second", "translations/s")),
            ("Copies of 64 KiB", "copies", ("bytes_per_second",)),
            ("TLB policies", "policies", ("hit_rate",)),
            ("NUMA: giving pages", "numa_prefault", ("bytes_per_second",)),
            ("NUMA: plans for 1,024 nodes", "numa_plans", ()),
            ("NUMA: small objects", "object_pool", ()),
            ("Topology and plans", "topology", ())):
        if program:
            yield title, program_table(rows, program, columns)
        else:
            parts = [name for name in rows if re.search(r"hit_held|hit_mixed|hit_aged|<fenced|<alone", name)]
            yield title, [["benchmark", "time"],
                          *([name[len("translate/"):], number(rows[name]["ns"])] for name in parts)]
    yield "Memory", memory_table(rows)
    yield "Instructions of one call (callgrind)", instruction_table(results["instructions"])


def as_text(results, targets):
    machine = results["machine"]
    out = [f"{machine['processor']}, {machine['threads']} threads, {machine['system']}, "
           f"{machine['compiler']}, load {machine['load']} before, commit {machine['commit']}"]
    for title, table in sections(results):
        if len(table) > 1:
            out += ["", f"== {title}", aligned(table)]
    measured = [t for t in targets if not t["missing"]]
    out += ["", "== Targets", aligned(target_table(targets)), "",
            f"{sum(t['met'] for t in measured)} of {len(targets)} targets met, "
            f"{len(targets) - len(measured)} not measured"]
    if results["quick"]:
        out.append("a quick run: figures to look at, not to quote")
    return "\n".join(out)


# ---- the same as Markdown ---------------------------------------------------------------------------
def markdown(table):
    def line(cells):
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    return "\n".join([line(table[0]), "|" + "---|" * len(table[0]), *map(line, table[1:])])


PLOTS = (("hits", "Time of a hit against pages in use"), ("threads", "Throughput against threads"),
         ("misses", "Time of a miss"), ("invalidations", "Time of an invalidation against entries"),
         ("policies", "Time of a hit with each policy"))


def figures(results, targets):
    """What stands between the markers."""
    machine = results["machine"]
    out = [f"Measured on {machine['date']}: {machine['processor']}, {machine['threads']} threads, "
           f"{machine['system']}, {machine['compiler']}, `-O2`, commit {machine['commit']}; load of "
           f"the machine before the run {machine['load']}; medians of "
           f"{max((r['repetitions'] for r in results['rows'].values()), default=0)} repetitions."]
    if results["quick"]:
        out.append("**A quick run: these figures are not to be quoted.**")
    out += ["### Targets", markdown(target_table(targets))]
    for name, words in PLOTS:
        out.append(f"![{words}](performance/{name}.svg)")
    for title, table in sections(results):
        if len(table) > 1:
            out += [f"### {title}", markdown(table)]
    return "\n\n".join(out)


def write_doc(path, results, targets):
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path} lacks the markers {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n\n{figures(results, targets)}\n\n{END}{after}",
                    encoding="utf-8")
