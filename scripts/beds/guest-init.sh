#!/bin/busybox sh
# First process of the demo's guest: drives the disk behind the SMMU through everything the demo
# claims and prints one "GUEST:" line per fact. It judges nothing; the reader of the console does.
# Environment (from the kernel command line): DEMO_INJECT=1 asks the VMM for DMA that must fail.
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

wait_for_disk() {
    tries=0
    while [ ! -b /dev/vda ]; do
        tries=$((tries + 1))
        [ $tries -gt 200 ] && finish "gave up: no /dev/vda after $1"
        sleep 0.05
    done
}

# Reads the whole disk past the page cache; $1 says when.
checksum() {
    echo 3 >/proc/sys/vm/drop_caches
    sum=$(sha256sum </dev/vda)
    say "read $1 domain $(cat "$group/type") sha256 ${sum%% *}"
}

events() { dmesg | grep -c 'arm-smmu-v3.*event 0x'; }

# inject KIND EXPECTED: with EXPECTED=logged waits until the driver has logged one event more.
inject() {
    before=$(events)
    say "inject $1"
    drain
    devmem $INJECT_REGISTER 32 "$1"
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
while read -r module; do insmod "/modules/$module.ko"; done </modules/order
wait_for_disk "loading the modules"

# The DMA master is the device below which the virtio device hangs.
virtio=$(readlink -f /sys/block/vda/device)
master=${virtio%/*}
group=$(readlink -f "$master/iommu_group") || finish "gave up: the disk is in no IOMMU group"
bus=$(basename "$(readlink -f "$master/subsystem")")
driver=$(readlink -f "$master/driver")
name=${master##*/}

say "kernel $(uname -r)"
say "processors $(nproc)"
say "disk $name on bus $bus in IOMMU group ${group##*/} domain $(cat "$group/type")"
checksum boot

# The third quarter of the disk becomes a copy of the first.
quarter=$(($(cat /sys/block/vda/size) / 4 / 128))
dd if=/dev/vda of=/dev/vda bs=64k count=$quarter seek=$((2 * quarter)) conv=notrunc,fsync \
    2>/dev/null
checksum written

for type in identity DMA-FQ DMA; do
    echo "$name" >"$driver/unbind"
    echo "$type" >"$group/type" || say "domain type $type refused"
    echo "$name" >"$driver/bind"
    wait_for_disk "switching to $type"
    checksum "switched"
done

if [ "$DEMO_INJECT" = 1 ]; then
    # The fourth one shows that the events are still logged in order after the silent third.
    inject 1 logged
    inject 2 logged
    inject 3 silent
    inject 1 logged
    checksum injected
fi
grep -E 'arm-smmu|virtio' /proc/interrupts | sed 's/^/GUEST: interrupts /'
finish "done"
