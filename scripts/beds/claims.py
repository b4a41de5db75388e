"""The demo's judge: what a captured console must show, claim by claim.

A claim looks at the console alone, beside a few facts known before the run, and either gives its
evidence or says what is missing. Each claim lists ways to spoil a good console, by which
`scripts/demo --self-test` shows that the judge can say no.
"""

import dataclasses
import json
import re


class Missing(Exception):
    """A claim does not hold; the text says what is not there."""


@dataclasses.dataclass
class Facts:
    """Known before the run: nothing here comes from the VMM or the guest."""
    kernel: str           # release of the guest's kernel, as `uname -r` prints it
    vcpus: int
    nodes: int            # NUMA nodes the guest's memory is to lie on
    memory: int           # of the guest, bytes
    disk_before: str      # sha256 of the disk as made, hex
    disk_after: str       # sha256 once the guest has copied the first quarter over the third
    second_before: str    # the same of the disk on the PCI bus
    second_after: str
    page_kib: int         # of the guest's kernel
    full: bool            # the SMMU has all that the library has; False: stage 1 alone
    stalls: bool          # its disk waits for faults, and the guest's kernel answers them
    domain: str           # type of the domains that the guest's kernel begins with
    suspended: bool       # the machine was suspended and went on in another process
    emulated: bool        # True: the VMM runs in an emulated machine; False: on this host


@dataclasses.dataclass
class Event:
    """One event record as the guest's driver logged it (IHI 0070, 7.3)."""
    number: int
    stream: int
    address: int
    stalled: bool
    tag: int


class Console:
    """The captured text, parsed once."""

    def __init__(self, text):
        self.text = text
        self.guest = re.findall(r"^GUEST: (.*)$", text, re.M)
        self.log = [re.sub(r"^log \[ *[\d.]+\] ", "", line) for line in self.guest
                    if line.startswith("log ")]
        # (which disk, when, domain type, checksum)
        self.reads = re.findall(
            r"^GUEST: (second )?read (\w+) domain (\S+) sha256 ([0-9a-f]{64})$", text, re.M)
        # (busy disk, rounds that were right, and wrong, the other disk, its domain type)
        self.rounds = [(busy, int(right), int(wrong), switched, domain)
                       for busy, right, wrong, switched, domain in re.findall(
            r"^GUEST: (\S+) copied (-?\d+) times right, (\d+) wrong, while (\S+) went to (\S+)$",
            text, re.M)]
        # (kind, StreamID, what became of the read, of the write), one per injection.
        self.injections = [(kind, int(stream, 16), read, write)
                           for kind, stream, read, write in re.findall(
            r"^INJECT (\S+) stream (0x[0-9a-f]+) read (\w+) write (\w+)$", text, re.M)]
        self.events = list(logged_events(self.log))

    def line(self, pattern):
        """The match of a whole line, or Missing."""
        match = re.search(f"^{pattern}$", self.text, re.M)
        if match is None:
            raise Missing(f"no line like: {pattern}")
        return match

    def read(self, when, domain, which=""):
        """The checksum the guest printed, or Missing."""
        for found_which, found_when, found_domain, checksum in self.reads:
            if (found_which, found_when, found_domain) == (which, when, domain):
                return checksum
        raise Missing(f"the guest printed no checksum for '{which}{when}' in a {domain} domain")

    def report(self):
        match = re.search(r"^OUTER: report begin$(.*)^OUTER: report end$", self.text, re.M | re.S)
        if match is None:
            raise Missing("no report between the report marks")
        try:
            return json.loads(match.group(1))
        except ValueError as error:
            raise Missing(f"the report is not JSON: {error}") from None


def logged_events(log):
    """Events from the driver's lines: a heading, then the record's four 64-bit words."""
    words = None
    for line in log:
        if re.search(r"event 0x[0-9a-f]+ received", line):
            words = []
        elif words is not None and (match := re.search(r":\s+0x([0-9a-f]{16})$", line)):
            words.append(int(match.group(1), 16))
            if len(words) == 4:
                yield Event(words[0] & 0xff, words[0] >> 32, words[2], words[1] >> 31 & 1 == 1,
                            words[1] & 0xffff)
                words = None


def expect(condition, text):
    if not condition:
        raise Missing(text)


def outer_machine(console, facts):
    if not facts.emulated:
        return "the VMM runs on this host directly"
    console.line("OUTER: /dev/kvm present")
    nodes = re.findall(r"^OUTER: node(\d+) processors (\S+)$", console.text, re.M)
    expect(len(nodes) >= facts.nodes, f"{len(nodes)} NUMA nodes instead of {facts.nodes}")
    return f"{len(nodes)} NUMA nodes, one processor each"


def guest_kernel(console, facts):
    console.line(f"GUEST: kernel {re.escape(facts.kernel)}")
    console.line(f"GUEST: page size {facts.page_kib} KiB")
    return f"{facts.kernel}, pages of {facts.page_kib} KiB"


def guest_processors(console, facts):
    console.line(f"GUEST: processors {facts.vcpus}")
    return str(facts.vcpus)


