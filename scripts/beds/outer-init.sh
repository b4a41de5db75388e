#!/bin/busybox sh
# First process of the emulated arm64 machine: shows what the machine offers, then runs the VMM.
# Environment (from the kernel command line): DEMO_VCPUS, DEMO_NODES, DEMO_MEMORY, DEMO_TIMEOUT,
# DEMO_OPTIONS, DEMO_FEATURES, DEMO_STALLS, DEMO_SUSPEND, DEMO_WORK.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
echo "OUTER: kernel $(uname -r)"
[ -c /dev/kvm ] && echo "OUTER: /dev/kvm present"
for node in /sys/devices/system/node/node[0-9]*; do
    echo "OUTER: ${node##*/} processors $(cat "$node/cpulist")"
done
[ -x /demo/linux_kvm_arm64 ] && sh /demo/run-vmm.sh /demo
echo "OUTER: power off"
stty onlcr # returns once the console has sent everything
poweroff -f
sleep 100
