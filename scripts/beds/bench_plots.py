"""Draws plots as SVG, by hand: lines over a logarithmic or plain axis, and horizontal bars."""
import html
import math

from . import bench_targets as names

# Told apart by brightness too; ours are the strong ones.
COLOURS = {"floor": "#7f8c8d", "ours": "#0b5cad", "ours 2": "#1f9d6b", "ours 3": "#7a3fb0",
           "rival": "#c0392b", "rival 2": "#e08e0b", "rival 3": "#8d6e63", "ours 4": "#00838f"}
WIDTH, HEIGHT = 800, 430
LEFT, RIGHT, TOP, BOTTOM = 78, 240, 46, 58
FONT = 'font-family="Helvetica, Arial, sans-serif"'


class Canvas:
    def __init__(self, title, width=WIDTH, height=HEIGHT):
        self.parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
                      f'viewBox="0 0 {width} {height}" {FONT} font-size="13">',
                      f'<rect width="{width}" height="{height}" fill="#ffffff"/>']
        self.text(16, 26, title, size=16, weight="bold")

    def text(self, x, y, words, anchor="start", size=13, weight="normal", colour="#222222", turn=0):
        turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
                          f'font-weight="{weight}" fill="{colour}"{turned}>{html.escape(words)}</text>')

    def line(self, points, colour, width=1.0, dash=""):
        where = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<polyline points="{where}" fill="none" stroke="{colour}" '
                          f'stroke-width="{width}"{dashed}/>')

    def dot(self, x, y, colour):
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>')

    def bar(self, x, y, width, height, colour):
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" '
                          f'height="{height:.1f}" fill="{colour}"/>')

    def finish(self):
        return "\n".join([*self.parts, "</svg>"]) + "\n"