def guest_nodes(console, facts):
    rows = re.findall(r"^GUEST: node(\d+) processors (\S+) memory (\d+) kB distances (.*)$",
                      console.text, re.M)
    expect([int(row[0]) for row in rows] == list(range(facts.nodes)),
           f"the guest shows {len(rows)} NUMA nodes instead of {facts.nodes}")
    for node, _, kib, distances in rows:
        share = facts.memory // facts.nodes
        expect(share // 2 < int(kib) * 1024 <= share,
               f"node {node} of the guest has {kib} KiB instead of most of {share >> 10}")
        told = [int(distance) for distance in distances.split()]
        expect(len(told) == facts.nodes and told[int(node)] == 10 and
               all(distance > 10 for other, distance in enumerate(told) if other != int(node)),
               f"node {node} of the guest is at distances {distances}")
    return "; ".join(f"node {node}: processors {processors}, distances {distances}"
                     for node, processors, _, distances in rows)


# Bits of the mask that the driver logs (ARM_SMMU_FEAT_*): what only the full SMMU has.
FULL = {1: "two-level CD tables", 3: "big-endian tables", 4: "PRI", 5: "ATS", 7: "MSI",
        10: "stage 2", 11: "stalls", 12: "EL2", 14: "52-bit input addresses"}
# What both have: two-level stream tables, little-endian tables, coherency, stage 1, ranges.
BOTH = (0, 2, 8, 9, 15)
# What no SMMU of a virtual machine may claim: SEV, forced stalls, BTM.
NEVER = (6, 13, 16)


def driver_probed(console, _):
    for line in console.log:
        if match := re.search(r"arm-smmu-v3 (\S+): ias (\d+)-bit, oas (\d+)-bit", line):
            return f"{match[1]}, ias {match[2]}, oas {match[3]} bits"
    raise Missing("the guest's arm-smmu-v3 driver logged no address sizes")


def driver_features(console, facts):
    for line in console.log:
        if match := re.search(r"oas \d+-bit \(features 0x([0-9a-f]+)\)", line):
            features = int(match[1], 16)
            for bit in (*FULL, *BOTH, *NEVER):
                wanted = bit in BOTH or (facts.full and bit in FULL)
                expect((features >> bit & 1) == wanted,
                       f"the driver found features {features:#x}: bit {bit} is not {int(wanted)}")
            return f"{features:#x}" + (f": {', '.join(FULL.values())}" if facts.full else "")
    raise Missing("the guest's arm-smmu-v3 driver logged no features")


def placed(console, facts, which=""):
    """(name, bus, IOMMU group) of a disk whose domain is of the type that was asked for."""
    match = console.line(rf"GUEST: {which}disk (\S+) on bus (\S+) in IOMMU group (\d+) "
                         rf"domain {facts.domain}")
    return match.groups()


def behind_smmu(console, facts):
    name, _, group = placed(console, facts)
    return f"{name} in group {group}, domain {facts.domain}"


def boot_read(console, facts):
    found = console.read("boot", facts.domain)
    expect(found == facts.disk_before, f"the guest read {found}, the host has {facts.disk_before}")
    return f"{found[:16]}..."


def written_read(console, facts):
    found = console.read("written", facts.domain)
    expect(found == facts.disk_after, f"the guest read {found}, expected {facts.disk_after}")
    return f"{found[:16]}..."


TYPES = ["identity", "DMA-FQ", "DMA"]


def switched(domain):
    def claim(console, facts):
        found = console.read("switched", domain)
        expect(found == facts.disk_after, f"the guest read {found}, expected {facts.disk_after}")
        order = [name for which, when, name, _ in console.reads if which + when == "switched"]
        expect(order == TYPES, f"the domains came as {order}")
        return f"{found[:16]}..."
    return claim


def two_streams(console, facts):
    name, bus, group = placed(console, facts, "second ")
    expect(bus == "pci", f"the second disk is on bus {bus}")
    expect(group != placed(console, facts)[2], f"both disks are in group {group}")
    return f"{name} in group {group}, domain {facts.domain}"


def second_disk(console, facts):
    found = console.read("boot", facts.domain, "second ")
    expect(found == facts.second_before,
           f"the guest read {found}, the host has {facts.second_before}")
    found = console.read("written", facts.domain, "second ")
    expect(found == facts.second_after, f"the guest read {found}, expected {facts.second_after}")
    return f"{facts.second_before[:16]}... then {found[:16]}..."


def second_switched(console, facts):
    for domain in TYPES:
        found = console.read("switched", domain, "second ")
        expect(found == facts.second_after,
               f"the guest read {found} in a {domain} domain, expected {facts.second_after}")
    order = [name for which, when, name, _ in console.reads if which + when == "second switched"]
    expect(order == TYPES, f"the domains came as {order}")
    found = console.read("end", "DMA", "second ")
    expect(found == facts.second_after, f"in the end {found}, expected {facts.second_after}")
    return f"{', '.join(TYPES)}: {found[:16]}..."


def undisturbed(busy_which):
    """One disk does I/O while the other is unbound, gets another domain type and is bound again."""
    def claim(console, facts):
        busy = placed(console, facts, busy_which)[0]
        other = placed(console, facts, "" if busy_which else "second ")[0]
        rounds = [line for line in console.rounds if line[0] == busy and line[3] == other]
        expect([line[4] for line in rounds] == TYPES,
               f"{busy} was busy while {other} went to {[line[4] for line in rounds]}")
        for _, right, wrong, _, domain in rounds:
            expect(right >= 2 and wrong == 0,
                   f"{right} rounds right, {wrong} wrong, while {other} went to {domain}")
        return f"{'+'.join(str(line[1]) for line in rounds)} copies of {busy}'s read back right"
    return claim


