#!/bin/busybox sh
# First process of the demo's guest: drives the disks behind the SMMU through everything the demo
# claims and prints one "GUEST:" line per fact. It judges nothing; the reader of the console does.
# Environment (from the kernel command line): DEMO_INJECT, the features of the SMMU, asks the VMM for
# DMA that must fail; DEMO_WORK=read, write or mixed: do that I/O and nothing else.
export PATH=/bin
INJECT_REGISTER=0x0b000000

say() { echo "GUEST: $*"; }

# Returns once the console has sent every character so far: stty waits for that before it sets.
drain() { stty onlcr; }

finish() {
    dmesg | grep -E 'arm-smmu-v3' | sed 's/^/GUEST: log /'
    say "$*"
    sync
    drain
    poweroff -f
    sleep 100
}

# disk_of MASTER: the block device of the disk whose DMA master is MASTER, or nothing.
disk_of() {
    for block in "$1"/virtio*/block/*; do
        [ -b "/dev/${block##*/}" ] && echo "/dev/${block##*/}"
    done
}

# wait_for_disk MASTER WHEN: sets disk.
wait_for_disk() {
    tries=0
    disk=$(disk_of "$1")
    while [ -z "$disk" ]; do
        tries=$((tries + 1))
        [ $tries -gt 200 ] && finish "gave up: no disk of $1 after $2"
        sleep 0.05
        disk=$(disk_of "$1")
    done
}

