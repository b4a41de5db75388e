#!/bin/busybox sh
# First process of the emulated machine of scripts/on-numa: shows the nodes, then runs the scripts
# under /ways one after the other and prints the exit status of each.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo +cpuset > /sys/fs/cgroup/cgroup.subtree_control
while read -r module; do
    insmod "/modules/$module.ko"
done < /modules/order
# 8 MiB of huge pages on each node that has memory.
for pool in /sys/devices/system/node/node[0-9]*/hugepages/hugepages-2048kB/nr_hugepages; do
    echo 4 > "$pool"
done
stty cols 200
echo "BED: kernel $(uname -r)"
for node in /sys/devices/system/node/node[0-9]*; do
    echo "BED: ${node##*/}: processors $(cat "$node/cpulist")," \
        "$(sed -n 's/.*MemTotal: *//p' "$node/meminfo"), distances $(cat "$node/distance")"
done
cd /tmp || poweroff -f
for way in /ways/*; do
    echo "BED: run $(cat "/names/${way##*/}")"
    sh "$way"
    echo "BED: exit status $?"
done
stty onlcr # returns once the console has sent everything
poweroff -f
sleep 100