ITS_DOORBELL = 0x0809_0040


def taken(console, chip, action):
    """How many interrupts of `chip` the guest counts for what matches `action`, one per line."""
    return [sum(map(int, re.match(r"interrupts +\d+:((?: +\d+)+)", line)[1].split()))
            for line in console.guest
            if line.startswith("interrupts ") and re.search(rf" {chip}.* {action}$", line)]


def messages(console, facts):
    """Message signalled interrupts of the PCI disk, as the guest counts them and as the VMM does."""
    counts = taken(console, "ITS-", r"virtio\d+-req\S*")
    expect(counts and sum(counts) > 0, "the guest counts no message of a disk's queue")
    report = console.report()
    sent = report.get("messages", {})
    expect(sent.get("sent", 0) >= sum(counts),
           f"the VMM sent {sent.get('sent', 0)} messages, the guest took {sum(counts)}")
    expect(sent["refused"] == sent["not_delivered"] == 0,
           f"{sent['refused']} refused by the SMMU, {sent['not_delivered']} by the GIC")
    expect(sent["delivered"] == sent["sent"] == report["smmu"]["msi_messages"],
           f"{sent['sent']} sent, {sent['delivered']} delivered, "
           f"{report['smmu']['msi_messages']} counted by the SMMU")
    address = sent["last_address"]
    expect(address != ITS_DOORBELL and address & 0xfff == ITS_DOORBELL & 0xfff,
           f"the disk wrote its last message to {address:#x}, which no SMMU has translated")
    return (f"{sent['sent']} to the doorbell {ITS_DOORBELL:#x}, which is {address:#x} for the disk; "
            f"{sum(counts)} since it was bound last")


def own_messages(console, _):
    """The SMMU's own interrupts are messages: none of its wires moves."""
    for name in ("evtq", "priq", "gerror"):
        expect(len(taken(console, "ITS-", f"arm-smmu-v3-{name}")) == 1,
               f"the guest's driver has no message for {name}")
    events = taken(console, "ITS-", "arm-smmu-v3-evtq")[0]
    report = console.report()
    sent = report["messages"]["of_smmu"]
    expect(0 < events <= sent, f"{sent} sent, {events} taken for events")
    edges = {line["name"]: line["edges"] for line in report["smmu_lines"]}
    expect(edges and not any(edges.values()), f"edges on wires: {edges}")
    written = report["smmu"]["interrupts"] - sent
    expect(written >= 100, f"{written} messages went into memory, for CMD_SYNC")
    return f"{sent} to the doorbell, {written} into memory for CMD_SYNC, none by wire"


def stalled(console, _):
    """Refused DMA waits for the driver, which ends it by CMD_RESUME."""
    refused(console, "unmapped")
    events = [event for event in console.events if event.number == 0x10]
    expect(events and all(event.stalled for event in events),
           "an event 0x10 does not say that the access is stalled")
    expect(len({event.tag for event in events}) == len(events), "two stalls have the same tag")
    return f"tags {', '.join(f'{event.tag:#x}' for event in events)}"


# The first kernel whose driver takes a device tree's word for ATS.
ATS_SINCE = (6, 11)


def has_ats(facts):
    return facts.full and tuple(map(int, facts.kernel.split(".")[:2])) >= ATS_SINCE


def substreams(console, facts):
    """The driver turned on what the PCI disk offers, so it has CD tables of more than one entry."""
    sent = console.report()["messages"]
    expect(sent["pasid_was_enabled"] == 1, "the driver has not enabled PASIDs of the PCI disk")
    expect(sent["ats_was_enabled"] == int(has_ats(facts)),
           f"ATS of the PCI disk: {sent['ats_was_enabled']}, with kernel {facts.kernel}")
    return "PASIDs and ATS" if has_ats(facts) else "PASIDs"


def translations(console, _):
    """The PCI disk works with translations that it was told, and gives them back when asked."""
    ats = console.report()["ats"]
    expect(ats["translated"] > 0, "the disk made no access with a translation")
    expect(ats["refused"] == 0, f"{ats['refused']} accesses with a translation were refused")
    expect(ats["invalidations"] > 0, "the driver's CMD_ATC_INV reached no disk")
    expect(0 < ats["forgotten"] <= ats["requests"],
           f"{ats['forgotten']} of {ats['requests']} translations were taken back")
    errors = [line for line in console.log if re.search(r"CMDQ error|ATC|CMD_SYNC", line)]
    expect(not errors, f"the driver logged: {errors[0] if errors else ''}")
    return (f"{ats['requests']} asked for, {ats['translated']} accesses with one, "
            f"{ats['untranslated']} without; {ats['invalidations']} invalidations answered, which "
            f"took {ats['forgotten']} back")


def taken_back(console, _):
    """What the PCI disk was told before it was unbound moves nothing afterwards."""
    stream = refused(console, "stale-translation")
    events = [event for event in console.events if event.number == 0x07]
    expect(len(events) == 2, f"the guest's driver logged {len(events)} events 0x07, not 2")
    expect(all(event.stream == stream for event in events),
           f"an event 0x07 is for another stream than {stream:#x}")
    return f"2 x event 0x07, stream {stream:#x}, address {events[0].address:#x}"