# use MASTER: sets disk, group, bus, driver, name and quarter (in blocks of 64 KiB) for a disk.
use() {
    wait_for_disk "$1" "${2:-loading the modules}"
    master=$1
    group=$(readlink -f "$master/iommu_group") || finish "gave up: $1 is in no IOMMU group"
    bus=$(basename "$(readlink -f "$master/subsystem")")
    driver=$(readlink -f "$master/driver")
    name=${master##*/}
    quarter=$(($(cat "/sys/block/${disk##*/}/size") / 4 / 128))
}

# checksum WHEN WHICH: reads the whole disk in use past the page cache.
checksum() {
    echo 3 >/proc/sys/vm/drop_caches
    sum=$(sha256sum <"$disk")
    say "${2:-}read $1 domain $(cat "$group/type") sha256 ${sum%% *}"
}

# The third quarter of the disk in use becomes a copy of the first.
copy_quarter() {
    dd if="$disk" of="$disk" bs=64k count=$quarter seek=$((2 * quarter)) conv=notrunc,fsync \
        2>/dev/null
}

# switch TYPE: unbinds the disk in use, gives its group another domain type, and binds it again.
switch() {
    echo "$name" >"$driver/unbind"
    echo "$1" >"$group/type" || say "domain type $1 refused"
    # Unbound, and no translations for it: what it was told before must be of no use.
    [ "$bus $1 $DEMO_INJECT" = "pci identity full" ] && inject 4 silent
    echo "$name" >"$driver/bind"
    wait_for_disk "$master" "switching to $1"
}

# keep_busy: until /tmp/busy is gone, copies the start of the disk in use to its third quarter and
# reads it back, past the page cache; the last line of /tmp/rounds says how often it was right, and
# how often not.
keep_busy() {
    rounds=0 wrong=0
    expected=$(dd if="$disk" bs=64k count=1 iflag=direct 2>/dev/null | sha256sum)
    while [ -e /tmp/busy ]; do
        dd if="$disk" of="$disk" bs=64k count=1 seek=$((2 * quarter)) conv=notrunc iflag=direct \
            oflag=direct 2>/dev/null
        found=$(dd if="$disk" bs=64k count=1 skip=$((2 * quarter)) iflag=direct 2>/dev/null |
            sha256sum)
        if [ "$found" = "$expected" ]; then rounds=$((rounds + 1)); else wrong=$((wrong + 1)); fi
        echo "$rounds $wrong" >>/tmp/rounds
        sleep 0.1
    done
}

# Sets rounds and wrong as keep_busy counts them.
count_rounds() {
    while read -r line; do set -- $line; done </tmp/rounds
    rounds=$1 wrong=$2
}

# switch_beside BUSY MASTER WHICH TYPE...: MASTER's disk goes through the domain types while BUSY's
# disk does I/O: at least one whole round of it lies between one type and the next.
switch_beside() {
    busy=$1 switched=$2 which=$3
    shift 3
    if [ -n "$busy" ]; then
        use "$busy"
        busy_name=$name
        echo "0 0" >/tmp/rounds
        touch /tmp/busy
        keep_busy &
    fi
    use "$switched"
    for type in "$@"; do
        [ -z "$busy" ] || count_rounds
        begun=$rounds
        switch "$type"
        checksum switched "$which"
        [ -n "$busy" ] || continue
        tries=0
        count_rounds
        while [ $rounds -lt $((begun + 2)) ] && [ $tries -lt 200 ]; do
            tries=$((tries + 1))
            sleep 0.05
            count_rounds
        done
        say "$busy_name copied $((rounds - begun)) times right, $wrong wrong, while $name went" \
            "to $type"
    done
    [ -n "$busy" ] || return
    rm /tmp/busy
    wait
}

# work read|write: the disk in use, whole in large pieces, an eighth in pages, and pages at random.
work() {
    if [ "$1" = read ]; then from="if=$disk" to=of=/dev/null direct=iflag=direct at=skip
    else from=if=/dev/zero to="of=$disk" direct=oflag=direct at=seek; fi
    dd "$from" "$to" bs=64k count=$((4 * quarter)) $direct conv=notrunc 2>/dev/null
    dd "$from" "$to" bs=4k count=$((8 * quarter)) $direct conv=notrunc 2>/dev/null
    n=1
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12; do
        n=$(((n * 1103515245 + 12345) % 2147483648))
        dd "$from" "$to" bs=4k count=1 $at=$((n / 65536 % (64 * quarter))) $direct conv=notrunc \
            2>/dev/null
    done
    say "$1 $name"
}

events() { dmesg | grep -c 'arm-smmu-v3.*event 0x'; }

# inject KIND EXPECTED: with EXPECTED=logged waits until the driver has logged one event more.
inject() {
    before=$(events)
    say "inject $1"
    drain
    devmem $INJECT_REGISTER 32 "$1"
    tries=0
    while [ "$(devmem $INJECT_REGISTER)" = 0x00000003 ]; do
        tries=$((tries + 1))
        [ $tries -gt 100 ] && say "inject $1: not finished" && return
        sleep 0.05
    done
    [ "$2" = silent ] && return
    tries=0
    while [ "$(events)" -le "$before" ]; do
        tries=$((tries + 1))
        [ $tries -gt 40 ] && say "inject $1: no event logged" && return
        sleep 0.05
    done
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
while read -r module; do
    [ "$module" = arm_smmuv3_pmu ] && [ ! -x /bin/count-events ] && continue
    insmod "/modules/$module.ko"
done </modules/order
tries=0
while [ ! -b /dev/vda ]; do
    tries=$((tries + 1))
    [ $tries -gt 200 ] && finish "gave up: no /dev/vda after loading the modules"
    sleep 0.05
done

# The DMA master is the device below which a virtio device hangs. The first disk is the one that is
# on no PCI bus, where there is such a one.
set -- ''
for block in /sys/block/vd*; do
    virtio=$(readlink -f "$block/device")
    case ${virtio%/*} in
    */pci*) set -- "$@" "${virtio%/*}" ;;
    *) first=${virtio%/*} && shift && set -- "$first" "$@" ;;
    esac
done
[ -n "$1" ] || shift
first=$1 second=$2

if [ -n "$DEMO_WORK" ]; then
    for master in $first $second; do
        use "$master"
        [ "$DEMO_WORK" = write ] || work read &
        [ "$DEMO_WORK" = read ] || work write &
        [ "$DEMO_WORK" = mixed ] || wait
    done
    wait
    finish "done"
fi

say "kernel $(uname -r)"
say "processors $(nproc)"
sed -n '/^KernelPageSize: *\([0-9]*\).*/{s//GUEST: page size \1 KiB/p;q}' /proc/self/smaps
for node in /sys/devices/system/node/node[0-9]*; do
    processors=$(cat "$node/cpulist")
    say "${node##*/} processors ${processors:-none}" \
        "memory $(sed -n 's/.*MemTotal: *//p' "$node/meminfo") distances $(cat "$node/distance")"
done
use "$first"
say "disk $name on bus $bus in IOMMU group ${group##*/} domain $(cat "$group/type")"
checksum boot
if [ -n "$second" ]; then
    use "$second"
    say "second disk $name on bus $bus in IOMMU group ${group##*/} domain $(cat "$group/type")"
    checksum boot "second "
    copy_quarter
    checksum written "second "
fi
use "$first"
copy_quarter
checksum written

switch_beside "$second" "$first" "" identity DMA-FQ DMA
[ -n "$second" ] && switch_beside "$first" "$second" "second " identity DMA-FQ DMA

use "$first"
# One disk is read while the other rests: accesses of all streams, of each, and one's TLB misses.
if [ -x /bin/count-events ]; then
    for monitor in /sys/bus/event_source/devices/smmuv3_pmcg_*; do
        say "performance monitor ${monitor##*/}"
        count-events "${monitor##*/}" 1 1:0x10 1:0x108 2:0x10 -- \
            dd if="$disk" of=/dev/null bs=64k iflag=direct 2>/dev/null | sed 's/^/GUEST: /'
    done
fi
if [ -n "$DEMO_INJECT" ]; then
    # The fourth one shows that the events are still logged in order after the silent third.
    inject 1 logged
    inject 2 logged
    inject 3 silent
    inject 1 logged
    checksum injected
fi
grep -E 'arm-smmu|virtio' /proc/interrupts | sed 's/^/GUEST: interrupts /'
if [ -n "$second" ]; then
    use "$second"
    checksum end "second "
fi
finish "done"