def decades(low, high):
    """Round numbers that cover [low, high] on a logarithmic axis."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0 ** e for e in range(first, max(last, first + 1) + 1)]


def short(value):
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"


def line_plot(title, x_label, y_label, series, log_x=True, log_y=True):
    """series: [(name, colour, [(x, y)])]. The x values of all series are the ticks."""
    xs = sorted({x for _, _, points in series for x, _ in points})
    ys = [y for _, _, points in series for _, y in points]
    canvas = Canvas(title)
    ticks = decades(min(ys), max(ys)) if log_y else nice_steps(max(ys))
    scale_x = math.log10 if log_x else float
    scale_y = math.log10 if log_y else float

    def place(x, y):
        across = (scale_x(x) - scale_x(xs[0])) / ((scale_x(xs[-1]) - scale_x(xs[0])) or 1)
        up = (scale_y(y) - scale_y(ticks[0])) / (scale_y(ticks[-1]) - scale_y(ticks[0]))
        return (LEFT + across * (WIDTH - LEFT - RIGHT),
                HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM))

    for tick in ticks:
        y = place(xs[0], tick)[1]
        canvas.line([(LEFT, y), (WIDTH - RIGHT, y)], "#dddddd")
        canvas.text(LEFT - 8, y + 4, short(tick), anchor="end")
    for x in xs:
        at = place(x, ticks[0])[0]
        canvas.line([(at, HEIGHT - BOTTOM), (at, HEIGHT - BOTTOM + 5)], "#444444")
        canvas.text(at, HEIGHT - BOTTOM + 20, f"{x:,}", anchor="middle")
    canvas.line([(LEFT, TOP), (LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM)], "#444444")
    canvas.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x_label, anchor="middle")
    canvas.text(20, (TOP + HEIGHT - BOTTOM) / 2, y_label, anchor="middle", turn=-90)
    labels = []
    for name, colour, points in series:
        canvas.line([place(x, y) for x, y in points], COLOURS[colour], 2.2,
                    dash="5 4" if colour == "floor" else "")
        for x, y in points:
            canvas.dot(*place(x, y), COLOURS[colour])
        labels.append([place(*points[-1])[1], name, COLOURS[colour], place(*points[-1])])
    labels.sort()
    lowest = TOP + 4
    for label in labels:  # names at the ends of their lines, none over another
        label[0] = lowest = max(label[0], lowest)
        lowest += 17
    over = lowest - 17 - (HEIGHT - BOTTOM + 8)
    for y, name, colour, end in labels:
        y -= max(0, over)
        canvas.line([end, (WIDTH - RIGHT + 10, y), (WIDTH - RIGHT + 14, y)], colour, 0.8)
        canvas.text(WIDTH - RIGHT + 18, y + 4, name, colour=colour)
    return canvas.finish()


def nice_steps(most):
    step = 10 ** math.floor(math.log10(most))
    for factor in (0.2, 0.5, 1):
        if most / (step * factor) <= 6:
            step *= factor
            break
    return [step * i for i in range(math.ceil(most / step) + 1)]


def bar_plot(title, x_label, bars, limits=()):
    """bars: [(name, colour, value)]; limits: [(name, value)], drawn across the plot."""
    height, left = 24, 270
    total = 70 + height * len(bars) + BOTTOM
    canvas = Canvas(title, WIDTH, total)
    ticks = nice_steps(max([value for _, _, value in bars] + [value for _, value in limits]))
    bottom = total - BOTTOM

    def place(value):
        return left + value / ticks[-1] * (WIDTH - left - 80)

    for tick in ticks:
        canvas.line([(place(tick), 50), (place(tick), bottom)], "#dddddd")
        canvas.text(place(tick), bottom + 18, short(tick), anchor="middle")
    for i, (name, colour, value) in enumerate(bars):
        y = 56 + i * height
        canvas.text(left - 8, y + 13, name, anchor="end")
        canvas.bar(left, y, place(value) - left, height - 7, COLOURS[colour])
        canvas.text(place(value) + 6, y + 13, f"{value:.3g}")
    for name, value in limits:
        canvas.line([(place(value), 50), (place(value), bottom)], "#222222", 1.2, dash="4 3")
        canvas.text(place(value), 46, name, anchor="middle", size=11)
    canvas.text((left + WIDTH - 80) / 2, total - 14, x_label, anchor="middle")
    return canvas.finish()


# ---- the plots of docs/performance.md -----------------------------------------------------------
def points_of(rows, template, values):
    found = [(value, rows[template(value)]["ns"]) for value in values if template(value) in rows]
    return found if len(found) > 1 else None


def kept(series):
    return [entry for entry in series if entry[2]]


def hits(rows):
    pages = (1, 64, 4096, 65536)

    def at(maker):
        return points_of(rows, lambda n: maker(n, 0 if n == 1 else 1), pages)

    def rival(name):
        return at(lambda n, order: f"translate/{name}/{n}/{order}/12")
    series = kept([
        ("floor: array look-up", "floor", at(names.floor_row)),
        ("stage 1 only", "ours", at(lambda n, o: names.hit_row("stage1_options", n, o))),
        ("all features", "ours 2", at(lambda n, o: names.hit_row("full_options", n, o))),
        ("all features, nested", "ours 3",
         at(lambda n, o: names.hit_row("full_options", n, o, "both"))),
        ("hash table by level", "rival", rival("rival_hash")),
        ("LRU list and index", "rival 2", rival("rival_lru")),
        ("map of intervals", "rival 3", rival("rival_intervals"))])
    return series and line_plot("A translation that hits, pages in random order",
                                "pages in use (4 KiB each)", "ns per translation", series)


def threads(rows):
    counts = sorted({int(name.rsplit(":", 1)[1]) for name in rows
                     if name.startswith("threads/floor_array/64/")})

    def at(name):
        times = points_of(rows, lambda n: f"threads/{name}/64/threads:{n}", counts)
        return times and [(n, 1e3 / ns) for n, ns in times]
    series = kept([("floor: array look-up", "floor", at("floor_array")),
                   ("stage 1 only", "ours", at("hit<stage1_options>")),
                   ("all features", "ours 2", at("hit<full_options>")),
                   ("hash table, mutex", "rival", at("rival_hash")),
                   ("LRU list, mutex", "rival 2", at("rival_lru"))])
    return series and line_plot("Threads with streams of their own, 64 pages each", "threads",
                                "million translations per second, all threads together", series,
                                log_x=False, log_y=False)


def misses(rows):
    wanted = [("one load (floor)", "floor", "floor_one_load/1"),
              ("stage 1 only, warm", "ours", "warm<stage1_options, stages::first>/1"),
              ("all features, warm", "ours", "warm<full_options, stages::first>/1"),
              ("nested, warm", "ours", "warm<full_options, stages::both>/1"),
              ("four loads in a row (floor)", "floor", "floor_four_loads"),
              ("stage 1 only, cold", "ours 2", "cold<stage1_options, stages::first>"),
              ("all features, cold", "ours 2", "cold<full_options, stages::first>"),
              ("nested, cold", "ours 2", "cold<full_options, stages::both>")]
    bars = [(name, colour, rows[f"misses/{row}"]["ns"]) for name, colour, row in wanted
            if f"misses/{row}" in rows]
    bars.append(("QEMU 10, stage 1: 357 to 420, quoted", "rival", 388.5))
    return len(bars) > 1 and bar_plot("A translation that misses, walk and fill included",
                                      "ns per translation", bars)


def invalidations(rows):
    entries = names.ENTRIES

    def ours(name):
        return points_of(rows, lambda n: f"invalidation/{name}/{n}", entries)

    def rival(name, all_go):
        return points_of(rows, lambda n: f"invalidation/{name}/{n}/{all_go}", entries)
    series = kept([("one page of those cached", "ours 3", ours("page/one_matches")),
                   ("by ASID, all match", "ours", ours("asid/all_match")),
                   ("by stream, all match", "ours 4", ours("stream/all_match")),
                   ("everything", "ours 2", ours("all/all_match")),
                   ("hash table, ASID, none match", "rival", rival("rival_hash", 0)),
                   ("hash table, ASID, all match", "rival 3", rival("rival_hash", 1)),
                   ("LRU list, ASID, all match", "rival 2", rival("rival_lru", 1))])
    return series and line_plot("An invalidation, by how much is cached", "entries cached",
                                "ns per invalidation", series)


def policies(rows):
    bars = [("floor: array look-up", "floor", rows["policies/floor/4096"]["ns"])] \
        if "policies/floor/4096" in rows else []
    for name in rows:
        if name.startswith("policies/hit/") and name.endswith("/4096"):
            bars.append((name[len("policies/hit/"):-len("/4096")], "ours", rows[name]["ns"]))
    return bars and bar_plot("A hit with each TLB policy, 4,096 pages in random order",
                             "ns per translation, guard included", bars)


PLOTS = {"hits": hits, "threads": threads, "misses": misses, "invalidations": invalidations,
         "policies": policies}


def draw(results, folder):
    """Writes the plots that the run has figures for; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, plot in PLOTS.items():
        svg = plot(results["rows"])
        if svg:
            (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
            written.append(folder / f"{name}.svg")
    return written