DISK_KIB = 2048     # what the guest reads while it counts: the whole first disk


def counted(console, facts):
    """The guest's perf events on our counters, by stream, while it reads the first disk."""
    console.line(r"GUEST: performance monitor \S+")
    counts = {(int(event), stream): int(count) for event, stream, count in re.findall(
        r"^GUEST: count (\d+) stream (\S+) (\d+)$", console.text, re.M)}
    for wanted in ((1, "any"), (1, "0x10"), (1, "0x108"), (2, "0x10")):
        expect(wanted in counts, f"no count of event {wanted[0]}, stream {wanted[1]}")
    everything, busy, idle = counts[1, "any"], counts[1, "0x10"], counts[1, "0x108"]
    pages = DISK_KIB // facts.page_kib
    expect(busy >= pages, f"{busy} accesses for {pages} pages")
    expect(idle == 0 and everything >= busy, f"{idle} accesses of the idle disk, {everything} of all")
    expect(0 < counts[2, "0x10"] <= busy, f"{counts[2, '0x10']} TLB misses in {busy} accesses")
    return (f"{busy} accesses and {counts[2, '0x10']} TLB misses of the busy disk, none of the "
            "idle one")


def refused(console, kind):
    """The StreamID of an injection of which the VMM says that nothing was read or written."""
    lines = [line[1:] for line in console.injections if line[0] == kind]
    wanted = 2 if kind == "unmapped" else 1
    expect(len(lines) == wanted, f"the VMM printed {len(lines)} lines INJECT {kind}, not {wanted}")
    for _, read, write in lines:
        expect(read == write == "refused", f"INJECT {kind}: read {read}, write {write}")
    expect(len({line[0] for line in lines}) == 1, f"INJECT {kind} from several streams")
    return lines[0][0]


def unmapped(console, facts):
    stream = refused(console, "unmapped")
    events = [event for event in console.events if event.number == 0x10]
    expect(events, "the guest's driver logged no event 0x10")
    expect(all(event.stream == stream for event in events),
           f"an event 0x10 is for another stream than {stream:#x}")
    expect(facts.stalls or not any(event.stalled for event in events), "an event says: stalled")
    return f"{len(events)} x event 0x10, stream {stream:#x}, address {events[0].address:#x}"


def no_level2_table(console, _):
    stream = refused(console, "no-level-2-table")
    events = [event for event in console.events if event.number == 0x02]
    expect(events, "the guest's driver logged no event 0x02")
    expect(all(event.stream == stream for event in events),
           f"an event 0x02 is for another stream than {stream:#x}")
    return f"{len(events)} x event 0x02, stream {stream:#x}"


def aborting_ste(console, _):
    stream = refused(console, "aborting-ste")
    expect([line for line in console.guest if re.fullmatch(r"inject [1-3]", line)] ==
           ["inject 1", "inject 2", "inject 3", "inject 1"],
           "the guest did not ask for the injections 1, 2, 3, 1")
    expect(all(event.stream != stream for event in console.events),
           f"the guest's driver logged an event for stream {stream:#x}")
    # Events arrive in order: with one logged after the silent injection, none is still to come.
    numbers = [event.number for event in console.events if event.number != 0x07]
    order = [number for i, number in enumerate(numbers) if i == 0 or number != numbers[i - 1]]
    expect(order == [0x10, 0x02, 0x10],
           f"the events came as {[hex(number) for number in order]}, not 0x10, 0x2, 0x10")
    return f"no event for stream {stream:#x}, though one was logged after it"


def still_served(console, facts):
    found = console.read("injected", "DMA")
    expect(found == facts.disk_after, f"the guest read {found}, expected {facts.disk_after}")
    return f"{found[:16]}..."


def driver_content(console, facts):
    expect(console.log, "the guest printed none of its driver's lines")
    known = (r"ias \d+-bit|allocated \d+ entries|option|msi_domain|event 0x(10|02) received|"
             r":\s+0x[0-9a-f]{16}$")
    if facts.full:
        known += (r"|event 0x07 received|2-level strtab only covers 25/32 bits of SID|"
                  r"pmcg \S+: Registered PMU @ 0x\w+ using 8 counters with Individual filter")
    odd = [line for line in console.log if not re.search(known, line)]
    expect(not odd, f"the driver logged: {odd[0] if odd else ''}")
    return f"{len(console.log)} lines, no error among them"


def suspended(console, _):
    waiting = int(console.line(r"suspended with (\d+) requests waiting")[1])
    first = console.line(r"OUTER: process (\d+) suspended the machine, exit status 5")
    second = console.line(r"OUTER: process (\d+) resumed it")
    expect(waiting > 0, "no request waited: the disk was idle")
    expect(first[1] != second[1], "the process that resumed it is the one that suspended it")
    boots = len(re.findall(r"^GUEST: kernel", console.text, re.M))
    expect(boots == 1, f"the guest began {boots} times")
    at = console.text.index(first[0])
    before = console.text.count("\nGUEST: ", 0, at)
    after = console.text.count("\nGUEST: ", at)
    expect(before > 0 and after > 0, "the guest did not work before and after")
    return (f"{waiting} requests of the disk waited, process {first[1]} ended, process {second[1]} "
            f"went on; {before} lines of the guest before, {after} after")


