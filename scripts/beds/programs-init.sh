#!/bin/busybox sh
# First process of the emulated arm64 machine of scripts/on-arm64: runs the programs under /programs
# one after the other and prints the exit status of each.
# Environment (from the kernel command line): PROGRAM_ARGUMENTS, with commas in place of spaces.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
cd /tmp || poweroff -f
for program in /programs/*; do
    # The arguments are words, meant to be split.
    # shellcheck disable=SC2046
    "$program" $(echo "$PROGRAM_ARGUMENTS" | sed 's/,/ /g')
    echo "OUTER: ${program##*/} exit status $?"
done
stty onlcr # returns once the console has sent everything
poweroff -f
sleep 100
