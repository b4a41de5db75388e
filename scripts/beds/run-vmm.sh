#!/bin/sh
# run-vmm.sh FOLDER: runs FOLDER/linux_kvm_arm64 on FOLDER/{Image,guest.cpio,disk,pci-disk} and prints, apart
# from the guest's console, "OUTER:" lines with what the kernel says about the VMM from outside:
# where its threads may run and where its memory lies. The same script serves the emulated machine
# (busybox) and an arm64 host. Environment: DEMO_VCPUS, DEMO_NODES, DEMO_MEMORY (MiB), DEMO_TIMEOUT,
# DEMO_OPTIONS (for the guest's command line), DEMO_FEATURES (of the SMMU),
# DEMO_STALLS (--can-stall, or nothing), DEMO_SUSPEND (suspend the machine after so many requests of
# the disk, and go on in another process; nothing: never), DEMO_WORK (read, write or mixed: record
# that I/O, and print the trace).
cd "$1" || exit 1
rm -f report.json sample

sample() {
    # The guest's memory: mappings with at least 1000 pages on one node; nothing else is so large.
    grep -E ' N[0-9]+=[0-9]{4,}' "/proc/$vmm/numa_maps" | sed 's/^/OUTER: memory /'
    for task in /proc/"$vmm"/task/*; do
        cpus=$(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' "$task/status")
        # The 19th number of its stat, the 17th after the name.
        nice=$(sed 's/.*) //' "$task/stat" | sed -E 's/^([^ ]+ ){16}([^ ]+) .*/\2/')
        name=$(cat "$task/comm")
        echo "OUTER: thread $name has nice $nice"
        echo "OUTER: thread $name may run on $cpus"
    done
}

# run OPTION...: one process of the VMM, from start to end; sets status.
# The last sample that shows every vCPU thread is kept: threads come last in it, so the memory was
# looked at while the guest ran.
run() {
    words="DEMO_INJECT=${DEMO_FEATURES:-stage1} DEMO_WORK=$DEMO_WORK $DEMO_OPTIONS"
    ./linux_kvm_arm64 --kernel Image --initrd guest.cpio --disk disk --pci-disk pci-disk \
        --vcpus "$DEMO_VCPUS" --memory "$DEMO_MEMORY" --numa-nodes "$DEMO_NODES" \
        --cmdline "console=ttyAMA0 quiet panic=-1 $words" \
        --features "${DEMO_FEATURES:-stage1}" $DEMO_STALLS --inject --report report.json \
        --timeout "$DEMO_TIMEOUT" "$@" </dev/null &
    vmm=$!
    while kill -0 "$vmm" 2>/dev/null; do
        sample >sample.new 2>/dev/null
        [ "$(grep -c 'thread vcpu' sample.new)" -ge "$DEMO_VCPUS" ] && mv sample.new sample
        sleep 1
    done
    wait "$vmm"
    status=$?
}

if [ -n "$DEMO_SUSPEND" ]; then
    run --suspend-after "$DEMO_SUSPEND" --state machine.saved
    echo "OUTER: process $vmm suspended the machine, exit status $status"
    rm -f sample
    run --resume machine.saved
    echo "OUTER: process $vmm resumed it"
elif [ -n "$DEMO_WORK" ]; then
    run --record trace
    echo "OUTER: trace begin"
    gzip -9 <trace | base64
    echo "OUTER: trace end"
else
    run
fi
echo "OUTER: linux_kvm_arm64 exit status $status"
cat sample 2>/dev/null
for name in disk pci-disk; do
    sum=$(sha256sum <$name)
    echo "OUTER: $name sha256 ${sum%% *}"
done
echo "OUTER: report begin"
cat report.json
echo
echo "OUTER: report end"