def powered_off(console, _):
    console.line("GUEST: done")
    status = console.line(r"OUTER: linux_kvm_arm64 exit status (\d+)")[1]
    expect(status == "0", f"the VMM ended with status {status}")
    return "VMM exit status 0"


def disk_file(console, facts):
    evidence = []
    for name, wanted in (("disk", facts.disk_after), ("pci-disk", facts.second_after)):
        found = console.line(f"OUTER: {name} sha256 ([0-9a-f]{{64}})")[1]
        expect(found == wanted, f"the file {name} has {found}, expected {wanted}")
        evidence.append(f"{found[:16]}...")
    return ", ".join(evidence)


def pins(console, facts):
    vcpus = console.report().get("vcpus", [])
    others = console.report().get("threads", [])
    expect(len(vcpus) == facts.vcpus, f"the report names {len(vcpus)} vCPUs, not {facts.vcpus}")
    for needed in ("disk-io", "pci-disk-io"):
        expect(any(other["thread"] == needed for other in others), f"the report lacks {needed}")
    seen = dict(re.findall(r"^OUTER: thread (\S+) may run on (\S+)$", console.text, re.M))
    for each in [*vcpus, *others]:
        thread, cpus = each["thread"], each["cpus"]
        expect(thread in seen, f"no thread {thread} was seen from outside")
        expect(seen[thread] == cpus, f"{thread} may run on {seen[thread]}, the report says {cpus}")
        expect(cpus == each["planned_cpus"], f"{thread} was to run on {each['planned_cpus']}")
        expect(each["reason"], f"the report does not say why {thread} is there")
    for vcpu in vcpus:
        expect(vcpu["cpus"].isdigit(), f"{vcpu['thread']} has more than one processor")
    return "; ".join(f"{each['thread']} on {each['cpus']} ({each['reason']})"
                     for each in [*vcpus, *others])


def wishes(console, _):
    seen = dict(re.findall(r"^OUTER: thread (\S+) has nice (\S+)$", console.text, re.M))
    evidence = []
    for vcpu in console.report()["vcpus"]:
        thread, given, refused = vcpu["thread"], vcpu["given"], vcpu["refused"]
        expect(vcpu["requested"] == "high; cores shared within this VM",
               f"{thread} asked for {vcpu['requested']}")
        expect(thread in seen, f"the nice of {thread} was not seen from outside")
        told = re.search(r"SCHED_OTHER, nice (-?\d+)", given)
        expect(told or "thread priority" in refused, f"nothing is told of {thread}'s priority")
        expect(seen[thread] == (told[1] if told else "0"),
               f"{thread} has nice {seen[thread]}, the report says {given}")
        expect(("cores shared" in given) != ("core scheduling" in refused),
               f"nothing is told of {thread}'s core")
        evidence.append(f"{thread} has {given}" + (f", refused: {refused}" if refused else ""))
    return "; ".join(evidence)


def memory(console, facts):
    regions = console.report().get("memory", [])
    expect(sum(region["bytes"] for region in regions) == facts.memory,
           f"the report's memory does not add up to {facts.memory} bytes")
    expect(len({region["node"] for region in regions}) == facts.nodes,
           f"the report's memory is not on {facts.nodes} nodes")
    seen = {}
    for mapping in re.findall(r"^OUTER: memory (.*)$", console.text, re.M):
        page = int(re.search(r"kernelpagesize_kB=(\d+)", mapping)[1]) * 1024
        for node, pages in re.findall(r" N(\d+)=(\d+)", mapping):
            seen[int(node)] = seen.get(int(node), 0) + int(pages) * page
    for region in regions:
        expect(region["pages"] > 0 and region["pages_on_node"] == region["pages"],
               f"{region['pages_on_node']} of {region['pages']} pages lie on node {region['node']}")
    for node in {region["node"] for region in regions}:
        wanted = sum(region["bytes"] for region in regions if region["node"] == node)
        expect(seen.get(node, 0) >= wanted,
               f"seen from outside, node {node} holds {seen.get(node, 0)} of {wanted} bytes")
    return ", ".join(f"{region['bytes'] >> 20} MiB on node {region['node']}" for region in regions)


def local_accesses(console, facts):
    report = console.report()
    regions = report.get("memory", [])
    vcpus = report.get("vcpus", [])
    for region in regions:
        wanted = f"bind to node {region['node']}"
        expect(region.get("requested") == wanted, f"asked for {region.get('requested')}, not {wanted}")
        expect(region.get("given") == "enforced", f"{wanted} was given as {region.get('given')}")
        expect(region.get("located_by") == "query of pages",
               f"pages are located by {region.get('located_by')}")
    used = {vcpu["guest_node"] for vcpu in vcpus}
    in_use = [region for region in regions if region["guest_node"] in used]
    expect(in_use, "no memory belongs to a vCPU's guest node")
    sources = set()
    for name, part in ([(vcpu["thread"], vcpu) for vcpu in vcpus] +
                       [(f"RAM of guest node {region['guest_node']}", region) for region in in_use]):
        source, rate = part.get("local_access_source"), part.get("local_access_rate")
        expect(source in ("placement estimate", "hardware counter"),
               f"{name}: the source of the local access rate is {source}")
        # Pinned beside their memory, vCPUs have all of it on their own node.
        expect(rate == 1 if source == "placement estimate" else 0 < rate <= 1,
               f"{name}: a local access rate of {rate}")
        sources.add(source)
    facts_given = next((backend["facts"] for backend in report["acceleration"]["backends"]
                        if backend["role"] == "memory"), {})
    expect(facts_given.get("pages on wrong nodes") == 0,
           f"{facts_given.get('pages on wrong nodes')} pages on wrong nodes")
    expect(facts_given.get("local access rate by") in sources,
           "the memory backend's report names no source of its local access rate")
    return (f"{len(regions)} bindings enforced; {len(vcpus)} vCPUs and {len(in_use)} pieces of memory, "
            f"by {', '.join(sorted(sources))}")


