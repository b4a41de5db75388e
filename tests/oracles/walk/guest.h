/* The guest program's side of the shared memory: what a batch looks like. Shared by the bare-metal
   program (C) and the host's program (C++). All words are little-endian, as both machines are. */
#ifndef VM_ACCEL_ORACLE_WALK_GUEST_H
#define VM_ACCEL_ORACLE_WALK_GUEST_H

#include <stdint.h>

/* Physical addresses of the emulated machine, whose RAM begins at 1 GiB. */
#define ORACLE_RAM 0x40000000u
#define ORACLE_PROGRAM 0x40400000u /* the bare-metal program; below it lies the device tree */
#define ORACLE_BATCH 0x40800000u   /* struct oracle_batch, then trees, then walks */
#define ORACLE_TABLES 0x48000000u  /* translation tables, up to the end of RAM */
#define ORACLE_RAM_BYTES 0x10000000u

/* The AT instructions by number. */
enum oracle_at {
    AT_S1E1R,
    AT_S1E1W,
    AT_S1E0R,
    AT_S1E0W,
    AT_S1E1RP,
    AT_S1E1WP,
    AT_S12E1R,
    AT_S12E1W,
    AT_S12E0R,
    AT_S12E0W,
    AT_S1E2R,
    AT_S1E2W,
    AT_COUNT
};

/* Registers that are written before the walks of a tree. */
struct oracle_tree {
    uint64_t sctlr, tcr, ttbr0, ttbr1, mair; /* of EL1, or of EL2 when el2 is 1 */
    uint64_t sctlr_el2;                      /* when el2 is 0: its EE is stage 2's byte order */
    uint64_t hcr, vtcr, vttbr;
    uint32_t el2;
    uint32_t walks; /* how many of the walks are this tree's, in order */
    uint64_t skip;  /* 1: its walks are left out */
};

/* One AT instruction and its answer. */
struct oracle_walk {
    uint64_t address;
    uint64_t par; /* PAR_EL1 */
    uint32_t at;  /* enum oracle_at */
    uint32_t esr; /* 0, or ESR_EL3 of the exception that the instruction raised */
};

struct oracle_batch {
    uint64_t trees;      /* count */
    uint64_t trees_at;   /* physical address of the first */
    uint64_t walks_at;   /* physical address of the first */
    uint64_t walks_done; /* written by the guest at the end */
};

#endif