def smmu_numbers(console, _):
    smmu = console.report().get("smmu", {})
    names = ("commands", "translations", "hits", "misses", "hit_rate", "events", "interrupts")
    absent = [name for name in names if name not in smmu]
    expect(not absent, f"the report's smmu lacks {', '.join(absent)}")
    expect(smmu["commands"] > 0 and smmu["translations"] > 0 and smmu["interrupts"] > 0,
           "no commands, translations or interrupts")
    expect(0 < smmu["hit_rate"] <= 1, f"a hit rate of {smmu['hit_rate']}")
    expect(smmu["events"] >= len(console.events),
           f"{smmu['events']} events counted, {len(console.events)} logged")
    return (f"{smmu['commands']} commands, {smmu['translations']} translations, "
            f"hit rate {smmu['hit_rate']:.2f}, {smmu['events']} events, "
            f"{smmu['interrupts']} interrupts")


@dataclasses.dataclass
class Claim:
    text: str
    judge: object                 # (Console, Facts) -> evidence, or raises Missing
    spoilers: tuple = ()          # (pattern, replacement): each makes a good console a bad one
    when: object = lambda facts: True   # (Facts) -> whether it applies to a run


def drop(pattern):
    """A spoiler: every line with `pattern` goes."""
    return (rf"(?m)^.*{pattern}.*\n", "")


def other_checksum(label):
    """A spoiler: the checksum on the line with `label` differs in its first digit."""
    return (rf"(?m)^(.*{label}.*sha256 )([0-9a-f])", lambda match: match[1] + (
        "0" if match[2] != "0" else "1"))


CLAIMS = (
    Claim("the machine offers KVM and NUMA nodes", outer_machine,
          (drop("/dev/kvm present"), drop("OUTER: node1"))),
    Claim("the guest runs Debian's unmodified kernel", guest_kernel,
          (drop("GUEST: kernel"), (r"GUEST: kernel \S+", "GUEST: kernel 1.0-other"),
           (r"page size \d+", "page size 8"))),
    Claim("the guest sees its vCPUs", guest_processors, ((r"(GUEST: processors) \d+", r"\1 0"),)),
    Claim("the guest sees its NUMA nodes and their distances", guest_nodes,
          (drop("GUEST: node1"), (r"(GUEST: node1 .* distances) \d+", r"\1 10"),
           (r"(GUEST: node0 .* memory) \d+", r"\1 1"))),
    Claim("the guest's own driver set up our SMMU", driver_probed, (drop("ias "),)),
    Claim("the driver found the features that were asked for", driver_features,
          (drop("ias "), (r"\(features 0x[0-9a-f]+\)", "(features 0x00018305)"),
           (r"\(features 0x[0-9a-f]+\)", "(features 0x00008301)"),
           (r"\(features 0x[0-9a-f]+\)", "(features 0x0008d7bf)"))),
    Claim("the disk is behind the SMMU", behind_smmu,
          (drop("GUEST: disk"), (r"(GUEST: disk .* domain) \S+", r"\1 blocked"))),
    Claim("the guest reads what the host wrote", boot_read,
          (drop("GUEST: read boot"), other_checksum("GUEST: read boot"))),
    Claim("the guest reads back what it wrote", written_read,
          (drop("GUEST: read written"), other_checksum("GUEST: read written"))),
    Claim("the disk works in an identity domain", switched("identity"),
          (drop("GUEST: read switched domain identity"),
           other_checksum("GUEST: read switched domain identity"))),
    Claim("the disk works in a DMA-FQ domain", switched("DMA-FQ"),
          (drop("GUEST: read switched domain DMA-FQ"),
           other_checksum("GUEST: read switched domain DMA-FQ"))),
    Claim("the disk works in a DMA domain again", switched("DMA"),
          (drop("GUEST: read switched domain DMA "),
           other_checksum("GUEST: read switched domain DMA "))),
    Claim("a PCI disk is behind the SMMU on a stream of its own", two_streams,
          (drop("GUEST: second disk"), (r"(second disk .* group) (\d+)", lambda match: match[1] + (
               " 1" if match[2] == "0" else " 0")),
           (r"(second disk .* on bus) pci", r"\1 platform"),
           (r"(second disk .* domain) \S+", r"\1 blocked"))),
    Claim("the guest reads and writes the PCI disk", second_disk,
          (drop("second read boot"), other_checksum("second read boot"),
           drop("second read written"), other_checksum("second read written"))),
    Claim("the PCI disk works in all three domains", second_switched,
          (drop("second read switched domain DMA-FQ"), drop("second read end"),
           *(other_checksum(f"second read {label} ") for label in (
               "switched domain identity", "switched domain DMA-FQ", "switched domain DMA",
               "end domain DMA")))),
    Claim("the PCI disk works while the other one is rebound", undisturbed("second "),
          (drop("while a000000.virtio_mmio went to DMA-FQ"),
           (r"copied \d+( times right, \d+ wrong, while a0\S+ went to identity)", r"copied 1\1"),
           (r"\d+( wrong, while a0\S+ went to DMA)$", r"1\1"))),
    Claim("the other disk works while the PCI disk is rebound", undisturbed(""),
          (drop("while 0000:00:01.0 went to identity"),
           (r"copied \d+( times right, \d+ wrong, while 0000\S+ went to DMA-FQ)", r"copied 1\1"),
           (r"\d+( wrong, while 0000\S+ went to DMA)$", r"1\1"))),
    Claim("the PCI disk's messages reach the guest through the SMMU", messages,
          (drop("ITS-"), (r"(interrupts +\d+:).*(ITS-.*virtio\d+-req)", r"\1 0 \2"),
           (r'("messages":\{"sent":)\d+', r"\g<1>0"),
           (r'("messages":.*?"refused":)0', r"\g<1>1"),
           (r'("not_delivered":)0', r"\g<1>1"), (r'("delivered":)\d+', r"\g<1>1"),
           (r'("msi_messages":)\d+', r"\g<1>1"),
           (r'("last_address":)\d+', rf"\g<1>{ITS_DOORBELL}"))),
    Claim("the SMMU's own interrupts are messages", own_messages,
          (drop("arm-smmu-v3-priq"), (r"(interrupts +\d+:).*(ITS-.*evtq)", r"\1 0 \2"),
           (r'("eventq","edges":)0', r"\g<1>1"), (r'("of_smmu":)\d+', r"\g<1>0"),
           (r'("interrupts":)\d+', r"\g<1>20")), when=lambda facts: facts.full),
    Claim("refused DMA is stalled until the driver ends it", stalled,
          (drop("event 0x10"), (r"(0x0000020\w)8([0-9a-f]{7})$", r"\g<1>0\2"),
           (r"(0x00000200800000)\w\w$", r"\g<1>40")), when=lambda facts: facts.stalls),
    Claim("the driver set up substreams for the PCI disk", substreams,
          ((r'("pasid_was_enabled":)1', r"\g<1>0"),
           (r'("ats_was_enabled":)(\d)', lambda match: match[1] + str(1 - int(match[2])))),
          when=lambda facts: facts.full),
    Claim("the PCI disk works with translations that it was told, and gives them back",
          translations,
          ((r'("translated":)\d+', r"\g<1>0"), (r'("ats":\{.*?"refused":)0', r"\g<1>1"),
           (r'("invalidations":)\d+', r"\g<1>0"), (r'("forgotten":)\d+', r"\g<1>0"),
           (r"(?m)^(GUEST: log .*arm-smmu-v3 \S+) allocated.*$",
            r"\1 CMDQ error (cons 0x03000010): ATC invalidate timeout")), when=has_ats),
    Claim("a translation that was taken back moves nothing", taken_back,
          (drop("INJECT stale-translation"), drop("event 0x07"),
           (r"(INJECT stale-translation .*) write refused", r"\1 write completed"),
           (r"0x0000010800000007$", "0x0000001000000007")), when=lambda facts: facts.full),
    Claim("the driver's performance monitor counts what the disks do", counted,
          (drop("GUEST: count 1 stream any"), (r"(GUEST: count 1 stream 0x10) \d+", r"\1 10"),
           (r"(GUEST: count 1 stream 0x108) \d+", r"\1 3"),
           (r"(GUEST: count 1 stream any) \d+", r"\1 7"),
           (r"(GUEST: count 2 stream 0x10) \d+", r"\1 0"), drop("GUEST: performance monitor")),
          when=lambda facts: facts.full),
    Claim("DMA to unmapped addresses is refused and logged", unmapped,
          (drop("INJECT unmapped"), drop("event 0x10"),
           (r"(INJECT unmapped .*) read refused", r"\1 read completed"),
           (r"0x0000001000000010$", "0x0000001100000010"))),
    Claim("DMA of a stream without a level-2 table is refused and logged", no_level2_table,
          (drop("INJECT no-level-2"), drop("event 0x02"),
           (r"(INJECT no-level-2.*) write refused", r"\1 write completed"))),
    Claim("DMA of an aborting stream is refused silently", aborting_ste,
          (drop("INJECT aborting"), (r"(INJECT aborting.*) write refused", r"\1 write completed"),
           drop("GUEST: inject 3"),
           (r"(INJECT aborting-ste stream) 0x[0-9a-f]+", r"\1 0x10"))),
    Claim("the disk works after the injections", still_served,
          (drop("read injected"), other_checksum("read injected"))),
    Claim("the guest's driver logged no other trouble", driver_content,
          (drop("GUEST: log"), (r"(?m)^(GUEST: log .*arm-smmu-v3 \S+) allocated.*$",
                                r"\1 CMD_SYNC timeout at 0x00000011"))),
    Claim("the machine was suspended in the middle of I/O, and another process went on", suspended,
          (drop("requests waiting"), (r"with \d+ requests", "with 0 requests"),
           drop("resumed it"), (r"(suspended the machine, exit status) 5", r"\1 0"),
           (r"(OUTER: process) \d+ (\w+)", r"\1 7 \2"),
           (r"^OUTER: process \d+ suspended.*\n", lambda match: match[0] + "GUEST: kernel x\n")),
          when=lambda facts: facts.suspended),
    Claim("the guest powered off and the VMM ended well", powered_off,
          (drop("GUEST: done"), (r"(exit status) 0", r"\1 1"))),
    Claim("the host finds the guest's writes in the disk files", disk_file,
          (drop("OUTER: disk sha256"), other_checksum("OUTER: disk"),
           drop("OUTER: pci-disk sha256"), other_checksum("OUTER: pci-disk"))),
    Claim("every thread is where the report says, and why is told", pins,
          (drop("OUTER: thread vcpu0"), (r"(thread vcpu0 may run on) \S+", r"\1 0-1"),
           (r"(thread pci-disk-io may run on) \S+", r"\1 7"), (r'"thread":"disk-io"', '"thread":"x"'),
           (r'("reason":")spread: [^"]*', r"\1"), drop("OUTER: report begin"))),
    Claim("what each vCPU thread was given is told against what it asked for", wishes,
          ((r"(thread vcpu0 has nice) \S+", r"\1 7"), (r'("given":"SCHED_OTHER, nice) \S+"', r'\1 0"'),
           drop("OUTER: thread vcpu0 has nice"), (r'"refused":"core scheduling[^"]*', '"refused":"'),
           (r'("requested":")high', r"\1normal"))),
    Claim("guest memory lies on the nodes the report says", memory,
          ((r"( N1=)\d+", r"\g<1>7"), (r'("pages_on_node": ?)\d+', r"\g<1>7"))),
    Claim("bindings were given as requested, and the rate of local accesses is told with its source",
          local_accesses,
          ((r'("given":")enforced', r"\1refused"), (r'("requested":")bind', r"\1prefer"),
           (r'("local_access_rate":)1\b', r"\g<1>0.4"),
           (r'("local_access_source":")placement estimate', r"\1guess"),
           (r'("located_by":")query of pages', r"\1nothing"),
           (r'("pages on wrong nodes":)0', r"\g<1>7"),
           (r'("local access rate by":")placement estimate', r"\1unknown"))),
    Claim("the report counts what the SMMU did", smmu_numbers,
          ((r'("commands": ?)\d+', r"\g<1>0"), (r'("translations": ?)\d+', r"\g<1>0"),
           (r'("events": ?)\d+', r"\g<1>0"), (r'("hit_rate": ?)[\d.e+-]+', r"\g<1>0"),
           (r'"interrupts"', '"interruptions"'))),
)

# What holds on any SMMUv3, ours or not: the guest script's own part.
REFERENCE = tuple(claim.judge for claim in CLAIMS if claim.judge in (
    guest_kernel, driver_probed, behind_smmu, boot_read, written_read, driver_content, two_streams,
    second_disk, second_switched)
    or claim.text.startswith("the disk works in") or "is rebound" in claim.text)


def judge(text, facts):
    """[(claim, holds, evidence or reason)] in the order of CLAIMS."""
    console, verdicts = Console(text), []
    for claim in CLAIMS:
        if not claim.when(facts):
            continue
        try:
            verdicts.append((claim, True, claim.judge(console, facts)))
        except Missing as missing:
            verdicts.append((claim, False, str(missing)))
        except (KeyError, TypeError) as error:
            verdicts.append((claim, False, f"the report's shape is wrong: {error!r}"))
    return verdicts


def self_test(text, facts):
    """Spoils a good console in every way the claims list. Returns (trials, [failure text])."""
    failures = [f"the good console lacks: {claim.text}: {reason}"
                for claim, holds, reason in judge(text, facts) if not holds]
    trials = 1
    for claim in CLAIMS:
        if not claim.when(facts):
            continue
        for pattern, replacement in claim.spoilers:
            trials += 1
            spoiled = re.sub(pattern, replacement, text, flags=re.M)
            if spoiled == text:
                failures.append(f"spoiler {pattern!r} changes nothing")
            elif next(holds for other, holds, _ in judge(spoiled, facts) if other is claim):
                failures.append(f"accepted although spoiled by {pattern!r}: {claim.text}")
    # Told that something else was to be run, the judge must not accept what was.
    for field, other in (("kernel", "1.0"), ("vcpus", facts.vcpus + 1), ("nodes", facts.nodes + 1),
                         ("memory", facts.memory * 2), ("disk_before", facts.disk_after),
                         ("disk_after", facts.disk_before), ("second_before", facts.second_after),
                         ("second_after", facts.second_before), ("page_kib", 64), ("full", not facts.full),
                         ("stalls", not facts.stalls),
                         *((("suspended", True),) if not facts.suspended else ()),
                         ("domain", "identity")):
        trials += 1
        if all(holds for _, holds, _ in judge(text, dataclasses.replace(facts, **{field: other}))):
            failures.append(f"accepted although {field} was to be {other}")
    # Cut off after any line, the run proves less than everything.
    lines = text.splitlines(keepends=True)
    last_needed = max(i for i, line in enumerate(lines) if line.startswith("OUTER: report end"))
    for count in range(last_needed + 1):
        trials += 1
        if all(holds for _, holds, _ in judge("".join(lines[:count]), facts)):
            failures.append(f"accepted although cut off after {count} lines")
    return trials, failures
